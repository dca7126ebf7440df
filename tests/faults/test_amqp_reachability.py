"""Nodes that consume, and that no message reaches: bindings, exchanges and queues that are lost behind their backs."""

import random
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import LogLevel

from novasvc import rpc
from novasvc.manager import Manager
from novasvc.runtime import Leg, Runtime
from novasvc.service import Service
from novasvc.settings import Settings
from novasvc.testing import MemoryRegistry
from novasvc.transport.amqp import AMQPTransport, protocol
from novasvc.transport.amqp.channel import Channel
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase

INTERVAL = 1.0
"""Seconds between heartbeats."""
TWO_BEATS = 2 * INTERVAL + 2.0
"""Seconds in which a loss has to be noticed, on a machine that may be busy."""
HOST_QUEUE = f"{TOPIC}.h1"
FANOUT = f"{TOPIC}_fanout"
MADE_AGAIN = "made again: "
WITHHELD = "no heartbeat is sent"


class Noting(Manager):  # type: ignore[misc]
    """Notes what reaches it."""

    noted: list[Any]

    @rpc.expose
    def note(self, context: Any, what: Any = None) -> Any:
        self.noted.append(what)
        return what

    @rpc.expose(idempotent=True)
    def hang(self, context: Any) -> Deferred[None]:
        self.noted.append("hanging")
        self.hanging: Deferred[None] = Deferred()
        return self.hanging


class ReachabilityCase(AMQPCase):
    """Nodes on a real broker, whose rows are in memory; and an operator at the same broker."""

    def setUp(self) -> None:
        super().setUp()
        self.registry = MemoryRegistry(reactor)

    async def operator(self, url: str | None = None) -> Channel:
        """Open a channel of somebody else's."""
        transport = await self.connect(url)
        opened = transport.connections[0].protocol
        assert opened is not None
        return await opened.open_channel()

    async def node(self, host: str = "h1", make: Callable[[], AMQPTransport] | None = None, **more: Any) -> Service:
        """Start a node, and wait until it has verified for the first time."""
        runtime = Runtime(
            settings=Settings(host=host, **more),
            reactor=reactor,
            broker=Leg("broker", make or self.make_transport),
            database=Leg("database", lambda: self.registry),
            run_blocking=maybeDeferred,
            random_source=random.Random(0),  # noqa: S311 - the same delays each time
        )
        noted: list[Any] = []
        service = Service(host, "nova-compute", TOPIC, Noting, report_interval=INTERVAL, runtime=runtime)
        service.manager.noted = noted
        self.addCleanup(service.stop)
        await service.start()
        return service

    def noted(self, service: Service) -> list[Any]:
        return service.manager.noted  # type: ignore[no-any-return]

    async def beats(self) -> int:
        """Return the heartbeats of all nodes so far."""
        return sum(row.report_count for row in await self.registry.list(None, None, None))

    async def assert_beats(self) -> None:
        """See that a heartbeat is sent."""
        before = await self.beats()
        await self.until_beats(before + 1)

    async def until_beats(self, number: int) -> None:
        begun = reactor.seconds()
        while await self.beats() < number:
            self.assertLess(reactor.seconds() - begun, 10.0, "no heartbeat is sent")
            await deferLater(reactor, 0.05)

    async def assert_reached(self, service: Service, hosts: int = 1) -> None:
        """See that it is reached by its host, its topic and its topic's fanout, and is ready."""
        client = await self.client(patience=5.0)
        for number in range(2):
            self.assertEqual(await client.prepare(server="h1").call(CONTEXT, "note", what=number), number)
        self.assertEqual(await client.call(CONTEXT, "note", what="topic"), "topic")
        await client.prepare(fanout=True).cast(CONTEXT, "note", what="fanout")
        await self.until(lambda: "fanout" in self.noted(service), 5.0)

    async def consumers_leg(self, service: Service) -> dict[str, Any]:
        legs = (await service.health())["legs"]
        return next(leg for leg in legs if leg["name"] == "consumers")  # type: ignore[no-any-return]


