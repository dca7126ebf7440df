"""Methods that run for longer than the broker waits for an acknowledgement."""

import sys
import threading
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.transport.amqp import topology
from tests.e2e.process import ROOT, Process
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase, Diary

LIMIT = 3.0
"""Seconds: the broker's consumer_timeout here. It looks every half second."""


class LongCase(AMQPCase):
    """The broker's limit is three seconds for channels that are opened here."""

    def setUp(self) -> None:
        super().setUp()
        self.limit(LIMIT, 0.5)
        self.addCleanup(self.limit, 1800.0, 60.0)
        self.nodes: dict[str, Diary] = {}
        self.servers: dict[str, rpc.Server] = {}

    def limit(self, seconds: float, tick: float) -> None:
        self.broker.eval(
            f"application:set_env(rabbit, consumer_timeout, {round(seconds * 1000)}),"
            f" application:set_env(rabbit, channel_tick_interval, {round(tick * 1000)})."
        )

    async def node(self, name: str, concurrency: int = 64, **options: Any) -> Diary:
        """Serve the topic, and the server of that name."""
        diary = self.nodes[name] = Diary()
        transport = await self.connect(**{"consumer_timeout": LIMIT, **options})
        self.servers[name] = await self.serve(transport, server=name, diary=diary, concurrency=concurrency)
        return diary

    @property
    def runs(self) -> int:
        return sum(len(diary.calls) for diary in self.nodes.values())

    def let_go(self) -> None:
        for diary in self.nodes.values():
            diary.let_go()

    def held(self) -> dict[str, int]:
        """Return how many messages are in queues, by the queue that they came from."""
        found: dict[str, int] = {}
        for name, number in self.broker.queues(self.vhost).items():
            origin = name.partition("_running_")[0]
            if number:
                found[origin] = found.get(origin, 0) + number
        return found

    def running_queues(self) -> list[str]:
        return [name for name in self.broker.queues(self.vhost) if "_running_" in name]

    async def until_held(self, number: int = 1) -> None:
        """Wait until requests are in queues of their processes."""

        def held() -> bool:
            queues = self.broker.queues(self.vhost)
            return sum(n for name, n in queues.items() if "_running_" in name) == number and not queues[TOPIC]

        await self.until_asked(held)


