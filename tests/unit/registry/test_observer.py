"""Tests for observers of a fleet, on a Clock."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from novasvc.errors import DatabaseLockedError, DatabaseUnavailableError, ObserverError
from novasvc.interfaces import IServiceObserver
from novasvc.registry import verdicts
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.observation import Observation, StatusChange
from novasvc.registry.observer import FleetObserver
from novasvc.registry.outages import VerdictRule
from novasvc.registry.record import ServiceChanges
from novasvc.registry.teller import ATTEMPTS, TIMEOUT
from novasvc.telemetry import metrics


@implementer(IServiceObserver)
class Recorder:
    """Remembers what it is told; ``handle`` says what a call returns or raises."""

    def __init__(self) -> None:
        self.changes: list[StatusChange] = []
        self.told: list[tuple[str, str]] = []
        self.handle: Callable[[StatusChange], Any] = lambda _: None

    def _note(self, method: str, change: StatusChange) -> Any:
        self.changes.append(change)
        self.told.append((method, change.name))
        return self.handle(change)

    def on_up(self, change: StatusChange) -> Any:
        return self._note("up", change)

    def on_down(self, change: StatusChange) -> Any:
        return self._note("down", change)

    def on_suspect(self, change: StatusChange) -> Any:
        return self._note("suspect", change)


class HeldRegistry(MemoryRegistry):
    """A registry in which one transaction that writes observations can hold its locks until ``commit`` is called."""

    hold = False
    held: tuple[Deferred[None], Callable[[], Deferred[None]]] | None = None

    def observe(self, observer: str, fencing: int, observations: Sequence[Observation]) -> Deferred[None]:
        if self.held is not None:
            return fail(DatabaseLockedError("memory:", "another transaction holds the row"))
        if not self.hold or not observations:
            return super().observe(observer, fencing, observations)
        self.held = Deferred(), partial(super().observe, observer, fencing, observations)
        return self.held[0]

    def commit(self) -> None:
        """Commit the transaction."""
        assert self.held is not None
        (committed, write), self.held, self.hold = self.held, None, False
        write().chainDeferred(committed)


class ObserverCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.registry = MemoryRegistry(self.clock)
        self.observer = Recorder()
        self.silent: set[int] = set()
        self.ids: list[int] = []

    def add(self, count: int) -> None:
        """Start services of one binary."""
        for _ in range(count):
            start = ServiceStart(
                host=f"h{len(self.ids)}",
                binary="agent",
                topic="agent",
                version=1,
                owner=str(len(self.ids)),
                machine="m",
            )
            record = self.successResultOf(self.registry.begin(start))
            self.ids.append(record.id)
            self.registry.beat(record.id)

    def observe(
        self, holder: str = "a", observer: Recorder | None = None, clock: Clock | None = None, name: str = "test"
    ) -> FleetObserver:
        """Start an observer; by default on the clock of the registry."""
        made = FleetObserver(
            name=name,
            observer=observer or self.observer,
            registry=self.registry,
            rule=VerdictRule(),
            clock=clock or self.clock,
            holder=holder,
            random_source=random.Random(1),
        )
        made.start()
        return made

    def stop(self, observer: FleetObserver) -> None:
        self.successResultOf(Deferred.fromCoroutine(observer.stop()))

    def kill(self, observer: FleetObserver) -> None:
        """End an observer as if its process had died."""
        assert observer._election is not None
        observer._election._candidates.clear()
        observer._election._stop_timer()
        observer._lost()

    def run_for(self, seconds: float) -> None:
        """Let time pass; services that are not silent send heartbeats."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            if int(self.clock.seconds()) % 10 == 0 and self.registry.outage is None:
                for service_id in self.ids:
                    if service_id not in self.silent:
                        self.registry.beat(service_id).addErrback(
                            lambda failure: failure.trap(DatabaseUnavailableError)
                        )


