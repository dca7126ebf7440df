from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext, current_context
from novasvc.errors import (
    DeclarationError,
    InvalidArgumentsError,
    MessageFormatError,
    MiddlewareError,
    TransportClosedError,
)
from novasvc.middleware import Chain
from novasvc.rpc.events.declare import FIELDS, describe_handlers, event_handlers
from novasvc.rpc.failures.origin import is_outgoing
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.support.middleware_rig import Failing, Hanging, Recorder, Silent

CONTEXT = RequestContext(request_id="req-1", user_id="u1")


@attrs.frozen
class Order:
    item: str
    amount: int = 1


class Stock:
    """Handles events; ``answer`` is what its handlers do."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.answer: Callable[[], Any] = lambda: None

    @rpc.event("order.*")
    def on_order(self, context: RequestContext, payload: Order, event_type: str) -> Any:
        """Reserve what was ordered.

        More of it.
        """
        self.seen.append((event_type, payload))
        return self.answer()

    @rpc.event("disk.full", "disk.failed", priorities=["error"], timeout=5)
    async def on_disk(self, context: RequestContext, payload: Any) -> None:
        self.seen.append((context.request_id, current_context.get() is context, payload))
        await self.answer()

    @rpc.event("count.*", blocking=True)
    def count(self, context: RequestContext, payload: int, **rest: Any) -> None:
        self.seen.append({"payload": payload, **rest})


class EventCase(SynchronousTestCase):
    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.stock = Stock()
        self.listener = self.listen()
        self.emitter = self.make_emitter()

    def connect(self) -> MemoryTransport:
        return MemoryTransport(self.broker, clock=self.clock)

    def make_emitter(self, *middleware: Any) -> rpc.EventEmitter:
        chain = Chain.of(middleware, "emit")
        return rpc.EventEmitter(self.connect(), publisher_id="shop.h1", clock=self.clock, chain=chain)

    def listen(self, owner: Any = None, topic: str = "stock", **given: Any) -> rpc.EventListener:
        listener = rpc.EventListener(
            self.connect(),
            topic,
            event_handlers(owner or self.stock),
            clock=self.clock,
            run_blocking=lambda function: Deferred.fromCoroutine(_run(function)),
            **given,
        )
        self.successResultOf(listener.start())
        return listener

    def emit(self, event_type: str, payload: Any = None, priority: str = "info") -> None:
        self.successResultOf(self.emitter.emit(CONTEXT, event_type, payload, priority=priority))
        self.turn()

    def turn(self) -> None:
        self.clock.pump([0] * 10)

    def seen(self) -> list[Any]:
        """Return what was handled since the previous call."""
        seen, self.stock.seen = self.stock.seen, []
        return seen

    def outcomes(self, handler: str = "on_order") -> dict[str, float]:
        return {values[2]: one.value for values, one in metrics.events_handled if values[1] == handler and one.value}

    def emitted(self) -> dict[str, float]:
        return {values[0]: one.value for values, one in metrics.events_emitted if one.value}


async def _run(function: Callable[[], Any]) -> Any:
    return function()


def _raise(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


class DeclarationTests(SynchronousTestCase):
    def refuse(self, problem: str, decorate: Callable[[], Any]) -> None:
        self.assertIn(problem, str(self.assertRaises(DeclarationError, decorate)))

    def test_refused(self) -> None:
        """A decorator that makes no sense is refused where it stands."""

        def good(self: Any, context: Any, payload: Any) -> None: ...

        self.refuse("the patterns are ()", lambda: rpc.event()(good))
        self.refuse("@rpc.event names no events", lambda: rpc.event(good))  # type: ignore[arg-type]
        self.refuse("the patterns are", lambda: rpc.event(" ")(good))
        self.refuse("priorities=('loud',)", lambda: rpc.event("x", priorities=["loud"])(good))
        self.refuse("priorities=()", lambda: rpc.event("x", priorities=[])(good))
        for timeout in (0, -1, float("inf"), float("nan")):
            self.refuse("timeout=", lambda timeout=timeout: rpc.event("x", timeout=timeout)(good))

    def test_signatures(self) -> None:
        """A handler takes a context and the payload, and fields of the event."""

        def without_payload(self: Any, context: Any, event_type: str) -> None: ...

        def unknown(self: Any, context: Any, payload: Any, order: Any = None) -> None: ...

        def no_context(self: Any, payload: Any) -> None: ...

        self.refuse("it has no parameter payload", lambda: rpc.event("x")(without_payload))
        self.refuse("parameters order are unknown", lambda: rpc.event("x")(unknown))
        self.refuse("(self, context)", lambda: rpc.event("x")(no_context))

    def test_annotations(self) -> None:
        """An annotation that JSON cannot represent is refused when the node is made."""

        class Odd:
            @rpc.event("x")
            def handle(self, context: Any, payload: Clock) -> None: ...

        self.refuse("has no form in JSON", lambda: event_handlers(Odd()))

    def test_description(self) -> None:
        """Handlers are described by their patterns, summary and schema."""
        by_name = {row["handler"]: row for row in describe_handlers(event_handlers(Stock()))}
        row = by_name["on_order"]
        self.assertEqual((row["patterns"], row["summary"]), (["order.*"], "Reserve what was ordered."))
        self.assertIn("Order", row["schema"]["$defs"])
        self.assertEqual((by_name["on_disk"]["priorities"], by_name["on_disk"]["timeout"]), (["error"], 5.0))


class HandlingTests(EventCase):
    def test_handled(self) -> None:
        """An event reaches the handlers whose pattern and priority match, its payload converted."""
        self.emit("order.placed", {"item": "tea", "amount": 2})
        self.emit("order.a.b", Order("milk"))
        self.emit("orders", {"item": "x"})
        self.emit("disk.full", 1)
        self.assertEqual(self.seen(), [("order.placed", Order("tea", 2)), ("order.a.b", Order("milk"))])
        self.stock.answer = Deferred
        self.emit("disk.full", 2, "error")
        self.assertEqual(self.seen(), [("req-1", True, 2)])
        self.assertEqual(self.listener.operations(), {"req-1"})

    def test_fields(self) -> None:
        """A handler gets the fields that it names, or all; one that blocks runs in a thread."""
        self.emit("count.up", 3)
        (seen,) = self.seen()
        self.assertEqual(set(seen), set(FIELDS))
        self.assertEqual((seen["payload"], seen["publisher_id"], seen["priority"]), (3, "shop.h1", "info"))
        datetime.fromisoformat(seen["timestamp"])

    def test_topics(self) -> None:
        """Each subscribed topic gets a copy, which its nodes share."""
        other, twin = Stock(), Stock()
        self.listen(other, "billing")
        self.listen(twin)
        for number in range(4):
            self.emit("count.up", number)
        self.assertEqual(len(other.seen), 4)
        self.assertEqual((len(self.stock.seen), len(twin.seen)), (2, 2))

    def test_acknowledged(self) -> None:
        """An event is acknowledged when its handler has ended; one that ended is not handled again."""
        hanging: Deferred[None] = Deferred()
        self.stock.answer = lambda: hanging
        self.emit("order.placed", {"item": "tea"})
        self.assertEqual(self.listener.running_calls(), 1)
        hanging.callback(None)
        self.successResultOf(self.listener.close())
        self.listen()
        self.turn()
        self.assertEqual((len(self.seen()), self.outcomes()), (1, {"done": 1}))

    def test_waiting(self) -> None:
        """An event that comes while no listener of a subscribed topic runs waits for the next one."""
        self.successResultOf(self.listener.close())
        self.emit("order.placed", {"item": "tea"})
        self.assertEqual(self.seen(), [])
        self.listen()
        self.turn()
        self.assertEqual(len(self.seen()), 1)

    def test_malformed(self) -> None:
        """A malformed message is dropped and counted, and the next event is handled."""
        self.successResultOf(self.connect().publish("notifications.info", b"{}"))
        self.emit("order.placed", {"item": "tea"})
        self.assertEqual((self.listener.malformed, len(self.seen())), (1, 1))

    def test_called(self) -> None:
        """A call to the queue of events is refused at once, with the topic that it was meant for."""
        client = rpc.Client(self.connect(), clock=self.clock, target=Target("stock_events"))
        calling = client.call(CONTEXT, "count")
        self.turn()
        error = self.failureResultOf(calling, MessageFormatError).value
        self.assertIn("'stock_events' takes events, and no calls; the methods have the topic 'stock'", str(error))
        self.assertEqual(self.listener.malformed, 1)

    def test_deadline(self) -> None:
        """The context's deadline is that of the handler, for the calls that it makes."""
        self.stock.answer = lambda: self.stock.seen.append(current_context.get().deadline)
        self.emit("order.placed", {"item": "tea"})
        self.assertEqual(self.seen()[1], 300.0)


