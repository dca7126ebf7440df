from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredQueue, maybeDeferred

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.rpc.events.declare import event_handlers
from tests.interop.peer import PATIENCE
from tests.interop.test_interop_notifications import CONTEXT, PAYLOAD, NotificationCase


class Stock:
    """Handles events of the peer's and of ours."""

    def __init__(self) -> None:
        self.seen: DeferredQueue[Any] = DeferredQueue()

    @rpc.event("*.created")
    async def on_created(
        self, context: RequestContext, payload: Any, event_type: str, priority: str, publisher_id: str, timestamp: str
    ) -> None:
        self.seen.put((context.request_id, event_type, priority, publisher_id, payload))


class EventInteropTests(NotificationCase):
    """Events, and the notifications of oslo.messaging."""

    async def we_handle(self, topic: str) -> Stock:
        stock = Stock()
        listener = rpc.EventListener(
            await self.connect(),
            f"{topic}.{self.topic}",
            event_handlers(stock),
            clock=reactor,
            run_blocking=maybeDeferred,
            notification_topic=self.topic,
        )
        self.addCleanup(listener.close)
        await listener.start()
        return stock

    def next(self, stock: Stock) -> Deferred[Any]:
        return stock.seen.get().addTimeout(PATIENCE, reactor)

    async def test_from_peer(self) -> None:
        """A notification of the peer's reaches the handlers of each topic of ours, whatever its priority."""
        stocks = [await self.we_handle("one"), await self.we_handle("other")]
        peer = await self.peer()
        await self.peer_notifies(peer, "info", "volume.deleted")
        for priority in ("info", "error"):
            await self.peer_notifies(peer, priority, "volume.created")
            for stock in stocks:
                self.assertEqual(await self.next(stock), ("req-7", "volume.created", priority, "peer.host1", PAYLOAD))

    async def test_to_peer(self) -> None:
        """An event of ours reaches the peer's listener, and the handlers of ours."""
        stock = await self.we_handle("one")
        name = await self.peer_listens(await self.peer())
        emitter = rpc.EventEmitter(await self.connect(), publisher_id="shop.host1", topic=self.topic, clock=reactor)
        await emitter.emit(CONTEXT, "order.created", PAYLOAD, priority="error")
        report = await self.process.report(name)
        told = report["priority"], report["event_type"], report["publisher_id"], report["payload"]
        self.assertEqual(told, ("error", "order.created", "shop.host1", PAYLOAD))
        self.assertEqual(await self.next(stock), ("req-1", "order.created", "error", "shop.host1", PAYLOAD))

    async def test_pool(self) -> None:
        """A pool of the peer's with the name of a topic's queue shares that topic's events."""
        stock = await self.we_handle("one")
        peer = await self.peer()
        name = await self.peer_listens(peer, pool=f"one.{self.topic}_events")
        seen = 0
        for _ in range(4):
            await self.peer_notifies(peer, "info", "volume.created")
        await self.until(lambda: len(stock.seen.pending) + self.process.reported(name) == 4)
        seen = len(stock.seen.pending)
        self.assertEqual((seen, self.process.reported(name)), (2, 2))
