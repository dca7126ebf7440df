"""Tests for novasvc.reactor.waiters: Deferreds that wait for one event."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.waiters import Waiters


class WaitersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.waiters: Waiters[int] = Waiters()

    def test_fire(self) -> None:
        """All waiters get the result, in order, and none is left."""
        got: list[tuple[str, int]] = []
        for name in "ab":
            self.waiters.wait().addCallback(lambda result, name=name: got.append((name, result)))
        self.waiters.fire(1)
        self.assertEqual((got, self.waiters.waiting), ([("a", 1), ("b", 1)], []))

    def test_failure(self) -> None:
        """Each waiter gets a Failure of its own, because an errback changes the Failure that it handles."""
        waiting = [self.waiters.wait() for _ in range(2)]
        self.waiters.fire(Failure(ValueError("x")))
        one, other = (self.failureResultOf(waiter, ValueError) for waiter in waiting)
        self.assertIsNot(one, other)
        self.assertIs(one.value, other.value)

    def test_cancelled(self) -> None:
        """A cancelled waiter fails, and does not fire later; the others do."""
        first, second = self.waiters.wait(), self.waiters.wait()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.waiters.fire(1)
        self.assertEqual(self.successResultOf(second), 1)

    def test_cancelled_by_a_callback(self) -> None:
        """A callback may cancel a waiter whose turn has not come."""
        first, second = self.waiters.wait(), self.waiters.wait()
        first.addCallback(lambda _: second.cancel())
        self.waiters.fire(1)
        self.failureResultOf(second, CancelledError)

    def test_added_by_a_callback(self) -> None:
        """A waiter that a callback adds is fired too."""
        added: list[Deferred[int]] = []
        self.waiters.wait().addCallback(lambda _: added.append(self.waiters.wait()))
        self.waiters.fire(1)
        self.assertEqual(self.successResultOf(added[0]), 1)
