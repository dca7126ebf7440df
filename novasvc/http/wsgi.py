"""WSGI applications, run in threads: one hop to the thread and one hop back for most responses (PEP 3333)."""

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
from threading import Event
from types import TracebackType
from typing import IO, Any

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.http.access_log import AccessLog, loggable
from novasvc.http.channel import LimitedChannel
from novasvc.http.environ import ErrorLog, make_environ, server_environ
from novasvc.http.errors import FAILED, error_body, reason_phrase
from novasvc.http.head import Head
from novasvc.http.limits import Limits
from novasvc.http.response_head import ResponseError, ResponseHead, make_response_head
from novasvc.http.site import Site
from novasvc.http.threadpool import QUEUE, THREADS, ThreadPool
from novasvc.telemetry import metrics

_log = Logger()

_MAX_UNSENT = 65536
"""Bytes of a response that a thread may be ahead of the reactor."""
_MAX_LOGGED = 200
"""Bytes of a request target in a log line."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType]


class WSGISite(Site):
    """A site with one WSGI application for all requests.

    :param app: the application.
    :param threads: requests that it answers at a time.
    :param queue: requests that may wait for a thread; more get 503.
    :param multiprocess: whether other processes serve the same application.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        reactor: Any,
        log: AccessLog | None = None,
        name: str = "wsgi",
        threads: int = THREADS,
        queue: int = QUEUE,
        multiprocess: bool = False,
    ) -> None:
        super().__init__(None, limits=limits, reactor=reactor, log=log, name=name)
        self.app = app
        self.pool = ThreadPool(reactor, threads=threads, queue=queue)
        self._common = {"wsgi.multiprocess": multiprocess, "wsgi.errors": ErrorLog(self.pool.reactor_queue, name)}

    def make_request(self, channel: LimitedChannel, head: Head) -> "WSGIRequest":
        """Make the request of a head; see :class:`~novasvc.http.channel.LimitedChannel`."""
        metrics.request_begins(self.name)
        if channel.common is None:
            transport = channel.transport
            common = server_environ(transport.getHost(), transport.getPeer(), secure=channel.secure)
            channel.common = common | self._common
        return WSGIRequest(self, channel, head)


class _ClientGoneError(Exception):
    """The client has disconnected; raised in the application to end its iteration."""


