"""Tests for heartbeats."""

from datetime import datetime

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import (
    DatabaseUnavailableError,
    ServiceForcedDownError,
    ServiceNotFoundError,
    ServiceSupersededError,
)
from novasvc.registry.heartbeat import LAG_LIMIT, Heartbeat, ServiceIdentity
from novasvc.registry.incarnation import Incarnation
from novasvc.registry.record import ServiceRecord
from novasvc.testing import SteppedClock
from tests.support.incarnation_owner import Owner
from tests.support.records import record

IDENTITY = ServiceIdentity("h1", "novasvc-agent", "agent", 7)


def raise_unavailable() -> None:
    raise DatabaseUnavailableError("conductor", "it did not answer in time")


class ScriptedRegistry:
    """A registry whose beats answer as the test says; a heartbeat uses nothing else."""

    def __init__(self) -> None:
        self.beats: list[int] = []
        self.numbers: list[int | None] = []
        self.looks = 0
        self.forced_down = True
        self.answer = lambda: succeed(None)

    def beat(self, service_id: int, incarnation: int | None = None) -> Deferred[None]:
        self.beats.append(service_id)
        self.numbers.append(incarnation)
        return self.answer()

    def get(self, service: str) -> Deferred[ServiceRecord]:
        self.looks += 1
        return succeed(attrs.evolve(numbered(3), forced_down=self.forced_down))

    def prove_writable(self) -> Deferred[None]:
        return succeed(None)


def numbered(number: int) -> ServiceRecord:
    moment = datetime(2026, 1, 1)  # noqa: DTZ001 - the table's form
    incarnation = Incarnation(
        number=number,
        state="ready",
        since=moment,
        until=None,
        reason=None,
        calls=0,
        machine="m1",
        pid=1,
        started_at=moment,
        zone=None,
        tags=(),
    )
    return record(incarnation=incarnation)


