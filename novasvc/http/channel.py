"""A connection: twisted.web's HTTP/1.1 channel with its own parser, limits and deadlines."""

# Note [States of a channel]
#
# ``_step`` is the state: the function that consumes input next. Each returns whether it made progress; then _advance()
# calls the next one.
#
#   _read_head --head complete--> _read_body --body complete--> _wait --requestDone--> _read_head
#   _read_head --no body--> _wait
#   any        --error, or the last response--> _discard, until the connection is closed

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc._compat import set_request_in_progress
from novasvc.http.body import Body
from novasvc.http.errors import HTTPError, error_body, error_head
from novasvc.http.head import Head, PartialHead, read_head, request_line
from novasvc.http.teardown import CONTINUE, TeardownChannel
from novasvc.interfaces import IDrainable

_MAX_PIPELINED = 16384
"""Bytes of pipelined requests that are buffered while one is being answered."""
_MAX_CONSECUTIVE = 16
"""Pipelined requests that are answered before other connections get their turn of the reactor."""


@implementer(IHalfCloseableProtocol, IDrainable)
class LimitedChannel(TeardownChannel):
    """Parses requests and hands them to its site; responses are written through HTTPChannel's methods.

    None of HTTPChannel's line-based parsing is used: a head is parsed as a whole, see head.py.

    :param site: has the limits, and makes a request of each head. A request has a method ``received(content)``, which
        is called with the whole body, a file positioned at its end, or None; and ``connectionLost(reason)``. When it is
        answered, it calls ``requestDone``.
    """

    common: Any = None
    """What the site caches per connection, for its requests."""

    def __init__(self, site: Any) -> None:
        super().__init__(site)
        self._input = b""
        self._step: Any = self._read_head
        self._advancing = False
        self._partial_head: PartialHead | None = None
        self._body: Body | None = None
        self._soon: Any = None
        self._between_requests = True
        self._skipped_empty_line = False
        self._responding = False

    def connectionMade(self) -> None:
        """Wait for the first request."""
        super().connectionMade()
        self._deadlines.input_due = self._clock() + self._limits.head_timeout

    # -- input ---------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Parse what the client sends."""
        self._input = self._input + data if self._input else data
        if not self._advancing:
            self._advance()
        # Back-pressure: without it a client could fill our memory with pipelined requests.
        if len(self._input) > _MAX_PIPELINED and (self.write_blocked or self._responding):
            self.transport.pauseProducing()

    def readConnectionLost(self) -> None:
        """Answer what has arrived; nothing more will. See Note [Half-closed clients] in peer.py."""
        # Called again each time the transport is resumed, as it then reads the end of input once more.
        if not self._input_ended:
            self.note_end_of_input()
            self._end_of_input()

    def _end_of_input(self) -> None:
        """Close, or reject the incomplete request, unless something is left to parse or to answer."""
        if self._responding:
            # The response to the last request closes the connection.
            self.persistent = self.persistent and bool(self._input)
        elif self._input and (self.write_blocked or (self._soon is not None and self._soon.active())):
            pass  # resumeProducing() or _advance_now() will parse it
        elif self._closing or self._between_requests:
            self.loseConnection()
        else:
            self.send_error(HTTPError(400, "the connection ended before the request was complete"))

    def _advance(self) -> None:
        """Parse as long as there is input.

        Never called from within itself: a request that is answered at once calls requestDone() from inside a step, and
        recursion would let a client with many pipelined requests exhaust the stack.
        """
        self._advancing = True
        answered = 0
        try:
            while self._input and not self.write_blocked:
                answered += self._step == self._read_head
                if answered > _MAX_CONSECUTIVE:
                    self._advance_soon()
                    break
                if not self._step():
                    break
        except HTTPError as error:
            self.send_error(error)
        finally:
            self._advancing = False
        if self._input_ended and not self._closing:
            self._end_of_input()

    def _advance_soon(self) -> None:
        """Go on in the next turn of the reactor, so that other connections get theirs."""
        if self._soon is None or not self._soon.active():
            self.transport.pauseProducing()
            self._soon = self.site.reactor.callLater(0, self._advance_now)

    def _advance_now(self) -> None:
        if not self.write_blocked:
            self.transport.resumeProducing()
        self._advance()

    def _read_head(self) -> bool:
        data = self._input
        if self._between_requests:
            if data.startswith(b"\r") and not self._skipped_empty_line:
                return self._skip_empty_line()
            self._between_requests = False
            self._deadlines.input_due = self._clock() + self._limits.head_timeout
        partial = self._partial_head
        end = data.find(b"\r\n\r\n", 0 if partial is None else max(0, partial.checked - 3))
        if end < 0:
            if partial is None:
                partial = self._partial_head = PartialHead(self._limits)
            partial.check(data)
            return False
        self._partial_head = None
        head = read_head(data[: end + 2], self._limits)
        if head.scheme == b"https" and not self.secure:
            # A server must not answer for https over an insecure connection (RFC 9110, 7.4).
            raise HTTPError(421, "the request target is an https URL, but this connection does not use TLS")
        self._input = data[end + 4 :]
        self.persistent = not head.last and self._limits.keep_alive and not self._draining
        self.requests.append(self.site.make_request(self, head))
        if head.length == 0:
            self._received(None)
        else:
            self._begin_body(head)
        return True

    def _skip_empty_line(self) -> bool:
        """Skip an empty line before a request; return whether there is more input.

        Old clients send an extra CRLF after a body; a server ignores at least one (RFC 9112, 2.2). More than one is
        rejected by read_head(), as two readers might disagree on where the request begins.
        """
        if self._input == b"\r":
            return False  # its LF may be on the way
        self._skipped_empty_line = True
        if self._input.startswith(b"\r\n"):
            self._input = self._input[2:]
        return bool(self._input)

    def _begin_body(self, head: Head) -> None:
        # The constructor rejects a Content-Length over the limit: before the client is told to go on.
        self._body = Body(head.length, self._limits)
        self._step = self._read_body
        now = self._clock()
        self._body_due = now + self._limits.body_timeout
        self._deadlines.input_due = self._body_due
        # A client that has begun to send its body does not wait for this (RFC 9110, 10.1.1).
        if head.expects and not self._input:
            self.transport.write(CONTINUE)

    def _read_body(self) -> bool:
        body = self._body
        assert body is not None
        complete, self._input = body.take(self._input)
        if complete:
            self._body = None
            self._received(body)
            return True
        limits = self._limits
        # Each body_rate bytes extend the deadline by a second: the minimum rate of Note [Slow clients].
        due = self._body_due + body.received / limits.body_rate
        self._deadlines.input_due = min(due, self._clock() + limits.idle_timeout) if limits.idle_timeout else due
        return False

    def _received(self, body: Body | None) -> None:
        """Have a complete request answered."""
        self._deadlines.input_due = None
        self._step = self._wait
        self._responding = True
        set_request_in_progress(self, in_progress=True)
        if self._input_ended and not self._input:
            self.persistent = False
        request, content = self.requests[-1], None if body is None else body.file
        if self.site.around is None:
            request.received(content)
        else:
            self.site.around.serve(self, request, content)

    def _wait(self) -> bool:
        """Parse nothing while a request is answered: responses keep the order of requests (RFC 9112, 9.3.2)."""
        return False

    def _discard(self) -> bool:
        self._input = b""
        return False

    # -- the end of a request ------------------------------------------------------------------

    def requestDone(self, request: Any) -> None:  # noqa: N802 - twisted.web's name
        """Go on to the next request. Called by a request whose response is written."""
        self.requests.remove(request)
        self._responding = False
        set_request_in_progress(self, in_progress=False)
        if not self.persistent or self._closing:
            self.loseConnection()
            return
        if not self.write_blocked:
            self.transport.resumeProducing()
        self._between_requests = True
        self._skipped_empty_line = False
        self._step = self._read_head
        idle = self._limits.idle_timeout
        self._deadlines.input_due = self._clock() + idle if idle else None
        if self._advancing:
            return  # the loop in _advance() goes on
        if self._input:
            self._advance()
        elif self._input_ended:
            self.loseConnection()

    def reject_received(self, error: HTTPError) -> None:
        """Send an error response to a complete request that no application has begun to answer."""
        self._responding = False
        set_request_in_progress(self, in_progress=False)
        self.send_error(error)

    def send_error(self, error: HTTPError) -> None:
        """Send an error response, and close the connection: where its next request begins is unknown."""
        request = self.requests.pop() if self.requests else None
        self._drop_body()
        line = request_line(self._input) if request is None else request.head.line
        body = error_body(error.status, error.message)
        self.site.request_rejected(self, error, line, len(body), begun=request is not None)
        head = error_head(error.status, len(body), self.site.date)
        head_only = request is not None and request.head.method == b"HEAD"
        self.transport.write(head if head_only else head + body)
        self.linger()

    def discard_input(self) -> None:
        """Discard the input that was not parsed, and all that follows."""
        self._step = self._discard
        self._input = b""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's default is for tests
        """Cancel the requests in progress."""
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        self._drop_body()
        super().connectionLost(reason)

    def input_overdue(self) -> None:
        """Respond with 408, or close an idle connection without a response (RFC 9112, 9.5)."""
        if self._body is not None:
            self.send_error(HTTPError(408, "the request body did not arrive in time"))
        elif self._between_requests:
            self.loseConnection()
        else:
            seconds = self._limits.head_timeout
            self.send_error(HTTPError(408, f"the request head was not complete within {seconds:g} s"))

    def resumeProducing(self) -> None:
        """Resume the response, or the parsing of further requests: the transport's buffer is empty."""
        super().resumeProducing()
        if self._input and not self._advancing:
            self._advance()

    def _drop_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()
