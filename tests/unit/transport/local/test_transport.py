"""Tests for novasvc.transport.local: processes of one host, here several transports with a broker each."""

import json
import socket
import stat
import struct
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from novasvc.context import RequestContext
from novasvc.errors import TransportClosedError, TransportFullError, UnconfirmedError, UndeliverableError
from novasvc.interfaces import ITransport
from novasvc.rpc import Client, Endpoints, Server, expose
from novasvc.rpc.target import Target
from novasvc.transport.local import HostSockets, LocalTransport, frames, incoming, outgoing
from novasvc.transport.memory import MemoryBroker
from tests.support.waiting import until

PATIENCE = 10.0
STOCK = {"queues": [["nova", "stock", None]], "fanouts": []}


class Echo:
    """Answers with the host that it is on."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.seen: list[str] = []

    @expose()
    def echo(self, context: RequestContext, text: str) -> str:
        """Return the host and the text."""
        self.seen.append(text)
        return f"{self.host}: {text}"


class LocalCase(TestCase):
    """Each process is a transport with a broker of its own; they share a directory of sockets."""

    def setUp(self) -> None:
        # Not mktemp: the path of a socket is short.
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name) / "rpc"

    def process(self, bound: int = 10_000) -> LocalTransport:
        transport = LocalTransport(HostSockets(MemoryBroker(bound), reactor, self.directory))
        self.addCleanup(transport.close)
        return transport

    async def serve(self, topic: str, host: str) -> tuple[LocalTransport, Echo]:
        """Start a process with a server."""
        transport, echo = self.process(), Echo(host)
        server = Server(
            transport, Target(topic, host), Endpoints(echo), clock=reactor, run_blocking=lambda function: function()
        )
        await server.start()
        self.addCleanup(server.close)
        return transport, echo

    def client(self, transport: LocalTransport, topic: str, server: str | None = None) -> Any:
        client = Client(transport, clock=reactor, timeout=PATIENCE, target=Target(topic, server))
        self.addCleanup(client.close)
        return client

    async def inbox(self, transport: LocalTransport, target: Target, prefetch: int = 10) -> "DeferredQueue[Any]":
        queue: DeferredQueue[Any] = DeferredQueue()
        await transport.listen(target, queue.put, prefetch)
        return queue

    def next(self, queue: "DeferredQueue[Any]") -> Deferred[Any]:
        return queue.get().addTimeout(PATIENCE, reactor)

    def sockets(self) -> list[Path]:
        return sorted(self.directory.glob("*.sock"))


class CallTests(LocalCase):
    """Calls between processes."""

    async def test_call(self) -> None:
        """A process without a server calls one that has one, and gets the result."""
        await self.serve("stock", "h1")
        calling = self.process()
        self.assertTrue(verifyObject(ITransport, calling))
        answer = await self.client(calling, "stock").call(RequestContext(), "echo", text="a")
        self.assertEqual(answer, "h1: a")
        self.assertEqual(len(self.sockets()), 1)

    async def test_error(self) -> None:
        """An error comes back as over any other transport."""
        await self.serve("stock", "h1")
        call = self.client(self.process(), "stock").call(RequestContext(), "echo", txt="a")
        with self.assertRaisesRegex(Exception, "missing"):
            await call

    async def test_servers_of_two_processes(self) -> None:
        """Two servers call each other's topics; each process has one socket."""
        one, _ = await self.serve("stock", "h1")
        two, _ = await self.serve("till", "h1")
        self.assertEqual(await self.client(one, "till").call(RequestContext(), "echo", text="a"), "h1: a")
        self.assertEqual(await self.client(two, "stock").call(RequestContext(), "echo", text="b"), "h1: b")
        self.assertEqual(len(self.sockets()), 2)

    async def test_own_process_first(self) -> None:
        """A call stays in its process if a server of it can take it."""
        one, echo = await self.serve("stock", "h1")
        _, other = await self.serve("stock", "h2")
        client = self.client(one, "stock")
        for text in "abc":
            self.assertEqual(await client.call(RequestContext(), "echo", text=text), f"h1: {text}")
        self.assertEqual((echo.seen, other.seen), (["a", "b", "c"], []))
        self.assertEqual(await self.client(one, "stock", "h2").call(RequestContext(), "echo", text="d"), "h2: d")

    async def test_in_turn(self) -> None:
        """The processes of a topic have its calls in turn."""
        echoes = [(await self.serve("stock", host))[1] for host in ("h1", "h2", "h3")]
        client = self.client(self.process(), "stock")
        for text in "abcdef":
            await client.call(RequestContext(), "echo", text=text)
        self.assertEqual([len(echo.seen) for echo in echoes], [2, 2, 2])

    async def test_fanout(self) -> None:
        """A fanout reaches the servers of all processes, its own among them."""
        one, echo = await self.serve("stock", "h1")
        _, other = await self.serve("stock", "h2")
        await self.client(one, "stock").prepare(fanout=True).cast(RequestContext(), "echo", text="a")
        await until(lambda: echo.seen == other.seen == ["a"])

    async def test_large(self) -> None:
        """A request and a reply may be larger than a socket's buffer."""
        await self.serve("stock", "h1")
        text = "x" * 5_000_000
        answer = await self.client(self.process(), "stock").call(RequestContext(), "echo", text=text)
        self.assertEqual(len(answer), len(text) + 4)

    async def test_later_process(self) -> None:
        """A process that starts after a client has called is found."""
        await self.serve("stock", "h1")
        calling = self.process()
        await self.client(calling, "stock").call(RequestContext(), "echo", text="a")
        await self.serve("till", "h1")
        self.assertEqual(await self.client(calling, "till").call(RequestContext(), "echo", text="b"), "h1: b")

    async def test_many_at_once(self) -> None:
        """Concurrent calls of a process share one connection."""
        serving, _ = await self.serve("stock", "h1")
        client = self.client(self.process(), "stock")
        calls = [client.call(RequestContext(), "echo", text=str(number)) for number in range(200)]
        self.assertEqual([await call for call in calls], [f"h1: {number}" for number in range(200)])
        self.assertEqual(len(serving._sockets.incoming.connections), 1)


