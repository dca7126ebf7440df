"""A request to a WSGI application: one hop to a thread and one hop back for most responses (PEP 3333)."""

# Note [One hop]
#
# twisted.web's WSGIResource has the thread call the reactor for the head of the response, for each part of its body,
# and for its end, and each of these wakes the reactor. Here a thread puts what it has into its WSGIRequest, and only
# tells the reactor that there is something (see ReactorQueue): one turn of the reactor sends all there is, from all
# threads. A response that an application returns as a list of one item, as most do, is complete at once and sent at
# once. Parts of other responses are not held back: PEP 3333 forbids that, and a client may wait for the first event of
# a stream; what the application yields before the reactor gets its turn is sent together.
#
# A thread that yields faster than the client reads waits; see WSGIRequest.write. The channel closes the connection of a
# client that does not read, and that ends the wait.

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from threading import Event
from types import TracebackType
from typing import IO, Any

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.http.access_log import loggable_target
from novasvc.http.channel import LimitedChannel
from novasvc.http.environ import make_environ
from novasvc.http.errors import FAILED, error_body, reason_phrase
from novasvc.http.head import Head
from novasvc.http.response_framing import ResponseFraming
from novasvc.http.response_head import ResponseError, ResponseHead, make_response_head

_log = Logger()

_MAX_UNSENT = 65536
"""Bytes of a response that a thread may be ahead of the reactor."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType]


class _ClientGoneError(Exception):
    """The client has disconnected; raised in the application to end its iteration."""


@implementer(IPushProducer)
class WSGIRequest:
    """A request to the application, and its response. See Note [One hop].

    :param site: a :class:`novasvc.http.wsgi.WSGISite`.
    :ivar began: seconds on the reactor's clock when the head was complete.

    Each attribute is set by one thread only, except that the reactor sets those of the application's thread before the
    thread runs. What both threads use is replaced as a whole, or is a deque: under the GIL that needs no lock.
    """

    route = ""  # the paths of an application are not ours, and have no bound: they are no label of the metrics
    request_id = ""

    def __init__(self, site: Any, channel: LimitedChannel, head: Head) -> None:
        self.head = head
        self._site = site
        self._channel = channel
        self.began = site.reactor.seconds()
        self._content: IO[bytes] | None = None
        self._context: Context | None = None
        # Set by the application's thread:
        self._response: ResponseHead | None = None
        self._committed = False  # PEP 3333: from now on start_response() cannot replace the head
        self._parts: deque[bytes] = deque()
        self._written = 0
        self._ended = False
        self._failure: Failure | None = None
        self._resume: Event | None = None
        # Set by both: the thread sets it when it queues _flush(), the reactor clears it when it begins.
        self._flush_queued = False
        # Set by the reactor:
        self._taken = 0
        self._paused = False
        self._client_gone = False
        self._framing: ResponseFraming | None = None
        self._is_producer = False

    # -- in the reactor ------------------------------------------------------------------------

    def received(self, content: IO[bytes] | None) -> None:
        """Queue the request for a thread. Called by the channel when it is complete."""
        self._content = content
        if self._site.around is not None:
            # Middleware may have set context variables for the application, such as the current span.
            self._context = copy_context()
        if not self._site.pool.submit(self._run):
            message = "this server is busy: all threads are in use, and the queue is full"
            self._respond_with_error(503, message, [("Retry-After", "1")])
            self._flush()

    def connectionLost(self, reason: Failure) -> None:
        """Leave the queue, or have the thread end: the client has disconnected."""
        self._client_gone = True
        if self._site.pool.cancel(self._run):
            self._close_content()
        self._wake_thread()
        self._report_end()

    def pauseProducing(self) -> None:
        """Have the thread wait: the client reads too slowly."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Have the thread go on."""
        self._paused = False
        self._wake_thread()

    @property
    def startedWriting(self) -> bool:  # noqa: N802 - twisted.web's name
        """Whether the head of the response is sent."""
        return self._framing is not None

    def stopProducing(self) -> None:
        """Do nothing: connectionLost follows."""

    def _wake_thread(self) -> None:
        resume = self._resume
        if resume is not None:
            resume.set()

    def _flush(self) -> None:
        """Send what the thread has written."""
        # Cleared before anything is read: whatever the thread adds from now on is flushed by another call. And
        # ``_ended`` is read before the parts: the thread sets it after the last one.
        self._flush_queued = False
        ended, failure = self._ended, self._failure
        if failure is not None and ended:
            self._failure = None
            target = loggable_target(self.head.target)
            _log.failure("{app}: {target} failed", failure, app=self._site.name, target=target)
        if self._client_gone:
            return
        # A response that failed midway must not look complete: it gets no Content-Length here, and no last chunk.
        complete = ended and (failure is None or not self._committed)
        framing = self._send(complete=complete)
        if not ended:
            self._expect_more()
        elif complete and framing.is_full_length():
            self._finish()
        else:
            self._channel.close_incomplete(delimited=framing.delimited)

    def _send(self, *, complete: bool) -> ResponseFraming:
        """Send the parts of the body that are there, in one write, and the head before the first one."""
        parts = []
        while self._parts:
            parts.append(self._parts.popleft())
        framing = self._framing
        if framing is None:
            response = self._response
            assert response is not None
            framing = self._framing = ResponseFraming(self._site, self._channel, self.head, response)
        self._taken += sum(map(len, parts))
        if out := framing.frame(parts, last=complete):
            self._channel.transport.write(out[0] if len(out) == 1 else b"".join(out))
        return framing

    def _expect_more(self) -> None:
        """Have the thread go on, as fast as the client reads."""
        if not self._is_producer:
            self._is_producer = True
            self._paused = self._channel.write_blocked
            self._channel.registerProducer(self, True)
        self._wake_thread()

    def _finish(self) -> None:
        if self._is_producer:
            self._channel.unregisterProducer()
        self._report_end()
        self._channel.requestDone(self)

    def _report_end(self) -> None:
        framing, response = self._framing, self._response
        code, sent = (0, 0) if framing is None or response is None else (response.code, framing.sent)
        self._site.request_ended(self, self._channel.transport.getPeer(), code, sent)

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        """Run the application."""
        try:
            if self._client_gone:
                pass
            elif self._context is None:
                self._call(self._site.app, self._content)
            else:
                self._context.run(self._call, self._site.app, self._content)
        except _ClientGoneError:
            pass
        except BaseException:  # noqa: BLE001 - not even SystemExit may end the thread, or the process
            self._failed()
        finally:
            self._close_content()

    def _close_content(self) -> None:
        if self._content is not None:
            with suppress(OSError):  # closing flushes a temporary file, and the disk may be full
                self._content.close()

    def _call(self, app: App, content: IO[bytes] | None) -> None:
        environ = make_environ(self._channel.common, self.head, content)
        result = app(environ, self._start_response)
        try:
            if type(result) is list and len(result) == 1:
                # The usual case. PEP 3333: the server knows the Content-Length if the iterable has one item.
                self._check_part(result[0])
                self._add(result[0])
                self._end()
                return
            for part in result:
                if part:  # PEP 3333: the head is not sent before the first non-empty part
                    self.write(part)
            self._end()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()  # PEP 3333: always, whether or not the iteration was completed

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._committed:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # breaks the cycle of traceback and frame, as PEP 3333 asks for
        elif self._response is not None:
            raise ResponseError("start_response was called a second time without exc_info")
        self._response = make_response_head(status, headers)
        return self.write

    def write(self, part: bytes) -> None:
        """Send a part of the body; block while the client is too far behind. PEP 3333 calls this function write."""
        self._check_part(part)
        if self._ended:
            # The client would take it for the begin of the next response.
            raise ResponseError("write() was called after the end of the response")
        if self._client_gone:
            raise _ClientGoneError
        self._add(part)
        self._queue_flush()
        while self._must_wait():
            # No wake-up is lost: the reactor looks for the event after it has changed something, and this thread checks
            # again after the event is there.
            self._resume = resume = Event()
            if self._must_wait():
                resume.wait()
            self._resume = None
        if self._client_gone:
            raise _ClientGoneError

    def _must_wait(self) -> bool:
        return not self._client_gone and (self._paused or self._written - self._taken > _MAX_UNSENT)

    def _check_part(self, part: bytes) -> None:
        if self._response is None:
            raise ResponseError("the body begins before start_response was called")
        if type(part) is not bytes:
            raise ResponseError(f"the body must consist of bytes, not {type(part).__name__}")

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._written += len(part)

    def _end(self) -> None:
        if self._response is None:
            raise ResponseError("the application returned without calling start_response")
        self._ended = True
        self._queue_flush()

    def _queue_flush(self) -> None:
        self._committed = True
        if not self._flush_queued:
            self._flush_queued = True
            self._site.pool.call_in_reactor(self._flush)

    def _failed(self) -> None:
        """Log the exception, and respond with a 500 without details if nothing was sent yet."""
        failure = Failure()
        failure.cleanFailure()
        if self._ended:
            name = self._site.name
            self._site.pool.reactor_queue.post(lambda: _log.failure("{app}: close() failed", failure, app=name))
            return
        self._failure = failure
        if not self._committed:
            self._respond_with_error(500, FAILED, [])
        self._ended = True
        if not self._flush_queued:
            self._flush_queued = True
            self._site.pool.call_in_reactor(self._flush)

    def _respond_with_error(self, status: int, message: str, headers: list[tuple[str, str]]) -> None:
        """Replace the response with an error of the server's own."""
        self._response = make_response_head(
            f"{status} {reason_phrase(status)}",
            [("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"), *headers],
        )
        self._add(error_body(status, message))
        self._ended = True