class HeartbeatTests(SynchronousTestCase):
    """Tests for novasvc.registry.heartbeat.Heartbeat."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = ScriptedRegistry()
        self.reason: str | None = None
        self.owner = Owner()
        self.heartbeat = Heartbeat(self.registry, IDENTITY, record(), self.clock, 10, self.owner, [lambda: self.reason])
        self.events: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: dict[str, object]) -> None:
        if event.get("log_namespace") == "novasvc.registry.heartbeat":
            self.events.append(event["log_level"].name)

    def test_first_beat_now(self) -> None:
        """The first heartbeat is sent at the start, and one every report_interval from then on."""
        self.successResultOf(self.heartbeat.start())
        self.assertEqual(self.registry.beats, [1])
        self.clock.pump([10, 10])
        self.assertEqual(self.registry.beats, [1, 1, 1])
        self.assertEqual(self.heartbeat.sent, 3)

    def test_rounding(self) -> None:
        """A heartbeat that fails at the very moment of a call of the loop does not make the next ones seem late."""
        for start in (4085.784182050755, 0.1, 1 / 3, 1_800_000_000.7):
            self.clock = SteppedClock()
            self.clock.advance(start)
            heartbeat = Heartbeat(self.registry, IDENTITY, record(), self.clock, 10, self.owner)
            # As a call to a conductor, which is given up after two intervals.
            self.registry.answer = lambda clock=self.clock: deferLater(clock, 20.0, raise_unavailable)
            heartbeat.start()
            self.clock.advance(600)
            self.assertEqual(heartbeat.skipped, 0, start)
            self.assertGreaterEqual(heartbeat.failures, 19, start)
            heartbeat.stop()

    def test_no_beats(self) -> None:
        """With an interval of 0 no heartbeat is sent, not even the first, and stop() does nothing."""
        self.heartbeat = Heartbeat(self.registry, IDENTITY, record(), self.clock, 0, self.owner)
        self.successResultOf(self.heartbeat.start())
        self.clock.pump([10, 60])
        self.assertEqual((self.registry.beats, self.clock.getDelayedCalls()), ([], []))
        self.heartbeat.stop()
        self.assertEqual(self.events, ["info"])

    def test_never_piles_up(self) -> None:
        """While a heartbeat hangs, no other is sent; when it ends, the next is sent on schedule."""
        hanging: Deferred[None] = Deferred()
        self.registry.answer = lambda: hanging
        started = self.heartbeat.start()
        self.clock.pump([10] * 5)
        self.assertNoResult(started)
        self.assertEqual(len(self.registry.beats), 1)
        self.registry.answer = lambda: succeed(None)
        self.clock.advance(3)
        hanging.callback(None)
        self.successResultOf(started)
        self.clock.advance(6.9)
        self.assertEqual(len(self.registry.beats), 1)
        self.clock.advance(0.2)
        self.assertEqual(len(self.registry.beats), 2)

    def test_confirmed_when_sent(self) -> None:
        """A heartbeat counts from when it was sent, however late the registry answers: others count from its stamp."""
        hanging: Deferred[None] = Deferred()
        self.registry.answer = lambda: hanging
        self.heartbeat.start()
        self.clock.advance(8)
        self.assertIsNone(self.heartbeat.confirmed_at)
        hanging.callback(None)
        self.assertEqual(self.heartbeat.confirmed_at, 0)

    def test_outage_is_logged_once(self) -> None:
        """An outage logs one error, however long it lasts, and its end one info line."""
        self.successResultOf(self.heartbeat.start())
        self.registry.answer = lambda: fail(DatabaseUnavailableError("sqlite:///x", "gone"))
        self.clock.pump([10] * 4)
        self.assertEqual(self.events, ["error"])
        self.assertEqual(self.heartbeat.trouble, "model server went away")
        self.registry.answer = lambda: succeed(None)
        self.clock.pump([10] * 2)
        self.assertEqual(self.events, ["error", "info"])
        self.assertIsNone(self.heartbeat.trouble)
        self.assertEqual((self.heartbeat.sent, self.heartbeat.failures), (3, 4))

    def test_first_beat_fails(self) -> None:
        """A first heartbeat that fails ends neither the start nor the loop."""
        self.registry.answer = lambda: fail(DatabaseUnavailableError("sqlite:///x", "gone"))
        self.successResultOf(self.heartbeat.start())
        self.registry.answer = lambda: succeed(None)
        self.clock.advance(10)
        self.assertEqual(self.heartbeat.sent, 1)

    def test_unforeseen_error(self) -> None:
        """An unexpected error is logged, and the next heartbeat is still tried."""
        self.registry.answer = lambda: fail(ZeroDivisionError())
        self.successResultOf(self.heartbeat.start())
        self.registry.answer = lambda: succeed(None)
        self.clock.advance(10)
        self.assertEqual((self.heartbeat.sent, self.heartbeat.failures), (1, 1))

    def test_deleted_row(self) -> None:
        """A service whose row was deleted by an operator sends no more heartbeats, and its owner is told."""
        self.successResultOf(self.heartbeat.start())
        self.registry.answer = lambda: fail(ServiceNotFoundError("1"))
        self.clock.pump([10, 10, 10])
        self.assertEqual(self.registry.beats, [1, 1])
        self.assertEqual([type(error) for error in self.owner.refusals], [ServiceNotFoundError])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.heartbeat.stop()

    def test_lost_row(self) -> None:
        """A service whose row the database has lost goes on with the one that it begins, with a warning."""
        self.successResultOf(self.heartbeat.start())
        self.owner.found = record(id=2)
        self.registry.answer = lambda: (
            succeed(None) if self.registry.beats[-1] == 2 else fail(ServiceNotFoundError("1"))
        )
        self.clock.pump([10, 10])
        self.assertEqual(self.registry.beats, [1, 1, 2, 2])
        self.assertEqual((self.events, self.owner.refusals), (["warn"], []))
        self.assertEqual((self.owner.entries, self.heartbeat.confirmed_at), (0, 20))

    def test_restored_row(self) -> None:
        """A service whose row is of an earlier start of it, as in a backup, begins again."""
        self.heartbeat.record = numbered(3)
        self.successResultOf(self.heartbeat.start())
        self.owner.found = numbered(4)
        restored = ServiceSupersededError("novasvc-agent@h1", 3, 2, "m1", 8, "2026-01-01 00:00:00")
        self.registry.answer = lambda: succeed(None) if self.registry.numbers[-1] == 4 else fail(restored)
        self.clock.pump([10, 10])
        self.assertEqual(self.registry.numbers, [3, 3, 4, 4])
        self.assertEqual((self.events, self.owner.refusals), (["warn"], []))

    def test_superseded(self) -> None:
        """A heartbeat has the number of its incarnation; one that was superseded is the last."""
        self.heartbeat.record = numbered(3)
        self.successResultOf(self.heartbeat.start())
        self.assertEqual(self.registry.numbers, [3])
        superseded = ServiceSupersededError("novasvc-agent@h1", 3, 4, "m2", 9, "2026-01-01 00:00:00")
        self.registry.answer = lambda: fail(superseded)
        self.clock.pump([10, 10])
        self.assertEqual(self.registry.numbers, [3, 3])
        self.assertEqual(self.owner.refusals, [superseded])
        self.assertEqual((self.heartbeat.skipped, self.heartbeat.failures), (1, 0))
        self.assertTrue(self.heartbeat.is_current)

    def test_forced_down(self) -> None:
        """While a service is forced down, the row is read and not written; when it is let up, the heartbeats go on."""
        self.heartbeat.record = numbered(3)
        self.reason = "its consumers are not active"
        self.owner.is_fenced = self.owner.awaits_let_up = True
        self.successResultOf(self.heartbeat.start())
        self.clock.pump([10, 10])
        self.assertEqual((self.registry.looks, self.registry.beats), (3, []))
        self.assertEqual({type(error) for error in self.owner.refusals}, {ServiceForcedDownError})
        self.registry.forced_down = False
        self.reason = None
        self.clock.pump([10, 10])
        self.assertEqual((self.registry.looks, self.registry.beats), (4, [1, 1]))
        self.assertIsNone(self.heartbeat.trouble)

    def test_superseded_while_forced_down(self) -> None:
        """A service that was superseded while it was forced down sends no heartbeat when it is let up."""
        self.heartbeat.record = numbered(2)
        self.owner.is_fenced = self.owner.awaits_let_up = True
        self.registry.forced_down = False
        self.successResultOf(self.heartbeat.start())
        self.assertEqual(self.registry.beats, [])
        self.assertEqual([type(error) for error in self.owner.refusals], [ServiceSupersededError])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failing_check(self) -> None:
        """While a check fails, no heartbeat is sent, and the reason is logged once."""
        self.successResultOf(self.heartbeat.start())
        self.reason = "the listener is not consuming"
        self.clock.pump([10] * 3)
        self.assertEqual(len(self.registry.beats), 1)
        self.assertEqual(self.heartbeat.skipped, 3)
        self.assertEqual(self.heartbeat.trouble, "no heartbeat is sent, because the listener is not consuming")
        self.reason = None
        self.clock.advance(10)
        self.assertEqual(len(self.registry.beats), 2)
        self.assertEqual(self.events, ["error", "info"])

    def test_check_that_raises(self) -> None:
        """A check that raises has failed: no heartbeat is sent, and the reason is logged once."""
        self.heartbeat = Heartbeat(self.registry, IDENTITY, record(), self.clock, 10, Owner(), [self.check])
        self.check_error: Exception | None = None
        self.successResultOf(self.heartbeat.start())
        self.check_error = KeyError("no such listener")
        self.clock.pump([10] * 3)
        self.assertEqual((self.heartbeat.sent, self.heartbeat.skipped), (1, 3))
        self.assertRegex(
            str(self.heartbeat.trouble),
            r"no heartbeat is sent, because a liveness check raised KeyError: 'no such listener' \(.*:\d+ in check",
        )
        self.check_error = None
        self.clock.advance(10)
        self.assertEqual(self.heartbeat.sent, 2)
        self.assertEqual(self.events, ["error", "info"])

    def check(self) -> None:
        if self.check_error is not None:
            raise self.check_error

    def test_blocked_reactor(self) -> None:
        """A heartbeat that is later than the limit is skipped: the reactor was blocked."""
        self.successResultOf(self.heartbeat.start())
        self.clock.advance(10 + LAG_LIMIT + 1)
        self.assertEqual((self.heartbeat.sent, self.heartbeat.skipped), (1, 1))
        self.clock.advance(20 - self.clock.seconds())
        self.assertEqual((self.heartbeat.sent, self.heartbeat.skipped), (2, 1))

    def test_slow_database_is_no_lag(self) -> None:
        """A heartbeat that waited for the previous one does not count as a blocked reactor."""
        hanging: Deferred[None] = Deferred()
        self.registry.answer = lambda: hanging
        self.heartbeat.start()
        self.clock.pump([10] * 5)
        self.registry.answer = lambda: succeed(None)
        hanging.callback(None)
        self.clock.advance(10)
        self.assertEqual(self.heartbeat.skipped, 0)

    def test_stop(self) -> None:
        """stop() sends no more heartbeats, and cancels the one under way."""
        cancelled: list[object] = []
        self.registry.answer = lambda: Deferred(cancelled.append)
        started = self.heartbeat.start()
        self.heartbeat.stop()
        self.assertEqual(len(cancelled), 1)
        self.successResultOf(started)
        self.clock.pump([10] * 3)
        self.assertEqual(len(self.registry.beats), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