class SendTests(LocalCase):
    """Messages that nobody takes, or not at once."""

    async def test_nobody(self) -> None:
        """A message that must find a server fails if no process has one, as it does without other processes."""
        alone = self.process()
        for target in (Target("stock"), Target("stock", "h1"), Target("stock", fanout=True)):
            await self.assertFailure(alone.send(target, b"1", None, True), UndeliverableError)
        await self.serve("till", "h1")
        for target in (Target("stock"), Target("till", "h2"), Target("till", exchange="other")):
            await self.assertFailure(alone.send(target, b"1", None, True), UndeliverableError)
            await alone.send(target, b"1", None, False)

    async def test_waits_at_home(self) -> None:
        """A message for a server of this process that is restarting waits for it."""
        transport = self.process()
        listener = await transport.listen(Target("stock"), lambda _: None, 1)
        await listener.close()
        await transport.send(Target("stock"), b"1", None, False)
        self.assertEqual((await self.next(await self.inbox(transport, Target("stock")))).body, b"1")

    async def test_full(self) -> None:
        """A full queue of another process refuses a message."""
        full = self.process(bound=1)
        await full.listen(Target("stock"), lambda _: None, 1)
        sending = self.process()
        await sending.send(Target("stock"), b"1", None, True)
        await until(lambda: not full._sockets.broker.queue("nova", "stock", None).messages)
        await sending.send(Target("stock"), b"2", None, True)
        error = await self.assertFailure(sending.send(Target("stock"), b"3", None, True), TransportFullError)
        assert isinstance(error, TransportFullError)
        self.assertEqual(error.bound, 1)

    async def test_ttl(self) -> None:
        """The time that a sender waits reaches the receiver."""
        queue = await self.inbox(self.process(), Target("stock"))
        sending = self.process()
        await sending.send(Target("stock"), b"1", 30.0, True)
        await sending.send(Target("stock"), b"2", None, True)
        self.assertTrue(25.0 < (await self.next(queue)).expires_in <= 30.0)
        self.assertIsNone((await self.next(queue)).expires_in)

    async def test_closed(self) -> None:
        """A closed transport sends nothing, and its socket has gone."""
        transport, _ = await self.serve("stock", "h1")
        self.assertEqual(len(self.sockets()), 1)
        await transport.close()
        self.assertEqual(self.sockets(), [])
        await self.assertFailure(transport.send(Target("till"), b"1", None, False), TransportClosedError)

    async def test_closed_replies(self) -> None:
        """Another process drops the replies to an address that was closed."""
        serving, _ = await self.serve("stock", "h1")
        calling = self.process()
        client = self.client(calling, "stock")
        await client.call(RequestContext(), "echo", text="a")
        self.assertEqual(len(serving._sockets.broker._reply_queues), 1)
        await client.close()
        await until(lambda: not serving._sockets.broker._reply_queues)


