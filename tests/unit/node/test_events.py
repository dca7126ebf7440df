"""Events between nodes, on a Clock and in memory."""

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.errors import MiddlewareError
from novasvc.service import Service
from novasvc.testing import memory_runtime
from tests.support.middleware_rig import Recorder


@attrs.frozen
class Order:
    item: str
    amount: int = 1


class Shop(Manager):
    @rpc.expose
    async def order(self, context: RequestContext, item: str) -> None:
        await self.attachments.events.emit(context, "order.placed", Order(item, 2))

    @rpc.expose
    def stocked(self, context: RequestContext) -> str:
        return "noted"


class Stock(Manager):
    """Handles the shop's orders, and calls the shop meanwhile."""

    seen: ClassVar[list[Any]] = []
    answer: ClassVar[Callable[[], Any]] = staticmethod(lambda: None)

    @rpc.event("order.*")
    async def on_order(self, context: RequestContext, payload: Order) -> None:
        """Reserve what was ordered."""
        self.seen.append((self.host, payload))
        waited = type(self).answer()
        if waited is not None:
            await waited
            shop = self.attachments.rpc.prepare(topic="shop")
            self.seen.append(await shop.call(context, "stocked"))


class NodeEventTests(SynchronousTestCase):
    def setUp(self) -> None:
        Stock.seen, Stock.answer = [], staticmethod(lambda: None)
        self.recorder = Recorder()
        self.runtime = attrs.evolve(memory_runtime(graceful_shutdown_timeout=10.0), given_middleware=[self.recorder])
        self.clock = self.runtime.reactor
        self.services: list[Service] = []
        self.addCleanup(self.stop_all)

    def start(self, topic: str, manager: type[Manager], host: str = "h1") -> Service:
        service = Service(host, f"novasvc-{topic}", topic, manager, 10, True, 0, None, runtime=self.runtime)
        starting = service.start()
        self.advance(0)
        self.successResultOf(starting)
        self.services.append(service)
        return service

    def stop_all(self) -> None:
        for service in self.services:
            service.stop()
        self.advance(12)

    def advance(self, seconds: float) -> None:
        for _ in range(max(1, int(seconds / 0.25))):
            self.clock.advance(0.25 if seconds else 0)
            self.clock.pump([0] * 8)

    def order(self, item: str) -> None:
        shop = self.services[0].node.client
        assert shop is not None
        ordering = shop.prepare(topic="shop").call(RequestContext(), "order", item=item)
        self.advance(0)
        self.successResultOf(ordering)

    def test_delivered(self) -> None:
        """An event that one manager emits is handled once by each other topic, whichever node of it that is."""
        self.start("shop", Shop)
        for host in ("h1", "h2"):
            self.start("stock", Stock, host)
        self.start("billing", Stock, "b1")
        for item in ("tea", "milk"):
            self.order(item)
        hosts = [host for host, _ in Stock.seen]
        self.assertEqual((hosts.count("b1"), len(hosts)), (2, 4))
        self.assertEqual({payload for _, payload in Stock.seen}, {Order("tea", 2), Order("milk", 2)})

    def test_middleware(self) -> None:
        """The middleware of the runtime is around calls, methods, emissions and handlers."""
        self.start("shop", Shop)
        self.start("stock", Stock)
        self.order("tea")
        kinds = [text[1:].partition(" ")[0] for text in self.recorder.seen if text.startswith(">")]
        self.assertEqual(kinds, ["call", "serve", "emit", "event"])

    def test_drain(self) -> None:
        """A node that stops lets its handlers end, calls of theirs included, and handles no further event."""
        self.start("shop", Shop)
        stock = self.start("stock", Stock)
        hanging: Deferred[None] = Deferred()
        Stock.answer = staticmethod(lambda: hanging)
        self.order("tea")
        stopping = stock.stop()
        self.advance(1)
        self.assertNoResult(stopping)
        self.order("milk")
        hanging.callback(None)
        self.advance(1)
        self.successResultOf(stopping)
        self.assertEqual(Stock.seen, [("h1", Order("tea", 2)), "noted"])
        # What came meanwhile waits for the next node of the topic.
        Stock.answer = staticmethod(lambda: None)
        self.start("stock", Stock, "h2")
        self.advance(0)
        self.assertEqual(Stock.seen[2:], [("h2", Order("milk", 2))])

    def test_cut_short(self) -> None:
        """A handler that does not end in time is cancelled, and its event goes to another node."""
        self.start("shop", Shop)
        stock = self.start("stock", Stock)
        Stock.answer = staticmethod(Deferred)
        self.order("tea")
        stopping = stock.stop()
        self.advance(11)
        self.successResultOf(stopping)
        Stock.answer = staticmethod(lambda: None)
        self.start("stock", Stock, "h2")
        self.advance(0)
        self.assertEqual([host for host, _ in Stock.seen], ["h1", "h2"])

    def test_described(self) -> None:
        """A node describes the events that it handles."""
        self.start("stock", Stock)
        client = self.services[0].node.client
        assert client is not None
        asking = client.prepare(topic="stock", namespace="node", version="1.1").call(RequestContext(), "interface")
        self.advance(0)
        (row,) = self.successResultOf(asking)["events"]
        self.assertEqual(
            (row["handler"], row["patterns"], row["summary"]), ("on_order", ["order.*"], "Reserve what was ordered.")
        )

    def test_no_handlers(self) -> None:
        """A manager without handlers has no listener, and no queue for events."""
        node = self.start("shop", Shop).node
        self.assertIsNone(node.events)
        self.order("tea")

    def test_wrong_middleware(self) -> None:
        """A node whose middleware cannot be loaded is not made, and the error names it."""
        runtime = memory_runtime(rpc_middleware=("shop.audit.Audit",))
        error = self.assertRaises(MiddlewareError, Service, "h1", "b", "shop", Shop, 10, True, 0, None, runtime=runtime)
        self.assertIn("shop.audit.Audit", str(error))
