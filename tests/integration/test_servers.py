"""The suite's own servers do what the tests that need them expect."""

import ssl
import struct
import tempfile
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.servers import shared_broker, vhost_url
from tests.servers.certificates import Certificates, Identity
from tests.servers.databases import PostgreSQL
from tests.servers.erlang import ErlangError
from tests.servers.proxy import Proxy

PATIENCE = 30.0
GREETING = b"AMQP\0\0\x09\x01"


class BrokerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.broker = shared_broker()

    def test_vhost(self) -> None:
        """Each test has a vhost of its own, with nothing in it, which is gone afterwards."""
        vhost = vhost_url(self).rpartition("/")[2]
        self.assertEqual(self.broker.queues(vhost), {})
        self.assertEqual(self.broker.connections(vhost), 0)
        self.broker.delete(vhost)
        self.assertRaises(ErlangError, self.broker.delete, vhost)
        self.broker.eval(f'rabbit_vhost:add(<<"{vhost}">>, <<"test">>).')

    def test_queues(self) -> None:
        """The queues of a vhost are listed with their messages and consumers, and can be deleted."""
        vhost = vhost_url(self).rpartition("/")[2]
        self.broker.declare_queue(vhost, "café", durable=False)
        self.broker.fill_queue(vhost, "café", b"{}", 1000)
        self.assertEqual(self.broker.queues(vhost), {"café": 1000})
        self.assertEqual(self.broker.consumers(vhost), {"café": 0})
        self.broker.delete_queue(vhost, "café")
        self.assertEqual(self.broker.queues(vhost), {})

    def test_eval(self) -> None:
        """What fails on the node fails in the test."""
        self.assertEqual(self.broker.eval("1 + 1."), "2")
        self.assertRaises(ErlangError, self.broker.eval, "no:such().")


class NoDriver(PostgreSQL):
    scheme = "none://postgres"


class UnreadyTests(SynchronousTestCase):
    def test_killed(self) -> None:
        """A server that is not found ready does not stay; here no driver can ask it."""
        holder = tempfile.TemporaryDirectory(prefix="novasvc-tests-")
        self.addCleanup(holder.cleanup)
        server = NoDriver(Path(holder.name) / "server")
        before = set(psutil.Process().children(recursive=True))
        with self.assertRaises(sqlalchemy.exc.NoSuchModuleError), server:
            pass
        self.assertEqual(set(psutil.Process().children(recursive=True)) - before, set())


class CertificatesTests(SynchronousTestCase):
    def setUp(self) -> None:
        certificates = shared_broker().certificates
        assert certificates is not None
        self.certificates: Certificates = certificates

    def shake_hands(self, identity: Identity) -> None:
        """Be a TLS server with this identity, and a client that believes the authority, in memory."""
        client_context = ssl.create_default_context(cafile=self.certificates.ca)
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(identity.certificate, identity.key)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context.wrap_bio(back, there, server_hostname="localhost")
        server = server_context.wrap_bio(there, back, server_side=True)
        for side in (client, server, client):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue

    def test_certificates(self) -> None:
        """The server's certificate is good, and each other one has the flaw that its name says."""
        self.shake_hands(self.certificates.server)
        for identity, flaw in (
            (self.certificates.expired, "expired"),
            (self.certificates.misnamed, "Hostname mismatch"),
            (self.certificates.stranger, "unable to get (local )?issuer"),
        ):
            with self.assertRaisesRegex(ssl.SSLCertVerificationError, flaw):
                self.shake_hands(identity)


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Collector(Protocol):
    """Keeps what it receives, and how it ended."""

    def __init__(self) -> None:
        self.segments: DeferredQueue[bytes] = DeferredQueue()
        self.made: Deferred[None] = Deferred()
        self.lost: Deferred[Any] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.segments.put(data)

    def connectionLost(self, reason: Any) -> None:
        self.lost.callback(reason.value)


class ProxyTests(TestCase):
    async def setUp(self) -> None:
        factory = Factory.forProtocol(Echo)
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.proxy = Proxy(reactor, port.getHost().port)
        self.proxy.listen()
        self.addCleanup(self.proxy.stop)

    async def connect(self) -> Collector:
        collector = Collector()
        factory = ClientFactory()
        factory.noisy = False
        factory.buildProtocol = lambda addr: collector
        connector = reactor.connectTCP("127.0.0.1", self.proxy.port, factory)
        self.addCleanup(connector.disconnect)
        await collector.made.addTimeout(PATIENCE, reactor)
        return collector

    async def next(self, collector: Collector) -> bytes:
        return await collector.segments.get().addTimeout(PATIENCE, reactor)

    async def lost(self, collector: Collector) -> Any:
        return await collector.lost.addTimeout(PATIENCE, reactor)

    async def test_passes(self) -> None:
        """What comes is passed on, both ways, and so is the end."""
        collector = await self.connect()
        collector.transport.write(b"hello")
        self.assertEqual(await self.next(collector), b"hello")
        self.assertEqual((self.proxy.live, self.proxy.accepted), (1, 1))
        collector.transport.loseConnection()
        await self.lost(collector)

    async def test_large(self) -> None:
        """More than the proxy holds passes too."""
        collector = await self.connect()
        collector.transport.write(b"x" * 5_000_000)
        received = 0
        while received < 5_000_000:
            received += len(await self.next(collector))

    async def test_hangs(self) -> None:
        """A direction that hangs lets nothing through, and all of it when it is healed."""
        for way in (self.proxy.there, self.proxy.back):
            collector = await self.connect()
            self.proxy.change(way, hangs=True)
            collector.transport.write(b"1")
            silence = collector.segments.get()
            await self.assertFailure(silence.addTimeout(0.05, reactor), defer.TimeoutError)
            self.proxy.heal()
            self.assertEqual(await self.next(collector), b"1")

    async def test_delay(self) -> None:
        """A delay is added for each way, and the order stays."""
        collector = await self.connect()
        self.proxy.change(delay=0.1)
        before = reactor.seconds()
        collector.transport.write(b"1")
        self.assertEqual(await self.next(collector), b"1")
        self.assertGreaterEqual(reactor.seconds() - before, 0.2)

    async def test_piece(self) -> None:
        """Pieces arrive as segments of their own."""
        collector = await self.connect()
        self.proxy.change(self.proxy.back, piece=1)
        collector.transport.write(b"abc")
        self.assertEqual([await self.next(collector) for _ in range(3)], [b"a", b"b", b"c"])

    async def test_ends(self) -> None:
        """Connections are closed, reset or refused at once."""
        collector = await self.connect()
        self.proxy.close()
        self.assertIsInstance(await self.lost(collector), ConnectionDone)
        collector = await self.connect()
        self.proxy.reset()
        await self.lost(collector)
        self.proxy.refuses = True
        await self.lost(await self.connect())
        self.proxy.heal()
        await self.test_passes_again()

    async def test_passes_again(self) -> None:
        """A healed proxy passes on."""
        collector = await self.connect()
        collector.transport.write(b"again")
        self.assertEqual(await self.next(collector), b"again")

    async def test_broker(self) -> None:
        """The broker answers through it."""
        proxy = Proxy(reactor, shared_broker().port)
        proxy.listen()
        self.addCleanup(proxy.stop)
        self.proxy = proxy
        collector = await self.connect()
        collector.transport.write(GREETING)
        kind, channel = struct.unpack_from(">BH", await self.next(collector))
        self.assertEqual((kind, channel), (1, 0))