class SharedTests(LocalCase):
    """Several transports of one process."""

    async def test_one_socket(self) -> None:
        """The transports of a process share a socket, so that a fanout arrives once; the last one closes it."""
        sockets = HostSockets(MemoryBroker(), reactor, self.directory)
        transports = [LocalTransport(sockets) for _ in range(2)]
        self.addCleanup(transports[1].close)
        queues = [await self.inbox(transport, Target("stock")) for transport in transports]
        self.assertEqual(len(self.sockets()), 1)
        await transports[0].send(Target("stock", fanout=True), b"1", None, True)
        await self.process().send(Target("stock", fanout=True), b"2", None, True)
        for queue in queues:
            self.assertEqual([(await self.next(queue)).body for _ in range(2)], [b"1", b"2"])
            self.assertEqual(queue.pending, [])
        await transports[0].close()
        await transports[0].close()
        self.assertEqual(len(self.sockets()), 1)
        await transports[1].close()
        self.assertEqual(self.sockets(), [])

    async def test_opened_while_the_last_closes(self) -> None:
        """A transport that is opened while the last one still passes replies on keeps the socket."""
        sockets = HostSockets(MemoryBroker(), reactor, self.directory)
        first = LocalTransport(sockets)
        await self.inbox(first, Target("stock"))
        address = await first.open_replies(lambda _: None)
        await first.reply(address, b"reply")
        self.assertTrue(sockets.broker.is_delivering)
        closing = first.close()
        second = LocalTransport(sockets)
        self.addCleanup(second.close)
        queue = await self.inbox(second, Target("stock"))
        await closing
        await self.process().send(Target("stock"), b"1", None, True)
        self.assertEqual((await self.next(queue)).body, b"1")


