"""Tests for novasvc.reactor.coalesce: coalesced calls and cached results."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.coalesce import CoalescingCache


class CoalescingCacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[str]] = []
        self.cache = CoalescingCache(self.ask, self.clock, lambda answer: 0.1 if answer == "no" else 1.0)

    def ask(self) -> Deferred[str]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def test_once(self) -> None:
        """Calls while one is under way share its result."""
        waiting = [self.cache.get() for _ in range(3)]
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback("yes")
        self.assertEqual([self.successResultOf(each) for each in waiting], ["yes"] * 3)

    def test_fresh(self) -> None:
        """A result is cached for its TTL, then the function is called again."""
        first = self.cache.get()
        self.asked[0].callback("yes")
        self.successResultOf(first)
        self.clock.advance(0.9)
        self.assertEqual(self.successResultOf(self.cache.get()), "yes")
        self.clock.advance(0.2)
        self.assertNoResult(self.cache.get())
        self.assertEqual(len(self.asked), 2)
        self.asked[1].callback("no")
        self.clock.advance(0.2)
        self.assertNoResult(self.cache.get())

    def test_failure(self) -> None:
        """A failure goes to every waiter, and is not cached."""
        waiting = [self.cache.get() for _ in range(2)]
        self.asked[0].errback(ValueError("x"))
        for each in waiting:
            self.failureResultOf(each, ValueError)
        again = self.cache.get()
        self.asked[1].callback("yes")
        self.assertEqual(self.successResultOf(again), "yes")

    def test_cancel(self) -> None:
        """Cancelling a waiter does not cancel the call, and no second call begins beside it."""
        first = self.cache.get()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        second = self.cache.get()
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback("yes")
        self.assertEqual(self.successResultOf(second), "yes")

    def test_asks_in_answer(self) -> None:
        """A call made in the callback of a result gets the cached result."""
        answers: list[str] = []
        waiting = self.cache.get()
        waiting.addCallback(lambda _: self.cache.get()).addCallback(answers.append)
        self.asked[0].callback("yes")
        self.assertEqual((answers, len(self.asked)), (["yes"], 1))
