"""WSGI applications: run in threads, one hop there and one hop back for most answers."""

# Note [One hop]
#
# twisted.web's own WSGIResource has the thread call the reactor for the head of the answer, for each
# part of its body, and for its end, and each of these wakes the reactor. Here a thread puts what it
# has into its exchange, and tells the reactor only that there is something (see Mailbox): one turn
# of the reactor takes all there is, of all threads. An answer that an application returns as a list
# of one text, as most do, is there as a whole, and goes out as a whole. Of others nothing is kept
# back: PEP 3333 forbids that, and a client may wait for the first event of a stream; what the
# application yields before the reactor gets its turn goes out together.
#
# A thread that yields faster than the client reads waits; see Exchange.take. The channel cuts a client
# that does not read, and that frees the thread.

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

from novasvc.http.access_log import AccessLog, shown
from novasvc.http.answer import Answer, AnswerError, make_answer
from novasvc.http.channel import Channel
from novasvc.http.crew import QUEUE, THREADS, Crew
from novasvc.http.environ import ErrorLog, make_environ, server_environ
from novasvc.http.head import Head
from novasvc.http.limits import Limits
from novasvc.http.refusal import error_body, title
from novasvc.http.site import Site
from novasvc.telemetry import metrics

_log = Logger()

_UNSENT = 65536
"""Bytes of an answer that a thread may be ahead of the reactor."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""
_Raised = tuple[type[BaseException], BaseException, TracebackType]


class WSGISite(Site):
    """A site whose every request is answered by one application.

    :param app: of WSGI.
    :param threads: requests that it works on at a time.
    :param queue: requests that may wait for a thread; more get 503.
    :param multiprocess: whether other processes serve the same.
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
        self.crew = Crew(reactor, threads=threads, queue=queue)
        self.mailbox = self.crew.mailbox
        self._common = {"wsgi.multiprocess": multiprocess, "wsgi.errors": ErrorLog(self.mailbox, name)}

    def make_request(self, channel: Channel, head: Head) -> "Exchange":
        """Make the exchange of a request and its answer."""
        metrics.request_begins(self.name)
        if channel.common is None:
            transport = channel.transport
            common = server_environ(transport.getHost(), transport.getPeer(), secure=channel.secure)
            channel.common = common | self._common
        return Exchange(self, channel, head)


class _GoneError(Exception):
    """The client has gone, and nobody is there to take the answer."""


