"""A connection: twisted.web's HTTP/1.1 channel, reading within limits and against deadlines."""

# Note [Late clients]
#
# A client that sends a byte now and then keeps any idle timeout from running out, and a few
# thousand of those use up a server (slowloris). So a request's head has to be complete in a given
# time, whatever comes meanwhile, and a body has to come at a rate. A timer for each, begun and
# cancelled with every request, would cost more than reading the request does: a channel only notes
# when it is late, and its site looks at all of them once a second.
#
# The same holds for who reads: one that takes a byte now and then would keep its answer in memory, and
# the thread that makes it. So what waits to be sent has to get less at a rate, too. And a client that asks, and
# asks again, without reading what it is answered, is read no further.

from typing import Any

from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IHalfCloseableProtocol, ISSLTransport, ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from zope.interface import implementer

from novasvc.http.body import Body
from novasvc.http.head import Head, read_head, request_line, see_partial
from novasvc.http.peer import Backlog, has_arrived, is_gone, probe, unsent
from novasvc.http.refusal import RefusedError, error_body, error_head
from novasvc.interfaces import IDrainable

_log = Logger()

LAST_REQUEST = 1.0
"""Seconds that a client has to send its request, on a connection that was open when the server was told to stop."""
_AHEAD = 16384
"""Bytes of further requests that are taken while one is being answered."""
_LINGER = 2.0
"""Seconds that a client whose request is refused may go on sending; closed at once, it would not see the answer."""
_GOODBYE = 1.0
"""Seconds that a client has to answer to the end of a connection over TLS."""
_CLOSING = 60.0
"""Seconds that a client has to read the last of what it is sent, if it is not known how much of it is left."""
_AT_A_TIME = 16
"""Requests of one connection that are answered before others have their turn."""
_INQUIRY = 2.0
"""Seconds after which a client that has ended its sending side is sent an interim response, to see if it is there."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@implementer(IHalfCloseableProtocol, IDrainable)
class Channel(HTTPChannel):
    """Reads requests and gives them to its site; their answers go the way that they go in HTTPChannel.

    :param site: says what the limits are, and makes requests of heads. They have a method
        ``received(content)``, called with the whole body as a file whose position is its end; and
        ``connectionLost(reason)``. When they are answered, they call ``requestDone``.
    """

    # What HTTPChannel reads lines with is not used: a head is read at once, see head.py.

    transport: Any
    common: Any = None
    """What the site keeps of a connection, for its requests."""
    _networkProducer: Any  # noqa: N815 - HTTPChannel has it

    def __init__(self, site: Any) -> None:
        super().__init__()
        self.site = self.factory = site
        self._limits = site.limits
        self._clock = site.reactor.seconds
        self._input = b""
        self._step: Any = self._read_head
        self._advancing = False
        self._body: Body | None = None
        self._late_at: float | None = None
        self._stalled_at: float | None = None
        self._soon: Any = None
        self._fresh = True
        self._skipped = False
        self._draining = False
        self._grace: Any = None
        self._closing = False
        self._resetting = False
        self._input_ended = False
        self._inquire_at: float | None = None

    def connectionMade(self) -> None:
        """Wait for the first request."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.secure = ISSLTransport(self.transport, None) is not None
        self._networkProducer = self.transport
        self._networkProducer.registerProducer(self, True)
        self._backlog = Backlog(self.transport, self._limits, self._clock)
        self._late_at = self._clock() + self._limits.head_timeout
        self.site.watch(self)

    def isSecure(self) -> bool:  # noqa: N802 - twisted.web's name
        """Whether it is TLS."""
        return self.secure

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's default is for tests
        """Let go of what was under way."""
        self.site.forget(self)
        if self.secure and not reason.check(ConnectionClosed):
            self.site.note_broken_tls(self.transport.getPeer(), reason)
        self._closing = True
        self._late_at = self._stalled_at = None
        self._input = b""
        for later in (self._grace, self._soon):
            if later is not None and later.active():
                later.cancel()
        self._forget_body()
        for request in self.requests:
            request.connectionLost(reason)

    # -- what comes in -------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take what the client sends."""
        self._input = self._input + data if self._input else data
        if not self._advancing:
            self._advance()
        if len(self._input) > _AHEAD and (self._waitingForTransport or self._handlingRequest):
            self._networkProducer.pauseProducing()

    def readConnectionLost(self) -> None:
        """Answer what has come, and nothing more. See Note [Half-closed clients] in peer.py."""
        # Told again when the transport is resumed, which has it look once more.
        if not self._input_ended:
            self._input_ended = True
            self._inquire_at = self._clock() + _INQUIRY
            probe(self.transport)
            self._see_end()

    def writeConnectionLost(self) -> None:
        """Do nothing: who is refused may still send for a while."""

    def _see_end(self) -> None:
        """Do what is due when no more comes, unless there is something left to read or to answer."""
        if self._handlingRequest:
            self.persistent = self.persistent and bool(self._input)
        elif self._input and (self._waitingForTransport or (self._soon is not None and self._soon.active())):
            pass  # it is read on later
        elif self._closing or self._fresh:
            self.loseConnection()
        else:
            self.refuse(RefusedError(400, "the connection ended before the request was complete"))

    def _advance(self) -> None:
        """Read on, as long as there is something to read; not called from within itself, however fast answers are."""
        self._advancing = True
        answered = 0
        try:
            while self._input and not self._waitingForTransport:
                answered += self._step == self._read_head
                if answered > _AT_A_TIME:
                    self._advance_soon()
                    break
                if not self._step():
                    break
        except RefusedError as refused:
            self.refuse(refused)
        finally:
            self._advancing = False
        if self._input_ended and not self._closing:
            self._see_end()

    def _advance_soon(self) -> None:
        if self._soon is None or not self._soon.active():
            self._networkProducer.pauseProducing()
            self._soon = self.site.reactor.callLater(0, self._advance_now)

    def _advance_now(self) -> None:
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()
        self._advance()

    def _read_head(self) -> bool:
        data = self._input
        if self._fresh:
            if not self._skipped and data.startswith(b"\r"):
                # Browsers of old sent an empty line after a body; one is passed over (RFC 9112, 2.2).
                if data == b"\r":
                    return False
                if data.startswith(b"\r\n"):
                    self._skipped = True
                    data = self._input = data[2:]
                    if not data:
                        return False
            self._fresh = False
            self._late_at = self._clock() + self._limits.head_timeout
        end = data.find(b"\r\n\r\n")
        if end < 0:
            see_partial(data, self._limits)
            return False
        head = read_head(data[: end + 2], self._limits)
        if head.scheme == b"https" and not self.secure:
            # RFC 9110, 7.4: what is asked of https has to come over TLS.
            raise RefusedError(421, "the target of the request is of https, and this connection is without TLS")
        self._input = data[end + 4 :]
        self._begin(head)
        return True

    def _begin(self, head: Head) -> None:
        """Have a request made of a head, and its body read."""
        self.persistent = not head.last and self._limits.keep_alive and not self._draining
        request = self.site.make_request(self, head)
        self.requests.append(request)
        if head.length == 0:
            self._received(None)
            return
        self._body = Body(head.length, self._limits)
        self._step = self._read_body
        now = self._clock()
        self._body_due = now + self._limits.body_timeout
        self._late_at = self._body_due
        if head.expects and not self._input:
            self.transport.write(_CONTINUE)

    def _read_body(self) -> bool:
        body = self._body
        assert body is not None
        complete, self._input = body.take(self._input)
        if complete:
            self._body = None
            self._received(body)
            return True
        limits = self._limits
        due = self._body_due + body.received / limits.body_rate
        self._late_at = min(due, self._clock() + limits.idle_timeout) if limits.idle_timeout else due
        return False

    def _received(self, body: Body | None) -> None:
        """Give a whole request to who answers it."""
        self._late_at = None
        self._step = self._wait
        self._handlingRequest = True
        if self._input_ended and not self._input:
            self.persistent = False
        self.requests[-1].received(None if body is None else body.file)

    def _wait(self) -> bool:
        """Read no further while a request is being answered."""
        return False

    def _discard(self) -> bool:
        self._input = b""
        return False

    # -- the end of a request ------------------------------------------------------------------

    def requestDone(self, request: Any) -> None:  # noqa: N802 - twisted.web's name
        """See a request answered, and go on to the next one. Called by the request."""
        self.requests.remove(request)
        self._handlingRequest = False
        if not self.persistent or self._closing:
            self.loseConnection()
            return
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()
        self._fresh = True
        self._skipped = False
        self._step = self._read_head
        idle = self._limits.idle_timeout
        self._late_at = self._clock() + idle if idle else None
        if self._advancing:
            return
        if self._input:
            self._advance()
        elif self._input_ended:
            self.loseConnection()

    def refuse(self, refused: RefusedError) -> None:
        """Answer what is no request, or one that is too much, and close the connection."""
        request = self.requests.pop() if self.requests else None
        self._forget_body()
        line = request_line(self._input) if request is None else request.head.line
        body = error_body(refused.status, refused.message)
        self.site.note_refused(self, refused, line, len(body), begun=request is not None)
        head = error_head(refused.status, len(body), self.site.date)
        silent = request is not None and request.head.method == b"HEAD"
        self.transport.write(head if silent else head + body)
        self._linger()

    def _linger(self) -> None:
        """Close, once the client has seen the answer: unread input would have the kernel drop it."""
        self._step = self._discard
        self._input = b""
        self._closing = True
        self._late_at = self._clock() + _LINGER
        if self.secure or self._input_ended or not hasattr(self.transport, "loseWriteConnection"):
            self.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def loseConnection(self) -> None:
        """Close, when all has been sent."""
        self._step = self._discard
        self._input = b""
        self._closing = True
        self._late_at = self._backlog.due(_CLOSING)
        super().loseConnection()

    def break_off(self, *, delimited: bool) -> None:
        """End the connection when what was written has arrived, so that the client does not take it for the whole.

        The request under way gets its connectionLost.

        :param delimited: the answer says where its end would be (Content-Length, chunks). Where it is the connection's
            end, only a reset tells that something is missing (RFC 9112, 8).
        """
        if delimited:
            self.loseConnection()
            return
        self.unregisterProducer()
        self._step = self._discard
        self._input = b""
        self._closing = self._resetting = True
        self._late_at = self._backlog.due(_CLOSING)

    def abortConnection(self) -> None:
        """Close at once."""
        self._closing = True
        self.transport.abortConnection()

    def drain(self) -> None:
        """Take no further request after this one, or after one that comes within a second."""
        self._draining = True
        self.persistent = False
        if not self.requests:
            self._grace = self.site.reactor.callLater(LAST_REQUEST, self._close_idle)

    @property
    def waits(self) -> bool:
        """Whether the client does not read as fast as it is sent to."""
        return bool(self._waitingForTransport)

    def _close_idle(self) -> None:
        if not self.requests:
            self.loseConnection()

    def _forget_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()

    # -- time ----------------------------------------------------------------------------------

    def see_time(self, now: float) -> None:
        """Do what is due, if the client is late, or has gone. Called once a second."""
        if self._resetting and has_arrived(self.transport):
            self.abortConnection()
            return
        if self._input_ended and self.requests and not self._closing:
            self._see_gone(now)
        self._see_late(now)

    def _see_late(self, now: float) -> None:
        if self._closing and self.secure and unsent(self.transport) == 0:
            # All is sent, also that it is the end. TLS waits for the client to say so, too, which it need not do.
            self._late_at = min(self._late_at or float("inf"), now + _GOODBYE)
        if self._stalled_at is not None and now >= self._stalled_at:
            if self._backlog.is_read():
                self._stalled_at = self._backlog.due(self._limits.idle_timeout)
                return
            _log.info("a client that did not read its answer is cut: {peer}", peer=self.transport.getPeer())
            self.abortConnection()
        elif self._late_at is not None and now >= self._late_at:
            self._late_at = None
            if self._closing and self._backlog.is_read():
                self._late_at = self._backlog.due(_CLOSING)
            elif self._closing:
                self.abortConnection()
            elif self._body is not None:
                self.refuse(RefusedError(408, "the body did not come in time"))
            elif self._fresh:
                self.loseConnection()
            else:
                seconds = self._limits.head_timeout
                self.refuse(RefusedError(408, f"the head of the request was not complete within {seconds:g} s"))

    def _see_gone(self, now: float) -> None:
        """Find out whether a client that has ended its sending side is there; see the note in peer.py."""
        if is_gone(self.transport):
            self.abortConnection()
        elif self._inquire_at is not None and now >= self._inquire_at:
            self._inquire_at = None
            request = self.requests[0]
            if request.head.version == b"HTTP/1.1" and not request.startedWriting:
                self.transport.write(_CONTINUE)

    def pauseProducing(self) -> None:
        """See that the client does not read as fast as it is sent to."""
        if self._limits.idle_timeout:
            self._stalled_at = self._backlog.due(self._limits.idle_timeout)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """See that it has read."""
        self._stalled_at = None
        super().resumeProducing()
        if self._input and not self._advancing:
            self._advance()