class FailureTests(EventCase):
    def test_retried(self) -> None:
        """An event whose handler raises is delivered again after a delay that doubles, until it is handled."""
        self.stock.answer = _raise(ValueError("no place"))
        self.emit("order.placed", {"item": "tea"})
        for delay in (1.0, 2.0, 4.0):
            self.assertEqual(len(self.seen()), 1)
            self.clock.advance(delay - 0.1)
            self.turn()
            self.assertEqual(self.seen(), [])
            self.stock.answer = _raise(ValueError("no place")) if delay < 4 else lambda: None
            self.clock.advance(0.1)
            self.turn()
        self.assertEqual(len(self.seen()), 1)
        self.assertEqual(self.outcomes(), {"failed": 3, "done": 1})
        self.assertEqual((len(self.flushLoggedErrors(ValueError)), len(self.broker.quarantine)), (3, 0))

    def test_for_ever(self) -> None:
        """An event whose handler raises for ever is quarantined after the attempts, with the reason."""
        self.stock.answer = _raise(ValueError("no place"))
        self.emit("order.placed", {"item": "tea"})
        for delay in (1.0, 2.0, 4.0, 8.0, 100.0):
            self.clock.advance(delay)
            self.turn()
        self.assertEqual((len(self.seen()), self.outcomes()), (5, {"failed": 5, "quarantined": 1}))
        ((_, reason),) = self.broker.quarantine
        self.assertEqual(reason, "on_order: attempt 5 of 5 failed with ValueError: no place")
        self.flushLoggedErrors(ValueError)
        self.assertEqual(self.listener.running_calls(), 0)

    def test_many_attempts(self) -> None:
        """The delay stays within its bound after any number of attempts."""
        self.successResultOf(self.listener.close())
        taken: list[Any] = []
        other = self.successResultOf(self.connect().subscribe("stock_events", [], taken.append, 1))
        self.emit("order.placed", {"item": "tea"})
        self.successResultOf(other.cancel())
        taken[0].requeue(2000)
        self.stock.answer = _raise(ValueError("no place"))
        self.listen(attempts=10_000)
        self.turn()
        self.clock.advance(60)
        self.turn()
        self.assertEqual((len(self.seen()), self.outcomes()), (2, {"failed": 2}))
        self.flushLoggedErrors(ValueError)

    def test_not_settled(self) -> None:
        """An event that the listener itself fails to settle is logged, and given back after a while, as an attempt."""
        self.successResultOf(self.listener.close())
        self.listen(attempts=2, retry_delay="soon")
        self.stock.answer = _raise(ValueError("no place"))
        self.emit("order.placed", {"item": "tea"})
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.clock.advance(60)
        self.turn()
        self.assertEqual((len(self.seen()), len(self.broker.quarantine)), (2, 1))
        self.flushLoggedErrors(ValueError)

    def test_invalid(self) -> None:
        """A payload that no handler accepts is quarantined at once, with the path to what is wrong."""
        self.emit("order.placed", {"item": "tea", "amount": "two"})
        ((_, reason),) = self.broker.quarantine
        self.assertIn("payload.amount: expected int, got str", reason)
        self.assertEqual((self.seen(), self.outcomes()), ([], {"invalid": 1, "quarantined": 1}))
        self.assertEqual(len(self.flushLoggedErrors(InvalidArgumentsError)), 1)

    def test_invalid_call(self) -> None:
        """A handler whose own call has wrong arguments is called again: it may be the other side that is wrong."""
        self.stock.answer = _raise(InvalidArgumentsError("reserve", "missing: amount"))
        self.emit("order.placed", {"item": "tea"})
        self.assertEqual((self.outcomes(), len(self.broker.quarantine)), ({"failed": 1}, 0))
        self.flushLoggedErrors(InvalidArgumentsError)

    def test_timeout(self) -> None:
        """A handler that does not end in time is cancelled, which is a failed attempt."""
        self.stock.answer = Deferred
        self.emit("disk.full", 1, "error")
        self.clock.advance(5.0)
        self.assertEqual((self.listener.running_calls(), self.outcomes("on_disk")), (0, {"failed": 1}))
        (error,) = self.flushLoggedErrors()
        self.assertIn("'on_disk' did not handle the event within 5 s", error.getErrorMessage())

    def test_one_of_two(self) -> None:
        """If one of two handlers fails, only that one is called again."""

        class Two:
            def __init__(self) -> None:
                self.seen: list[str] = []

            @rpc.event("both")
            def bad(self, context: Any, payload: Any) -> None:
                self.seen.append("bad")
                if len(self.seen) < 4:
                    raise ValueError

            @rpc.event("bot?")
            def good(self, context: Any, payload: Any) -> None:
                self.seen.append("good")

        two = Two()
        self.listen(two, "two")
        self.emit("both")
        for delay in (1.0, 2.0):
            self.clock.advance(delay)
            self.turn()
        self.assertEqual(two.seen, ["bad", "good", "bad", "bad"])
        self.flushLoggedErrors(ValueError)
        self.assertEqual(len(self.broker.quarantine), 0)

    def test_poison(self) -> None:
        """An event that kills its processes is quarantined after the attempts, and not handled again."""
        self.stock.answer = Deferred
        self.successResultOf(self.listener.close())
        for number in range(3):
            transport = self.connect()
            listener = rpc.EventListener(
                transport, "stock", event_handlers(self.stock), clock=self.clock, run_blocking=Deferred, attempts=2
            )
            self.successResultOf(listener.start())
            if number == 0:
                self.emit("order.placed", {"item": "tea"})
            self.turn()
            transport.close()  # as the end of the process would: nothing is settled
        self.assertEqual((len(self.seen()), len(self.broker.quarantine)), (2, 1))