class ChangeTests(ObserverCase):
    """What is told, and when."""

    def test_down_and_up(self) -> None:
        """A service that dies and comes back is told twice, with reasons; the others are not told."""
        self.add(10)
        self.observe()
        self.run_for(20)
        self.assertEqual(self.observer.told, [])
        self.silent.add(self.ids[3])
        self.run_for(90)
        self.assertEqual(self.observer.told, [("down", "agent@h3")])
        (change,) = self.observer.changes
        self.assertEqual((change.before, change.verdict.status, change.key), ("alive", "down", f"test/{self.ids[3]}/2"))
        self.assertIn("no heartbeat since", change.verdict.reason)
        self.assertEqual((change.repeated, change.fencing, change.record.host), (False, 1, "h3"))  # type: ignore[union-attr]
        self.silent.clear()
        self.run_for(30)
        self.assertEqual(self.observer.told[1:], [("up", "agent@h3")])
        self.assertEqual(self.observer.changes[1].before, "down")

    def test_suspect(self) -> None:
        """Half of a group that is cut off is suspect, and told as such; then alive, and nobody was told down."""
        self.add(10)
        self.observe()
        self.run_for(10)
        self.silent = set(self.ids[:5])
        self.run_for(90)
        self.assertEqual(sorted(self.observer.told), [("suspect", f"agent@h{number}") for number in range(5)])
        errors = [str(failure) for failure in self.flushLoggedErrors()]
        self.assertEqual(errors, [])
        self.assertEqual(metrics.verdicts.at("agent", "suspect").value, 5)
        self.assertEqual(metrics.outages.at().value, 1)
        self.silent.clear()
        self.run_for(30)
        self.assertEqual(sorted(self.observer.told[5:]), [("up", f"agent@h{number}") for number in range(5)])
        self.assertEqual(metrics.outages.at().value, 0)

    def test_metrics_of_the_lease(self) -> None:
        """A process that has lost the lease exports no old numbers, and still says when it read the fleet."""
        self.patch(verdicts, "_readers", WeakSet())  # without those that other tests left behind
        self.add(3)
        before = time.time()
        observer = self.observe()
        self.run_for(10)
        self.assertEqual(metrics.verdicts.at("agent", "alive").value, 3)
        self.assertGreaterEqual(metrics.fleet_read.at().value, before)
        self.stop(observer)
        self.assertEqual(([*metrics.verdicts], [*metrics.outages]), ([], []))
        self.assertGreaterEqual(metrics.fleet_read.at().value, before)

    def test_metrics_of_two(self) -> None:
        """While another observer of the process counts, the numbers stay; they end with the last one."""
        self.patch(verdicts, "_readers", WeakSet())  # without those that other tests left behind
        self.add(3)
        observer, other = self.observe(), self.observe(name="other", observer=Recorder())
        self.run_for(10)
        self.stop(observer)
        self.assertEqual(metrics.verdicts.at("agent", "alive").value, 3)
        self.assertEqual(metrics.outages.at().value, 0)
        self.stop(other)
        self.assertEqual(([*metrics.verdicts], [*metrics.outages]), ([], []))

    def test_first(self) -> None:
        """An observer that is new is told of services that are not alive already, and of new ones."""
        self.add(3)
        self.registry.update(self.ids[0], ServiceChanges(forced_down=True))
        self.observe()
        self.assertEqual(self.observer.told, [("down", "agent@h0")])
        self.assertIsNone(self.observer.changes[0].before)
        self.add(1)
        self.run_for(10)
        self.assertEqual(self.observer.told[1:], [("up", "agent@h3")])

    def test_empty_fleet(self) -> None:
        """The first service of a fleet is told."""
        self.observe()
        self.run_for(10)
        self.add(1)
        self.run_for(10)
        self.assertEqual(self.observer.told, [("up", "agent@h0")])

    def test_deleted(self) -> None:
        """A service whose row is deleted is down, once; then it is forgotten."""
        self.add(3)
        self.observe()
        self.registry.delete(self.ids.pop(0))
        self.run_for(30)
        self.assertEqual(self.observer.told, [("down", "agent@h0")])
        self.assertEqual(
            (self.observer.changes[0].record, self.observer.changes[0].verdict.reason), (None, "its row was deleted")
        )
        self.assertEqual(len(self.successResultOf(self.registry.observations("test"))), 2)

    def test_deleted_when_down(self) -> None:
        """A service that was down when its row is deleted, such as by a purge, is not told to be down again."""
        self.add(3)
        self.observe()
        self.silent.add(self.ids[0])
        self.run_for(90)
        self.registry.delete(self.ids.pop(0))
        self.run_for(30)
        self.assertEqual(self.observer.told, [("down", "agent@h0")])
        self.assertEqual(len(self.successResultOf(self.registry.observations("test"))), 2)

    def test_stall(self) -> None:
        """A database that is away for ten minutes changes no service to down, and nothing is told twice."""
        self.add(20)
        self.observe()
        self.run_for(30)
        self.registry.outage = DatabaseUnavailableError("memory:", "away")
        self.run_for(600)
        self.registry.outage = None
        self.run_for(60)
        self.assertNotIn("down", [method for method, _ in self.observer.told])
        for service in range(20):
            told = [method for method, name in self.observer.told if name == f"agent@h{service}"]
            self.assertIn(told, ([], ["suspect", "up"]))


