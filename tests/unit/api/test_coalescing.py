"""Tests for novasvc.api.coalescing."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.coalescing import CoalescedReads


class CoalescedReadsTests(SynchronousTestCase):
    """Tests for novasvc.api.coalescing."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.under_way: list[tuple[str, Deferred[int]]] = []

        async def read(key: str) -> int:
            reading: Deferred[int] = Deferred()
            self.under_way.append((key, reading))
            return await reading

        self.reads: CoalescedReads[str, int] = CoalescedReads(read, self.clock)

    def end(self, outcome: int | Exception) -> None:
        """End the oldest read."""
        _, reading = self.under_way.pop(0)
        if isinstance(outcome, Exception):
            reading.errback(outcome)
        else:
            reading.callback(outcome)
        self.clock.advance(0)

    def test_never_older(self) -> None:
        """No caller gets a value that was read before its call."""
        first, second = self.reads.get("a"), self.reads.get("a")
        self.end(1)
        self.assertEqual(self.successResultOf(first), 1)
        self.assertNoResult(second)
        third = self.reads.get("a")
        self.end(2)
        self.assertEqual(self.successResultOf(second), 2)
        self.assertNoResult(third)
        self.end(3)
        self.assertEqual(self.successResultOf(third), 3)
        self.assertEqual(self.under_way, [])

    def test_shared(self) -> None:
        """Callers that arrive during a read share the next one."""
        first, *others = (self.reads.get("a") for _ in range(10))
        self.end(1)
        self.end(2)
        self.assertEqual(self.successResultOf(first), 1)
        self.assertEqual([self.successResultOf(other) for other in others], [2] * 9)
        self.assertEqual(self.under_way, [])

    def test_just_answered(self) -> None:
        """A caller that asks again right after its answer shares the next read."""
        again: list[Deferred[int]] = []
        self.reads.get("a").addCallback(lambda _: again.append(self.reads.get("a")))
        waiting = self.reads.get("a")
        self.end(1)
        self.end(2)
        self.assertEqual([self.successResultOf(found) for found in (waiting, *again)], [2, 2])

    def test_apart(self) -> None:
        """Different keys are read concurrently."""
        self.reads.get("a")
        self.reads.get("b")
        self.assertEqual([key for key, _ in self.under_way], ["a", "b"])

    def test_nothing_kept(self) -> None:
        """Without waiting callers, the next call starts a read at once."""
        first = self.reads.get("a")
        self.end(1)
        second = self.reads.get("a")
        self.end(2)
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (1, 2))

    def test_fails(self) -> None:
        """A failed read fails only for the callers that waited for it."""
        first, second, third = (self.reads.get("a") for _ in range(3))
        self.end(KeyError())
        self.failureResultOf(first, KeyError)
        self.end(ValueError())
        for found in (second, third):
            self.failureResultOf(found, ValueError)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_cancelled(self) -> None:
        """Cancelling one caller does not affect the others."""
        first, second, third = (self.reads.get("a") for _ in range(3))
        first.cancel()
        second.cancel()
        self.end(1)
        self.end(2)
        for found in (first, second):
            self.failureResultOf(found, CancelledError)
        self.assertEqual(self.successResultOf(third), 2)
