from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.rpc.events.declare import event_handlers
from tests.faults.amqp_rig import AMQPCase

CONTEXT = RequestContext(request_id="req-1", user_id="u1")


class Stock:
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.answer: Callable[[], Any] = lambda: None

    @rpc.event("order.*")
    async def on_order(self, context: RequestContext, payload: Any) -> None:
        self.seen.append(payload)
        await maybeDeferred(self.answer)


class EventTests(AMQPCase):
    """Events over RabbitMQ, when handlers or connections fail."""

    async def listen(self, stock: Stock, topic: str = "stock", **given: Any) -> rpc.EventListener:
        listener = rpc.EventListener(
            await self.connect(),
            topic,
            event_handlers(stock),
            clock=reactor,
            run_blocking=maybeDeferred,
            **{"retry_delay": 0.05, **given},
        )
        self.addCleanup(listener.close)
        await listener.start()
        return listener

    async def emitter(self) -> rpc.EventEmitter:
        return rpc.EventEmitter(await self.connect(), publisher_id="shop.h1", clock=reactor)

    async def test_for_ever(self) -> None:
        """A handler that raises for ever is called as often as the setting says; then the event is quarantined."""

        def fail() -> None:
            raise ValueError("no place")

        stock = Stock()
        stock.answer = fail
        await self.listen(stock, attempts=3)
        await (await self.emitter()).emit(CONTEXT, "order.placed", 1)
        await self.until(lambda: self.said("quarantined 'order.placed'"))
        self.assertEqual(stock.seen, [1, 1, 1])
        await self.until_asked(lambda: self.broker.queues(self.vhost).get("stock_events_quarantine") == 1)
        self.flushLoggedErrors(ValueError)

    async def test_moved_out_of_quarantine(self) -> None:
        """A quarantined event that is moved back, headers and all, has all of its attempts again."""

        def fail_four_times() -> None:
            if len(stock.seen) <= 4:
                raise ValueError("no place")

        stock = Stock()
        stock.answer = fail_four_times
        await self.listen(stock, attempts=3)
        await (await self.emitter()).emit(CONTEXT, "order.placed", 1)
        await self.until_asked(lambda: self.broker.queues(self.vhost).get("stock_events_quarantine") == 1)
        await self.move("stock_events_quarantine", "stock_events")
        await self.until(lambda: len(stock.seen) == 5)
        await self.until_asked(lambda: not any(self.broker.queues(self.vhost).values()))
        self.assertEqual(len(self.said("quarantined 'order.placed'")), 1)
        self.flushLoggedErrors(ValueError)

    async def test_lost_connection(self) -> None:
        """An event whose channel was lost while it was handled is handled again, and each topic keeps its copies."""
        stock, other = Stock(), Stock()
        stock.answer = Deferred
        listener = await self.listen(stock)
        await self.listen(other, "billing")
        emitter = await self.emitter()
        await emitter.emit(CONTEXT, "order.placed", 1)
        await self.until(lambda: stock.seen and other.seen)
        stock.answer = lambda: None
        listener._listener.resubscribe("a test loses the channel")  # type: ignore[union-attr]
        await self.until(lambda: len(stock.seen) == 2)
        await emitter.emit(CONTEXT, "order.placed", 2)
        await self.until(lambda: 2 in stock.seen and 2 in other.seen)
        self.assertEqual(other.seen, [1, 2])


class NotificationListenerTests(AMQPCase):
    async def test_for_ever(self) -> None:
        """A notification whose handler raises for ever is quarantined after its deliveries."""
        seen: list[Any] = []

        def fail(notification: Any) -> None:
            seen.append(notification.payload)
            raise ValueError("no place")

        listener = rpc.NotificationListener(await self.connect(), fail, clock=reactor, priorities=["info"])
        self.addCleanup(listener.close)
        await listener.start()
        await rpc.Notifier(await self.connect(), publisher_id="x").info(CONTEXT, "x", 1)
        await self.until_asked(lambda: self.broker.queues(self.vhost).get("notifications.info_quarantine") == 1)
        self.assertEqual(seen, [1, 1, 1])
        self.flushLoggedErrors(ValueError)
