"""A network that loses, delays, and cuts in pieces what goes between us and the broker."""

import struct
from random import Random

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol

from novasvc.errors import BrokerUnavailableError, RPCError
from tests.faults.amqp_rig import CONTEXT, AMQPCase, ProxyCase

HEARTBEAT = 1.0
NOTICED = 2 * HEARTBEAT + 1.0
"""Two heartbeats, and what a busy machine takes."""


class HalfOpenTests(ProxyCase):
    async def hang(self, *, there: bool, back: bool) -> None:
        transport = await self.connect(heartbeat=HEARTBEAT, connect_timeout=1.0, operation_timeout=10.0)
        server = await self.serve(transport)
        client = await self.client(transport)
        await self.assert_serves(client)
        if there:
            self.proxy.change(self.proxy.there, hangs=True)
        if back:
            self.proxy.change(self.proxy.back, hangs=True)
        cast = client.cast(CONTEXT, "note", what="into the void")
        # Who only hears nothing notices it itself. Who is not heard is told by the broker, which closes.
        noticed = await self.until(lambda: not server.live and transport.connections[0].state != "ready", 15.0)
        self.assertIsInstance((await self.outcomes([cast]))[0], RPCError)
        if back:
            self.assertLess(noticed, NOTICED)
        self.assertNotIn("into the void", self.diary.calls)
        self.proxy.heal()
        await self.until(lambda: server.live)
        await self.assert_comes_back(client)

    async def test_nothing_comes(self) -> None:
        """A broker of which nothing comes is given up within two heartbeats."""
        await self.hang(there=False, back=True)

    async def test_nothing_goes(self) -> None:
        """A broker that hears nothing of us gives us up, and we come back."""
        await self.hang(there=True, back=False)

    async def test_nothing_goes_or_comes(self) -> None:
        """A broker behind a broken line is given up within two heartbeats."""
        await self.hang(there=True, back=True)


class CutTests(ProxyCase):
    async def test_pieces(self) -> None:
        """A stream that comes byte by byte means the same."""
        self.proxy.change(piece=1)
        server = await self.serve(await self.connect(self.direct_url))
        client = await self.client()
        text = "é" * 500
        self.assertEqual(await client.call(CONTEXT, "note", what=text), text)
        self.assertTrue(server.live)

    async def test_slow(self) -> None:
        """A slow line slows, and breaks nothing."""
        transport = await self.connect()
        await self.serve(transport)
        client = await self.client(transport)
        self.proxy.change(delay=0.2)
        calls = [client.call(CONTEXT, "note", what=n) for n in range(50)]
        self.assertEqual(await self.outcomes(calls), list(range(50)))

    async def test_reset(self) -> None:
        """Connections that are reset again and again are made again, and calls end."""
        server = await self.serve(await self.connect(operation_timeout=10.0))
        client = await self.client(patience=2.0)
        for _ in range(5):
            calls = [client.call(CONTEXT, "note", what=n) for n in range(20)]
            self.proxy.reset()
            await self.outcomes(calls)
            await self.until(lambda: server.live)
            await self.assert_comes_back(client)
        await self.until(lambda: not server.in_flight)  # what its caller gave up may still be on its way
        self.assertEqual(client.pending, 0)

    async def test_away(self) -> None:
        """A broker that is away for a while is tried at growing intervals, and said to be away once a reason."""
        server = await self.serve()
        self.proxy.refuses = True
        before = self.proxy.accepted
        self.proxy.reset()
        await self.until(lambda: not server.live)
        await self.until(lambda: self.said("reconnecting"), 3.0)
        told = len(self.said("is down"))
        self.assertLess(told, 6)
        self.proxy.heal()
        await self.until(lambda: server.live)
        self.assertLess(self.proxy.accepted - before, 6)


class AbsentTests(ProxyCase):
    async def test_absent(self) -> None:
        """A broker that is not there fails the opening at once, with its address and without its password."""
        self.proxy.refuses = True
        error = await self.assertFailure(self.make_transport().open(), BrokerUnavailableError)
        self.assertIn(f"127.0.0.1:{self.proxy.port}", str(error))
        self.assertNotIn("guest:guest", str(error))
        await self.proxy.stop()
        error = await self.assertFailure(self.make_transport().open(), BrokerUnavailableError)
        self.assertIn("refused", str(error))

    async def test_next_host(self) -> None:
        """Of several hosts the next one is tried."""
        self.proxy.refuses = True
        there = f"127.0.0.1:{self.proxy.port}"
        url = self.direct_url.replace("guest:guest@", f"guest:guest@{there},guest:guest@")
        transport = await self.connect(url)
        await self.serve(transport)
        await self.assert_serves(await self.client(transport))

    async def test_silent(self) -> None:
        """A broker that takes connections and says nothing is given up at the deadline."""
        self.proxy.change(hangs=True)
        transport = self.make_transport(connect_timeout=0.5)
        begun = reactor.seconds()
        error = await self.assertFailure(transport.open(), BrokerUnavailableError)
        self.assertLess(reactor.seconds() - begun, 2.0)
        self.assertIn("0.5 s", str(error))

    async def test_closed_meanwhile(self) -> None:
        """A transport that is closed while it connects, or waits for the next attempt, is closed at once."""
        self.proxy.change(hangs=True)
        opening = self.make_transport()
        failing = self.assertFailure(opening.open(), Exception)
        await self.until(lambda: self.proxy.accepted)
        begun = reactor.seconds()
        await opening.close()
        await failing
        self.proxy.heal()
        waiting = await self.connect()
        self.proxy.refuses = True
        self.proxy.reset()
        await self.until(lambda: waiting.connections[0].state == "waiting")
        await waiting.close()
        self.assertLess(reactor.seconds() - begun, 3.0)


