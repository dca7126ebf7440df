"""Tests for novasvc.registry.breaker."""

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.breaker import PATIENCE, PROBE_PAUSE, CircuitBreaker
from novasvc.registry.errors import (
    CircuitOpenError,
    DatabaseBusyError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseServerReadOnlyError,
    DatabaseUnavailableError,
)

AWAY = DatabaseUnavailableError("sqlite:///x", "no answer within 15 s")


class CircuitBreakerTests(SynchronousTestCase):
    """Tests for CircuitBreaker."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.probes: list[Deferred[None]] = []
        self.cancelled: list[Deferred[None]] = []
        self.breaker = CircuitBreaker(self.probe, self.clock)
        self.addCleanup(self.breaker.stop)

    def probe(self) -> Deferred[None]:
        self.probes.append(Deferred(self.cancelled.append))
        return self.probes[-1]

    def ask(self, answer: Deferred[str]) -> Deferred[str]:
        return self.breaker.run(lambda: answer)

    def fail_once(self) -> None:
        """Have a request fail because the database does not answer."""
        self.failureResultOf(self.ask(fail(AWAY)), DatabaseUnavailableError)

    def open(self) -> None:
        """Have a request fail, and its probe."""
        self.fail_once()
        self.probes[-1].errback(AWAY)

    def assert_open(self) -> None:
        refused = self.breaker.run(lambda: self.fail("it asked the database"))
        self.failureResultOf(refused, CircuitOpenError)

    def assert_closed(self) -> None:
        self.assertEqual(self.successResultOf(self.ask(succeed("row"))), "row")

    def test_answers(self) -> None:
        """Results and errors are passed on; only silence is probed."""
        self.assert_closed()
        for kind in (DatabaseReadOnlyError, DatabaseServerReadOnlyError):
            self.failureResultOf(self.ask(fail(kind("u", "read-only"))), kind)
        self.assertEqual(self.probes, [])

    def test_refuses(self) -> None:
        """When a request and a probe have failed, requests are refused, and the error says why."""
        self.open()
        error = self.failureResultOf(self.breaker.run(Deferred), CircuitOpenError).value
        self.assertEqual(error.url, AWAY.url)
        self.assertEqual(error.problem, "request refused; an earlier one failed with 'no answer within 15 s'")

    def test_patience(self) -> None:
        """A probe without an answer opens it after a moment."""
        self.fail_once()
        self.clock.advance(PATIENCE - 0.1)
        self.assert_closed()
        self.fail_once()
        self.clock.advance(PATIENCE)
        self.assert_open()

    def test_one_request(self) -> None:
        """If the probe is answered, only that request had a problem: nothing is logged, and nothing refused."""
        with capturedLogs() as events:
            self.fail_once()
            self.probes[0].callback(None)
        self.assert_closed()
        self.assertEqual(events, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answers_again(self) -> None:
        """It probes until the database answers, with pauses, and passes requests on again."""
        with capturedLogs() as events:
            self.open()
            self.clock.advance(PROBE_PAUSE)
            self.assertEqual(len(self.probes), 2)
            self.probes[1].errback(AWAY)
            self.clock.advance(PROBE_PAUSE)
            self.assert_open()
            self.probes[2].callback(None)
        self.assert_closed()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(
            [(event["log_level"], formatEvent(event)[:28]) for event in events],
            [(LogLevel.error, "the database does not answer"), (LogLevel.info, "the database answers again")],
        )

    def test_earlier_request(self) -> None:
        """An answer to a request from before closes it, and ends the probe."""
        waiting: Deferred[str] = Deferred()
        asked = self.ask(waiting)
        self.fail_once()
        self.clock.advance(PATIENCE)
        self.assert_open()
        waiting.callback("row")
        self.assertEqual(self.successResultOf(asked), "row")
        self.assert_closed()
        self.assertEqual(self.cancelled, self.probes)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_later_failure(self) -> None:
        """A request from before the outage that fails after it does not open it again by itself."""
        waiting: Deferred[str] = Deferred()
        asked = self.ask(waiting)
        self.open()
        self.clock.advance(PROBE_PAUSE)
        self.probes[1].callback(None)
        waiting.errback(AWAY)
        self.failureResultOf(asked, DatabaseUnavailableError)
        self.assertIsNone(self.breaker.problem)

    def test_probe_meets_an_error(self) -> None:
        """A database that refuses a probe for another reason is there."""
        self.fail_once()
        self.probes[0].errback(DatabaseReadOnlyError("sqlite:///x", "read-only"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assert_closed()

    def test_probe_raises(self) -> None:
        """A probe with a bug is logged, and refuses nothing."""
        breaker = CircuitBreaker(lambda: 1 / 0, self.clock)
        self.failureResultOf(breaker.run(lambda: fail(AWAY)), DatabaseUnavailableError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsNone(breaker.problem)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_locked(self) -> None:
        """Tables that another process has locked are not a database that is away."""
        self.failureResultOf(self.ask(fail(DatabaseLockedError("sqlite:///x", "locked"))), DatabaseLockedError)
        self.assertEqual(self.probes, [])

    def test_busy(self) -> None:
        """A request that did not reach the database, because too many wait for it here, says nothing of it."""
        self.failureResultOf(self.ask(fail(DatabaseBusyError("sqlite:///x", "256 wait"))), DatabaseBusyError)
        self.assertEqual(self.probes, [])
        self.open()
        self.assert_open()

    def test_busy_probe(self) -> None:
        """Nor does a probe that did not reach it: a closed breaker stays closed, an open one probes again."""
        busy = DatabaseBusyError("sqlite:///x", "256 wait")
        self.fail_once()
        self.probes[0].errback(busy)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assert_closed()
        self.open()
        self.clock.advance(PROBE_PAUSE)
        self.probes[-1].errback(busy)
        self.assert_open()
        self.clock.advance(PROBE_PAUSE)
        self.probes[-1].callback(None)
        self.assert_closed()

    def test_latest_error(self) -> None:
        """It refuses with the latest error, which may be a probe's."""
        self.open()
        self.clock.advance(PROBE_PAUSE)
        self.probes[-1].errback(DatabaseUnavailableError("sqlite:///x", "connection refused"))
        error = self.failureResultOf(self.breaker.run(Deferred), CircuitOpenError).value
        self.assertIn("'connection refused'", error.problem)

    def test_cancelled(self) -> None:
        """A caller that gave up says nothing of the database, either: it ends no probe."""
        asked = self.ask(Deferred())
        self.fail_once()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.clock.advance(PATIENCE)
        self.assert_open()

    def test_requests_under_way(self) -> None:
        """Of many requests that fail together, the first one begins the only probe."""
        waiting: list[Deferred[str]] = [Deferred() for _ in range(3)]
        asked = [self.ask(each) for each in waiting]
        for each in waiting:
            each.errback(AWAY)
        for each in asked:
            self.failureResultOf(each, DatabaseUnavailableError)
        self.assertEqual(len(self.probes), 1)

    def test_stop(self) -> None:
        """A stop cancels the probe under way, and no request begins another."""
        waiting: Deferred[str] = Deferred()
        asked = self.ask(waiting)
        self.fail_once()
        self.breaker.stop()
        self.assertEqual(self.cancelled, self.probes)
        waiting.errback(AWAY)
        self.failureResultOf(asked, DatabaseUnavailableError)
        self.assertEqual(len(self.probes), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assert_closed()

    def test_stop_in_pause(self) -> None:
        """A stop between two probes cancels the next one."""
        self.open()
        self.breaker.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assert_closed()
