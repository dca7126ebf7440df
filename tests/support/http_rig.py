"""An HTTP server under test: on a memory transport and a Clock, or on a real socket."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from novasvc.http import AccessLog, Limits, make_site
from novasvc.http.wsgi import WSGISite
from novasvc.net.connections import Connections

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@attrs.frozen
class Response:
    """A response as a client reads it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        """The value of "error" in the JSON body."""
        return json.loads(self.body)["error"]


def responses(data: bytes, *, head_only: bool = False) -> list[Response]:
    """Parse responses strictly; an incomplete response is an error."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (text.split(": ", 1) for text in lines)}
        status = int(line.split(" ")[1])
        body = b""
        if status < 200 or status in {204, 304} or head_only:
            pass
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            assert len(body) == length, (headers, body)
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                size, _, data = data.partition(b"\r\n")
                length = int(size, 16)
                body, data = body + data[:length], data[length + 2 :]
                if not length:
                    break
        else:
            body, data = data, b""
        found.append(Response(status, headers, body))
    return found


class HalfClosing(StringTransport):
    """A TCP transport that can close its sending side alone."""

    half_closed = False
    aborted = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class Echo(Resource):
    """Responds with the path and the body; to "/later" only when the test finishes the request."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Any] = []

    def render(self, request: Any) -> Any:
        if request.path == b"/boom":
            raise RuntimeError("secret")
        if request.path == b"/later":
            self.waiting.append(request)
            return NOT_DONE_YET
        return request.method + b" " + request.uri + b" " + request.content.read()


class Wire:
    """A connection to a site, on a memory transport."""

    def __init__(self, *, log: AccessLog | None = None, **limits: Any) -> None:
        self.clock = Clock()
        self.clock.rightNow = 1_000_000.0
        self.resource = Echo()
        self.site = make_site(self.resource, limits=Limits(**limits), reactor=self.clock, log=log)
        self.transport = HalfClosing()
        channel = self.site.buildProtocol(None)
        assert channel is not None
        self.channel = channel
        channel.makeConnection(self.transport)

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.channel.dataReceived(part)

    def answers(self) -> list[Response]:
        """Return the responses since the last call."""
        data = self.transport.value()
        self.transport.clear()
        return responses(data)

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1.0)

    def end_input(self) -> None:
        """Close the client's sending side."""
        self.channel.readConnectionLost()

    def drop(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))


class Caller(Protocol):
    """A client that records what it receives."""

    def __init__(self) -> None:
        self._heard = bytearray()
        self.gone: Deferred[None] = Deferred()
        self._waiting: list[tuple[Callable[[bytes], bool], Deferred[bytes]]] = []

    @property
    def data(self) -> bytes:
        """What was received so far."""
        return bytes(self._heard)

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        for entry in list(self._waiting):
            wanted, waiter = entry
            if wanted(self.data):
                self._waiting.remove(entry)
                waiter.callback(self.data)

    def connectionLost(self, reason: Failure) -> None:
        self.reason = reason
        self.gone.callback(None)

    def until(self, wanted: bytes | Callable[[bytes], bool]) -> Deferred[bytes]:
        """Wait until the received data contains this, or meets this condition."""
        test: Callable[[bytes], bool] = wanted if callable(wanted) else (lambda data: wanted in data)
        waiter: Deferred[bytes] = Deferred()
        if test(self.data):
            waiter.callback(self.data)
        else:
            self._waiting.append((test, waiter))
        return waiter.addTimeout(30, reactor)


async def connect(port: int) -> Caller:
    """Connect to a server on loopback."""
    return await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{port}"), Caller())


async def ask(port: int, data: bytes = LAST, *, head_only: bool = False) -> list[Response]:
    """Send data, and return all responses when the server has closed."""
    caller = await connect(port)
    caller.transport.write(data)
    await caller.gone.addTimeout(30, reactor)
    return responses(caller.data, head_only=head_only)


class HTTPCase(TestCase):
    """Serves applications on real sockets."""

    def listen(self, factory: Any) -> int:
        connections = Connections(factory, reactor)
        port = reactor.listenTCP(0, connections, interface="127.0.0.1", backlog=1024)
        self.addCleanup(port.stopListening)
        self.addCleanup(self._cut, connections)
        return int(port.getHost().port)

    async def _cut(self, connections: Connections) -> None:
        connections.abort()
        while connections.protocols:
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn

    def serve(self, app: Any, *, log: AccessLog | None = None, threads: int = 8, queue: int = 8, **limits: Any) -> int:
        """Serve a WSGI application; return the port."""
        self.site = WSGISite(
            app, limits=Limits(**limits), reactor=reactor, log=log, name="test", threads=threads, queue=queue
        )
        self.addCleanup(self.site.pool.close)
        return self.listen(self.site)
