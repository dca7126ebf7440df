"""Tests for novasvc.reactor.refresh."""

from math import inf
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, current_context
from novasvc.reactor.refresh import RefreshedValue


class RefreshedValueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.reads: list[Deferred[str]] = []
        self.value = self.make(keep=2.0)

    def make(self, keep: float) -> RefreshedValue[str]:
        def read() -> Deferred[str]:
            self.reads.append(Deferred())
            return self.reads[-1]

        return RefreshedValue(read, self.clock, refresh=1.0, keep=keep, patience=0.25)

    def waiting(self, value: RefreshedValue[str] | None = None) -> Deferred[Any]:
        found = (value or self.value).get()
        assert isinstance(found, Deferred)
        return found

    def test_first(self) -> None:
        """Callers wait for the first value, which is read once; later ones have it at once."""
        first, second = self.waiting(), self.waiting()
        self.assertEqual(len(self.reads), 1)
        self.reads[0].callback("a")
        self.assertEqual([self.successResultOf(each) for each in (first, second)], ["a", "a"])
        self.assertEqual((self.value.get(), len(self.reads)), ("a", 1))

    def test_refresh(self) -> None:
        """A value that is used is read again in the background, and nobody waits."""
        self.waiting()
        self.reads[0].callback("a")
        self.clock.advance(1)
        self.assertEqual([self.value.get(), self.value.get(), len(self.reads)], ["a", "a", 2])
        self.reads[1].callback("b")
        self.assertEqual(self.value.get(), "b")

    def test_next(self) -> None:
        """A caller that doubts an old value can wait for the read under way."""
        self.waiting()
        self.reads[0].callback("a")
        self.assertEqual(self.value.next(), "a")
        self.clock.advance(1)
        self.assertEqual(self.value.get(), "a")
        waiting = self.value.next()
        assert isinstance(waiting, Deferred)
        self.reads[1].callback("b")
        self.assertEqual(self.successResultOf(waiting), "b")

    def test_kept(self) -> None:
        """A value that is too old is not used; with an infinite ``keep`` it is used for ever."""
        for_ever = self.make(keep=inf)
        for value in (self.value, for_ever):
            self.waiting(value)
            self.reads[-1].callback("a")
        self.clock.advance(3)
        self.assertEqual((self.value.known, for_ever.known), (None, "a"))
        waiting = [self.waiting(), self.waiting(for_ever)]
        self.reads[2].callback("b")
        self.reads[3].errback(LookupError("away"))
        self.assertEqual([self.successResultOf(each) for each in waiting], ["b", "a"])
        self.assertEqual([self.value.get(), for_ever.get()], ["b", "a"])

    def test_patience(self) -> None:
        """A caller waits for a moment only, and the value is there for the next one."""
        waiting = self.waiting()
        self.clock.advance(0.25)
        self.assertIs(self.successResultOf(waiting), None)
        self.reads[0].callback("late")
        self.assertEqual(self.value.get(), "late")

    def test_failures(self) -> None:
        """After a failure nobody waits, and it is read again less and less often."""
        begun = []
        value: RefreshedValue[str] = RefreshedValue(
            lambda: begun.append(self.clock.seconds()) or fail(LookupError("away")),  # type: ignore[func-returns-value]
            self.clock,
            refresh=1.0,
            keep=2.0,
            patience=0.25,
        )
        for _ in range(1200):
            self.assertIs(value.get(), None)
            self.clock.advance(0.1)
        self.assertEqual([round(each) for each in begun], [0, 2, 6, 14, 30, 60, 90])

    def test_doubt(self) -> None:
        """A value that is doubted is read again before it is used, but not twice within a second."""
        value = self.make(keep=inf)
        self.waiting(value)
        self.reads[0].callback("a")
        value.doubt()
        self.assertEqual((value.get(), len(self.reads)), ("a", 1))
        self.clock.advance(1)
        waiting = self.waiting(value)
        self.reads[1].callback("b")
        self.assertEqual(self.successResultOf(waiting), "b")
        self.assertEqual(value.get(), "b")

    def test_cancel(self) -> None:
        """Cancelling ends the waiting of one caller, and not the read."""
        first, second = self.waiting(), self.waiting()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.reads[0].callback("a")
        self.assertEqual(self.successResultOf(second), "a")

    def test_deadline(self) -> None:
        """The read is shared, so it does not end with the deadline of the request that came first."""
        seen = []

        def read() -> Deferred[str]:
            seen.append(current_context.get())
            return Deferred()

        value = RefreshedValue(read, self.clock, refresh=1.0, keep=2.0, patience=0.25)
        token = current_context.set(RequestContext(deadline=1.0))
        self.addCleanup(current_context.reset, token)
        value.get()
        self.assertTrue(seen[0] is None or seen[0].deadline is None)
