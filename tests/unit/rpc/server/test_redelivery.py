"""Tests for novasvc.rpc.server.redelivery: poison messages, and the requests that ran beside them."""

from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import QuarantinedError
from novasvc.interfaces import IDelivery
from novasvc.rpc.server.redelivery import MOVE_TIMEOUT, RedeliveredCalls
from novasvc.rpc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.support.rpc_rig import CONTEXT, TARGET

INNOCENT = 24
CONCURRENCY = 8
MAX_DELIVERIES = 3


@attrs.define(eq=False)
class Marks:
    """The broker's state by body: redelivered messages, messages in a process's own queue, counts in headers."""

    again: set[bytes] = attrs.field(factory=set)
    kept: set[bytes] = attrs.field(factory=set)
    deliveries: dict[bytes, int] = attrs.field(factory=dict)
    deaths: dict[bytes, int] = attrs.field(factory=dict)


@implementer(IDelivery)
@attrs.define(eq=False)
class MarkedDelivery:
    """A delivery from a queue without a delivery count."""

    inner: Any
    marks: Marks
    held: list["MarkedDelivery"]
    lost: bool = False

    @property
    def body(self) -> bytes:
        return bytes(self.inner.body)

    @property
    def expires_at(self) -> float | None:
        return self.inner.expires_at  # type: ignore[no-any-return]

    @property
    def expires_in(self) -> float | None:
        return self.inner.expires_in  # type: ignore[no-any-return]

    @property
    def counts_death(self) -> bool:
        return self.body not in self.marks.again

    @property
    def deliveries(self) -> int:
        return self.marks.deliveries.get(self.body, 0) + (self.body in self.marks.again)

    @property
    def deaths(self) -> int:
        return self.marks.deaths.get(self.body, 0)

    @property
    def session(self) -> Any:
        return self.inner.session

    def hold(self) -> None:
        """No limit: deliveries need not be held."""

    def settle(self, how: Callable[..., None], *args: Any) -> bool:
        if self not in self.held:
            return False
        self.held.remove(self)
        how(*args)
        return True

    def ack(self) -> None:
        self.settle(self.inner.ack)

    def reject(self) -> None:
        self.settle(self.inner.reject)

    def requeue(self, deliveries: int) -> None:
        if self.settle(self.inner.requeue, deliveries):
            self.marks.again.discard(self.body)
            self.marks.deliveries[self.body] = deliveries

    def requeue_here(self, deliveries: int) -> None:
        if not self.lost and self.settle(self.inner.requeue_here, deliveries):
            self.marks.again.discard(self.body)
            self.marks.kept.add(self.body)
            self.marks.deliveries[self.body] = deliveries

    def quarantine(self, reason: str) -> None:
        self.settle(self.inner.quarantine, reason)


class MarkingTransport(MemoryTransport):
    """A transport whose queues keep no delivery count."""

    def __init__(self, broker: MemoryBroker, clock: Clock, marks: Marks) -> None:
        super().__init__(broker, clock=clock)
        self.marks = marks
        self.held: list[MarkedDelivery] = []
        self.lose_moved: Callable[[Any], None] | None = None

    def listen(self, target: Target, receiver: Callable[[Any], None], prefetch: int) -> Deferred[Any]:
        def receive(inner: Any) -> None:
            delivery = MarkedDelivery(inner, self.marks, self.held, lost=self.lose_moved is not None)
            self.held.append(delivery)
            receiver(delivery)

        return super().listen(target, receive, prefetch)

    def lose(self) -> None:
        """Die, and leave all unsettled messages to the broker."""
        for delivery in self.held:
            if delivery.body in self.marks.kept:
                self.marks.kept.remove(delivery.body)
                self.marks.deaths[delivery.body] = delivery.deaths + 1
            self.marks.again.add(delivery.body)
        self.held.clear()
        self.close()


