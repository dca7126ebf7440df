"""Tests for novasvc.reactor.coalesce: one question for all who ask."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.coalesce import CoalescingCache


class MemoTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[str]] = []
        self.memo = CoalescingCache(self.ask, self.clock, lambda answer: 0.1 if answer == "no" else 1.0)

    def ask(self) -> Deferred[str]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def test_once(self) -> None:
        """Those who ask while a question is under way share it, and its answer."""
        waiting = [self.memo.get() for _ in range(3)]
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback("yes")
        self.assertEqual([self.successResultOf(each) for each in waiting], ["yes"] * 3)

    def test_fresh(self) -> None:
        """An answer does for as long as it says, then it is asked for again."""
        first = self.memo.get()
        self.asked[0].callback("yes")
        self.successResultOf(first)
        self.clock.advance(0.9)
        self.assertEqual(self.successResultOf(self.memo.get()), "yes")
        self.clock.advance(0.2)
        self.assertNoResult(self.memo.get())
        self.assertEqual(len(self.asked), 2)
        self.asked[1].callback("no")
        self.clock.advance(0.2)
        self.assertNoResult(self.memo.get())

    def test_failure(self) -> None:
        """A failure goes to each who waits, and is not kept."""
        waiting = [self.memo.get() for _ in range(2)]
        self.asked[0].errback(ValueError("x"))
        for each in waiting:
            self.failureResultOf(each, ValueError)
        again = self.memo.get()
        self.asked[1].callback("yes")
        self.assertEqual(self.successResultOf(again), "yes")

    def test_cancel(self) -> None:
        """Who waits no more ends only the own waiting, and the question is not put again beside itself."""
        first = self.memo.get()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        second = self.memo.get()
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback("yes")
        self.assertEqual(self.successResultOf(second), "yes")

    def test_asks_in_answer(self) -> None:
        """Who asks again when it has its answer gets the fresh one."""
        answers: list[str] = []
        waiting = self.memo.get()
        waiting.addCallback(lambda _: self.memo.get()).addCallback(answers.append)
        self.asked[0].callback("yes")
        self.assertEqual((answers, len(self.asked)), (["yes"], 1))
