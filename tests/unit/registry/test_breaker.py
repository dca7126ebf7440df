"""Tests for novasvc.registry.breaker."""

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.breaker import PROBE_PAUSE, SILENCE, CircuitBreaker
from novasvc.registry.errors import DatabaseError, DatabaseLockedError, DatabaseReadOnlyError, DatabaseUnavailableError

AWAY = DatabaseUnavailableError("sqlite:///x", "no answer within 15 s")


class CircuitBreakerTests(SynchronousTestCase):
    """Tests for CircuitBreaker."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.probes: list[Deferred[None]] = []
        self.breaker = CircuitBreaker(self.probe, self.clock)
        self.addCleanup(self.breaker.stop)

    def probe(self) -> Deferred[None]:
        self.probes.append(Deferred())
        return self.probes[-1]

    def ask(self, answer: Deferred[str]) -> Deferred[str]:
        return self.breaker.run(lambda: answer)

    def open(self) -> None:
        """Have a request fail because the database does not answer."""
        self.failureResultOf(self.ask(fail(AWAY)), DatabaseUnavailableError)

    def test_answers(self) -> None:
        """Results and errors are passed on."""
        self.assertEqual(self.successResultOf(self.ask(succeed("row"))), "row")
        error = DatabaseReadOnlyError("sqlite:///x", "read-only")
        self.failureResultOf(self.ask(fail(error)), DatabaseReadOnlyError)
        self.assertIsNone(self.breaker.problem)
        self.assertEqual(self.probes, [])

    def test_refuses(self) -> None:
        """After a request without an answer, others are refused with its reason, and do not reach the database."""
        self.open()
        error = self.failureResultOf(self.breaker.run(lambda: self.fail("it asked")), DatabaseUnavailableError).value
        self.assertEqual((error.url, error.problem), (AWAY.url, AWAY.problem))
        self.assertIsNot(error, AWAY)

    def test_answers_again(self) -> None:
        """It probes until the database answers, with pauses, and passes requests on again."""
        with capturedLogs() as events:
            self.open()
            (probe,) = self.probes
            probe.errback(AWAY)
            self.clock.advance(PROBE_PAUSE)
            self.assertEqual(len(self.probes), 2)
            self.failureResultOf(self.ask(succeed("row")), DatabaseUnavailableError)
            self.probes[1].callback(None)
        self.assertEqual(self.successResultOf(self.ask(succeed("row"))), "row")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(
            [(event["log_level"], formatEvent(event)[:28]) for event in events],
            [(LogLevel.error, "the database does not answer"), (LogLevel.info, "the database answers again")],
        )

    def test_error_is_an_answer(self) -> None:
        """A database that refuses a probe for another reason is there."""
        self.open()
        self.probes[0].errback(DatabaseError("sqlite:///x", "read-only"))
        self.assertEqual(self.successResultOf(self.ask(succeed("row"))), "row")

    def test_busy(self) -> None:
        """A database that answered another request a moment ago is only busy."""
        self.successResultOf(self.ask(succeed("row")))
        self.clock.advance(SILENCE - 0.1)
        self.open()
        self.assertIsNone(self.breaker.problem)

    def test_answered_long_ago(self) -> None:
        """One that has answered none for longer does not answer."""
        self.successResultOf(self.ask(succeed("row")))
        self.clock.advance(SILENCE)
        self.open()
        self.assertIsNotNone(self.breaker.problem)

    def test_locked(self) -> None:
        """Tables that another process has locked are not a database that is away."""
        self.failureResultOf(self.ask(fail(DatabaseLockedError("sqlite:///x", "locked"))), DatabaseLockedError)
        self.assertIsNone(self.breaker.problem)

    def test_cancelled(self) -> None:
        """A caller that gave up says nothing about the database."""
        asked = self.ask(Deferred())
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertIsNone(self.breaker.problem)

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
        """A stop cancels the probe under way."""
        self.open()
        self.breaker.stop()
        self.assertTrue(self.probes[0].called)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_in_pause(self) -> None:
        """A stop between two probes cancels the next one."""
        self.open()
        self.probes[0].errback(AWAY)
        self.breaker.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
