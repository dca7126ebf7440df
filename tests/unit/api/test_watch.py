from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api import watch
from novasvc.api.timeline import Entry
from novasvc.api.watch import WATCHED, Watch
from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.record import ServiceChanges, ServiceRecord
from tests.support.page_rig import assess_alone

UNWATCHED = 10.0


class WatchTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.registry = MemoryRegistry(self.clock)
        self.reads = 0

        async def read() -> list[ServiceRecord]:
            self.reads += 1
            return await self.registry.list(None, None, None)

        self.read = read
        self.watch = self.make()

    def make(self, unwatched: float = UNWATCHED) -> Watch:
        return Watch(self.read, self.clock, assess_alone(60.0), unwatched)

    def add(self, host: str, binary: str = "agent") -> ServiceRecord:
        record = self.successResultOf(self.registry.register(host, binary, None, 1))
        self.successResultOf(self.registry.beat(record.id))
        return record

    def begin(self, owner: str) -> ServiceRecord:
        """Begin an incarnation that is ready."""
        start = ServiceStart(host="h1", binary="agent", topic="agent", version=1, owner=owner, machine="m1")
        record = self.successResultOf(self.registry.begin(start))
        assert record.incarnation is not None
        self.successResultOf(self.registry.enter(record.id, record.incarnation.number, "ready"))
        self.successResultOf(self.registry.beat(record.id, record.incarnation.number))
        return record

    def start(self) -> None:
        self.watch.startService()
        self.clock.advance(0)
        self.addCleanup(lambda: self.watch.running and self.watch.stopService())

    def fresh(self) -> Deferred[None]:
        """Wait for a fresh state, as a request for the current state does."""
        waiting = Deferred.fromCoroutine(self.watch.wait_fresh())
        self.clock.advance(0)
        return waiting

    def subscribe(self) -> list[int]:
        """Record the versions at which the listener is called."""
        told: list[int] = []
        self.watch.subscribe(lambda: told.append(self.watch.version))
        return told

    def happenings(self) -> list[Entry]:
        """Return the timeline, the oldest first."""
        return [*self.watch.timeline][::-1]

    def happened(self) -> list[tuple[str, str, str]]:
        return [(entry.kind, entry.text, entry.detail) for entry in self.happenings()]

    def beat(self, *records: ServiceRecord) -> None:
        for record in records:
            self.successResultOf(self.registry.beat(record.id))


