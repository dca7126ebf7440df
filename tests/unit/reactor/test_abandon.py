"""Tests for novasvc.reactor.abandon."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.abandon import abandon_on_cancel, completion


class AbandonOnCancelTests(SynchronousTestCase):
    def test_outcome(self) -> None:
        """The result or the failure of the step is passed on."""
        for outcome in (1, ValueError("x")):
            step: Deferred[int] = Deferred()
            waiter = abandon_on_cancel(step)
            self.assertNoResult(waiter)
            if isinstance(outcome, Exception):
                step.errback(outcome)
                self.failureResultOf(waiter, ValueError)
            else:
                step.callback(outcome)
                self.assertEqual(self.successResultOf(waiter), outcome)

    def test_stubborn(self) -> None:
        """Cancelling ends the waiting at once, although the step runs on; its late result is dropped."""
        cancelled: list[Deferred[int]] = []
        cleaning_up: Deferred[None] = Deferred()
        ended: list[str] = []

        async def run() -> None:
            try:
                await Deferred(cancelled.append)
            except CancelledError:
                await cleaning_up
            ended.append("run")

        waiter = abandon_on_cancel(Deferred.fromCoroutine(run()))
        waiter.cancel()
        self.assertEqual(len(cancelled), 1)
        self.failureResultOf(waiter, CancelledError)
        self.assertEqual(ended, [])
        cleaning_up.callback(None)
        self.assertEqual(ended, ["run"])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_late_failure(self) -> None:
        """A step that fails after it was abandoned is logged."""
        step: Deferred[int] = Deferred(lambda _: None)
        inner: Deferred[int] = Deferred(lambda _: None)
        step.addBoth(lambda _: inner)
        waiter = abandon_on_cancel(step)
        waiter.cancel()
        self.failureResultOf(waiter, CancelledError)
        inner.errback(ValueError("late"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class CompletionTests(SynchronousTestCase):
    def test_outcome(self) -> None:
        """It fires with nothing, however the step ends; the outcome stays with the step."""
        for outcome in (1, ValueError("x")):
            step: Deferred[int] = Deferred()
            done = completion(step)
            self.assertNoResult(done)
            if isinstance(outcome, Exception):
                step.errback(outcome)
                self.failureResultOf(step, ValueError)
            else:
                step.callback(outcome)
                self.assertEqual(self.successResultOf(step), outcome)
            self.assertIsNone(self.successResultOf(done))

    def test_cancelled(self) -> None:
        """Cancelling it leaves the step alone."""
        step: Deferred[int] = Deferred()
        done = completion(step)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertNoResult(step)
        step.callback(1)
        self.assertEqual(self.successResultOf(step), 1)