class StopTests(EventCase):
    def test_drain(self) -> None:
        """A drain lets running handlers end, and takes no further events."""
        hanging: Deferred[None] = Deferred()
        self.stock.answer = lambda: hanging
        self.emit("order.placed", {"item": "tea"})
        self.successResultOf(self.listener.drain())
        drained = self.listener.drained()
        self.emit("order.placed", {"item": "milk"})
        self.assertNoResult(drained)
        hanging.callback(None)
        self.successResultOf(drained)
        self.assertEqual(len(self.seen()), 1)
        self.assertFalse(self.listener.live)
        self.listen()
        self.turn()
        self.assertEqual([payload.item for _, payload in self.seen()], ["milk"])

    def test_drain_gives_back(self) -> None:
        """A drain gives back the events that wait for another attempt, with their count."""
        self.stock.answer = _raise(ValueError("x"))
        self.emit("order.placed", {"item": "tea"})
        self.flushLoggedErrors(ValueError)
        self.successResultOf(self.listener.drain())
        self.turn()
        self.successResultOf(self.listener.drained())
        self.listen(attempts=2)
        self.turn()
        self.assertEqual((len(self.seen()), len(self.broker.quarantine)), (2, 1))
        self.flushLoggedErrors(ValueError)

    def test_cut_short(self) -> None:
        """Handlers that are cut short are cancelled; their events come again, and no attempt is counted."""
        self.stock.answer = Deferred
        self.emit("order.placed", {"item": "tea"})
        self.successResultOf(self.listener.drain())
        self.listener.cut_short()
        self.successResultOf(self.listener.drained())
        self.successResultOf(self.listener.close())
        self.stock.answer = lambda: None
        self.listen(attempts=1)
        self.turn()
        self.assertEqual((len(self.seen()), len(self.broker.quarantine)), (2, 0))

    def test_close(self) -> None:
        """What is not settled when the listener closes is delivered again."""
        self.stock.answer = Deferred
        self.emit("order.placed", {"item": "tea"})
        self.successResultOf(self.listener.close())
        self.assertEqual(self.listener.running_calls(), 0)
        self.listen()
        self.turn()
        self.assertEqual(len(self.seen()), 2)


