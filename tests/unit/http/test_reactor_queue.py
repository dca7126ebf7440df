"""Tests for novasvc.http.reactor_queue."""

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from novasvc.http.reactor_queue import ReactorQueue


class ReactorQueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.woken: list[Callable[[], None]] = []
        self.queue = ReactorQueue(self)
        self.called: list[int] = []

    def callFromThread(self, function: Callable[[], None]) -> None:
        """Take the reactor's place."""
        self.woken.append(function)

    def test_once(self) -> None:
        """One wake-up runs all queued calls in their order; a call that is queued by one of them needs another."""
        self.queue.post(lambda: self.called.append(1))
        self.queue.post(lambda: self.called.append(2))
        self.queue.post(lambda: self.queue.post(lambda: self.called.append(3)))
        (run,) = self.woken
        run()
        self.assertEqual((self.called, len(self.woken)), ([1, 2], 2))
        self.woken[1]()
        self.assertEqual(self.called, [1, 2, 3])

    def test_failure(self) -> None:
        """A call that fails is logged, and does not keep back the others."""
        self.queue.post(lambda: self.called.append(1 // 0))
        self.queue.post(lambda: self.called.append(2))
        self.woken[0]()
        self.assertEqual(self.called, [2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_added(self) -> None:
        """A call that was only added waits for the next wake-up, and nothing wakes the reactor without a call."""
        self.queue.wake()
        self.queue.add(lambda: self.called.append(1))
        self.assertEqual(self.woken, [])
        self.queue.wake()
        self.woken[0]()
        self.assertEqual(self.called, [1])
