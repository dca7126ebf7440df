"""Tests for novasvc.http.wsgi, on real sockets and threads: applications get what PEP 3333 promises."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionLost
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, capturedLogs, formatEvent

from novasvc.http import AccessLog
from novasvc.http.response_head import ResponseError
from tests.support.http_rig import GET, LAST, HTTPCase, ask, connect, responses

Environ = dict[str, Any]
Start = Callable[..., Any]
PLAIN = [("Content-Type", "text/plain")]


def simple(environ: Environ, start: Start) -> Iterable[bytes]:
    start("200 OK", PLAIN)
    return [b"hello"]


def putting(path: bytes, body: bytes = b"", *headers: bytes, method: bytes = b"PUT") -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def unchunked(data: bytes) -> bytes:
    """Return the contents of the chunks of a truncated body."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
    return body


class Closing:
    """An iterable that counts how often it is closed."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self.parts = iter(parts)
        self.closed: Deferred[None] = Deferred()
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return self.parts

    def close(self) -> None:
        self.count += 1
        reactor.callFromThread(self.closed.callback, None)


class AnswerTests(HTTPCase):
    async def test_validated(self) -> None:
        """The standard library's validator accepts both sides of the interface."""
        seen: list[Environ] = []

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            seen.append(environ)
            body = environ["wsgi.input"].read(100) + environ["wsgi.input"].readline()
            environ["wsgi.errors"].write("heard\n")
            start("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
            return [body]

        port = self.serve(validator(app))
        for request, body in ((putting(b"/a", b"b\nc"), b"b\nc"), (putting(b"/", method=b"GET"), b"")):
            (answer,) = await ask(port, request)
            self.assertEqual((answer.status, answer.body), (200, body))
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    async def test_environ(self) -> None:
        """The environ is complete: path decoded, headers joined, and those that would forge others left out."""
        seen: list[Environ] = []

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            seen.append(environ)
            start("204 No Content", [])
            return []

        port = self.serve(app)
        headers = (b"X-A: \xe4", b"X-A: 2", b"X_A: forged", b"Cookie: a=1", b"Cookie: b=2", b"Content-Type: t/x")
        await ask(port, putting(b"/%C3%A4/b%2Fc?x=%C3%A4", b"abc", *headers, b"Proxy: http://evil"))
        (environ,) = seen
        expected = {
            "REQUEST_METHOD": "PUT",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/\xc3\xa4/b/c",
            "QUERY_STRING": "x=%C3%A4",
            "REQUEST_URI": "/%C3%A4/b%2Fc?x=%C3%A4",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": "t/x",
            "CONTENT_LENGTH": "3",
            "HTTP_HOST": "x",
            "HTTP_X_A": "\xe4,2",
            "HTTP_COOKIE": "a=1; b=2",
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        self.assertEqual({key: environ.get(key) for key in expected}, expected)
        self.assertNotIn("HTTP_PROXY", environ)
        self.assertNotIn("HTTP_CONTENT_LENGTH", environ)

    async def test_empty_bodies(self) -> None:
        """CONTENT_LENGTH is set if the request has a body, even an empty one."""
        for data, length in (
            (putting(b"/"), None),
            (putting(b"/", b"", b"Content-Length: 0"), "0"),
            (putting(b"/", b"", b"Content-Length: 00"), "0"),
            (putting(b"/", b"", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", "0"),
            (putting(b"/", b"a"), "1"),
        ):
            seen: list[Environ] = []

            def app(environ: Environ, start: Start, seen: list[Environ] = seen) -> Iterable[bytes]:
                seen.append(environ)
                return simple(environ, start)

            await ask(self.serve(app), data)
            (environ,) = seen
            self.assertEqual(environ.get("CONTENT_LENGTH"), length)

    async def test_server_itself(self) -> None:
        """OPTIONS * reaches the application as its root; a path must begin with a slash."""
        told: list[Environ] = []

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            told.append(environ)
            return simple(environ, start)

        await ask(self.serve(validator(app)), LAST.replace(b"GET / ", b"OPTIONS * "))
        (environ,) = told
        self.assertEqual((environ["PATH_INFO"], environ["REQUEST_URI"]), ("/", "*"))

    async def test_chunked_request(self) -> None:
        """A chunked body is decoded, and its length is in the environ."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            return [environ["CONTENT_LENGTH"].encode(), environ["wsgi.input"].read()]

        port = self.serve(app)
        head = putting(b"/", b"", b"Transfer-Encoding: chunked")
        (answer,) = await ask(port, head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        self.assertEqual(answer.body, b"5abcde")

    async def test_lengths(self) -> None:
        """A response has a Content-Length if its length is known, and is chunked otherwise."""
        go = threading.Event()

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            start("200 OK", PLAIN + ([("Content-Length", "4")] if path == "/own" else []))
            if path == "/one":
                return [b"abcd"]
            if path == "/two":
                return (b"ab", b"cd")

            def parts() -> Iterator[bytes]:
                yield b"ab"
                go.wait(10)
                yield b"cd"

            return parts()

        port = self.serve(app)
        for path in (b"/one", b"/two", b"/own", b"/stream"):
            caller = await connect(port)
            caller.transport.write(putting(path, method=b"GET"))
            if path in {b"/own", b"/stream"}:
                await caller.until(b"ab")  # a part is not delayed until the next one
                go.set()
            await caller.gone
            (answer,) = responses(caller.data)
            self.assertEqual(answer.body, b"abcd")
            # The reactor may have sent the first of two parts before the second is there.
            known = {b"/stream": {None}, b"/two": {None, "4"}}
            self.assertIn(answer.headers.get("content-length"), known.get(path, {"4"}), path)
            go.clear()
        caller = await connect(port)
        go.set()
        caller.transport.write(b"GET /stream HTTP/1.0\r\n\r\n")
        await caller.gone
        self.assertTrue(caller.data.endswith(b"\r\n\r\nabcd"), caller.data)

    async def test_without_body(self) -> None:
        """Responses to HEAD, and 204, 205 and 304, have no body, and the connection stays usable."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            code, _, length = environ["PATH_INFO"][1:].partition("/")
            start(code + " X", [("Content-Length", "5")] if length else [])
            return [b"body"]

        port = self.serve(app)
        codes = (b"/204 ", b"/205 ", b"/304 ", b"/204/length ", b"/205/length ", b"/304/length ")
        head = GET.replace(b"GET / ", b"HEAD /200 ") + GET.replace(b"GET / ", b"HEAD /200/length ")
        others = [GET.replace(b"/ ", code) for code in codes]
        answers = await ask(port, head + b"".join(others) + LAST.replace(b"/ ", b"/304 "), head_only=True)
        self.assertEqual([answer.status for answer in answers], [200, 200, 204, 205, 304, 204, 205, 304, 304])
        lengths = [answer.headers.get("content-length") for answer in answers]
        self.assertEqual(lengths, ["4", "5", None, "0", None, None, "0", None, None])
        for answer in answers:
            self.assertNotIn("transfer-encoding", answer.headers)

    async def test_stream_without_body(self) -> None:
        """Parts that an application writes for a status without a body are dropped."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            write = start(environ["PATH_INFO"][1:] + " X", [])
            write(b"a")
            return (b"b", b"c")

        requests = b"".join(GET.replace(b"/ ", code) for code in (b"/204 ", b"/205 ", b"/304 "))
        answers = await ask(self.serve(app), requests + LAST.replace(b"/ ", b"/204 "), head_only=True)
        self.assertEqual([answer.status for answer in answers], [204, 205, 304, 204])

    async def test_write(self) -> None:
        """What is passed to write() precedes what is returned."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            write = start("200 OK", PLAIN)
            write(b"ab")
            write(b"")
            write(b"cd")
            return [b"ef"]

        (answer,) = await ask(self.serve(app))
        self.assertEqual(answer.body, b"abcdef")

    async def test_changed_mind(self) -> None:
        """Until the head is sent, start_response may be called again with exc_info."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            try:
                _ = environ["nothing"]
            except KeyError:
                start("404 Not Found", [("X-A", "b")], sys.exc_info())
            return [b"none"]

        (answer,) = await ask(self.serve(app))
        self.assertEqual((answer.status, answer.headers["x-a"], answer.body), (404, "b", b"none"))
        self.assertNotIn("content-type", answer.headers)

    async def test_file(self) -> None:
        """A file can be given to wsgi.file_wrapper."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            return environ["wsgi.file_wrapper"](Path(__file__).open("rb"))  # type: ignore[no-any-return]

        (answer,) = await ask(self.serve(app))
        self.assertIn(b"A file can be given", answer.body)

    async def test_pipelined(self) -> None:
        """Pipelined requests are answered in order, one after the other."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            return [environ["PATH_INFO"].encode()]

        requests = b"".join(GET.replace(b"/ ", b"/%d " % number) for number in range(200))
        answers = await ask(self.serve(app), requests + LAST)
        self.assertEqual([answer.body for answer in answers], [*(b"/%d" % number for number in range(200)), b"/"])

    async def test_log(self) -> None:
        """Requests are written to the access log."""
        (answer,) = await ask(self.serve(simple, log=AccessLog()))
        self.assertEqual(answer.body, b"hello")


class FailedTests(HTTPCase):
    async def failed(self, app: Any, error: type[Exception] | None = None) -> str:
        (answer,) = await ask(self.serve(app))
        self.assertEqual((answer.status, answer.error["title"]), (500, "Internal Server Error"))
        (logged,) = self.flushLoggedErrors()
        if error is not None:
            self.assertIsInstance(logged.value, error)
        self.assertNotIn(str(logged.value), answer.body.decode())
        return str(logged.value)

    async def test_raised(self) -> None:
        """An application that raises, even SystemExit, gets a 500, and the exception is logged."""
        for error in (ValueError("secret"), SystemExit("secret"), KeyboardInterrupt("secret")):

            def app(environ: Environ, start: Start, error: BaseException = error) -> Iterable[bytes]:
                start("200 OK", PLAIN)
                raise error

            self.assertEqual(await self.failed(app), "secret")

    async def test_misused(self) -> None:
        """A response that violates PEP 3333, or would corrupt the connection, becomes a 500."""
        for status, headers, body in (
            (200, [], [b"x"]),
            ("200", None, [b"x"]),
            ("2000", [], [b"x"]),
            ("100 Continue", [], [b"x"]),
            ("200 OK\r\nX: y", [], [b"x"]),
            ("200 OK", [("X", "a\r\nSet-Cookie: b")], [b"x"]),
            ("200 OK", [("X\r\n", "a")], [b"x"]),
            ("200 OK", [("X", 1)], [b"x"]),
            ("200 OK", [("X", "\u20ac")], [b"x"]),
            ("200 OK", [("Transfer-Encoding", "chunked")], [b"x"]),
            ("200 OK", [("Connection", "close")], [b"x"]),
            ("200 OK", [("Content-Length", "1"), ("Content-Length", "1")], [b"x"]),
            ("200 OK", [("Content-Length", "-1")], [b"x"]),
            ("200 OK", [], ["text"]),
            ("200 OK", [], None),
        ):

            def app(
                environ: Environ, start: Start, status: Any = status, headers: Any = headers, body: Any = body
            ) -> Any:
                start(status, headers)
                return body

            await self.failed(app)

    async def test_not_started(self) -> None:
        """start_response must be called, and only once."""
        self.assertIn("start_response", await self.failed(lambda environ, start: [b"x"]))
        self.assertIn("start_response", await self.failed(lambda environ, start: []))

        def twice(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            start("200 OK", PLAIN)
            return []

        self.assertIn("a second time without exc_info", await self.failed(twice))

    async def test_midway(self) -> None:
        """A response that fails midway is truncated so that the client can tell."""
        told = threading.Event()

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", [*PLAIN, ("Content-Length", "9")] if environ["PATH_INFO"] == "/length" else PLAIN)
            yield b"abc"
            told.wait(10)
            try:
                int("midway")
            except ValueError:
                start("500 Too late", PLAIN, sys.exc_info())

        port = self.serve(app)
        for path in (b"/length", b"/chunks"):
            caller = await connect(port)
            caller.transport.write(GET.replace(b"/ ", path + b" "))
            await caller.until(b"abc")
            told.set()
            await caller.gone
            self.assertNotIn(b"0\r\n\r\n", caller.data)
            self.assertNotIn(b"500", caller.data)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
            told.clear()

    async def test_midway_at_once(self) -> None:
        """What was yielded arrives, even if the application fails right after it, with every kind of framing."""
        yielded = b"abc" * 100_000

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            kind = environ["PATH_INFO"]
            start("200 OK", [("Content-Length", "400000")] if kind == "/length" else [])
            for at in range(0, len(yielded), 30_000):
                yield yielded[at : at + 30_000]
            raise ValueError("midway")

        port = self.serve(app)
        for path, version in ((b"/length", b"1.1"), (b"/chunks", b"1.1"), (b"/length", b"1.0"), (b"/close", b"1.0")):
            for _ in range(5):
                caller = await connect(port)
                caller.transport.write(GET.replace(b"/ ", path + b" ").replace(b"1.1", version))
                await caller.gone.addTimeout(30, reactor)
                head, _, body = caller.data.partition(b"\r\n\r\n")
                if path == b"/chunks":
                    self.assertIn(b"Transfer-Encoding: chunked", head)
                    self.assertFalse(body.endswith(b"0\r\n\r\n"))
                    body = unchunked(body)
                self.assertEqual(len(body), len(yielded), path)
                # Without a length or chunks, only a reset shows that the response is incomplete.
                self.assertEqual(caller.reason.type is ConnectionLost, path == b"/close", caller.reason)
                self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_small_midway(self) -> None:
        """A part that was not sent when the application failed arrives as well."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", [])
            yield b"abc"
            raise ValueError("midway")

        port = self.serve(app)
        for data, body in (
            (GET, b"3\r\nabc\r\n"),
            (GET.replace(b"1.1", b"1.0"), b"abc"),
            (GET.replace(b"GET", b"HEAD"), b""),
        ):
            caller = await connect(port)
            caller.transport.write(data)
            await caller.gone.addTimeout(30, reactor)
            head, _, sent = caller.data.partition(b"\r\n\r\n")
            self.assertEqual(sent, body)
            self.assertNotIn(b"Content-Length", head)
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_wrong_length(self) -> None:
        """A response is cut at its Content-Length, which is logged; a shorter one ends its connection."""

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", [("Content-Length", environ["PATH_INFO"][1:])])
            return [b"abc"] if environ["PATH_INFO"] == "/4" else (part for part in (b"a", b"bc", b"d"))

        port = self.serve(app)
        with capturedLogs() as events:
            (answer,) = await ask(port, LAST.replace(b"/ ", b"/2 "))
        self.assertEqual(answer.body, b"ab")
        (told,) = [formatEvent(event) for event in events if event["log_level"] is LogLevel.error]
        self.assertIn("is longer than its Content-Length", told or "")
        caller = await connect(port)
        caller.transport.write(GET.replace(b"/ ", b"/4 "))
        await caller.gone.addTimeout(30, reactor)
        self.assertTrue(caller.data.endswith(b"\r\n\r\nabc"))

    async def test_write_after_end(self) -> None:
        """write() raises after the end of the response: a client would take the data for the next response."""

        class Late(Closing):
            def close(self) -> None:
                try:
                    write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
                finally:
                    super().close()

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            nonlocal write
            write = start("200 OK", PLAIN)
            return late if environ["PATH_INFO"] == "/late" else [b"c"]

        write: Any = None
        late = Late([b"a", b"b"])
        caller = await connect(self.serve(app, threads=1))
        caller.transport.write(GET.replace(b"/ ", b"/late "))
        await late.closed
        caller.transport.write(LAST)
        await caller.gone
        self.assertEqual([answer.body for answer in responses(caller.data)], [b"ab", b"c"])
        self.assertEqual(len(self.flushLoggedErrors(ResponseError)), 1)

    async def test_close(self) -> None:
        """close() is called once, whatever happens; what it raises is logged, and the response stands."""
        for failing in (False, True):
            body = Closing([b"a", b"b"] if not failing else (1 // zero for zero in (1, 0)))  # type: ignore[misc]

            def app(environ: Environ, start: Start, body: Any = body) -> Iterable[bytes]:
                start("200 OK", PLAIN)
                return body  # type: ignore[no-any-return]

            (answer,) = await ask(self.serve(app))
            await body.closed
            self.assertEqual((answer.status, body.count), (500 if failing else 200, 1))
            self.flushLoggedErrors()

        class Failing(Closing):
            def close(self) -> None:
                super().close()
                raise ValueError("close")

        last = Failing([b"a"])

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            return last

        (answer,) = await ask(self.serve(app))
        await last.closed
        self.assertEqual(answer.body, b"a")
        turn: Deferred[None] = Deferred()
        reactor.callLater(0.05, turn.callback, None)
        await turn
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class StreamTests(HTTPCase):
    async def test_large(self) -> None:
        """A large response arrives complete, through write() and by iteration."""
        part = bytes(range(256)) * 256

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            write = start("200 OK", PLAIN)
            for _ in range(100):
                write(part)
            return (part for _ in range(100))

        (answer,) = await ask(self.serve(app))
        self.assertEqual(len(answer.body), 200 * len(part))
        self.assertEqual(answer.body, part * 200)

    async def test_back_pressure(self) -> None:
        """An application is paused while its client does not read, and goes on when it reads."""
        given = []

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            for number in range(250):
                given.append(number)
                yield bytes(65536)

        port = self.serve(app)
        caller = await connect(port)
        caller.transport.pauseProducing()
        caller.transport.write(LAST)
        last = -1
        while last != len(given) or not given:  # until it makes no progress any more
            last = len(given)
            turn: Deferred[None] = Deferred()
            reactor.callLater(0.1, turn.callback, None)
            await turn
        self.assertLess(len(given), 200)
        caller.transport.resumeProducing()
        await caller.gone.addTimeout(20, reactor)
        (answer,) = responses(caller.data)
        self.assertEqual(len(answer.body), 250 * 65536)

    async def test_gone(self) -> None:
        """A client that disconnects ends the iteration, and close() is called."""
        body = Closing(b"x" * 10000 for _ in iter(int, 1))

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            return body

        caller = await connect(self.serve(app))
        caller.transport.write(GET)
        await caller.until(b"xxx")
        caller.transport.abortConnection()
        await body.closed.addTimeout(30, reactor)
        self.assertEqual(body.count, 1)

    async def test_not_reading(self) -> None:
        """A client that does not read is disconnected after client_socket_timeout, and its thread is free again."""
        body = Closing(b"x" * 65536 for _ in iter(int, 1))

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            return body

        caller = await connect(self.serve(app, idle_timeout=1))
        caller.transport.pauseProducing()
        caller.transport.write(GET)
        await body.closed.addTimeout(30, reactor)
        caller.transport.abortConnection()


class ThreadTests(HTTPCase):
    async def test_not_the_reactor(self) -> None:
        """Applications run in threads, one for each request that blocks."""
        together = threading.Barrier(5)

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            start("200 OK", PLAIN)
            together.wait(10)
            return [threading.current_thread().name.encode()]

        port = self.serve(app)
        answers = [Deferred.fromCoroutine(ask(port)) for _ in range(5)]
        names = {(await answer)[0].body for answer in answers}
        self.assertEqual(len(names), 5)
        self.assertNotIn(threading.current_thread().name.encode(), names)

    async def test_full(self) -> None:
        """When all threads are busy and the queue is full, requests get 503 with Retry-After."""
        go = threading.Event()

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            go.wait(10)
            start("200 OK", PLAIN)
            return [b""]

        port = self.serve(app, threads=1, queue=2)
        first = await connect(port)
        first.transport.write(LAST)
        while not self.site.pool._begun:
            await deferToThread(lambda: None)
        waiting = [Deferred.fromCoroutine(ask(port)) for _ in range(2)]
        while len(self.site.pool._work) < 2:
            await deferToThread(lambda: None)
        (refused,) = await ask(port)
        self.assertEqual((refused.status, refused.headers["retry-after"]), (503, "1"))
        self.assertEqual(refused.error["code"], 503)
        go.set()
        self.assertEqual([(await answer)[0].status for answer in waiting], [200, 200])
        await first.gone

    async def test_gone_before(self) -> None:
        """A queued request whose client has disconnected is not run, and leaves its place to another."""
        go = threading.Event()
        paths = []

        def app(environ: Environ, start: Start) -> Iterable[bytes]:
            paths.append(environ["PATH_INFO"])
            go.wait(10)
            start("200 OK", PLAIN)
            return [b""]

        port = self.serve(app, threads=1, queue=1)
        first = await connect(port)
        first.transport.write(LAST)
        while not paths:
            await deferToThread(lambda: None)
        second = await connect(port)
        second.transport.write(LAST.replace(b"/ ", b"/second "))
        while not self.site.pool._work:
            await deferToThread(lambda: None)
        second.transport.abortConnection()
        while len(self.site.channels) > 1:
            await deferToThread(lambda: None)
        self.assertEqual(len(self.site.pool._work), 0)
        third = await connect(port)
        third.transport.write(LAST.replace(b"/ ", b"/third "))
        while not self.site.pool._work and not third.data:
            await deferToThread(lambda: None)
        go.set()
        await gatherResults([first.gone, third.gone])
        self.assertEqual([responses(each.data)[0].status for each in (first, third)], [200, 200])
        self.assertEqual(paths, ["/", "/third"])