def frame(kind: int, channel: int, payload: bytes, end: bytes = b"\xce") -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + end


DELIVER = frame(1, 1, b"\x00\x3c\x00\x3c" + b"\x011" + struct.pack(">QB", 1, 0) + b"\x00" + b"\x00")

NONSENSE = {
    "a type that there is not": frame(99, 0, b""),
    "no end": frame(8, 0, b"", b"\x00"),
    "a frame of 4 GiB": struct.pack(">BHIB", 1, 0, 2**32 - 1, 0),
    "a frame over what was agreed": struct.pack(">BHIB", 3, 1, 200_000, 0),
    "a method that there is not": frame(1, 1, b"\x00\x63\x00\x63"),
    "half a method id": frame(1, 1, b"\x00"),
    "arguments that are cut short": frame(1, 0, b"\x00\x0a\x00\x32\x00"),
    "a method for a broker": frame(1, 1, b"\x00\x32\x00\x0a" + b"\x00" * 12),
    "an answer to no question": frame(1, 1, b"\x00\x32\x00\x0b" + b"\x00" * 9),
    "a channel that is not open": frame(1, 1999, b"\x00\x14\x00\x28" + b"\x00" * 7),
    "a body without a method": frame(3, 1, b"x"),
    "a header without a method": frame(2, 1, b"\x00\x3c\x00\x00" + b"\x00" * 10),
    "a header that is cut short": DELIVER + frame(2, 1, b"\x00\x3c"),
    "a body longer than its header says": DELIVER
    + frame(2, 1, struct.pack(">HHQH", 60, 0, 1, 0))
    + frame(3, 1, b"too long"),
    "a table that says it is longer than it is": frame(1, 0, b"\x00\x0a\x00\x0a\x00\x09\xff\xff\xff\xff"),
}


class NonsenseTests(ProxyCase):
    retry = staticmethod(lambda attempt: 0.02)  # how long it waits is not what is tested here

    async def test_nonsense(self) -> None:
        """Each thing that is no AMQP costs the connection, is said in one line, and all comes back."""
        transport = await self.connect(heartbeat=0)
        server = await self.serve(transport)
        client = await self.client(transport)
        for name, data in NONSENSE.items():
            await self.assert_comes_back(client)
            before = len(self.said("is down"))
            listener_before = transport.connections[1].reconnects
            self.proxy.inject(data)
            await self.until(lambda before=listener_before: transport.connections[1].reconnects > before)
            await self.until(lambda: server.live)
            self.assertLessEqual(len(self.said("is down")) - before, 2, name)
        await self.assert_comes_back(client)

    async def test_random(self) -> None:
        """Whatever follows the beginning of a frame that cannot be, all comes back."""
        random = Random(20)
        transport = await self.connect(heartbeat=0)
        server = await self.serve(transport)
        client = await self.client(transport)
        for _ in range(10):
            before = transport.connections[1].reconnects
            self.proxy.inject(bytes([random.randint(4, 7)]) + random.randbytes(random.randint(100, 100_000)))
            await self.until(lambda before=before: transport.connections[1].reconnects > before)
            await self.until(lambda: server.live)
        await self.assert_comes_back(client)


class Impostor(Protocol):
    """Says one thing to who connects."""

    says: bytes

    def connectionMade(self) -> None:
        self.transport.write(self.says)


class ImpostorTests(AMQPCase):
    async def test_impostors(self) -> None:
        """What is no broker is recognised by the first bytes, or given up at the deadline."""
        for says, seen in {
            b"HTTP/1.1 400 Bad Request\r\n\r\n": "invalid AMQP",
            b"\x15\x03\x03\x00\x02\x02\x46": "TLS",
            b"AMQP\x00\x01\x00\x00": "another version",
            b"SSH-2.0-OpenSSH_9.2\r\n": "invalid AMQP",
            frame(1, 0, b"\x00\x0a\x00\x0a\x00\x09"): "invalid AMQP",
            b"": "0.5 s",
        }.items():
            factory = Factory.forProtocol(type("Impostor", (Impostor,), {"says": says}))
            factory.noisy = False
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            self.addCleanup(port.stopListening)
            url = self.broker.url(self.vhost, port=port.getHost().port)
            # Only who says nothing is waited for to the end.
            opening = self.make_transport(url, connect_timeout=10.0 if says else 0.5).open()
            error = await self.assertFailure(opening, BrokerUnavailableError)
            self.assertIn(seen, str(error))

    async def test_at_once(self) -> None:
        """A thousand calls of a broken connection end together, and nothing of them stays."""
        transport = await self.connect()
        server = await self.serve(transport)
        client = await self.client(transport)
        calls: list[Deferred[object]] = [client.call(CONTEXT, "hang", what=n) for n in range(1000)]
        await self.until(lambda: len(self.diary.hanging) == 64)
        self.broker.close_connections(self.vhost)
        await self.until(lambda: not server.live)
        await client.close()
        await self.outcomes(calls)
        self.diary.let_go()
        await gatherResults([server.stop_consuming()])
        self.assertEqual(client.pending, 0)
