"""Tests for novasvc.rpc.suspects: services that die of a request, and the requests that were near it."""

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
from novasvc.rpc.suspects import PATIENCE
from novasvc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.unit.rpc_rig import CONTEXT, TARGET

INNOCENT = 24


@attrs.define(eq=False)
class Marks:
    """What a queue that does not count knows: what comes again, and the counts that go with messages, by body."""

    again: set[bytes] = attrs.field(factory=set)
    counts: dict[bytes, int] = attrs.field(factory=dict)


@implementer(IDelivery)
@attrs.define(eq=False)
class MarkedDelivery:
    """A delivery from a queue that does not count."""

    inner: Any
    marks: Marks
    held: list["MarkedDelivery"]

    @property
    def body(self) -> bytes:
        return bytes(self.inner.body)

    @property
    def expires_in(self) -> float | None:
        return self.inner.expires_in  # type: ignore[no-any-return]

    @property
    def deaths(self) -> int:
        return self.deliveries

    @property
    def session(self) -> Any:
        return self.inner.session

    @property
    def counted(self) -> bool:
        return self.body not in self.marks.again

    @property
    def deliveries(self) -> int:
        return self.marks.counts.get(self.body, 0) + (not self.counted)

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
            self.marks.counts[self.body] = deliveries

    def hold(self) -> None:
        """There is no limit."""

    def requeue_here(self, deliveries: int) -> None:
        self.requeue(deliveries)

    def quarantine(self, reason: str) -> None:
        self.settle(self.inner.quarantine, reason)


class MarkingTransport(MemoryTransport):
    """Delivers as from queues that do not count."""

    def __init__(self, broker: MemoryBroker, clock: Clock, marks: Marks) -> None:
        super().__init__(broker, clock=clock)
        self.marks = marks
        self.held: list[MarkedDelivery] = []

    def listen(self, target: Target, receiver: Callable[[Any], None], prefetch: int) -> Deferred[Any]:
        def receive(inner: Any) -> None:
            delivery = MarkedDelivery(inner, self.marks, self.held)
            self.held.append(delivery)
            receiver(delivery)

        return super().listen(target, receive, prefetch)

    def lose(self) -> None:
        """Leave everything to the broker, as it is."""
        self.marks.again.update(delivery.body for delivery in self.held)
        self.held.clear()
        self.close()


class Service:
    """A process: it dies of some requests, and with it everything that it has in its hands."""

    def __init__(self, case: "SuspectsTests") -> None:
        self.case = case
        self.alive = True
        self.running: list[tuple[Any, Deferred[Any]]] = []
        self.transport = MarkingTransport(case.broker, case.clock, case.marks)
        self.server = rpc.Server(
            self.transport,
            attrs.evolve(TARGET, server=None),
            rpc.Endpoints(self),
            clock=case.clock,
            concurrency=8,
            run_blocking=lambda function: Deferred(),
        )
        case.successResultOf(self.server.start())

    @rpc.expose(idempotent=True)
    def work(self, context: RequestContext, what: Any) -> Deferred[Any]:
        working: Deferred[Any] = Deferred(lambda _: None)
        self.running.append((what, working))
        return working

    def step(self) -> None:
        """Die of what is deadly, or else end what has run longest."""
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


class SuspectsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.marks = Marks()
        self.deaths = 0
        self.services: list[Service] = []
        self.start(1)
        transport = MemoryTransport(self.broker, clock=self.clock)
        self.client = rpc.Client(transport, clock=self.clock, timeout=600.0, target=attrs.evolve(TARGET, server=None))

    def start(self, number: int) -> None:
        """Have as many services live."""
        self.services = [service for service in self.services if service.alive]
        while len(self.services) < number:
            self.services.append(Service(self))

    def calls(self, *deadly: int) -> tuple[list[Deferred[Any]], list[Deferred[Any]]]:
        """Call 24 times what harms nobody, and what is deadly after so many of them."""
        innocent, guilty = [], []
        for what in range(INNOCENT + 1):
            guilty += [self.client.call(CONTEXT, "work", what=-1 - n) for n, at in enumerate(deadly) if at == what]
            if what < INNOCENT:
                innocent.append(self.client.call(CONTEXT, "work", what=what))
        return innocent, guilty

    def run_all(self, calls: list[Deferred[Any]], services: int = 1) -> None:
        """Have services live and die until all calls have ended."""
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
        """What was near a deadly request is never put aside with it, wherever it was."""
        for at in (0, 4, 8, 20, INNOCENT):
            self.broker.quarantine.clear()
            self.deaths = 0
            innocent, guilty = self.calls(at)
            self.run_all(innocent + guilty)
            self.check(innocent, guilty)
            self.assertEqual(self.deaths, 3, at)

    def test_two_deadly(self) -> None:
        """Nor if there are two of them."""
        innocent, guilty = self.calls(3, 6)
        self.run_all(innocent + guilty)
        self.check(innocent, guilty)

    def test_two_services(self) -> None:
        """Nor if another service is there to take what the dead one had."""
        self.start(2)
        innocent, guilty = self.calls(5)
        self.run_all(innocent + guilty, services=2)
        self.check(innocent, guilty)

    def test_killed_often(self) -> None:
        """What waits for its turn survives any number of deaths that it has nothing to do with."""
        innocent, _ = self.calls()
        for _ in range(20):
            self.start(1)
            self.clock.pump([0.0] * 3)
            self.services[0].die()
        ended = sum(1 for call in innocent if call.called)
        self.assertEqual(ended, len(self.broker.quarantine))
        self.assertLess(ended, INNOCENT // 2)

    def suspects(self) -> Service:
        """Have a service whose first eight requests were in the hands of another."""
        self.clock.pump([0.0, 0.0])
        self.services[0].die()
        self.start(1)
        return self.services[0]

    def test_one_at_a_time(self) -> None:
        """A suspect runs alone among suspects, and beside new requests."""
        innocent, _ = self.calls()
        service = self.suspects()
        for _ in range(100):
            self.clock.pump([0.0, 0.0])
            running = [body for body in self.marks.counts if any(d.body == body for d in service.transport.held)]
            self.assertLessEqual(len(running), 1)
            service.step()
        self.assertEqual([self.successResultOf(call) for call in innocent], list(range(INNOCENT)))

    def test_does_not_come(self) -> None:
        """If the one that was given back does not come in time, the next one has its turn."""
        self.calls()
        service = self.suspects()
        self.clock.advance(0)
        self.assertEqual(service.server.counts.given_back, 1)
        queue = self.broker.queue("nova", TARGET.topic, None)
        queue.messages.pop()  # another server has it
        self.clock.advance(PATIENCE - 0.1)
        self.assertEqual(service.server.counts.given_back, 1)
        self.clock.advance(0.1)
        self.assertEqual(service.server.counts.given_back, 2)

    def test_stopped(self) -> None:
        """A service that stops gives back those whose turn has not come, and waits for none."""
        self.calls()
        service = self.suspects()
        self.clock.advance(0)
        self.successResultOf(service.server.stop_consuming())
        held = [delivery for delivery in service.transport.held if not delivery.counted]
        self.assertEqual(held, [])
        while service.running:
            service.step()
        self.successResultOf(service.server.drained())
        given_back = service.server.counts.given_back
        self.clock.advance(PATIENCE)
        self.assertEqual((service.server.counts.given_back, service.transport.held), (given_back, []))