class LongTests(LongCase):
    async def several_times_the_limit(self, **options: Any) -> None:
        for name in ("h1", "h2"):
            await self.node(name, **options)
        client = await self.client(await self.connect(**options))
        calling = client.call(CONTEXT, "hang_again", what=1)
        await self.until(lambda: self.runs)
        await deferLater(reactor, 4 * LIMIT)
        self.let_go()
        self.assertEqual(await calling, 1)
        await self.until_asked(lambda: not self.held())
        self.assertEqual(self.runs, 1)
        self.assertEqual(self.said("lost its channel"), [])

    async def test_two_nodes(self) -> None:
        """An idempotent method that runs for many times the limit runs once, on a topic with two nodes."""
        await self.several_times_the_limit()

    @pytest.mark.long
    async def test_durable(self) -> None:
        """So it does with durable queues."""
        await self.several_times_the_limit(durable_queues=True)

    @pytest.mark.long
    async def test_quorum(self) -> None:
        """So it does with quorum queues."""
        await self.several_times_the_limit(quorum_queue=True)

    @pytest.mark.long
    async def test_thread(self) -> None:
        """So does a method that blocks, in its thread."""
        runs: list[str] = []
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        class Blocking:
            @rpc.expose(idempotent=True, blocking=True)
            def block(self, context: RequestContext) -> str:
                runs.append("began")
                go_on.wait(60)
                return "done"

        for name in ("h1", "h2"):
            transport = await self.connect(consumer_timeout=LIMIT)
            await self.serve(transport, server=name, diary=Blocking(), run_blocking=deferToThread)
        calling = (await self.client()).call(CONTEXT, "block")
        await self.until(lambda: runs)
        await deferLater(reactor, 3 * LIMIT)
        go_on.set()
        self.assertEqual((await calling, runs), ("done", ["began"]))
        await self.until_asked(lambda: not self.held())
        self.assertEqual(self.said("lost its channel"), [])

    @pytest.mark.long
    async def test_to_a_server_and_to_all(self) -> None:
        """So do methods that were called by a server's name, or of all servers."""
        diary = await self.node("h1")
        client = await self.client()
        calling = client.prepare(server="h1").call(CONTEXT, "hang_again", what=1)
        await client.fanout(CONTEXT, "hang_again", what=2)
        await self.until(lambda: len(diary.calls) == 2)
        await deferLater(reactor, 2 * LIMIT)
        self.let_go()
        self.assertEqual(await calling, 1)
        await self.until_asked(lambda: not self.held())
        self.assertEqual((self.runs, self.said("lost its channel")), (2, []))

    async def test_waiting(self) -> None:
        """What only waits for room goes to a node that has some, before the limit; what may run once, too."""
        await self.node("h1", concurrency=1)
        client = await self.client()
        calls = [client.prepare(server="h1").call(CONTEXT, "hang_again", what=1)]
        await self.until(lambda: self.runs)
        calls.append(client.call(CONTEXT, "note", what=2))
        await self.until_asked(lambda: self.broker.unacknowledged(self.vhost)[TOPIC] == 1)
        await self.node("h2")
        self.assertEqual(await calls[1], 2)
        self.assertEqual((self.nodes["h1"].calls, self.nodes["h2"].calls), ([1], [2]))
        self.let_go()
        self.assertEqual(await calls[0], 1)
        self.assertEqual(self.said("lost its channel"), [])

    async def test_room(self) -> None:
        """A node takes nothing from the topic's queue that would wait for what runs for long, and then does again."""
        await self.node("h1", concurrency=2)
        client = await self.client()
        calls = [client.call(CONTEXT, "hang_again", what=n) for n in (1, 2)]
        await self.until_held(2)
        await self.until_asked(lambda: not self.broker.consumers(self.vhost)[TOPIC])
        calls.append(client.call(CONTEXT, "note", what=3))
        await self.until_asked(lambda: self.broker.queues(self.vhost)[TOPIC])
        await self.node("h2")
        self.assertEqual(await calls[2], 3)
        await self.servers["h2"].close()
        calls.append(client.call(CONTEXT, "note", what=4))
        self.nodes["h1"].let_go(1)
        self.assertEqual(await calls[3], 4)
        self.let_go()
        self.assertEqual([await calls[0], await calls[1]], [1, 2])
        self.assertEqual((self.nodes["h1"].calls, self.nodes["h2"].calls), ([1, 2, 4], [3]))
        self.assertEqual(self.said("lost its channel"), [])

    async def test_answered_while_it_moves(self) -> None:
        """What ends at any moment while its request is being kept is answered once, and leaves nothing behind."""
        diary = await self.node("h1")
        client = await self.client()
        calls = []
        for number in range(60):
            calls.append(client.call(CONTEXT, "hang_again", what=number))
            await deferLater(reactor, 0.02)
        while diary.hanging:
            diary.let_go(1)
            await deferLater(reactor, 0.02)
        self.assertEqual(await self.outcomes(calls), list(range(60)))
        await self.until_asked(lambda: not self.held())
        self.assertEqual(self.runs, 60)