class ReadingTests(WatchTestCase):
    def test_first_read(self) -> None:
        """It reads at start; the services found then yield no events."""
        self.add("h1")
        self.start()
        self.assertEqual([service.name for service in self.watch.services.values()], ["agent@h1"])
        self.assertEqual(self.watch.trouble, "")
        self.assertEqual(self.happened(), [])

    def test_in_slices(self) -> None:
        """The rows of a large fleet are looked at in slices; until the last one viewers see the state before."""
        self.patch(watch, "SLICE", 2)
        for number in range(5):
            self.add(f"h{number}")
        self.start()
        self.assertEqual((self.watch.version, len(self.watch.services)), (0, 0))
        self.clock.pump([0.001] * 2)
        self.assertEqual((self.watch.version, len(self.watch.services)), (1, 5))

    def test_stopped_between_slices(self) -> None:
        """A read that is stopped between two slices changes nothing, and the next one reads all."""
        self.patch(watch, "SLICE", 2)
        for number in range(5):
            self.add(f"h{number}")
        self.start()
        self.watch.stopService()
        self.assertEqual((self.watch.version, self.clock.getDelayedCalls()), (0, []))
        self.watch.startService()
        self.clock.pump([0.001] * 3)
        self.assertEqual((self.watch.version, len(self.watch.services), self.happened()), (1, 5, []))

    def test_pace(self) -> None:
        """It reads every 10 s without viewers, and every 2 s with them."""
        self.start()
        self.clock.pump([UNWATCHED] * 3)
        self.assertEqual(self.reads, 4)
        stop = self.watch.subscribe(lambda: None)
        self.clock.pump([WATCHED] * 3)
        self.assertEqual(self.reads, 7)
        stop()
        self.clock.advance(WATCHED)
        reads = self.reads
        self.clock.pump([1.0] * 9)
        self.assertEqual(self.reads, reads)

    def test_only_while_viewed(self) -> None:
        """Without an interval it reads while there are viewers, of either kind, and not before or after."""
        self.watch = self.make(unwatched=0.0)
        self.start()
        self.clock.pump([10.0] * 3)
        self.assertEqual(self.reads, 0)
        stop = self.watch.subscribe(lambda: None)
        self.clock.pump([0.0, WATCHED, WATCHED])
        self.assertEqual(self.reads, 3)
        stop()
        self.clock.pump([10.0] * 3)
        self.assertEqual(self.reads, 4)  # one was due
        self.clock.advance(0)
        self.successResultOf(self.fresh())
        self.assertEqual(self.reads, 5)
        self.clock.pump([1.0] * 60)
        reads = self.reads
        self.assertGreater(reads, 5)
        self.clock.pump([10.0] * 3)
        self.assertEqual((self.reads, self.clock.getDelayedCalls()), (reads, []))

    def test_history_after_a_gap(self) -> None:
        """What happened while nobody looked is not in the history, which says since when it knows."""
        self.add("h1")
        self.watch = self.make(unwatched=0.0)
        self.start()
        stop = self.watch.subscribe(lambda: None)
        self.clock.advance(0)
        self.add("h2")
        self.clock.advance(WATCHED)
        self.assertEqual([kind for kind, _, _ in self.happened()], ["appeared"])
        stop()
        self.clock.pump([10.0] * 3)
        record = self.add("h3")
        self.registry.update(record.id, ServiceChanges(disabled=True))
        self.clock.advance(100)
        self.successResultOf(self.fresh())
        self.assertEqual(len(self.watch.services), 3)
        self.assertEqual([kind for kind, _, _ in self.happened()], ["appeared"])
        self.assertEqual(self.watch.began, self.clock.seconds())
        self.assertEqual({service.disabled_since for service in self.watch.services.values()}, {None})
        self.add("h4")
        self.clock.advance(WATCHED)
        self.assertEqual([kind for kind, _, _ in self.happened()], ["appeared", "appeared"])

    def test_viewer_after_stop(self) -> None:
        """A viewer that comes when it has stopped begins no read."""
        self.start()
        self.watch.stopService()
        self.watch.subscribe(lambda: None)
        self.successResultOf(self.fresh())
        self.assertEqual((self.reads, self.clock.getDelayedCalls()), (1, []))

    def test_first_listener_hurries(self) -> None:
        """The first viewer brings the next read forward."""
        self.start()
        self.clock.advance(5)
        told = self.subscribe()
        self.clock.advance(0)
        self.assertEqual(told, [2])

    def test_one_read_for_all(self) -> None:
        """All viewers share one read."""
        self.start()
        told = [self.subscribe() for _ in range(20)]
        self.clock.advance(WATCHED)
        self.assertEqual(self.reads, 2)
        self.assertEqual(told, [[2]] * 20)

    def test_slow_reads(self) -> None:
        """A slow read is followed by a longer pause, of ten seconds at most; reads never overlap."""
        answers: list[Deferred[list[ServiceRecord]]] = []

        async def read() -> list[ServiceRecord]:
            answers.append(Deferred())
            return await answers[-1]

        self.watch = Watch(read, self.clock, assess_alone(60.0), UNWATCHED)
        self.start()
        self.subscribe()
        for duration, pause in ((0.5, 5), (3, 10), (15, 10)):
            before = len(answers)
            self.clock.advance(duration)
            answers[-1].callback([])
            self.clock.advance(pause - 1)
            self.assertEqual(len(answers), before)
            self.clock.advance(1)
            self.assertEqual(len(answers), before + 1)

    def test_outage(self) -> None:
        """During an outage the state stays, listeners get the reason, and reads are retried."""
        self.add("h1")
        self.start()
        told = self.subscribe()
        self.registry.outage = DatabaseUnavailableError("mysql://db", "it is gone")
        self.clock.pump([WATCHED] * 3)
        self.assertIn("it is gone", self.watch.trouble)
        self.assertEqual(told, [1, 1, 1])
        self.assertEqual(len(self.watch.services), 1)
        self.assertEqual(self.watch.age, 6.0)
        self.registry.outage = None
        self.clock.advance(WATCHED)
        self.assertEqual((self.watch.trouble, self.watch.version, self.watch.age), ("", 2, 0.0))

    def test_bug(self) -> None:
        """An unexpected error is logged, and the next read is tried."""

        async def read() -> list[ServiceRecord]:
            self.reads += 1
            raise ZeroDivisionError

        self.watch = Watch(read, self.clock, assess_alone(60.0), UNWATCHED)
        self.start()
        self.clock.advance(WATCHED)
        self.assertEqual(self.reads, 2)
        self.assertIn("bug", self.watch.trouble)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_failing_listener(self) -> None:
        """A listener that raises does not affect the others."""

        def fail() -> None:
            raise ZeroDivisionError

        self.start()
        self.watch.subscribe(fail)
        told = self.subscribe()
        self.clock.advance(WATCHED)
        self.assertEqual(told, [2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stopped(self) -> None:
        """stopService cancels a read in progress, ends all waiting, and reads no more."""
        cancelled: list[Any] = []

        async def read() -> list[ServiceRecord]:
            return await Deferred(cancelled.append)

        self.watch = Watch(read, self.clock, assess_alone(60.0), UNWATCHED)
        self.start()
        waiting = Deferred.fromCoroutine(self.watch.wait_fresh(30.0))
        self.watch.stopService()
        self.successResultOf(waiting)
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FreshTests(WatchTestCase):
    def wait_fresh(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.watch.wait_fresh())

    def test_fresh_already(self) -> None:
        """A state of two seconds is fresh."""
        self.start()
        self.clock.advance(2)
        self.successResultOf(self.wait_fresh())
        self.assertEqual(self.reads, 1)

    def test_old(self) -> None:
        """An older state is read again, and reads stay frequent for a while."""
        self.start()
        self.clock.advance(5)
        fresh = self.wait_fresh()
        self.assertNoResult(fresh)
        self.clock.advance(0)
        self.successResultOf(fresh)
        self.clock.pump([1.0] * 6)
        self.assertEqual(self.reads, 5)

    def test_not_for_long(self) -> None:
        """A hanging read is waited for at most a second."""
        hanging: Callable[[], Deferred[list[ServiceRecord]]] = Deferred

        async def read() -> list[ServiceRecord]:
            return await hanging()

        self.watch = Watch(read, self.clock, assess_alone(60.0), UNWATCHED)
        self.start()
        fresh = self.wait_fresh()
        self.clock.advance(0.9)
        self.assertNoResult(fresh)
        self.clock.advance(0.1)
        self.successResultOf(fresh)

    def test_slow_reads(self) -> None:
        """Requests for a fresh state do not shorten the pause after a slow read, and do not wait for its end."""

        async def read() -> list[ServiceRecord]:
            self.reads += 1
            await deferLater(self.clock, 0.75, lambda: None)
            return []

        self.watch = Watch(read, self.clock, assess_alone(60.0), UNWATCHED)
        self.start()
        self.clock.advance(0.75)
        for passed in range(1, 8):
            self.clock.advance(1)
            waiting = self.wait_fresh()
            self.assertEqual((waiting.called, self.reads), (passed < 7, 1))
        self.clock.advance(0.5)
        self.assertEqual(self.reads, 2)

    def test_end_of_an_outage(self) -> None:
        """The state is fresh again soon after an outage in which reads timed out."""
        down = True

        async def read() -> list[ServiceRecord]:
            if down:
                await deferLater(self.clock, 15.0, lambda: None)
                raise DatabaseUnavailableError("mysql://db", "no answer within 15 s")
            return []

        self.watch = Watch(read, self.clock, assess_alone(60.0), UNWATCHED)
        self.start()
        self.clock.advance(15)
        self.assertIn("no answer", self.watch.trouble)
        down = False
        for _ in range(10):
            self.wait_fresh()
            self.clock.advance(1)
        self.assertEqual(self.watch.trouble, "")

    def test_failing_reads(self) -> None:
        """While reads fail, requests for a fresh state begin no more of them than the pace for viewers allows."""
        self.start()
        self.registry.outage = DatabaseUnavailableError("mysql://db", "it is gone")
        for _ in range(100):
            self.wait_fresh()
            self.clock.advance(0.1)
        self.assertLessEqual(self.reads, 6)

    def test_given_up(self) -> None:
        """A cancelled wait leaves nothing behind."""
        self.start()
        self.clock.advance(5)
        fresh = self.wait_fresh()
        fresh.cancel()
        self.failureResultOf(fresh)
        self.watch.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_again(self) -> None:
        """reread() reads at once."""
        record = self.add("h1")
        self.start()
        self.registry.update(record.id, ServiceChanges(forced_down=True))
        again = Deferred.fromCoroutine(self.watch.reread())
        self.clock.advance(0)
        self.successResultOf(again)
        self.assertEqual(self.watch.totals.forced, 1)


class DifferenceTests(WatchTestCase):
    def test_ups_and_downs(self) -> None:
        """A service without heartbeats goes down, and comes up with the next one."""
        record, other = self.add("h1"), self.add("h2")
        self.start()
        for _ in range(7):
            self.beat(other)
            self.clock.advance(10)
        self.assertEqual(self.happened(), [("down", "agent@h1", "no heartbeat for 70 s")])
        self.assertEqual((self.watch.totals.up, self.watch.totals.down), (1, 1))
        self.beat(record)
        self.clock.advance(10)
        self.assertEqual(self.happened()[1:], [("up", "agent@h1", "")])

    def test_operators_changes(self) -> None:
        """Disabling, enabling, forcing down and undoing that are events, with the reason."""
        record = self.add("h1")
        self.start()
        for changes in (
            ServiceChanges(disabled=True, disabled_reason="new disk"),
            ServiceChanges(forced_down=True),
            ServiceChanges(forced_down=False),
            ServiceChanges(disabled=False),
        ):
            self.beat(record)
            self.registry.update(record.id, changes)
            self.clock.advance(UNWATCHED)
        self.assertEqual(
            self.happened(),
            [
                ("disabled", "agent@h1", "new disk"),
                ("forced down", "agent@h1", ""),
                ("let up", "agent@h1", ""),
                ("enabled", "agent@h1", ""),
            ],
        )
        self.assertEqual([entry.number for entry in self.happenings()], [1, 2, 3, 4])

    def test_restart(self) -> None:
        """A service that was stopped and started between two reads was restarted."""
        first = self.begin("owner 1")
        self.start()
        self.registry.enter(first.id, 1, "stopped")
        self.begin("owner 2")
        self.clock.advance(UNWATCHED)
        self.assertEqual(self.happened(), [("restarted", "agent@h1", "incarnation 2")])
        self.registry.update(first.id, ServiceChanges(disabled=True))
        self.clock.advance(UNWATCHED)
        self.assertEqual([kind for kind, _, _ in self.happened()], ["restarted", "disabled"])

    def test_let_up_while_down(self) -> None:
        """A service that is let up, and sends no heartbeats, is down from then on."""
        record = self.add("h1")
        self.start()
        self.registry.update(record.id, ServiceChanges(forced_down=True))
        self.clock.advance(70)
        self.registry.update(record.id, ServiceChanges(forced_down=False))
        self.clock.advance(UNWATCHED)
        self.assertEqual(self.happened()[1:], [("let up", "agent@h1", "now down")])

    def test_coming_and_going(self) -> None:
        """New and deleted services are events."""
        record = self.add("h1")
        self.start()
        self.add("h2")
        self.registry.delete(record.id)
        self.clock.advance(UNWATCHED)
        self.assertEqual(self.happened(), [("appeared", "agent@h2", ""), ("deleted", "agent@h1", "")])
        self.assertIsNone(self.watch.find(record.uuid))

    def test_storm(self) -> None:
        """Many events of one kind in one read are one entry with their number."""
        records = [self.add(f"h{number}") for number in range(40)]
        self.start()
        for record in records:
            self.registry.update(record.id, ServiceChanges(forced_down=True))
        self.clock.advance(UNWATCHED)
        (entry,) = self.watch.timeline
        self.assertEqual((entry.count, entry.kind, entry.uuid), (40, "forced down", ""))
        self.assertTrue(entry.text.startswith("agent@h0, agent@h1, agent@h10, "), entry.text)
        self.assertTrue(entry.text.endswith(" and 28 more"), entry.text)

    def test_few_at_once(self) -> None:
        """Three events of one kind in one read have an entry each; four share one, with the reason if all have it."""
        records = [self.add(f"h{number}") for number in range(4)]
        self.start()
        for record in records:
            self.registry.update(record.id, ServiceChanges(disabled=True, disabled_reason="new disk"))
            self.registry.update(record.id, ServiceChanges(forced_down=record.host != "h0"))
        self.clock.advance(UNWATCHED)
        happened = self.happened()
        self.assertEqual(
            [text for kind, text, _ in happened if kind == "forced down"], ["agent@h1", "agent@h2", "agent@h3"]
        )
        self.assertIn(("disabled", "agent@h0, agent@h1, agent@h2, agent@h3", "new disk"), happened)
        for record in records:
            self.registry.update(record.id, ServiceChanges(disabled=False))
        self.clock.advance(UNWATCHED)
        for number, record in enumerate(records):
            self.registry.update(record.id, ServiceChanges(disabled=True, disabled_reason=f"ticket {number}"))
        self.clock.advance(UNWATCHED)
        self.assertEqual(self.happened()[-1], ("disabled", "agent@h0, agent@h1, agent@h2, agent@h3", ""))

    def test_bounded(self) -> None:
        """The timeline keeps the last 500 entries."""
        record = self.add("h1")
        self.start()
        for number in range(510):
            self.registry.update(record.id, ServiceChanges(forced_down=not number % 2))
            self.clock.advance(UNWATCHED)
        self.assertEqual(len(self.watch.timeline), 500)
        self.assertEqual(self.watch.timeline.newest, 510)

    def test_changed(self) -> None:
        """A service has the version of its last change; a heartbeat is a change."""
        first, second = self.add("h1"), self.add("h2")
        self.start()
        self.beat(second)
        self.clock.advance(UNWATCHED)
        changed = {number: service.changed for number, service in self.watch.services.items()}
        self.assertEqual(changed, {first.id: 1, second.id: 2})
        self.clock.advance(3)
        self.assertEqual(self.watch.age_of(self.watch.services[second.id]), 13.0)
