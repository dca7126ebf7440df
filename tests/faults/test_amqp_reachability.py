"""Nodes that consume, and that no message reaches: bindings, exchanges and queues that are lost behind their backs."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import LogLevel

from novasvc import rpc
from novasvc.config import Settings
from novasvc.manager import Manager
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.service import Service
from novasvc.telemetry import metrics
from novasvc.testing import MemoryRegistry
from novasvc.transport.amqp import AMQPTransport, delegate
from novasvc.transport.amqp.channel import AMQPClosedError, Channel
from novasvc.transport.amqp.frames import SINGLE, ack_packer
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase
from tests.servers import Broker, fragile_broker

INTERVAL = 1.0
"""Seconds between heartbeats."""
TWO_BEATS = 2 * INTERVAL + 4.0
"""Seconds in which a loss has to be noticed, on a machine that may be very busy."""
HOST_QUEUE = f"{TOPIC}.h1"
FANOUT = f"{TOPIC}_fanout"
MADE_AGAIN = "restored: "
WITHHELD = "^no heartbeat is sent"


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
            broker=SharedConnection("broker", make or self.make_transport),
            database=SharedConnection("database", lambda: self.registry),
            run_blocking=maybeDeferred,
            random_source=random.Random(0),
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

    @pytest.mark.slow
    @pytest.mark.timeout(180)
    async def test_several(self) -> None:
        """Several of them at a time, in any order."""
        service = await self.node()
        operator = await self.operator()
        (fanout_queue,) = (name for name in self.broker.queues(self.vhost) if name.startswith(FANOUT))
        losses: tuple[tuple[str, dict[str, Any]], ...] = (
            *(
                ("queue_unbind", {"queue": queue, "exchange": exchange, "routing_key": key})
                for queue, exchange, key in (
                    (HOST_QUEUE, "nova", HOST_QUEUE),
                    (TOPIC, "nova", TOPIC),
                    (fanout_queue, FANOUT, TOPIC),
                )
            ),
            ("exchange_delete", {"exchange": "nova"}),
            ("exchange_delete", {"exchange": FANOUT}),
            *(("queue_delete", {"queue": queue}) for queue in (HOST_QUEUE, TOPIC, fanout_queue)),
        )
        seed = random.randrange(2**32)
        chosen = random.Random(seed)
        for _ in range(8):
            steps = chosen.sample(losses, chosen.randint(2, 4))
            for name, given in steps:
                try:
                    await getattr(operator, name)(**given)
                except AMQPClosedError:  # what it names is gone already
                    operator = await self.operator()
            self.noted(service).clear()
            client = await self.client(patience=5.0)
            for target in (client.prepare(server="h1"), client):
                spent = await self.assert_comes_back(target)
                self.assertLess(spent, TWO_BEATS + INTERVAL, f"seed {seed}: {steps}")
            await self.until_fanouts(service, client)
        await self.assert_reached(service)
        await self.assert_beats()

    async def until_fanouts(self, service: Service, client: rpc.Client) -> None:
        """Fan out until it reaches a node."""
        begun = reactor.seconds()
        while "fanout" not in self.noted(service):
            self.assertLess(reactor.seconds() - begun, TWO_BEATS + INTERVAL)
            await client.prepare(fanout=True).cast(CONTEXT, "note", what="fanout")
            await deferLater(reactor, 0.1)

    async def test_queue(self) -> None:
        """A queue whose end the broker tells."""
        await self.lose(
            ("queue_delete", {"queue": HOST_QUEUE}), said=f"the broker cancelled the consumer of {HOST_QUEUE}"
        )


class SilentTests(LostTests):
    """The same from a broker that does not tell a consumer that its queue is gone."""

    def setUp(self) -> None:
        super().setUp()
        silent = tuple(name for name in delegate._CAPABILITIES if name != "consumer_cancel_notify")
        self.patch(delegate, "_CAPABILITIES", silent)

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
        # Missing it is, if the node looks between the steps.
        await self.lose(*steps, said=f"the queue {HOST_QUEUE} (has no consumer|is missing)")


class ChannelTests(ReachabilityCase):
    async def test_closed(self) -> None:
        """A node whose channel the broker closes is reached again, and what is lost later is noticed as before."""
        service = await self.node()
        consuming = service.node.server._listener._consuming
        consuming.channel.client.write(ack_packer(consuming.channel.id)(999, SINGLE))
        await self.until(lambda: self.said("consumes again"))
        await self.assert_reached(service)
        await (await self.operator()).queue_unbind(queue=HOST_QUEUE, exchange="nova", routing_key=HOST_QUEUE)
        await self.until(lambda: self.said(MADE_AGAIN), TWO_BEATS)
        await self.assert_reached(service)


class RefusedTests(ReachabilityCase):
    async def test_refused(self) -> None:
        """A broker that refuses the repair is named with its reason; the node is not up until it is reached again."""
        user = f"u-{self.vhost}"
        self.broker.add_user(user, "pass-w0rd")
        self.broker.permit(user, self.vhost)
        url = self.broker.url(self.vhost, (user, "pass-w0rd"))
        service = await self.node(make=lambda: self.make_transport(url))
        await self.assert_beats()
        self.broker.permit(user, self.vhost, write=rf"^(?!{TOPIC}\.).*")
        await (await self.operator()).queue_unbind(queue=HOST_QUEUE, exchange="nova", routing_key=HOST_QUEUE)

        await self.until(lambda: self.said(WITHHELD, LogLevel.error), TWO_BEATS)
        (line,) = self.said(WITHHELD)
        for part in (
            f"queue {HOST_QUEUE} to the exchange nova is missing",
            "refused to redeclare it",
            "ACCESS_REFUSED",
        ):
            self.assertIn(part, line)
        leg = await self.consumers_leg(service)
        self.assertFalse(leg["ready"])
        self.assertIn("ACCESS_REFUSED", leg["detail"])
        before = await self.beats()
        await deferLater(reactor, 3 * INTERVAL)
        self.assertEqual(await self.beats(), before)

        self.broker.permit(user, self.vhost)
        await self.until(lambda: self.said("heartbeats resumed"), TWO_BEATS)
        await self.assert_reached(service)
        self.assertEqual(len(self.said(WITHHELD)), 1)
        self.assertTrue((await self.consumers_leg(service))["ready"])

    async def test_nothing_missing(self) -> None:
        """A node that may declare nothing any more, and that messages reach, is up."""
        user = f"u-{self.vhost}"
        self.broker.add_user(user, "pass-w0rd")
        self.broker.permit(user, self.vhost)
        url = self.broker.url(self.vhost, (user, "pass-w0rd"))
        service = await self.node(make=lambda: self.make_transport(url))
        self.broker.permit(user, self.vhost, configure="^$", write="^(nova|amq.default)$")
        before = service.node.server._listener.loopback._checks
        await self.until(lambda: service.node.server._listener.loopback._checks >= before + 4)
        await self.assert_beats()
        self.assertEqual(self.said(WITHHELD), [])


class SharedTests(ReachabilityCase):
    async def test_siblings(self) -> None:
        """Processes that share a host's queue each prove that it is reached, whoever of them takes the message."""
        services = [await self.node() for _ in range(3)]
        pings = metrics.served.at(services[0].topic, "baseapi", "ping", "done")
        before = pings.value
        loopbacks = [service.node.server._listener.loopback for service in services]
        await self.until(lambda: all(loopback._checks >= 6 for loopback in loopbacks), 15.0)
        self.assertEqual(self.said(f"{WITHHELD}|{MADE_AGAIN}"), [])
        self.assertEqual([self.noted(service) for service in services], [[]] * 3)
        self.assertEqual(pings.value, before)  # No probe reached a server.

    async def test_lost(self) -> None:
        """What several processes share is made again by the first of them that misses it."""
        services = [await self.node() for _ in range(2)]
        await (await self.operator()).exchange_delete(exchange="nova")
        await self.until(lambda: self.said(MADE_AGAIN), TWO_BEATS)
        client = await self.client(patience=5.0)
        await client.prepare(fanout=True).cast(CONTEXT, "note", what="fanout")
        await self.until(lambda: all("fanout" in self.noted(service) for service in services))
        for _ in range(4):
            self.assertEqual(await client.prepare(server="h1").call(CONTEXT, "note", what=1), 1)
            self.assertEqual(await client.call(CONTEXT, "note", what=1), 1)

    async def test_hosts(self) -> None:
        """A topic's binding is back within two heartbeats, though nobody can tell that it was missing."""
        await self.node("h1")
        await self.node("h2")
        await (await self.operator()).queue_unbind(queue=TOPIC, exchange="nova", routing_key=TOPIC)
        client = await self.client(patience=5.0)
        self.assertLess(await self.assert_comes_back(client), TWO_BEATS)