class LossTests(LongCase):
    async def test_connections_lost(self) -> None:
        """What a process runs for long stays its own, however often it loses its connection; that is no death."""
        self.patch(topology, "CLAIM_TIMEOUT", 60.0)  # a busy machine may take longer than 5 s to connect again
        for name in ("h1", "h2"):
            await self.node(name)
        client = await self.client()
        calling = client.call(CONTEXT, "hang_again", what=1)
        await self.until_held()
        for _ in range(5):
            before = len(self.said("was restored"))
            self.broker.close_connections(self.vhost)
            await self.until(lambda before=before: len(self.said("was restored")) >= before + 6)
            await self.until_held()
        self.let_go()
        self.assertEqual(await calling, 1)
        await self.until_asked(lambda: not self.held())
        self.assertEqual(self.runs, 1)

    @pytest.mark.long
    async def test_never_quarantined(self) -> None:
        """A request whose processes lost their connections, again and again, is not quarantined: none died of it."""
        for name in ("h1", "h2", "h3"):
            await self.node(name, consumer_timeout=1800.0)
        client = await self.client()
        calling = client.call(CONTEXT, "hang_again", what=1)
        await self.until(lambda: self.runs)
        for _ in range(6):
            before = len(self.said("was restored"))
            self.broker.close_connections(self.vhost)
            await self.until(lambda before=before: len(self.said("was restored")) >= before + 8)
            await deferLater(reactor, 0.3)
        self.let_go()
        self.assertEqual(await calling, 1)
        await self.until(lambda: self.let_go() or not self.held())
        self.assertEqual(sum(server.delivery_metrics.quarantined.value for server in self.servers.values()), 0)
        self.assertLessEqual(self.runs, 3)

    async def test_death(self) -> None:
        """What a process ran for long is run by another one when it dies, and known to have been near a death."""
        worker = Process(
            self,
            [sys.executable, "-m", "tests.faults.amqp_worker", self.url, TOPIC, str(LIMIT)],
            ROOT,
            PYTHONPATH=str(ROOT),
        )
        await deferToThread(worker.wait_for, "serving")
        calling = (await self.client()).prepare(timeout=600.0).call(CONTEXT, "hang_again", what=1)
        await deferToThread(worker.wait_for, "runs 1")
        await self.until_held()
        diary = await self.node("h2")
        deliveries: list[Any] = []
        server = self.servers["h2"]
        listener: Any = server._listener
        listener.receiver = lambda delivery: (deliveries.append(delivery), server._dispatcher.receive(delivery))
        worker.popen.kill()
        took = await self.until(lambda: diary.calls)
        self.assertLess(took, 8.0)
        self.assertEqual([(d.deaths, d.deliveries, d.counts_death) for d in deliveries], [(1, 1, False), (1, 1, True)])
        self.assertTrue(all(500 < delivery.expires_in <= 600 for delivery in deliveries))
        self.let_go()
        self.assertEqual(await calling, 1)
        await self.until_asked(lambda: not self.held())

    @pytest.mark.long
    async def test_drained(self) -> None:
        """A server that drains keeps what it runs for long; what it cuts short another one runs, as new."""
        first, second = await self.node("h1"), await self.node("h2")
        client = await self.client()
        await self.servers["h2"].stop_consuming()
        calls = [client.call(CONTEXT, "hang_again", what=n) for n in (1, 2)]
        await self.until_held(2)
        third = await self.node("h3")
        await self.servers["h1"].stop_consuming()
        await deferLater(reactor, 2 * LIMIT)
        first.let_go(1)
        self.assertEqual(await calls[0], 1)
        await self.servers["h1"].close()
        await self.until(lambda: third.calls)
        self.assertEqual((first.calls, second.calls, third.calls), ([1, 2], [], [2]))
        third.let_go()
        self.assertEqual(await calls[1], 2)
        await self.servers["h3"].close()
        self.assertEqual(self.running_queues(), [])

    @pytest.mark.long
    async def test_not_permitted(self) -> None:
        """Where a process may not have a queue of its own, that is said, and what it runs is run once all the same."""
        self.broker.add_user("narrow", "secret")
        self.addCleanup(self.broker.eval, 'rabbit_auth_backend_internal:delete_user(<<"narrow">>, <<"test">>).')
        self.broker.permit("narrow", self.vhost, configure=f"^(nova|reply_.*|{TOPIC}(_fanout.*|[.]h1)?)$")
        diary = Diary()
        url = self.broker.url(self.vhost, ("narrow", "secret"))
        # From 4.3 on only quorum queues have such a limit.
        options = {"quorum_queue": self.broker.release >= (4, 3)}
        await self.serve(await self.connect(url, consumer_timeout=LIMIT, **options), diary=diary)
        client = await self.client(await self.connect(**options))
        calling = client.call(CONTEXT, "hang_again", what=1)
        await self.until(lambda: len(self.said("consumes again")) == 4)
        self.assertEqual(len(self.said("no holding queue for.*access to queue 'compute_running_")), 1)
        diary.let_go()
        self.assertEqual((await calling, diary.calls), (1, [1]))
        await self.until_asked(lambda: not self.held())
