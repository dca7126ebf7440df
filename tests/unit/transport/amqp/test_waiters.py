"""Tests for novasvc.transport.amqp.waiters."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.waiters import Waiters


class WaitersTests(SynchronousTestCase):
    """Tests for Waiters."""

    def setUp(self) -> None:
        self.waiters = Waiters()

    def test_fire(self) -> None:
        """An event fires the Deferreds of all callers that wait, and of no later one."""
        waiting = self.waiters.add(), self.waiters.add()
        self.waiters.fire()
        later = self.waiters.add()
        for waiter in waiting:
            self.assertIsNone(self.successResultOf(waiter))
        self.assertNoResult(later)

    def test_failure(self) -> None:
        """Each caller gets a Failure of its own with the same error."""
        failure = Failure(ValueError("gone"))
        first, second = (self.failureResultOf(waiter, ValueError) for waiter in self.fired(failure))
        self.assertIs(first.value, second.value)
        self.assertIsNot(first, second)

    def fired(self, failure: Failure) -> list[Deferred[None]]:
        waiting = [self.waiters.add(), self.waiters.add()]
        self.waiters.fire(failure)
        return waiting

    def test_cancel(self) -> None:
        """A caller that cancels stops waiting; the others go on."""
        first, second = self.waiters.add(), self.waiters.add()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(len(self.waiters), 1)
        self.waiters.fire()
        self.successResultOf(second)

    def test_cancel_in_a_callback(self) -> None:
        """A callback may cancel another caller's Deferred while they are fired."""
        first, second = self.waiters.add(), self.waiters.add()
        first.addCallback(lambda _: second.cancel())
        self.waiters.fire()
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)
