"""Tests for novasvc.registry.sql.batches."""

import gc

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.errors import DatabaseUnavailableError
from novasvc.registry.sql import batches
from novasvc.registry.sql.batches import Batches
from novasvc.registry.sql.waiting import answer

URL = "postgresql://host/nova"


class BatchesTests(SynchronousTestCase):
    """Letters in batches of three, with transactions that end when the test says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.written: list[str] = []
        self.transactions: list[Deferred[str]] = []
        self.batches = Batches(self.clock, self.write, URL, "letters", 3, key=str.lower)

    def write(self, batch: dict[Deferred[str], str]) -> Deferred[None]:
        self.written.append("".join(batch.values()))
        self.transactions.append(Deferred())
        return self.transactions[-1].addCallback(self.answer_all, batch)

    def answer_all(self, outcome: str, batch: dict[Deferred[str], str]) -> None:
        for waiting, letter in batch.items():
            answer(f"{outcome} {letter}", waiting)

    def add(self, letters: str) -> list[Deferred[str]]:
        return [self.batches.add(letter) for letter in letters]

    def end(self, outcome: str | Failure = "wrote") -> None:
        """End the oldest transaction, and let the next one begin."""
        self.transactions.pop(0).callback(outcome)
        self.clock.advance(0)

    def test_lone(self) -> None:
        """A lone item is written in the next turn; then there is nothing left to do."""
        (lone,) = self.add("a")
        self.assertEqual(self.written, [])
        self.clock.advance(0)
        self.assertEqual(self.written, ["a"])
        self.assertNoResult(lone)
        self.end()
        self.assertEqual(self.successResultOf(lone), "wrote a")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_together(self) -> None:
        """The items of one turn are a batch, and those that come while it is written are the next one."""
        first = self.add("ab")
        self.clock.advance(0)
        second = self.add("cd")
        self.clock.advance(1)
        self.assertEqual(self.written, ["ab"])
        self.end()
        self.assertEqual([self.successResultOf(each) for each in first], ["wrote a", "wrote b"])
        self.assertEqual(self.written, ["ab", "cd"])
        self.end()
        self.assertEqual([self.successResultOf(each) for each in second], ["wrote c", "wrote d"])

    def test_same_key(self) -> None:
        """Items with the same key are in different batches."""
        self.add("aAb")
        self.clock.advance(0)
        self.end()
        self.assertEqual(self.written, ["ab", "A"])

    def test_largest(self) -> None:
        """A batch has a bound, and the order stays."""
        self.add("abcde")
        self.clock.advance(0)
        self.end()
        self.assertEqual(self.written, ["abc", "de"])

    def test_failed(self) -> None:
        """A batch that was not answered because of a bug is logged, and the next one begins."""
        self.add("a")
        self.clock.advance(0)
        self.add("b")
        self.end(Failure(LookupError()))
        self.assertEqual(self.written, ["a", "b"])
        gc.collect()
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_added_by_an_answer(self) -> None:
        """What a caller adds when it is answered is in the batch that begins next, not in one beside it."""
        self.add("a")[0].addCallback(lambda _: self.add("c"))
        self.clock.advance(0)
        self.add("b")
        self.end()
        self.assertEqual(self.written, ["a", "bc"])

    def test_taken_back(self) -> None:
        """An item that is cancelled before its batch begins is not written; later it is only not waited for."""
        first, second, third = self.add("abc")
        second.cancel()
        self.clock.advance(0)
        self.assertEqual(self.written, ["ac"])
        first.cancel()
        self.end()
        self.assertEqual(self.successResultOf(third), "wrote c")
        for each in (first, second):
            self.failureResultOf(each, CancelledError)

    def test_all_taken_back(self) -> None:
        """If all are taken back, nothing is written, and the next item is."""
        for each in self.add("ab"):
            each.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        self.clock.advance(0)
        self.assertEqual(self.written, [])
        self.add("c")
        self.clock.advance(0)
        self.assertEqual(self.written, ["c"])

    def test_queue_limit(self) -> None:
        """A full queue refuses: the database is too slow. Who leaves it makes room."""
        self.patch(batches, "QUEUE_LIMIT", 3)
        waiting = self.add("abc")
        error = self.failureResultOf(self.batches.add("d"), DatabaseUnavailableError).value
        self.assertIn("3 letters, the bound of the queue, wait for it already", str(error))
        waiting.pop().addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        self.add("e")
        self.clock.advance(0)
        self.assertEqual(self.written, ["abe"])

    def test_late(self) -> None:
        """A caller waits TIMEOUT at most, in the queue or for its batch."""
        found = self.add("a")
        self.clock.advance(0)
        found += self.add("b")
        self.clock.advance(batches.TIMEOUT)
        for each in found:
            self.assertIn("no answer within 15 s", str(self.failureResultOf(each, DatabaseUnavailableError).value))
        self.end()
        self.assertEqual((self.written, self.clock.getDelayedCalls()), (["a"], []))
