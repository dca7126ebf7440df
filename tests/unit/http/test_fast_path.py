"""Tests for novasvc.http.fast_path, on a Clock and in memory."""

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from zope.interface import implementer

from novasvc.context import RequestContext, current_context
from novasvc.http import AccessLog, make_site
from novasvc.http.fast_path import FastRequest, Handler, IFastPath
from novasvc.http.head import Head
from novasvc.telemetry import metrics

PEER = IPv4Address("TCP", "127.0.0.1", 4711)
GET = b"GET /light?a=1 HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n"


@implementer(IFastPath)
class Ordinary(Resource):
    """Answers what does not take the fast path.

    :param handler: answers GET of /light.
    """

    isLeaf = True

    def __init__(self, handler: Callable[[FastRequest], Any]) -> None:
        super().__init__()
        self._handler = handler

    def fast_handler(self, head: Head) -> Handler | None:
        return self._handler if (head.method, head.path) == (b"GET", b"/light") else None

    def render(self, request: Any) -> bytes:
        return b"ordinary"


class FastPathTests(SynchronousTestCase):
    """Tests for novasvc.http.fast_path."""

    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)
        self.lines: list[str] = []

        def observe(event: Any) -> None:
            if "access" in event:
                context = current_context.get()
                self.lines.append(f"{context and context.request_id} {event['line']}")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def connect(self, handler: Callable[[FastRequest], Any]) -> tuple[Any, StringTransport]:
        site = make_site(Ordinary(handler), reactor=Clock(), log=AccessLog(), name="t")
        self.site = site
        transport = StringTransport(peerAddress=PEER)
        protocol = site.buildProtocol(PEER)
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(self, handler: Callable[[FastRequest], Any], octets: bytes = GET) -> bytes:
        protocol, transport = self.connect(handler)
        protocol.dataReceived(octets)
        answer: bytes = transport.value()
        return answer

    def test_answer(self) -> None:
        """A handler gets the request; its body and headers are sent with the server's own headers."""
        seen: list[Any] = []

        def handler(request: FastRequest) -> Deferred[bytes]:
            seen.extend((request.method, request.path, request.uri, request.isSecure(), request.getClientAddress()))
            seen.extend((request.getHeader(b"X-Two"), request.header_values(b"X-Two")))
            seen.extend((request.getHeader(b"none"), request.header_values(b"none")))
            request.setHeader(b"Content-Type", b"text/x")
            request.setHeader(b"content-type", b"text/plain")
            request.set_headers({b"vary": (b"A", b"B")})
            return succeed(b"body")

        self.assertEqual(
            self.ask(handler),
            b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-type: text/plain\r\n"
            b"vary: A\r\nvary: B\r\ncontent-length: 4\r\n\r\nbody",
        )
        self.assertEqual(seen[:5], [b"GET", b"/light", b"/light?a=1", False, PEER])
        self.assertEqual(seen[5:], [b"2", [b"1", b"2"], None, ()])
        (line,) = self.lines
        self.assertIn('127.0.0.1 "GET /light?a=1 HTTP/1.1" status: 200 len: 4', line)

    def test_others(self) -> None:
        """Other methods and paths take the ordinary route."""
        for first in (b"POST /light", b"HEAD /light", b"GET /dark"):
            octets = first + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            answer = self.ask(lambda _: fail(AssertionError()), octets)
            self.assertIn(b"200 OK", answer)
            self.assertEqual(answer.endswith(b"ordinary"), not first.startswith(b"HEAD"))

    def test_body(self) -> None:
        """The handler can read the request's body."""
        octets = b"GET /light HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        self.assertTrue(self.ask(lambda request: succeed(request.content.read()), octets).endswith(b"\r\n\r\nabc"))

    def test_cookies(self) -> None:
        """Cookies are found by their whole names."""
        found: list[Any] = []

        def handler(request: FastRequest) -> Deferred[bytes]:
            found.extend(request.getCookie(name) for name in (b"a", b"b", b"c", b"aa"))
            return succeed(b"")

        self.ask(handler, GET[:-2] + b"Cookie: aa=1; a=x=y ;b=2\r\nCookie: c\r\n\r\n")
        self.assertEqual(found, [b"x=y", b"2", None, b"1"])

    def test_breaks(self) -> None:
        """Line breaks in a header value are replaced."""

        def handler(request: FastRequest) -> Deferred[bytes]:
            request.setHeader(b"x", b"a\r\nb: c\0")
            return succeed(b"")

        self.assertIn(b"\r\nx: a  b: c \r\n", self.ask(handler))

    def test_fails(self) -> None:
        """A handler that fails or raises gets a 500 without the reason, which is logged."""

        def raises(_: FastRequest) -> Deferred[bytes]:
            raise KeyError("s3cret")

        for handler in (raises, lambda _: fail(KeyError("s3cret"))):
            answer = self.ask(handler)
            self.assertTrue(answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n"))
            self.assertIn(b'"message": "the request failed on this server', answer)
            self.assertNotIn(b"s3cret", answer)
            self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_gone(self) -> None:
        """A client that disconnects early cancels the handler's work, and is logged with status 0."""
        cancelled: list[Any] = []
        protocol, transport = self.connect(lambda _: Deferred(cancelled.append))
        protocol.dataReceived(GET)
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((len(cancelled), transport.value()), (1, b""))
        self.assertEqual(metrics.requests.at("t", "", "GET", "gone").value, 1)
        self.assertEqual(metrics.requests_now.at("t").value, 0)

    def test_close(self) -> None:
        """The connection is closed after the response if the client asks for it, or the server drains."""
        octets = GET[:-2] + b"Connection: close\r\n\r\n"
        self.assertIn(b"\r\nconnection: close\r\n", self.ask(lambda _: succeed(b""), octets))
        waiting: Deferred[bytes] = Deferred()
        protocol, transport = self.connect(lambda _: waiting)
        protocol.dataReceived(GET)
        protocol.drain()
        waiting.callback(b"late")
        self.assertIn(b"\r\nconnection: close\r\n", transport.value())
        self.assertTrue(transport.disconnecting)

    def test_context(self) -> None:
        """Log events of a request are in its context, even if another request fires the Deferred."""
        waiting: Deferred[bytes] = Deferred()

        def handler(_: FastRequest) -> Deferred[bytes]:
            current_context.set(RequestContext(request_id="req-of-mine"))
            return waiting

        protocol, _ = self.connect(handler)
        protocol.dataReceived(GET)
        self.assertIsNone(current_context.get())
        waiting.callback(b"")
        self.assertTrue(self.lines[0].startswith("req-of-mine "), self.lines)
