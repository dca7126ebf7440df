"""Tests for novasvc.node.deadline: how long the steps of a stop may take."""

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.node.deadline import CLEANUP_TIME, INTERRUPT_TIMEOUT, StopDeadline, TooLateError


class StopDeadlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.deadline = StopDeadline(self.clock)

    def limit(self, step: Deferred[str], *, work: bool = False) -> Deferred[str]:
        return Deferred.fromCoroutine(self.deadline.limit(step, work=work))

    def seconds(self, *, work: bool = False) -> float:
        """Return how long a step that does not end is waited for."""
        waiting = self.limit(Deferred(), work=work)
        (timer,) = self.clock.getDelayedCalls()
        left = timer.getTime() - self.clock.seconds()
        self.clock.advance(left)
        self.failureResultOf(waiting, TooLateError)
        return left

    def test_result(self) -> None:
        """A step that ends in time gives its result, and leaves no timer."""
        self.deadline.begin(10)
        step: Deferred[str] = Deferred()
        waiting = self.limit(step)
        step.callback("done")
        self.assertEqual(self.successResultOf(waiting), "done")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_limit(self) -> None:
        """Without a grace, no step is limited."""
        self.deadline.begin(0)
        waiting = self.limit(Deferred(), work=True)
        self.clock.advance(1e6)
        self.assertNoResult(waiting)

    def test_grace(self) -> None:
        """Work has the grace; what comes after it has a part of the time to clean up."""
        self.deadline.begin(10)
        self.clock.advance(4)
        self.assertEqual(self.seconds(work=True), 6)
        self.assertAlmostEqual(self.seconds(), CLEANUP_TIME / 2)

    def test_interrupt(self) -> None:
        """An interrupt ends the wait for work at once, and gives the steps after it halves of a second."""
        self.deadline.begin(10)
        waiting = self.limit(Deferred(), work=True)
        self.deadline.interrupt()
        self.clock.advance(0)
        self.failureResultOf(waiting, TooLateError)
        self.assertTrue(self.deadline.interrupted_early)
        self.assertAlmostEqual(self.seconds(), INTERRUPT_TIMEOUT / 2)
        self.assertAlmostEqual(self.seconds(), INTERRUPT_TIMEOUT / 4)

    def test_interrupt_at_the_deadline(self) -> None:
        """An order that comes with the deadline is not early, and ends with the time to clean up."""
        self.deadline.begin(10)
        self.clock.advance(10 - CLEANUP_TIME / 2)
        self.deadline.interrupt()
        self.assertFalse(self.deadline.interrupted_early)
        self.assertAlmostEqual(self.seconds(), CLEANUP_TIME * 1.5 / 2)

    def test_clear(self) -> None:
        """A start forgets what the last stop was told."""
        self.deadline.begin(1)
        self.deadline.interrupt()
        self.deadline.clear()
        self.assertFalse(self.deadline.interrupted)
        waiting = self.limit(Deferred())
        self.clock.advance(100)
        self.assertNoResult(waiting)

    def test_cancelled_step(self) -> None:
        """A step that is cancelled by itself is not too late."""
        self.deadline.begin(10)
        step: Deferred[str] = Deferred()
        waiting = self.limit(step)
        step.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(self.successResultOf(self.limit(succeed("next"))), "next")
