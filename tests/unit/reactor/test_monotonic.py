"""Tests for novasvc.reactor.monotonic."""

import time

from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.monotonic import use_monotonic_clock


class SteppedReactor(SelectReactor):
    """A reactor of a host whose clock is set forward or back."""

    step = 0.0

    def seconds(self) -> float:
        return time.time() + self.step


class MonotonicClockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = SteppedReactor()
        self.addCleanup(self.reactor.removeAll)

    def assert_near(self, one: float, other: float) -> None:
        self.assertLess(abs(one - other), 5.0)

    def test_time_of_day(self) -> None:
        """The reactor's seconds begin at the time of day."""
        use_monotonic_clock(self.reactor)
        self.assert_near(self.reactor.seconds(), time.time())

    def test_steps(self) -> None:
        """A step of the host's clock, forward or back, changes neither the seconds nor the timers."""
        use_monotonic_clock(self.reactor)
        timer = self.reactor.callLater(10, self.fail)
        for self.reactor.step in (3600.0, -3600.0):
            self.assert_near(self.reactor.seconds(), time.time())
            self.reactor.runUntilCurrent()
            self.assertTrue(timer.active())
            self.assert_near(self.reactor.timeout() or 0.0, 10.0)
        timer.cancel()

    def test_existing_timers(self) -> None:
        """A reactor that has timers is left alone: their times were computed with its own clock."""
        timer = self.reactor.callLater(10, self.fail)
        use_monotonic_clock(self.reactor)
        self.reactor.step = 3600.0
        self.assert_near(self.reactor.seconds(), time.time() + 3600)
        timer.cancel()