class EndTests(LocalCase):
    """Processes that end, hang, or were killed."""

    async def test_killed(self) -> None:
        """The socket of a killed process is skipped and removed."""
        self.directory.mkdir(mode=0o700, parents=True)
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(self.directory / "1-dead.sock"))
        await self.serve("stock", "h1")
        self.assertEqual(len(self.sockets()), 2)
        answer = await self.client(self.process(), "stock").call(RequestContext(), "echo", text="a")
        self.assertEqual((answer, len(self.sockets())), ("h1: a", 1))

    async def test_last_replies(self) -> None:
        """Replies that were sent just before a process closes its transport arrive."""
        serving, calling = self.process(), self.process()
        requests = await self.inbox(serving, Target("stock", "h1"))
        replies: DeferredQueue[bytes] = DeferredQueue()
        address = await calling.open_replies(replies.put)
        await calling.send(Target("stock"), b"request", None, True)
        await self.next(requests)
        for number in range(300):
            await serving.reply(address, b"%d" % number)
        await serving.close()
        self.assertEqual([await self.next(replies) for _ in range(300)], [b"%d" % number for number in range(300)])

    async def pretend(self, *headers: dict[str, Any]) -> Deferred[socket.socket]:
        """Listen as a process would, and send these headers to the first that connects; fires with the connection."""
        self.directory.mkdir(mode=0o700, parents=True)
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(str(self.directory / "1-other.sock"))
        listening.listen(1)
        listening.setblocking(False)

        async def accept() -> socket.socket:
            accepted: list[socket.socket] = []

            def try_accept() -> bool:
                try:
                    accepted.append(listening.accept()[0])
                except BlockingIOError:
                    return False
                return True

            await until(try_accept)
            self.addCleanup(accepted[0].close)
            accepted[0].sendall(b"".join(map(frame, headers)))
            return accepted[0]

        return Deferred.fromCoroutine(accept())

    async def test_hanging(self) -> None:
        """A request that a process does not take over in time is unconfirmed."""
        self.patch(outgoing, "_ANSWER", 0.05)
        await self.pretend(STOCK)
        error = await self.assertFailure(self.process().send(Target("stock"), b"1", None, True), UnconfirmedError)
        self.assertIn("did not answer within 0.05 s", str(error))

    async def test_hanging_other(self) -> None:
        """A process that hangs does not hold up what others serve, whether it has told what it serves or not."""
        self.patch(outgoing, "_CONNECT", 0.05)
        await self.serve("till", "h1")
        for headers in ((), (STOCK,)):
            with self.subTest(headers):
                for path in self.directory.glob("1-other.sock"):
                    path.unlink()
                self.directory.rename(self.directory.with_name("kept"))
                await self.pretend(*headers)
                for path in self.directory.with_name("kept").iterdir():
                    path.rename(self.directory / path.name)
                self.directory.with_name("kept").rmdir()
                client = self.client(self.process(), "till")
                self.assertEqual(await client.call(RequestContext(), "echo", text="a"), "h1: a")

    def hang(self) -> socket.socket:
        """Listen as a process that hangs: it accepts no connection."""
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(str(self.directory / "1-other.sock"))
        listening.listen(2)
        return listening

    async def test_hanging_newcomer(self) -> None:
        """A process that hangs holds up no request whose target a connected process serves."""
        queue = await self.inbox(self.process(), Target("stock"))
        sending = self.process()
        await sending.send(Target("stock"), b"1", None, True)
        self.hang()
        self.patch(outgoing, "_CONNECT", 10 * PATIENCE)
        for body in (b"2", b"3"):
            await sending.send(Target("stock"), body, None, True).addTimeout(PATIENCE, reactor)
        self.assertEqual([(await self.next(queue)).body for _ in range(3)], [b"1", b"2", b"3"])

    async def test_hanging_fanout(self) -> None:
        """A fanout waits for a process that hangs once, until the process goes on."""
        queue = await self.inbox(self.process(), Target("stock"))
        sending, hanging = self.process(), self.hang()
        self.patch(outgoing, "_CONNECT", 0.05)
        await sending.send(Target("stock", fanout=True), b"1", None, True)
        self.patch(outgoing, "_CONNECT", 10 * PATIENCE)
        await sending.send(Target("stock", fanout=True), b"2", None, True).addTimeout(PATIENCE, reactor)
        self.assertEqual([(await self.next(queue)).body for _ in range(2)], [b"1", b"2"])
        others = sending._sockets.others
        self.assertEqual([path.name for path in others._hanging], ["1-other.sock"])
        accepted = hanging.accept()[0]
        self.addCleanup(accepted.close)
        accepted.sendall(frame(STOCK))
        await until(lambda: not others._hanging)

    async def test_fanout_after_hanging(self) -> None:
        """A process that has hung gets the first fanout after it goes on."""
        queue = await self.inbox(self.process(), Target("stock"))
        sending, hanging = self.process(), self.hang()
        self.patch(outgoing, "_CONNECT", 0.05)
        await sending.send(Target("stock", fanout=True), b"1", None, True)
        accepted = hanging.accept()[0]
        self.addCleanup(accepted.close)
        accepted.sendall(frame({"queues": [], "fanouts": ["stock"]}))
        await until(lambda: not sending._sockets.others._hanging)
        sent = sending.send(Target("stock", fanout=True), b"2", None, True)
        self.assertEqual([(await self.next(queue)).body for _ in range(2)], [b"1", b"2"])
        accepted.setblocking(False)
        await until(lambda: readable(accepted))
        self.assertTrue(accepted.recv(1000).endswith(b"2"))
        accepted.sendall(frame({"id": 1, "result": "taken"}))
        await sent

    async def test_request_after_hanging(self) -> None:
        """A request that no other process can take gives a process that hangs as long again to go on."""
        self.process()._sockets.listen()  # makes the directory
        sending, hanging = self.process(), self.hang()
        self.patch(outgoing, "_CONNECT", 0.05)
        await self.assertFailure(sending.send(Target("stock"), b"1", None, True), UndeliverableError)
        await self.assertFailure(sending.send(Target("stock"), b"2", None, True), UndeliverableError)
        self.patch(outgoing, "_CONNECT", PATIENCE)
        sent = sending.send(Target("stock"), b"3", None, True)
        accepted = hanging.accept()[0]
        self.addCleanup(accepted.close)
        accepted.sendall(frame(STOCK))
        accepted.setblocking(False)
        await until(lambda: readable(accepted))
        self.assertTrue(accepted.recv(1000).endswith(b"3"))
        accepted.sendall(frame({"id": 1, "result": "taken"}))
        await sent

    async def test_cancelled_while_connecting(self) -> None:
        """A request that is cancelled while its process connects to others is not sent."""
        queue = await self.inbox(self.process(), Target("stock"))
        self.hang()
        self.patch(outgoing, "_CONNECT", 0.1)
        sending = self.process()
        cancelled = sending.send(Target("stock"), b"1", None, True)
        cancelled.cancel()
        await self.assertFailure(cancelled, CancelledError)
        await sending.send(Target("stock"), b"2", None, True)
        self.assertEqual((await self.next(queue)).body, b"2")
        self.assertEqual(queue.pending, [])

    async def test_ttl_while_connecting(self) -> None:
        """The time in which a process connects to others counts; a request that expires in it is not sent."""
        queue = await self.inbox(self.process(), Target("stock"))
        self.hang()
        self.patch(outgoing, "_CONNECT", 0.2)
        for target in (Target("stock"), Target("stock", fanout=True)):
            sending = self.process()
            expired = sending.send(target, b"1", 0.1, True)
            await sending.send(target, b"2", 30.0, True)
            await expired
            delivery = await self.next(queue)
            self.assertEqual(delivery.body, b"2")
            self.assertTrue(25.0 < delivery.expires_in <= 29.8, delivery.expires_in)
        self.assertEqual(queue.pending, [])

    async def test_ends_meanwhile(self) -> None:
        """A request to a process that ends before it takes the request over is unconfirmed."""
        accepting = await self.pretend(STOCK)
        sending = self.process().send(Target("stock"), b"1", None, True)
        accepted = await accepting
        accepted.setblocking(False)
        await until(lambda: readable(accepted))
        accepted.close()
        error = await self.assertFailure(sending, UnconfirmedError)
        self.assertIn("has ended", str(error))

    async def test_told(self) -> None:
        """Requests go only to a process that has told that it serves their target; it may tell so later."""
        accepting = await self.pretend({"queues": [], "fanouts": []})
        sending = self.process()
        await self.assertFailure(sending.send(Target("stock"), b"1", None, True), UndeliverableError)
        (await accepting).sendall(frame(STOCK))
        (connection,) = sending._sockets.others._connected.values()
        await until(lambda: connection.serves(Target("stock"), "nova"))
        self.assertFalse(connection.serves(Target("stock", "h1"), "nova"))

    async def test_client_gone(self) -> None:
        """When a client's process ends, its reply addresses go with it."""
        serving, _ = await self.serve("stock", "h1")
        calling = self.process()
        await self.client(calling, "stock").call(RequestContext(), "echo", text="a")
        await calling.close()
        await until(lambda: not serving._sockets.broker._reply_queues)

    async def test_unread(self) -> None:
        """A peer that does not read its replies is disconnected, and what is kept for it is bounded."""
        self.patch(frames, "UNREAD_LIMIT", 1_000_000)
        serving, _ = await self.serve("stock", "h1")
        with self.connected() as peer:
            peer.sendall(frame({"do": "open", "address": "reply_x"}))
            await until(lambda: serving._sockets.broker._reply_queues)
            for _ in range(20):
                serving._sockets.broker.reply("reply_x", b"x" * 500_000)
            await until(lambda: not serving._sockets.incoming.connections)

    def connected(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        self.addCleanup(peer.close)
        peer.connect(str(self.sockets()[0]))
        return peer


class AccessTests(LocalCase):
    """Who may connect, and what a connection may send."""

    async def test_modes(self) -> None:
        """The directory and the socket are accessible to their user only."""
        await self.serve("stock", "h1")
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(self.sockets()[0].stat().st_mode), 0o600)

    async def test_others_directory(self) -> None:
        """A directory that other users may access is not used, by servers and by clients."""
        self.directory.mkdir(mode=0o755, parents=True)
        self.directory.chmod(0o755)
        transport, _ = await self.serve("stock", "h1")
        self.assertEqual(self.sockets(), [])
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.bind(str(self.directory / "1-foreign.sock"))
            foreign.listen(1)
            calling = self.process().send(Target("stock"), b"1", None, True)
            await self.assertFailure(calling, UndeliverableError)
        self.assertFalse(outgoing.any_process(self.directory))
        self.assertEqual(await self.client(transport, "stock").call(RequestContext(), "echo", text="a"), "h1: a")

    async def test_no_socket(self) -> None:
        """Without a usable directory a process serves itself, and the log says why others cannot reach it."""
        for unusable in (self.directory / ("x" * 120), Path("/dev/null/rpc")):
            self.directory = unusable
            transport, _ = await self.serve("stock", "h1")
            self.assertEqual(await self.client(transport, "stock").call(RequestContext(), "echo", text="a"), "h1: a")

    async def test_malformed(self) -> None:
        """A connection that sends anything but frames is closed; the others go on."""
        serving, _ = await self.serve("stock", "h1")
        client = self.client(self.process(), "stock")
        for sent in (
            b"GET / HTTP/1.1\r\n\r\n",
            struct.pack("!I", frames.LONGEST + 1),
            frame({}),
            frame({"do": "stop"}),
            frame({"do": "send"}),
            frame({"do": "send", "id": 1, "topic": "a b", "server": None, "fanout": False, "exchange": "x", "ttl": 1}),
            frame({"do": "send", "id": 1, "topic": 7, "server": None, "fanout": False, "exchange": "x", "ttl": 1}),
            frame({"do": "send", "id": 1, "topic": "a", "server": None, "fanout": False, "exchange": "x", "ttl": "x"}),
            raw(b"[1]\n"),
            raw(b"{" * 5000),
            b"".join(frame({"do": "open", "address": f"a{number}"}) for number in range(incoming.ADDRESSES + 1)),
            frame({"do": "open", "address": "a"}) + frame({}) + frame({"do": "open", "address": "b"}),
        ):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(self.sockets()[0]))
                peer.sendall(sent)
                peer.setblocking(False)
                await until(lambda peer=peer: closed(peer))
        self.assertEqual(await client.call(RequestContext(), "echo", text="a"), "h1: a")
        self.assertEqual(len(serving._sockets.broker._reply_queues), 1)

    async def test_too_many(self) -> None:
        """Connections beyond the limit are closed at once."""
        self.patch(incoming, "CONNECTIONS", 2)
        serving, _ = await self.serve("stock", "h1")
        peers = []
        for _ in range(3):
            peer = socket.socket(socket.AF_UNIX)
            self.addCleanup(peer.close)
            peer.connect(str(self.sockets()[0]))
            peer.setblocking(False)
            peers.append(peer)
        await until(lambda: [closed(peer) for peer in peers].count(True) == 1)
        self.assertEqual(len(serving._sockets.incoming.connections), 2)


