"""Tests for novasvc.reactor.coalesce."""

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, current_context
from novasvc.reactor.coalesce import CoalescedCalls, CoalescedReads, CoalescingCache, Waiters


class WaitersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.waiters: Waiters[int] = Waiters()

    def test_fire(self) -> None:
        """An outcome goes to all that wait, in their order, and not to those that come later."""
        fired: list[str] = []
        for name in "ab":
            self.waiters.wait().addCallback(lambda result, name=name: fired.append(f"{name}{result}"))
        self.assertEqual(len(self.waiters.waiting), 2)
        self.waiters.fire(1)
        self.assertEqual(fired, ["a1", "b1"])
        self.assertEqual(len(self.waiters.waiting), 0)
        later = self.waiters.wait()
        self.assertNoResult(later)
        self.waiters.fire(2)
        self.assertEqual(self.successResultOf(later), 2)

    def test_failure(self) -> None:
        """Each waiter gets a Failure of its own: what the errback of one does to it is not seen by the others."""
        waiting = [self.waiters.wait() for _ in range(2)]
        failure = Failure(ValueError("x"))
        self.waiters.fire(failure)
        found = [self.failureResultOf(waiter, ValueError) for waiter in waiting]
        self.assertEqual(len({id(each) for each in (*found, failure)}), 3)
        self.assertEqual({id(each.value) for each in found}, {id(failure.value)})

    def test_cancel(self) -> None:
        """Cancelling ends the waiting of one caller, even in the callback of another."""
        first, second, third = (self.waiters.wait() for _ in range(3))
        first.cancel()
        self.assertEqual(len(self.waiters.waiting), 2)
        second.addCallback(lambda _: third.cancel())
        self.waiters.fire(1)
        self.failureResultOf(first, CancelledError)
        self.failureResultOf(third, CancelledError)

    def test_again(self) -> None:
        """A caller that waits again in its callback gets the next outcome, not the same once more."""
        results: list[int] = []
        self.waiters.wait().addErrback(lambda _: self.waiters.wait()).addCallback(results.append)
        self.waiters.fire(Failure(ValueError("x")))
        self.assertEqual(results, [])
        self.waiters.fire(2)
        self.assertEqual(results, [2])

    def test_detach(self) -> None:
        """Detached waiters are fired apart from those that come later, and can still be cancelled."""
        first, second = self.waiters.wait(), self.waiters.wait()
        detached = self.waiters.detach()
        later = self.waiters.wait()
        second.cancel()
        self.failureResultOf(second, CancelledError)
        detached.fire(1)
        self.assertEqual(self.successResultOf(first), 1)
        self.assertNoResult(later)


class CoalescedCallsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.asked: list[tuple[str, Deferred[int]]] = []
        self.calls: CoalescedCalls[str, int] = CoalescedCalls(self.ask)

    def ask(self, key: str) -> Deferred[int]:
        self.asked.append((key, Deferred()))
        return self.asked[-1][1]

    def test_shared(self) -> None:
        """Those who ask for a key share the call under way; another key has a call of its own; nothing is cached."""
        waiting = [self.calls.get(key) for key in "aba"]
        self.assertEqual([key for key, _ in self.asked], ["a", "b"])
        self.asked[0][1].callback(1)
        self.assertEqual([self.successResultOf(waiting[number]) for number in (0, 2)], [1, 1])
        self.assertNoResult(waiting[1])
        self.assertNoResult(self.calls.get("a"))
        self.assertEqual([key for key, _ in self.asked], ["a", "b", "a"])

    def test_failure(self) -> None:
        """A failure goes to all that wait; one that asks again in its errback begins a new call."""
        first, second = self.calls.get("a"), self.calls.get("a")
        first.addErrback(lambda _: self.calls.get("a"))
        self.asked[0][1].errback(ValueError("x"))
        self.failureResultOf(second, ValueError)
        self.asked[1][1].callback(2)
        self.assertEqual(self.successResultOf(first), 2)

    def test_cancel(self) -> None:
        """Cancelling ends the waiting of one caller, and the call goes on for those that come later."""
        first = self.calls.get("a")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        later = self.calls.get("a")
        self.asked[0][1].callback(1)
        self.assertEqual((self.successResultOf(later), len(self.asked)), (1, 1))


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

    def test_raises(self) -> None:
        """An exception that the function raises itself is a failure as well, and the next caller calls it again."""
        broken = True

        def call() -> Deferred[str]:
            if broken:
                raise ValueError("x")
            return succeed("yes")

        cache = CoalescingCache(call, self.clock)
        self.failureResultOf(cache.get(), ValueError)
        broken = False
        self.assertEqual(self.successResultOf(cache.get()), "yes")

    def test_asks_after_failure(self) -> None:
        """A call made in the errback of a failure begins a new call, and does not get the same failure again."""
        waiting = self.cache.get().addErrback(lambda _: self.cache.get())
        self.asked[0].errback(ValueError("x"))
        self.assertNoResult(waiting)
        self.asked[1].callback("yes")
        self.assertEqual(self.successResultOf(waiting), "yes")

    def test_cancel(self) -> None:
        """Cancelling a waiter does not cancel the call, and no second call begins beside it."""
        first = self.cache.get()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        second = self.cache.get()
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback("yes")
        self.assertEqual(self.successResultOf(second), "yes")

    def test_deadline(self) -> None:
        """The call does not end with the deadline of the request that came first: others share its result."""
        deadlines: list[float | None] = []

        def call() -> Deferred[int]:
            context = current_context.get()
            deadlines.append(None if context is None else context.deadline)
            return succeed(1)

        cache = CoalescingCache(call, self.clock)
        token = current_context.set(RequestContext(deadline=5.0))
        try:
            self.assertEqual(self.successResultOf(cache.get()), 1)
            self.assertEqual(getattr(current_context.get(), "deadline", None), 5.0)
        finally:
            current_context.reset(token)
        self.assertEqual(deadlines, [None])

    def test_asks_in_answer(self) -> None:
        """A call made in the callback of a result gets the cached result."""
        answers: list[str] = []
        waiting = self.cache.get()
        waiting.addCallback(lambda _: self.cache.get()).addCallback(answers.append)
        self.asked[0].callback("yes")
        self.assertEqual((answers, len(self.asked)), (["yes"], 1))


class CoalescedReadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.under_way: list[tuple[str, Deferred[int]]] = []

        async def read(key: str) -> int:
            reading: Deferred[int] = Deferred()
            self.under_way.append((key, reading))
            return await reading

        self.reads: CoalescedReads[str, int] = CoalescedReads(read, self.clock)

    def end(self, outcome: int | Exception) -> None:
        """End the read that began first."""
        _, reading = self.under_way.pop(0)
        if isinstance(outcome, Exception):
            reading.errback(outcome)
        else:
            reading.callback(outcome)
        self.clock.advance(0)

    def test_never_older(self) -> None:
        """No caller gets a result that was read before its call."""
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
        """All callers that come while a read is under way share the next one."""
        first, *others = (self.reads.get("a") for _ in range(10))
        self.end(1)
        self.end(2)
        self.assertEqual(self.successResultOf(first), 1)
        self.assertEqual([self.successResultOf(other) for other in others], [2] * 9)
        self.assertEqual(self.under_way, [])

    def test_just_answered(self) -> None:
        """A caller that calls again in the callback of its result shares the next read as well."""
        again: list[Deferred[int]] = []
        self.reads.get("a").addCallback(lambda _: again.append(self.reads.get("a")))
        waiting = self.reads.get("a")
        self.end(1)
        self.end(2)
        self.assertEqual([self.successResultOf(found) for found in (waiting, *again)], [2, 2])

    def test_apart(self) -> None:
        """Reads of different keys run at the same time."""
        self.reads.get("a")
        self.reads.get("b")
        self.assertEqual([key for key, _ in self.under_way], ["a", "b"])

    def test_nothing_kept(self) -> None:
        """Without a read under way, the next call begins one at once: no result is kept."""
        first = self.reads.get("a")
        self.end(1)
        second = self.reads.get("a")
        self.end(2)
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (1, 2))

    def test_fails(self) -> None:
        """A failure goes to the callers that waited for that read, and to no others."""
        first, second, third = (self.reads.get("a") for _ in range(3))
        self.end(KeyError())
        self.failureResultOf(first, KeyError)
        self.end(ValueError())
        for found in (second, third):
            self.failureResultOf(found, ValueError)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_cancelled(self) -> None:
        """Cancelling a Deferred ends the waiting of one caller; the others get the result."""
        first, second, third = (self.reads.get("a") for _ in range(3))
        first.cancel()
        second.cancel()
        self.end(1)
        self.end(2)
        for found in (first, second):
            self.failureResultOf(found, CancelledError)
        self.assertEqual(self.successResultOf(third), 2)
