"""Tests for novasvc.testing.clock."""

from functools import partial
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import BusyClockError
from novasvc.testing import SteppedClock


class SteppedClockTests(SynchronousTestCase):
    """Tests for novasvc.testing.SteppedClock."""

    def setUp(self) -> None:
        self.clock = SteppedClock()
        self.seen: list[float] = []

    def see(self) -> None:
        self.seen.append(self.clock.seconds())

    def test_due_times(self) -> None:
        """Each call sees the time for which it was scheduled, also those that were scheduled meanwhile."""
        self.clock.callLater(2, self.see)
        self.clock.callLater(1, lambda: self.clock.callLater(0.5, self.see))
        self.clock.callLater(11, self.see)
        self.clock.advance(10)
        self.assertEqual((self.seen, self.clock.seconds()), ([1.5, 2], 10))
        self.clock.advance(1)
        self.assertEqual(self.seen, [1.5, 2, 11])

    def test_same_moment(self) -> None:
        """Calls of one moment run in the order in which they were scheduled, before those that they schedule."""
        order: list[str] = []
        self.clock.callLater(1, lambda: (order.append("a"), self.clock.callLater(0, order.append, "c")))
        self.clock.callLater(1, order.append, "b")
        self.clock.advance(1)
        self.assertEqual(order, ["a", "b", "c"])

    def test_loop(self) -> None:
        """A loop runs once an interval, however far the time is advanced at once."""
        loop = LoopingCall(self.see)
        loop.clock = self.clock
        loop.start(10)
        self.clock.advance(35)
        self.assertEqual(self.seen, [0, 10, 20, 30])

    def test_delayed(self) -> None:
        """A call that was delayed or reset runs at its new time, and a cancelled one does not run."""
        calls = [self.clock.callLater(1, self.see) for _ in range(3)]
        calls[0].delay(4)
        calls[1].reset(2)
        calls[2].cancel()
        self.clock.advance(10)
        self.assertEqual(self.seen, [2, 5])

    def test_jump(self) -> None:
        """After a jump what is overdue runs late."""
        self.clock.callLater(1, self.see)
        self.clock.jump(10)
        self.assertEqual(self.seen, [10])

    def test_backwards(self) -> None:
        """Time does not go back."""
        self.assertRaises(ValueError, self.clock.advance, -1)

    def test_negative(self) -> None:
        """A negative delay is an error, as on Twisted's reactors."""
        self.assertRaises(AssertionError, self.clock.callLater, -1, self.see)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_raises(self) -> None:
        """An exception of a call reaches the test; the others can still be run."""
        self.clock.callLater(1, lambda: 1 / 0)
        self.clock.callLater(2, self.see)
        self.assertRaises(ZeroDivisionError, self.clock.advance, 5)
        self.clock.advance(5)
        self.assertEqual((self.seen, self.clock.stepping), ([2], False))

    def test_busy(self) -> None:
        """Calls that schedule each other for the same moment end with an error that names the function."""

        def again(*_: Any) -> None:
            self.clock.callLater(0, partial(again, 1))

        again()
        error = self.assertRaises(BusyClockError, self.clock.advance, 1)
        self.assertIn("test_busy.<locals>.again: 20000 calls ran at 0 s", str(error))