@implementer(IPushProducer)
class WSGIRequest:
    """A request to the application, and its response. See Note [One hop].

    Each attribute is set by one thread only, except that the reactor sets those of the application's thread before the
    thread runs. What both threads use is replaced as a whole, or is a deque: under the GIL that needs no lock.
    """

    def __init__(self, site: WSGISite, channel: LimitedChannel, head: Head) -> None:
        self.head = head
        self._site = site
        self._channel = channel
        self._began = site.reactor.seconds()
        self._content: IO[bytes] | None = None
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
        self._head_sent = False
        self._chunked = False
        self._sent = 0
        self._remaining: int | None = None
        self._overrun_logged = False
        self._bodiless = False
        self._is_producer = False

    # -- in the reactor ------------------------------------------------------------------------

    def received(self, content: IO[bytes] | None) -> None:
        """Queue the request for a thread. Called by the channel when it is complete."""
        self._content = content
        if not self._site.pool.submit(self._run):
            message = "this server is busy: all threads are in use, and the queue is full"
            self._respond_with_error(503, message, [("Retry-After", "1")])
            self._flush()

    def connectionLost(self, reason: Failure) -> None:
        """Have the thread end: the client has disconnected."""
        self._client_gone = True
        self._wake_thread()
        code = self._response.code if self._head_sent and self._response is not None else 0
        self._site.request_ended(self._channel.transport.getPeer(), self.head, "", code, self._sent, self._began)

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
        return self._head_sent

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
            _log.failure(
                "{app}: {target} failed", failure, app=self._site.name, target=loggable(self.head.target[:_MAX_LOGGED])
            )
        if self._client_gone:
            return
        parts = []
        count = 0
        while self._parts:
            part = self._parts.popleft()
            count += len(part)
            parts.append(part)
        self._taken += count
        # A response that failed midway must not look complete: it gets no Content-Length here, and no last chunk.
        failed_midway = failure is not None and self._committed
        out = self._framed(parts, count, ended=ended and not failed_midway)
        complete = ended and not failed_midway and self._is_full_length()
        if self._chunked and complete:
            out.append(b"0\r\n\r\n")
        channel = self._channel
        if out:
            channel.transport.write(out[0] if len(out) == 1 else b"".join(out))
        if complete:
            self._finish()
        elif ended:
            channel.close_incomplete(delimited=self._chunked or self._bodiless or self._remaining is not None)
        else:
            if not self._is_producer:
                self._is_producer = True
                self._paused = channel.write_blocked
                channel.registerProducer(self, True)
            self._wake_thread()

    def _framed(self, parts: list[bytes], count: int, *, ended: bool) -> list[bytes]:
        """Return the octets to send for these parts of the body."""
        out = []
        if not self._head_sent:
            self._head_sent = True
            out.append(self._head(count, ended=ended))
        if self._bodiless or not count:
            return out
        if self._remaining is not None:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            if count > self._remaining:
                # The client would parse the rest as the head of the next response (RFC 9112, 6.3).
                self._log_overrun(count - self._remaining)
                data = data[: self._remaining]
            self._remaining -= len(data)
            self._sent += len(data)
            out.append(data)
            return out
        self._sent += count
        if self._chunked:
            return [*out, b"%x\r\n" % count, *parts, b"\r\n"]
        return out + parts

    def _log_overrun(self, overrun: int) -> None:
        if not self._overrun_logged:
            self._overrun_logged = True
            _log.error(
                "{app}: the response to {target} is longer than its Content-Length; {count} bytes or more are cut off",
                app=self._site.name,
                target=loggable(self.head.target[:_MAX_LOGGED]),
                count=overrun,
            )

    def _head(self, count: int, *, ended: bool) -> bytes:
        """Return the head of the response, and decide how its body is delimited (RFC 9112, 6.3)."""
        response, channel = self._response, self._channel
        assert response is not None
        text = response.text if response.dated else b"%bDate: %b\r\n" % (response.text, self._site.date)
        head_only = self.head.method == b"HEAD"
        self._bodiless = head_only or response.without_body
        if response.length is not None:
            self._remaining = None if self._bodiless else response.length
        elif response.without_body:
            pass
        elif ended:
            # All of the body is here, so its length is known (PEP 3333, "Handling the Content-Length Header"). An empty
            # body for HEAD says nothing about the length of that for GET.
            self._remaining = count
            if count or not head_only:
                text += b"Content-Length: %d\r\n" % count
        elif self._bodiless:
            pass
        elif self.head.version == b"HTTP/1.1":
            self._chunked = True
            text += b"Transfer-Encoding: chunked\r\n"
        else:
            channel.persistent = False  # HTTP/1.0: the close ends the body
        if channel.persistent:
            return text + b"\r\n"
        return text + b"Connection: close\r\n\r\n"

    def _is_full_length(self) -> bool:
        """Return whether the body is as long as the application announced; log it if not."""
        if not self._remaining or self._bodiless:
            return True
        _log.error(
            "{app}: the response to {target} is {missing} bytes shorter than its Content-Length",
            app=self._site.name,
            target=loggable(self.head.target[:_MAX_LOGGED]),
            missing=self._remaining,
        )
        return False

    def _finish(self) -> None:
        channel = self._channel
        if self._is_producer:
            channel.unregisterProducer()
        response = self._response
        assert response is not None
        self._site.request_ended(channel.transport.getPeer(), self.head, "", response.code, self._sent, self._began)
        channel.requestDone(self)

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        """Run the application."""
        content = self._content
        try:
            if not self._client_gone:
                self._call(self._site.app, content)
        except _ClientGoneError:
            pass
        except BaseException:  # noqa: BLE001 - not even SystemExit may end the thread, or the process
            self._failed()
        finally:
            if content is not None:
                with suppress(OSError):  # closing flushes a temporary file, and the disk may be full
                    content.close()

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