class BusyTests(ReachabilityCase):
    async def test_full(self) -> None:
        """A node that has as much to do as it may take in is up."""
        service = await self.node(rpc_concurrency=1)
        client = await self.client()
        calls = [client.prepare(server="h1").call(CONTEXT, "hang") for _ in range(3)]
        loopback = service.node.server._listener.loopback
        before = loopback._checks
        await self.until(lambda: loopback._checks >= before + 3, 15.0)
        await self.assert_beats()
        self.assertEqual(self.said(WITHHELD), [])
        for call in calls:
            await self.until(lambda: len(self.noted(service)) > calls.index(call))  # noqa: B023 - it is waited for
            service.manager.hanging.callback(None)
            await call
        await self.assert_reached(service)


class AlarmTests(ReachabilityCase):
    def choose_broker(self) -> Broker:
        return fragile_broker()

    async def test_alarm(self) -> None:
        """A broker in alarm takes no messages, the probe among them: that is not held against the node."""
        service = await self.node()
        loopback = service.node.server._listener.loopback
        with self.broker.memory_alarm():
            await self.until(lambda: service.node.transport.connections[0].state == "blocked")
            before = loopback._checks
            await self.until(lambda: loopback._checks >= before + 3, 15.0)
            await self.assert_beats()
            self.assertTrue((await self.consumers_leg(service))["ready"])
        await self.assert_reached(service)
        self.assertEqual(self.said(WITHHELD), [])


class FenceTests(ReachabilityCase):
    def choose_broker(self) -> Broker:
        return fragile_broker()

    async def test_frozen(self) -> None:
        """A fenced node that has lost only the broker sends no heartbeat, and works again when the broker is back."""
        service = await self.node(fence_after=3 * INTERVAL)
        await self.assert_reached(service)
        self.noted(service).clear()
        self.broker.freeze()
        self.addCleanup(self.broker.thaw)
        await self.until(lambda: service.node.fence.is_fenced)
        beats, skipped = await self.beats(), service.node.heartbeat.skipped
        await self.until(lambda: service.node.heartbeat.skipped >= skipped + 3)
        self.assertEqual(await self.beats(), beats)
        self.broker.thaw()
        await self.until(lambda: not service.node.fence.is_fenced)
        await self.assert_beats()
        await self.assert_reached(service)