@implementer(IPushProducer)
class Exchange:
    """A request and its answer. See Note [One hop].

    Methods say which thread calls them; what both touch is replaced or popped at once, never changed.
    """

    def __init__(self, site: WSGISite, channel: Channel, head: Head) -> None:
        self.head = head
        self._site = site
        self._channel = channel
        self._began = site.reactor.seconds()
        self._content: IO[bytes] | None = None
        # Set by the thread:
        self._answer: Answer | None = None
        self._committed = False
        self._parts: deque[bytes] = deque()
        self._put = 0
        self._ended = False
        self._failure: Failure | None = None
        self._gate: Event | None = None
        # Set by the reactor:
        self._posted = False
        self._taken = 0
        self._paused = False
        self._gone = False
        self._begun = False
        self._chunked = False
        self._sent = 0
        self._left: int | None = None
        self._surplus = False
        self._silent = False
        self._streams = False

    # -- in the reactor ------------------------------------------------------------------------

    def received(self, content: IO[bytes] | None) -> None:
        """Have the application answer. Called by the channel when the request is complete."""
        self._content = content
        if not self._site.crew.submit(self._run):
            message = "this server is busy: all its threads are, and as many requests wait as may"
            self._give_up(503, message, [("Retry-After", "1")])
            self._flush()

    def connectionLost(self, reason: Failure) -> None:
        """Note that the client has gone."""
        self._gone = True
        self._wake()
        code = self._answer.code if self._begun and self._answer is not None else 0
        peer = self._channel.transport.getPeer()
        self._site.note_end(peer, self.head, "", code, self._sent, self._began)

    def pauseProducing(self) -> None:
        """Have the thread wait: the client does not read as fast."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Have the thread go on."""
        self._paused = False
        self._wake()

    @property
    def startedWriting(self) -> bool:  # noqa: N802 - twisted.web's name
        """Whether the answer has begun to be sent."""
        return self._begun

    def stopProducing(self) -> None:
        """Note that the connection ends; connectionLost follows."""

    def _wake(self) -> None:
        gate = self._gate
        if gate is not None:
            gate.set()

    def _flush(self) -> None:
        """Send what the thread has put."""
        self._posted = False
        ended, failure = self._ended, self._failure
        if failure is not None and ended:
            self._failure = None
            _log.failure("{app}: {line} failed", failure, app=self._site.name, line=shown(self.head.target[:200]))
        if self._gone:
            return
        parts = []
        count = 0
        while self._parts:
            part = self._parts.popleft()
            count += len(part)
            parts.append(part)
        self._taken += count
        # An answer that failed is not ended: it is not told how long it is, and has no last chunk.
        out = self._framed(parts, count, ended=ended and not (failure is not None and self._committed))
        whole = ended and self._is_whole(failure)
        if self._chunked and whole:
            out.append(b"0\r\n\r\n")
        channel = self._channel
        if out:
            channel.transport.write(out[0] if len(out) == 1 else b"".join(out))
        if whole:
            self._finish()
        elif ended:
            channel.break_off(delimited=self._chunked or self._silent or self._left is not None)
        else:
            if not self._streams:
                self._streams = True
                self._paused = channel.waits
                channel.registerProducer(self, True)
            self._wake()

    def _framed(self, parts: list[bytes], count: int, *, ended: bool) -> list[bytes]:
        """Return what goes over the wire for these parts of the body."""
        out = []
        if not self._begun:
            self._begun = True
            out.append(self._opening(count, ended=ended))
        if self._silent or not count:
            return out
        if self._left is not None:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            if count > self._left:
                self._see_surplus(count - self._left)
                data = data[: self._left]
            self._left -= len(data)
            self._sent += len(data)
            out.append(data)
            return out
        self._sent += count
        if self._chunked:
            return [*out, b"%x\r\n" % count, *parts, b"\r\n"]
        return out + parts

    def _see_surplus(self, surplus: int) -> None:
        """Say once that there is more than was announced: a client would take it for the next answer."""
        if not self._surplus:
            self._surplus = True
            _log.error(
                "{app}: the answer to {line} goes on after its Content-Length; {count} bytes, and more, are cut",
                app=self._site.name,
                line=shown(self.head.target[:200]),
                count=surplus,
            )

    def _opening(self, count: int, *, ended: bool) -> bytes:
        """Return the head of the answer, and decide how its body ends."""
        answer, channel = self._answer, self._channel
        assert answer is not None
        text = answer.text if answer.dated else b"%bDate: %b\r\n" % (answer.text, self._site.date)
        head_only = self.head.method == b"HEAD"
        self._silent = head_only or answer.without_body
        if answer.length is not None:
            self._left = None if self._silent else answer.length
        elif answer.without_body:
            pass
        elif ended:
            self._left = count
            if count or not head_only:
                text += b"Content-Length: %d\r\n" % count
        elif self._silent:
            pass
        elif self.head.version == b"HTTP/1.1":
            self._chunked = True
            text += b"Transfer-Encoding: chunked\r\n"
        else:
            channel.persistent = False
        if channel.persistent:
            return text + b"\r\n"
        return text + b"Connection: close\r\n\r\n"

    def _is_whole(self, failure: Failure | None) -> bool:
        """Whether the answer is all that it says it is."""
        if failure is not None and self._committed:
            return False
        if not self._left or self._silent:
            return True
        _log.error(
            "{app}: the answer to {line} ended {left} bytes before its Content-Length",
            app=self._site.name,
            line=shown(self.head.target[:200]),
            left=self._left,
        )
        return False

    def _finish(self) -> None:
        channel = self._channel
        if self._streams:
            channel.unregisterProducer()
        answer = self._answer
        assert answer is not None
        self._site.note_end(channel.transport.getPeer(), self.head, "", answer.code, self._sent, self._began)
        channel.requestDone(self)

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        """Run the application."""
        content = self._content
        try:
            if not self._gone:
                self._answer_with(self._site.app, content)
        except _GoneError:
            pass
        except BaseException:  # noqa: BLE001 - not even SystemExit ends a thread, or the process
            self._failed()
        finally:
            if content is not None:
                with suppress(OSError):  # of a temporary file on a disk that is full
                    content.close()

    def _answer_with(self, app: App, content: IO[bytes] | None) -> None:
        environ = make_environ(self._channel.common, self.head, content)
        result = app(environ, self._start_response)
        try:
            if type(result) is list and len(result) == 1:
                self._put_whole(result[0])
                return
            for part in result:
                if part:
                    self.take(part)
            self._end()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: _Raised | None = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._committed:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._answer is not None:
            raise AnswerError("start_response was called before, and is called again without exc_info")
        self._answer = make_answer(status, headers)
        return self.take

    def take(self, part: bytes) -> None:
        """Take a part of the body; wait, if the client is too far behind. It is WSGI's write()."""
        self._see(part)
        if self._gone:
            raise _GoneError
        self._parts.append(part)
        self._put += len(part)
        self._post()
        while self._behind():
            # The reactor looks for the gate after it has moved something, and we look again after it is there.
            self._gate = gate = Event()
            if self._behind():
                gate.wait()
            self._gate = None
        if self._gone:
            raise _GoneError

    def _behind(self) -> bool:
        return not self._gone and (self._paused or self._put - self._taken > _UNSENT)

    def _put_whole(self, body: bytes) -> None:
        self._see(body)
        self._parts.append(body)
        self._put += len(body)
        self._end()

    def _see(self, part: bytes) -> None:
        if self._answer is None:
            raise AnswerError("the body begins before start_response was called")
        if type(part) is not bytes:
            raise AnswerError(f"the body is of bytes, and the application gave {type(part).__name__}")

    def _end(self) -> None:
        if self._answer is None:
            raise AnswerError("the application returned, and start_response was not called")
        self._ended = True
        self._post()

    def _post(self) -> None:
        self._committed = True
        if not self._posted:
            self._posted = True
            self._site.crew.answer(self._flush)

    def _failed(self) -> None:
        """Have what was raised logged, and the client told no more than that it failed."""
        failure = Failure()
        failure.cleanFailure()
        if self._ended:
            name = self._site.name
            self._site.mailbox.post(lambda: _log.failure("{app}: close() failed", failure, app=name))
            return
        self._failure = failure
        if not self._committed:
            self._give_up(500, "the request failed on this server, and its log says why", [])
        self._ended = True
        if not self._posted:
            self._posted = True
            self._site.crew.answer(self._flush)

    def _give_up(self, status: int, message: str, headers: list[tuple[str, str]]) -> None:
        """Answer with an error of the server's own."""
        body = error_body(status, message)
        self._answer = make_answer(
            f"{status} {title(status)}",
            [("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"), *headers],
        )
        self._parts.append(body)
        self._put += len(body)
        self._ended = True