class Service:
    """A process that dies of poison messages, together with its unsettled calls."""

    def __init__(self, case: "RedeliveredCallsTests") -> None:
        self.case = case
        self.alive = True
        self.running: list[tuple[Any, Deferred[Any]]] = []
        self.transport = MarkingTransport(case.broker, case.clock, case.marks)
        self.transport.lose_moved = case.lose_moved
        self.server = rpc.Server(
            self.transport,
            attrs.evolve(TARGET, server=None),
            rpc.Endpoints(self),
            clock=case.clock,
            concurrency=case.concurrency,
            max_deliveries=MAX_DELIVERIES,
            run_blocking=lambda function: Deferred(),
        )
        case.successResultOf(self.server.start())

    @rpc.expose(idempotent=True)
    def work(self, context: RequestContext, what: Any) -> Deferred[Any]:
        working: Deferred[Any] = Deferred(lambda _: None)
        self.running.append((what, working))
        return working

    def step(self) -> None:
        """Die if a poison message runs; otherwise end the oldest call."""
        if any(what < 0 for what, _ in self.running):
            self.die()
        elif self.running:
            what, working = self.running.pop(0)
            working.callback(what)

    def die(self) -> None:
        self.alive = False
        self.case.deaths += 1
        self.transport.lose()
        self.server.close()


class RedeliveredCallsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.marks = Marks()
        self.deaths = 0
        self.concurrency = CONCURRENCY
        self.lose_moved: Callable[[Any], None] | None = None
        self.services: list[Service] = []
        self.start(1)
        transport = MemoryTransport(self.broker, clock=self.clock)
        self.client = rpc.Client(transport, clock=self.clock, timeout=600.0, target=attrs.evolve(TARGET, server=None))

    def start(self, number: int) -> None:
        """Start services until this many are alive."""
        self.services = [service for service in self.services if service.alive]
        while len(self.services) < number:
            self.services.append(Service(self))

    def calls(self, *deadly: int) -> tuple[list[Deferred[Any]], list[Deferred[Any]]]:
        """Make INNOCENT harmless calls, with a deadly one after each of the given numbers of them."""
        innocent, guilty = [], []
        for what in range(INNOCENT + 1):
            guilty += [self.client.call(CONTEXT, "work", what=-1 - n) for n, at in enumerate(deadly) if at == what]
            if what < INNOCENT:
                innocent.append(self.client.call(CONTEXT, "work", what=what))
        return innocent, guilty

    def run_all(self, calls: list[Deferred[Any]], services: int = 1) -> None:
        """Run services, and replace dead ones, until all calls have ended."""
        for _ in range(2000):
            self.start(services)
            self.clock.pump([0.0, 0.01, 0.0])
            for service in self.services:
                service.step()
            if all(call.called for call in calls):
                return
        self.fail("calls have not ended")

    def check(self, innocent: list[Deferred[Any]], guilty: list[Deferred[Any]]) -> None:
        self.assertEqual([self.successResultOf(call) for call in innocent], list(range(INNOCENT)))
        for call in guilty:
            self.failureResultOf(call, QuarantinedError)
        self.assertEqual(len(self.broker.quarantine), len(guilty))

    def test_innocent(self) -> None:
        """A call that ran beside a poison message is never quarantined with it, wherever the message was."""
        for at in (0, 4, 8, 20, INNOCENT):
            self.broker.quarantine.clear()
            self.deaths = 0
            innocent, guilty = self.calls(at)
            self.run_all(innocent + guilty)
            self.check(innocent, guilty)
            self.assertEqual(self.deaths, MAX_DELIVERIES + 1, at)

    def test_two_deadly(self) -> None:
        """No other call is quarantined if there are two poison messages."""
        innocent, guilty = self.calls(3, 6)
        self.run_all(innocent + guilty)
        self.check(innocent, guilty)

    def test_two_services(self) -> None:
        """No other call is quarantined if another service receives the dead one's messages."""
        self.start(2)
        innocent, guilty = self.calls(5)
        self.run_all(innocent + guilty, services=2)
        self.check(innocent, guilty)

    def test_killed_often(self) -> None:
        """A call that waits survives any number of deaths: a death is counted only for calls that ran."""
        innocent, _ = self.calls()
        for _ in range(MAX_DELIVERIES):
            self.start(1)
            self.clock.pump([0.0] * 4)
            self.services[0].die()
        self.assertEqual([call for call in innocent if call.called], [])
        self.run_all(innocent)
        self.check(innocent, [])

    def die_and_restart(self) -> Service:
        """Kill the only service for another reason, with all its calls unsettled, and start the next one."""
        self.clock.pump([0.0, 0.0])
        self.services[0].die()
        self.start(1)
        self.clock.pump([0.0, 0.0])
        return self.services[0]

    def test_one_death(self) -> None:
        """After one death all calls of the dead process run again at full concurrency."""
        self.calls()
        service = self.die_and_restart()
        self.assertEqual(sorted(what for what, _ in service.running), list(range(CONCURRENCY)))

    def test_groups(self) -> None:
        """With each further death the group of running calls gets smaller, until a call runs alone."""
        self.calls()
        self.broker.queue("nova", TARGET.topic, None).messages = deque(
            list(self.broker.queue("nova", TARGET.topic, None).messages)[:CONCURRENCY]
        )
        sizes = []
        for _ in range(MAX_DELIVERIES):
            service = self.die_and_restart()
            sizes.append(len(service.running))
        self.assertEqual(sizes, [8, 3, 1])

    def test_group_sizes(self) -> None:
        """The group sizes are a geometric series from the concurrency to 1, for any max_deliveries."""
        for concurrency, most, sizes in [
            (64, 3, [64, 8, 1]),
            (64, 2, [64, 1]),
            (64, 1, [1]),
            (1, 4, [1, 1, 1, 1]),
            (64, 7, [64, 32, 16, 8, 4, 2, 1]),
        ]:
            calls = RedeliveredCalls(
                self.clock,
                None,  # type: ignore[arg-type]  # This test begins no call.
                concurrency=concurrency,
                max_deliveries=most,
                requeue_here=lambda _: None,
                requeue=lambda _: None,
                begin_calls=lambda: None,
            )
            self.assertEqual([calls.group_size(deaths) for deaths in range(most)], sizes)

    def test_new_calls(self) -> None:
        """New calls run beside redelivered ones, within the server's concurrency."""
        self.calls()
        service = self.die_and_restart()
        while service.running:
            service.running.pop(0)[1].callback(None)
            self.clock.pump([0.0, 0.0])
            self.assertLessEqual(len(service.running), CONCURRENCY)
        self.assertEqual(service.server.in_flight, 0)

    def test_does_not_come(self) -> None:
        """The slot of a moved message that is not delivered is released after MOVE_TIMEOUT."""
        self.calls()
        self.clock.pump([0.0, 0.0])
        self.services[0].die()
        self.lose_moved = lambda delivery: None
        self.start(1)
        self.clock.advance(0)
        redelivered = self.services[0].server._dispatcher._redelivered
        self.clock.advance(MOVE_TIMEOUT - 0.1)
        self.assertEqual(len(redelivered.moving), CONCURRENCY)
        self.clock.advance(0.1)
        self.assertEqual(len(redelivered.moving), 0)

    def test_stopped(self) -> None:
        """A service that stops requeues the calls that have not begun, and waits for none."""
        self.calls()
        self.clock.pump([0.0, 0.0])
        self.services[0].die()
        self.services = []
        self.concurrency = 2
        self.start(1)
        self.clock.pump([0.0, 0.0])
        service = self.services[0]
        self.successResultOf(service.server.stop_consuming())
        self.assertEqual([delivery for delivery in service.transport.held if not delivery.counts_death], [])
        while service.running:
            service.step()
        self.successResultOf(service.server.drained())
        given_back = service.server.delivery_metrics.given_back.value
        self.clock.advance(MOVE_TIMEOUT)
        self.assertEqual((service.server.delivery_metrics.given_back.value, service.transport.held), (given_back, []))

    def test_comes_twice(self) -> None:
        """A message that is delivered twice while it is being moved reserves one slot and one timer."""
        self.calls()
        self.clock.pump([0.0, 0.0])
        self.services[0].die()
        self.services = []
        self.lose_moved = lambda delivery: None  # The message is moved, and never delivered again.
        self.start(1)
        self.clock.advance(0)
        server = self.services[0].server
        self.assertEqual(len(server._dispatcher._redelivered.moving), CONCURRENCY)
        for delivery in list(self.services[0].transport.held):
            server._dispatcher.receive(delivery)
        self.assertEqual(len(server._dispatcher._redelivered.moving), CONCURRENCY)
        self.successResultOf(server.close())
        self.assertEqual(
            [call.func.__name__ for call in self.clock.getDelayedCalls() if "move_timed_out" in str(call.func)], []
        )
