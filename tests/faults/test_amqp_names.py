"""What processes that are killed leave on the broker, and what their successors make of it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import Deferred, gatherResults, succeed

from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport, topology
from novasvc.transport.amqp.private_names import PrivateNames
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase


class NamesTests(AMQPCase):
    """Processes of one host and binary, one after the other and at the same time."""

    def setUp(self) -> None:
        super().setUp()
        holder = TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.directory = Path(holder.name)

    async def process(self, **options: Any) -> tuple[AMQPTransport, PrivateNames]:
        """Start what a process of a service has: a server, and a client that has called it."""
        names = PrivateNames(self.directory, "h1", "agent")
        transport = await self.connect(private_names=names, **options)
        await self.serve(transport)
        await self.assert_serves(await self.client(transport))
        return transport, names

    async def kill(self, transport: AMQPTransport, names: PrivateNames) -> None:
        """End a process without a word."""
        for connection in transport.connections:
            await connection.close()
        names.release()

    def private(self) -> list[str]:
        return sorted(name for name in self.broker.queues(self.vhost) if name not in {TOPIC, f"{TOPIC}.h1"})

    async def test_restarts(self) -> None:
        """However often a process is killed and started, it has one reply and one fanout queue."""
        for _ in range(10):
            transport, names = await self.process()
            await self.kill(transport, names)
        left = self.private()
        self.assertEqual([name.partition(":")[0] for name in left], [f"{TOPIC}_fanout_h1", "reply_h1"])
        transport, _ = await self.process()
        self.assertEqual(self.private(), left)
        await transport.close()
        self.assertEqual(self.private(), [])

    async def test_left_messages(self) -> None:
        """What was sent to a dead process does not reach its successor."""
        await self.kill(*await self.process())
        client = await self.client()
        await client.fanout(CONTEXT, "note", what="for the dead")
        await self.until(lambda: self.broker.queues(self.vhost)[self.private()[0]] == 1)
        transport, _ = await self.process()
        await client.fanout(CONTEXT, "note", what="for the living")
        await self.until(lambda: "for the living" in self.diary.calls)
        self.assertNotIn("for the dead", self.diary.calls)
        await self.assert_serves(await self.client(transport))

    async def test_in_use(self) -> None:
        """A process that finds another one at its queues, whatever became of the lock, uses other names."""
        await self.process()
        for lock in self.directory.iterdir():
            lock.unlink()
        await self.process()
        self.assertEqual(len(self.private()), 4)
        before = len(self.diary.calls)
        await (await self.client()).fanout(CONTEXT, "note", what="both")
        await self.until(lambda: len(self.diary.calls) == before + 2)

    async def test_at_the_same_time(self) -> None:
        """Of two processes that claim the queues at the same time, the second to consume uses other names."""
        await self.process()
        for lock in self.directory.iterdir():
            lock.unlink()
        with patch.object(topology, "claim", lambda *_: succeed(True)):  # as if it had looked before the other consumed
            transport, _ = await self.process()
        self.assertEqual(len(self.private()), 4)
        before = len(self.diary.calls)
        await (await self.client()).fanout(CONTEXT, "note", what="both")
        await self.until(lambda: len(self.diary.calls) == before + 2)
        client = await self.client(transport)
        for _ in range(10):
            await self.assert_serves(client)

    async def test_left_durable(self) -> None:
        """Queues are used again that a process has left durable, because the broker denied it transient ones."""
        await self.kill(*await self.process(durable_private_queues=True))
        left = self.private()
        transport, names = await self.process()
        self.assertEqual(self.private(), left)
        await self.kill(transport, names)
        transport = await self.connect(private_names=PrivateNames(self.directory, "h1", "agent"))
        opening: list[Deferred[Any]] = [
            transport.open_replies(lambda _: None),
            transport.listen(Target(TOPIC, "h1"), lambda _: None, 1),
        ]
        await gatherResults(opening)
        self.assertEqual(self.private(), left)

    async def test_left_otherwise(self) -> None:
        """A process whose queues exist with other arguments than its own uses other names."""
        await self.kill(*await self.process())
        with patch.object(topology, "_transient_arguments", lambda _: [False, 1800.0, {"x-queue-type": "quorum"}]):
            await self.process(transient_queues_ttl=60.0)
        self.assertEqual([":agent:" in name for name in self.private()].count(True), 2)
        self.assertEqual(len(self.private()), 4)

    async def test_reconnected(self) -> None:
        """A process that loses its connections keeps its names, and what was sent to it meanwhile."""
        transport, _ = await self.process()
        before = self.private()
        self.broker.close_connections(self.vhost)
        await self.assert_comes_back(await self.client(transport))
        self.assertEqual([name for name in self.private() if ":" in name], before)
