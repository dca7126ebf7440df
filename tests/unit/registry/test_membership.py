"""Membership, heartbeats and the rule of who is up."""

from datetime import datetime

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseUnavailableError, ServiceNotFoundError
from novasvc.registry.membership import LAG_LIMIT, Identity, Membership, is_up
from novasvc.registry.record import ServiceRecord

IDENTITY = Identity("h1", "novasvc-agent", "agent", 7)


def record(**changes: object) -> ServiceRecord:
    fresh = ServiceRecord(
        id=1,
        uuid="u",
        host="h1",
        binary="novasvc-agent",
        topic="agent",
        disabled=False,
        disabled_reason=None,
        forced_down=False,
        report_count=0,
        created_at=datetime(2026, 1, 1),  # noqa: DTZ001 - the table's form
        updated_at=None,
        last_seen_up=None,
        version=7,
        age=0.0,
    )
    return attrs.evolve(fresh, **changes)


class ScriptedRegistry:
    """A registry whose beats answer as the test says; everything else is not for a member."""

    def __init__(self) -> None:
        self.beats: list[int] = []
        self.registered: list[tuple[object, ...]] = []
        self.answer = lambda: succeed(None)

    def beat(self, service_id: int) -> Deferred[None]:
        self.beats.append(service_id)
        return self.answer()

    def register(self, *identity: object) -> Deferred[ServiceRecord]:
        self.registered.append(identity)
        self.answer = lambda: succeed(None)
        return succeed(record(id=2))


class IsUpTests(SynchronousTestCase):
    """Tests for novasvc.registry.membership.is_up."""

    def test_boundary(self) -> None:
        """A service is up while its age is at most service_down_time."""
        self.assertTrue(is_up(record(age=60.0), 60))
        self.assertFalse(is_up(record(age=60.001), 60))

    def test_forced_down(self) -> None:
        """A service that was forced down is down, fresh as it may be."""
        self.assertFalse(is_up(record(forced_down=True), 60))

    def test_disabled(self) -> None:
        """To be disabled is no reason to be down."""
        self.assertTrue(is_up(record(disabled=True), 60))

    def test_future(self) -> None:
        """A stamp in the future, left by a database whose clock was set back, counts as fresh."""
        self.assertTrue(is_up(record(age=-3600.0), 60))