class OnceTests(ObserverCase):
    """A change is told once, whoever lives."""

    def test_restart(self) -> None:
        """A restart tells nothing again, and tells what has changed meanwhile."""
        self.add(10)
        first = self.observe()
        self.silent.add(self.ids[0])
        self.run_for(90)
        self.stop(first)
        self.silent = {self.ids[1]}
        self.run_for(120)
        self.assertEqual(self.observer.told, [("down", "agent@h0")])
        self.observe()
        self.assertEqual(sorted(self.observer.told[1:]), [("down", "agent@h1"), ("up", "agent@h0")])
        self.assertEqual([change.repeated for change in self.observer.changes], [False] * 3)

    def test_two_processes(self) -> None:
        """Of two processes one tells; when it dies, the other tells what was not handled, as a repetition."""
        self.add(10)
        hung: Deferred[None] = Deferred()
        self.observer.handle = lambda _: hung
        first = self.observe("a")
        other = Recorder()
        second = self.observe("b", other)
        self.silent.add(self.ids[0])
        self.run_for(75)
        self.assertEqual((self.observer.told, other.told), ([("down", "agent@h0")], []))
        self.assertTrue(first.tells)
        self.assertFalse(second.tells)
        self.kill(first)
        self.silent.add(self.ids[1])
        self.run_for(90)
        self.assertEqual(sorted(other.told), [("down", "agent@h0"), ("down", "agent@h1")])
        again, new = sorted(other.changes, key=lambda change: change.service_id)
        self.assertEqual((again.repeated, again.key, again.fencing), (True, self.observer.changes[0].key, 2))
        self.assertEqual((new.repeated, new.fencing), (False, 2))

    def test_stopped_for_a_while(self) -> None:
        """A process whose lease another one has taken writes nothing more, and says so."""
        self.add(10)
        first = self.observe("a")
        hung: Deferred[None] = Deferred()
        self.observer.handle = lambda _: hung
        self.silent.add(self.ids[0])
        self.run_for(75)
        self.successResultOf(self.registry.observe("test", 7, []))
        hung.callback(None)
        (observation,) = [each for each in self.successResultOf(self.registry.observations("test")) if not each.told]
        self.assertEqual(observation.service_id, self.ids[0])
        self.stop(first)

    def test_stopped_in_its_transaction(self) -> None:
        """A process that is stopped while it writes, and goes on, is not repeated by the one that takes over."""
        self.registry = registry = HeldRegistry(self.clock)
        self.add(10)
        own_clock, other = Clock(), Recorder()
        first, second = self.observe("a", clock=own_clock), self.observe("b", other)
        registry.hold = True
        self.silent.add(self.ids[0])
        while registry.held is None:
            self.run_for(1)
            own_clock.advance(1)
        self.run_for(60)  # the clock of the first one stands still
        self.assertTrue(second.tells)
        self.assertEqual((self.observer.told, other.told), ([], []))
        registry.commit()
        self.run_for(60)
        self.assertEqual((self.observer.told, other.told), ([("down", "agent@h0")], []))
        self.stop(first)
        self.stop(second)

    def test_cancelled_by_stop(self) -> None:
        """A stop cancels what the observer does; it is told again after the restart."""
        self.add(5)
        self.registry.update(self.ids[0], ServiceChanges(forced_down=True))
        cancelled: list[object] = []
        hung: Deferred[None] = Deferred(cancelled.append)
        self.observer.handle = lambda _: hung
        first = self.observe()
        self.stop(first)
        self.assertEqual(len(cancelled), 1)
        self.observer.handle = lambda _: None
        self.observe()
        self.assertEqual(self.observer.told, [("down", "agent@h0")] * 2)
        self.assertEqual([change.repeated for change in self.observer.changes], [False, True])


