"""Connections that are seen to their end, on real sockets: what a reload must not drop."""

from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from novasvc.node.stream_server import StreamServer

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Slow(Resource):
    """Answers when the test says so."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: Deferred[Callable[[], None]] = Deferred()

    def render_GET(self, request: Request) -> int:
        def answer() -> None:
            request.write(b"done")
            request.finish()

        asked, self.asked = self.asked, Deferred()
        asked.callback(answer)
        return NOT_DONE_YET


class Client(Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.gone: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure) -> None:
        self.gone.callback(None)


class WebTests(TestCase):
    """twisted.web behind a StreamServer that stops."""

    def setUp(self) -> None:
        self.resource = Slow()
        self.server = StreamServer("tcp:0:interface=127.0.0.1", Site(self.resource))
        self.server.startService()
        self.addCleanup(self.server.stopService)

    async def connect(self) -> Client:
        client = Client()
        await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{self.server.port}"), client)
        return client

    async def test_request_under_way(self) -> None:
        """A request that is under way is answered, and then its connection is closed."""
        client, asked = await self.connect(), self.resource.asked
        client.transport.write(REQUEST)
        answer = await asked
        ended: list[None] = []
        stopped = self.server.stopService().addCallback(ended.append)
        self.assertEqual(ended, [])
        answer()
        await client.gone
        await stopped
        self.assertIn(b"200 OK", client.heard)
        self.assertIn(b"Connection: close", client.heard)
        self.assertIn(b"done", client.heard)

    async def test_request_that_comes(self) -> None:
        """A request that was on its way is answered, too: its connection had been accepted."""
        client, asked = await self.connect(), self.resource.asked
        first = await self.connect()  # so that the server has accepted the one before
        first.transport.write(REQUEST)
        (await asked)()
        asked = self.resource.asked
        stopped = self.server.stopService()
        client.transport.write(REQUEST)
        (await asked)()
        await client.gone
        await first.gone
        await stopped
        self.assertIn(b"done", client.heard)

    async def test_idle(self) -> None:
        """A connection that is kept for later requests is closed after a second."""
        client, asked = await self.connect(), self.resource.asked
        client.transport.write(REQUEST)
        (await asked)()
        await self.server.stopService()
        await client.gone


class Polite(Protocol):
    """Goes when it is asked to."""

    def connectionMade(self) -> None:
        self.factory.met.callback(None)

    def drain(self) -> None:
        self.transport.write(b"bye")
        self.transport.loseConnection()


class Picky(Factory):
    """Wants nobody."""

    noisy = False

    def buildProtocol(self, addr: object) -> None:
        return None


class Broken(Protocol):
    """Fails when it is asked to go."""

    def connectionMade(self) -> None:
        self.factory.met.callback(None)

    def drain(self) -> None:
        raise ZeroDivisionError


class ProtocolTests(TestCase):
    """Other protocols."""

    def meeting(self, protocol: type[Protocol]) -> Factory:
        """Make a factory whose ``met`` fires with the first connection."""
        factory = Factory.forProtocol(protocol)
        factory.noisy = False
        factory.met = Deferred()
        return factory

    async def serve(self, factory: Factory) -> tuple[StreamServer, Client]:
        server = StreamServer("tcp:0:interface=127.0.0.1", factory)
        server.startService()
        self.addCleanup(server.stopService)
        client = Client()
        await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{server.port}"), client)
        return server, client

    async def test_drain(self) -> None:
        """A protocol that has a method for it is asked to end."""
        factory = self.meeting(Polite)
        server, client = await self.serve(factory)
        await factory.met
        await server.stopService()
        await client.gone
        self.assertEqual(client.heard, b"bye")

    async def test_broken(self) -> None:
        """A connection that fails to drain is aborted, and keeps no other from it."""
        factory = self.meeting(Broken)
        server, broken = await self.serve(factory)
        await factory.met
        factory.protocol, factory.met = Polite, Deferred()
        polite = Client()
        await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{server.port}"), polite)
        await factory.met
        await server.stopService()
        await broken.gone
        await polite.gone
        self.assertEqual((broken.heard, polite.heard), (b"", b"bye"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_refused(self) -> None:
        """A factory that wants no connection gets none."""
        server, client = await self.serve(Picky())
        await client.gone
        await server.stopService()
