"""Tests for novasvc.transport.amqp.restoring."""

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.restoring import log_unless_cancelled, restore
from novasvc.transport.errors import BrokerError


class RestoreTests(SynchronousTestCase):
    """Tests for restore, with a backoff of 1 s for the first attempt, 2 s for the second, and so on."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.results: list[Exception | None] = []
        self.wanted = True
        self.reported: list[str] = []
        self.steps = 0

    def restore(self, *results: Exception | None) -> Deferred[bool]:
        self.results = list(results)
        coroutine = restore(
            self.step,
            lambda: self.wanted,
            lambda error: self.reported.append(str(error)),
            clock=self.clock,
            backoff=float,
        )
        return Deferred.fromCoroutine(coroutine)

    def step(self) -> Deferred[None]:
        self.steps += 1
        result = self.results.pop(0)
        return succeed(None) if result is None else fail(result)

    def test_success(self) -> None:
        """It repeats the step after growing pauses until one succeeds."""
        done = self.restore(AMQPClosedError("a"), BrokerError("amqp://x", "b"), None)
        self.clock.pump([1.0, 2.0, 2.9])
        self.assertNoResult(done)
        self.clock.advance(0.1)
        self.assertTrue(self.successResultOf(done))

    def test_reported(self) -> None:
        """Each change of the error's text is reported once."""
        self.restore(*(AMQPClosedError(text) for text in "aaba"), None)
        self.clock.pump([1.0, 2.0, 3.0, 4.0, 5.0])
        self.assertEqual(self.reported, ["a", "b", "a"])

    def test_not_wanted(self) -> None:
        """It ends without a step when it is not wanted any more after a pause."""
        done = self.restore()
        self.wanted = False
        self.clock.advance(1.0)
        self.assertFalse(self.successResultOf(done))
        self.assertEqual(self.steps, 0)

    def test_cancelled(self) -> None:
        """Cancelling it cancels the pause, and is not logged."""
        done = self.restore()
        done.cancel()
        done.addErrback(log_unless_cancelled, "restoring failed")
        self.successResultOf(done)
        self.assertEqual((self.clock.getDelayedCalls(), self.flushLoggedErrors(CancelledError)), ([], []))

    def test_unexpected(self) -> None:
        """An error of another type ends it, and is logged."""
        done = self.restore(ValueError("a defect"))
        self.clock.advance(1.0)
        log_unless_cancelled(Failure(self.failureResultOf(done, ValueError).value), "restoring failed")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