def raw(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    return raw(json.dumps(header).encode() + b"\n" + body)


def closed(peer: socket.socket) -> bool:
    try:
        return peer.recv(65536) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def readable(peer: socket.socket) -> bool:
    try:
        return bool(peer.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


class EventTests(LocalCase):
    """Events between processes."""

    async def subscribe(self, topic: str) -> tuple[LocalTransport, "DeferredQueue[Any]"]:
        transport, queue = self.process(), DeferredQueue()
        await transport.subscribe(f"{topic}_events", ["notifications.info"], queue.put, 10)
        return transport, queue

    async def test_copies(self) -> None:
        """Each subscribed queue gets one copy, whichever process publishes; its processes share it."""
        _, one = await self.subscribe("stock")
        _, twin = await self.subscribe("stock")
        billing, other = await self.subscribe("billing")
        publishing = self.process()
        for number in range(4):
            await publishing.publish("notifications.info", b"%d" % number)
        self.assertEqual([(await self.next(other)).body for _ in range(4)], [b"0", b"1", b"2", b"3"])
        bodies = {(await self.next(queue)).body for queue in (one, one, twin, twin)}
        self.assertEqual(bodies, {b"0", b"1", b"2", b"3"})
        # Also from a process that is subscribed itself.
        await billing.publish("notifications.info", b"4")
        self.assertEqual((await self.next(other)).body, b"4")

    async def test_nobody(self) -> None:
        """Without a subscriber in any process, and for another key, an event is refused."""
        publishing = self.process()
        await self.assertFailure(publishing.publish("notifications.info", b"1"), UndeliverableError)
        await self.subscribe("stock")
        await self.assertFailure(publishing.publish("notifications.error", b"1"), UndeliverableError)
        await publishing.publish("notifications.info", b"1")

    async def test_older_process(self) -> None:
        """A process of a release without events has no subscriptions."""
        connection = outgoing.OutgoingConnection(reactor, lambda *_: None)
        connection.frame_received(STOCK, b"")
        self.assertEqual(connection.bound_queues("nova", "notifications.info"), [])