class LostTests(ReachabilityCase):
    """What is lost behind a node's back is noticed within two heartbeats, made again, and said once."""

    async def lose(self, *steps: tuple[str, dict[str, Any]], said: str) -> Service:
        """Start a node, take something away, and see that it comes back."""
        service = await self.node()
        operator = await self.operator()
        await self.assert_reached(service)
        self.noted(service).clear()
        for name, given in steps:
            await getattr(operator, name)(**given)
        await self.until(lambda: self.said(said, LogLevel.warn), TWO_BEATS)
        await self.until(lambda: service.node.server.live, TWO_BEATS)
        await self.assert_reached(service)
        await self.assert_beats()
        self.assertEqual(len(self.said(said, LogLevel.warn)), 1)
        self.assertTrue((await self.consumers_leg(service))["ready"])
        return service

    async def test_host(self) -> None:
        """The binding of a host's queue."""
        binding = {"queue": HOST_QUEUE, "exchange": "nova", "routing_key": HOST_QUEUE}
        await self.lose(("queue_unbind", binding), said=f"{MADE_AGAIN}the binding of the queue {HOST_QUEUE}")

    async def test_topic(self) -> None:
        """The binding of a topic's queue."""
        binding = {"queue": TOPIC, "exchange": "nova", "routing_key": TOPIC}
        await self.lose(("queue_unbind", binding), said=f"{MADE_AGAIN}the binding of the queue {TOPIC} ")

    async def test_fanout(self) -> None:
        """The binding of a node's queue for fanouts, which takes the exchange with it."""
        service = await self.node()
        (queue,) = (name for name in self.broker.queues(self.vhost) if name.startswith(FANOUT))
        operator = await self.operator()
        await operator.queue_unbind(queue=queue, exchange=FANOUT, routing_key=TOPIC)
        await self.until(lambda: self.said(f"{MADE_AGAIN}the exchange {FANOUT}", LogLevel.warn), TWO_BEATS)
        await self.assert_reached(service)

    async def test_exchange(self) -> None:
        """The exchange, and with it all bindings."""
        await self.lose(("exchange_delete", {"exchange": "nova"}), said=f"{MADE_AGAIN}the exchange nova")

    async def test_exchange_without_bindings(self) -> None:
        """An exchange that somebody deletes and makes again, and its bindings are not there."""
        steps = (
            ("exchange_delete", {"exchange": "nova"}),
            ("exchange_declare", {"exchange": "nova", "type": "topic"}),
        )
        await self.lose(*steps, said=f"{MADE_AGAIN}the binding of the queue {HOST_QUEUE}")

    async def test_queue(self) -> None:
        """A queue whose end the broker tells."""
        await self.lose(("queue_delete", {"queue": HOST_QUEUE}), said=f"the queue {HOST_QUEUE} was deleted")


class SilentTests(LostTests):
    """The same from a broker that does not tell a consumer that its queue is gone."""

    def setUp(self) -> None:
        super().setUp()
        silent = tuple(name for name in protocol._CAPABILITIES if name != "consumer_cancel_notify")
        self.patch(protocol, "_CAPABILITIES", silent)

    async def test_queue(self) -> None:
        """A host's queue."""
        await self.lose(("queue_delete", {"queue": HOST_QUEUE}), said=f"the queue {HOST_QUEUE} is missing")

    async def test_topic_queue(self) -> None:
        """A topic's queue."""
        await self.lose(("queue_delete", {"queue": TOPIC}), said=f"the queue {TOPIC} is missing")

    async def test_queue_without_consumer(self) -> None:
        """A host's queue that somebody deletes, makes again and binds: nobody consumes from it."""
        steps = (
            ("queue_delete", {"queue": HOST_QUEUE}),
            ("queue_declare", {"queue": HOST_QUEUE}),
            ("queue_bind", {"queue": HOST_QUEUE, "exchange": "nova", "routing_key": HOST_QUEUE}),
        )
        await self.lose(*steps, said=f"the queue {HOST_QUEUE} has no consumer")