class FailureTests(ObserverCase):
    """Observers that fail."""

    def setUp(self) -> None:
        super().setUp()
        self.add(5)
        self.registry.update(self.ids[0], ServiceChanges(forced_down=True))

    def test_retried(self) -> None:
        """A method that raises is called again with the same key, as a repetition, until it succeeds."""

        def handle(_: StatusChange) -> None:
            if len(self.observer.told) < 3:
                raise ZeroDivisionError

        self.observer.handle = handle
        self.observe()
        self.run_for(60)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.observer.told, [("down", "agent@h0")] * 3)
        self.assertEqual(len({change.key for change in self.observer.changes}), 1)
        self.assertEqual([change.repeated for change in self.observer.changes], [False, True, True])

    def test_given_up(self) -> None:
        """After ATTEMPTS failures a change is not told any more; the next one is."""

        def handle(change: StatusChange) -> None:
            if change.verdict.is_down:
                raise ZeroDivisionError

        self.observer.handle = handle
        self.observe()
        self.run_for(300)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), ATTEMPTS)
        self.registry.update(self.ids[0], ServiceChanges(forced_down=False))
        self.run_for(30)
        self.assertEqual(self.observer.told[ATTEMPTS:], [("up", "agent@h0")])

    def test_outdated(self) -> None:
        """A change that fails is not told again once the service has changed; that is told."""

        def handle(change: StatusChange) -> None:
            if change.verdict.is_down:
                self.registry.update(self.ids[0], ServiceChanges(forced_down=False))
                raise ZeroDivisionError

        self.observer.handle = handle
        self.observe()
        self.run_for(60)
        failures = len(self.flushLoggedErrors(ZeroDivisionError))
        self.assertLess(failures, ATTEMPTS)
        self.assertEqual(self.observer.told, [("down", "agent@h0")] * failures + [("up", "agent@h0")])

    def test_too_long(self) -> None:
        """A method that takes too long is cancelled, and called again."""
        cancelled: list[object] = []

        def handle(_: StatusChange) -> Deferred[None] | None:
            return Deferred(cancelled.append) if len(self.observer.told) == 1 else None

        self.observer.handle = handle
        self.observe()
        self.run_for(TIMEOUT + 10)
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(len(self.observer.told), 2)

    def test_one_hangs(self) -> None:
        """An observer that hangs for one service is told of others."""
        self.observer.handle = lambda change: Deferred() if change.host == "h0" else None
        self.observe()
        self.registry.update(self.ids[1], ServiceChanges(forced_down=True))
        self.run_for(10)
        self.assertEqual(self.observer.told, [("down", "agent@h0"), ("down", "agent@h1")])

    def test_registry_away_when_handled(self) -> None:
        """A change that is handled while the registry is away is noted later, and not told again."""

        def handle(_: StatusChange) -> None:
            self.registry.unwritable = DatabaseUnavailableError("memory:", "away")

        self.observer.handle = handle
        self.observe()
        self.run_for(10)
        self.registry.unwritable = None
        self.run_for(60)
        self.assertEqual(self.observer.told, [("down", "agent@h0")])
        self.assertTrue(all(each.told for each in self.successResultOf(self.registry.observations("test"))))

    def test_cancelled_error(self) -> None:
        """A method whose own call was cancelled is called again."""
        self.observer.handle = lambda _: Deferred.fromCoroutine(_cancelled()) if len(self.observer.told) < 2 else None
        self.observe()
        self.run_for(30)
        self.assertEqual(len(self.observer.told), 2)


class MistakeTests(ObserverCase):
    """Mistakes in the use of an observer."""

    def test_not_an_observer(self) -> None:
        """An object without the methods is refused, with what to do."""
        error = self.assertRaises(ObserverError, self.observe, "a", object())
        self.assertIn("object does not provide IServiceObserver", str(error))
        self.assertIn("@implementer(IServiceObserver)", str(error))

    def test_name(self) -> None:
        """A name that is empty or too long is refused."""
        for name in ("", "x" * 101):
            error = self.assertRaises(
                ObserverError,
                FleetObserver,
                name=name,
                observer=self.observer,
                registry=self.registry,
                rule=VerdictRule(),
                clock=self.clock,
            )
            self.assertIn("a name has 1 to 100 characters", str(error))


async def _cancelled() -> None:
    raise CancelledError