class MembershipTests(SynchronousTestCase):
    """Tests for novasvc.registry.membership.Membership."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = ScriptedRegistry()
        self.missing: str | None = None
        self.member = Membership(self.registry, IDENTITY, record(), self.clock, 10, [lambda: self.missing])
        self.events: list[str] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event: dict[str, object]) -> None:
        if event.get("log_namespace") == "novasvc.registry.membership":
            self.events.append(event["log_level"].name)

    def test_first_beat_now(self) -> None:
        """To join is to beat at once, and then every report_interval."""
        self.successResultOf(self.member.join())
        self.assertEqual(self.registry.beats, [1])
        self.clock.pump([10, 10])
        self.assertEqual(self.registry.beats, [1, 1, 1])
        self.assertEqual(self.member.beats, 3)

    def test_no_beats(self) -> None:
        """With an interval of 0 none is sent, not even the first, and to leave is nothing."""
        self.member = Membership(self.registry, IDENTITY, record(), self.clock, 0)
        self.successResultOf(self.member.join())
        self.clock.pump([10, 60])
        self.assertEqual((self.registry.beats, self.clock.getDelayedCalls()), ([], []))
        self.member.leave()
        self.assertEqual(self.events, ["info"])

    def test_never_piles_up(self) -> None:
        """While a beat hangs, no other is sent; when it ends, the next comes at its time."""
        hanging: Deferred[None] = Deferred()
        self.registry.answer = lambda: hanging
        joined = self.member.join()
        self.clock.pump([10] * 5)
        self.assertNoResult(joined)
        self.assertEqual(len(self.registry.beats), 1)
        self.registry.answer = lambda: succeed(None)
        self.clock.advance(3)
        hanging.callback(None)
        self.successResultOf(joined)
        self.clock.advance(6.9)
        self.assertEqual(len(self.registry.beats), 1)
        self.clock.advance(0.2)
        self.assertEqual(len(self.registry.beats), 2)

    def test_outage_is_logged_once(self) -> None:
        """An outage is one error line, however long it lasts, and its end is one info line."""
        self.successResultOf(self.member.join())
        self.registry.answer = lambda: fail(DatabaseUnavailableError("sqlite:///x", "gone"))
        self.clock.pump([10] * 4)
        self.assertEqual(self.events, ["error"])
        self.assertEqual(self.member.trouble, "model server went away")
        self.registry.answer = lambda: succeed(None)
        self.clock.pump([10] * 2)
        self.assertEqual(self.events, ["error", "info"])
        self.assertIsNone(self.member.trouble)
        self.assertEqual((self.member.beats, self.member.failures), (3, 4))

    def test_first_beat_fails(self) -> None:
        """A first beat that fails ends neither the joining nor the membership."""
        self.registry.answer = lambda: fail(DatabaseUnavailableError("sqlite:///x", "gone"))
        self.successResultOf(self.member.join())
        self.registry.answer = lambda: succeed(None)
        self.clock.advance(10)
        self.assertEqual(self.member.beats, 1)

    def test_unforeseen_error(self) -> None:
        """An error nobody foresaw is logged, and the next beat is tried all the same."""
        self.registry.answer = lambda: fail(ZeroDivisionError())
        self.successResultOf(self.member.join())
        self.registry.answer = lambda: succeed(None)
        self.clock.advance(10)
        self.assertEqual((self.member.beats, self.member.failures), (1, 1))

    def test_deleted_row(self) -> None:
        """A member whose row was deleted registers again, with a warning, and goes on."""
        self.successResultOf(self.member.join())
        self.registry.answer = lambda: fail(ServiceNotFoundError("1"))
        self.clock.advance(10)
        self.assertEqual(self.registry.registered, [("h1", "novasvc-agent", "agent", 7)])
        self.clock.advance(10)
        self.assertEqual(self.registry.beats, [1, 1, 2, 2])
        self.assertEqual(self.member.record.id, 2)
        self.assertEqual(self.events, ["warn"])

    def test_missing_proof(self) -> None:
        """A member that cannot prove that it works sends no beat, and says why once."""
        self.successResultOf(self.member.join())
        self.missing = "its consumers are not live"
        self.clock.pump([10] * 3)
        self.assertEqual(len(self.registry.beats), 1)
        self.assertEqual(self.member.skipped, 3)
        self.assertEqual(self.member.trouble, "no heartbeat is sent, because its consumers are not live")
        self.missing = None
        self.clock.advance(10)
        self.assertEqual(len(self.registry.beats), 2)
        self.assertEqual(self.events, ["error", "info"])

    def test_proof_that_raises(self) -> None:
        """A proof that raises is none: no beat is sent, the log says why once, and the next one is tried."""
        self.member = Membership(self.registry, IDENTITY, record(), self.clock, 10, [self.prove])
        self.proving: Exception | None = None
        self.successResultOf(self.member.join())
        self.proving = KeyError("no such listener")
        self.clock.pump([10] * 3)
        self.assertEqual((self.member.beats, self.member.skipped), (1, 3))
        self.assertRegex(
            str(self.member.trouble),
            r"no heartbeat is sent, because a proof raised KeyError: 'no such listener' \(.*:\d+ in prove",
        )
        self.proving = None
        self.clock.advance(10)
        self.assertEqual(self.member.beats, 2)
        self.assertEqual(self.events, ["error", "info"])

    def prove(self) -> None:
        if self.proving is not None:
            raise self.proving

    def test_blocked_reactor(self) -> None:
        """A beat that comes later than the limit proves that the reactor was blocked, and is skipped."""
        self.successResultOf(self.member.join())
        self.clock.advance(10 + LAG_LIMIT + 1)
        self.assertEqual((self.member.beats, self.member.skipped), (1, 1))
        self.clock.advance(20 - self.clock.seconds())
        self.assertEqual((self.member.beats, self.member.skipped), (2, 1))

    def test_slow_database_is_no_lag(self) -> None:
        """A beat that waited for the one before is not taken for a blocked reactor."""
        hanging: Deferred[None] = Deferred()
        self.registry.answer = lambda: hanging
        self.member.join()
        self.clock.pump([10] * 5)
        self.registry.answer = lambda: succeed(None)
        hanging.callback(None)
        self.clock.advance(10)
        self.assertEqual(self.member.skipped, 0)

    def test_leave(self) -> None:
        """Who has left sends no beat, and cancels the one under way."""
        cancelled: list[object] = []
        self.registry.answer = lambda: Deferred(cancelled.append)
        joined = self.member.join()
        self.member.leave()
        self.assertEqual(len(cancelled), 1)
        self.successResultOf(joined)
        self.clock.pump([10] * 3)
        self.assertEqual(len(self.registry.beats), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