class EmitterTests(EventCase):
    def test_nobody(self) -> None:
        """An event that nobody is subscribed to is dropped and counted; no queue is left behind."""
        broker = MemoryBroker()
        transport = MemoryTransport(broker, clock=self.clock)
        emitter = rpc.EventEmitter(transport, publisher_id="x", clock=self.clock)
        self.successResultOf(emitter.emit(CONTEXT, "order.placed"))
        self.assertEqual(self.emitted(), {"unrouted": 1})
        self.assertEqual(broker.bound_queues("nova", "notifications.info"), [])

    def test_refused(self) -> None:
        """A type, a priority or a payload that cannot be sent fails the Deferred with the reason."""
        for event_type, payload, priority, problem in (
            ("", None, "info", "event_type is ''"),
            ("order placed", None, "info", "event_type is"),
            ("x" * 256, None, "info", "256 characters"),
            ("x", None, "loud", "priority is 'loud'"),
            ("x", object(), "info", "not JSON serializable"),
        ):
            emitting = self.emitter.emit(CONTEXT, event_type, payload, priority=priority)
            error = self.failureResultOf(emitting, InvalidArgumentsError).value
            self.assertIn(problem, str(error))
            # So that a method named "emit" or "notify" does not seem to refuse its own arguments.
            self.assertTrue(is_outgoing(error))

    def test_no_context(self) -> None:
        """A forgotten context is a TypeError at once that shows how to write it, as for a call."""
        for given in (("order.placed", {"item": "tea"}), ("order.placed",), (None, "order.placed")):
            error = self.assertRaises(TypeError, self.emitter.emit, *given)
            self.assertIn(f"emit() takes a RequestContext first, not {given[0]!r}; write emit(context, ", str(error))

    def test_closed(self) -> None:
        """What the transport refuses fails the Deferred, and is counted."""
        self.emitter._transport.close()
        self.failureResultOf(self.emitter.emit(CONTEXT, "x"), TransportClosedError)
        self.assertEqual(self.emitted(), {"failed": 1})

    def test_middleware(self) -> None:
        """Emissions and handlers pass through the middleware."""
        recorder = Recorder()
        self.successResultOf(self.listener.close())
        self.listen(chain=Chain.of([recorder], "event"))
        self.emitter = self.make_emitter(recorder)
        self.emit("order.placed", {"item": "tea"})
        self.assertEqual(
            recorder.seen,
            [">emit notifications.order.placed", "<None", ">event stock.order.placed", "<None"],
        )
        self.failureResultOf(self.make_emitter(Silent()).emit(CONTEXT, "x"), MiddlewareError)
        hanging = self.make_emitter(Hanging()).emit(CONTEXT, "x")
        self.clock.advance(61)
        self.failureResultOf(hanging)

    def test_middleware_of_handlers(self) -> None:
        """Middleware that raises, or hangs, around a handler is a failed attempt."""
        for middleware in (Failing(), Hanging()):
            self.successResultOf(self.listener.close())
            self.listener = self.listen(chain=Chain.of([middleware], "event"), attempts=1)
            self.emit("order.placed", {"item": "tea"})
            self.clock.advance(300)
        self.assertEqual((self.seen(), len(self.broker.quarantine)), ([], 2))
        self.flushLoggedErrors()
