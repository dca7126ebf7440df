"""Callers that wait for the same outcome: shared calls, cached results, and reads that begin after the call."""

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.context import without_deadline

_TURNS = 3
"""Turns of the reactor between two reads: the first sends the responses, the others receive the next requests."""

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")


@attrs.define(eq=False)
class Waiters(Generic[_Result]):
    """Callers that wait for the same outcome, each with a Deferred of its own.

    :ivar waiting: their Deferreds; empty if nobody waits.
    """

    waiting: list[Deferred[_Result]] = attrs.field(factory=list, init=False)

    def wait(self) -> Deferred[_Result]:
        """Wait for the next outcome.

        :return: a new Deferred. Cancelling it ends the waiting of its caller only.
        """
        waiter: Deferred[_Result] = Deferred(self._leave)
        self.waiting.append(waiter)
        return waiter

    def fire(self, outcome: _Result | Failure) -> None:
        """Give an outcome to all that wait. A caller that waits again in its callback gets the next outcome."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            if not waiter.called:  # another waiter's callback may have cancelled it
                # Each gets a Failure of its own: an errback changes the Failure that it handles.
                waiter.callback(Failure(outcome.value) if isinstance(outcome, Failure) else outcome)

    def detach(self) -> "Waiters[_Result]":
        """Return all that wait, to be fired later; those that come from now on do not belong to them."""
        detached: Waiters[_Result] = Waiters()
        detached.waiting, self.waiting = self.waiting, []
        return detached

    def _leave(self, waiter: Deferred[_Result]) -> None:
        if waiter in self.waiting:
            self.waiting.remove(waiter)


class CoalescedCalls(Generic[_Key, _Result]):
    """Call a function of a key at most once at a time for each key; those who ask meanwhile share its outcome.

    :param call: takes a key, returns a Deferred of the result, with a deadline of its own.
    """

    # Not a DeferredLock, whose release runs the next caller inside the one before: about a hundred callers that have
    # nothing more to wait for would exceed Python's recursion limit.

    def __init__(self, call: Callable[[_Key], Deferred[_Result]]) -> None:
        self._call = call
        self._waiting: dict[_Key, Waiters[_Result]] = {}

    def get(self, key: _Key) -> Deferred[_Result]:
        """Return the outcome of the call under way, or of a new call.

        :return: a new Deferred each time. Cancelling it does not cancel the call.
        """
        if key in self._waiting:
            return self._waiting[key].wait()
        waiters = self._waiting[key] = Waiters()
        waiter = waiters.wait()
        # Others share the outcome, so the call must not end with the deadline of the request that came first. One that
        # raises at once must end like any other, or all later callers would wait for it.
        with without_deadline():
            calling = maybeDeferred(self._call, key)
        calling.addBoth(self._finish, key)
        return waiter

    def _finish(self, outcome: _Result | Failure, key: _Key) -> None:
        self._waiting.pop(key).fire(outcome)


def _one_second(_: object) -> float:
    return 1.0


@attrs.define(eq=False)
class CoalescingCache(Generic[_Result]):
    """Call a function at most once at a time, and not again while its result is fresh.

    :param call: returns a Deferred of the result, with a deadline of its own.
    :param clock: measures the TTL.
    :param ttl: takes a result, returns the seconds for which it is cached; 1 by default. Failures are not cached.
    """

    _call: Callable[[], Deferred[_Result]]
    _clock: IReactorTime
    _ttl: Callable[[_Result], float] = _one_second
    _waiters: Waiters[_Result] = attrs.field(factory=Waiters, init=False)
    _cached: tuple[float, _Result] | None = attrs.field(default=None, init=False)
    _calling: bool = attrs.field(default=False, init=False)

    def get(self) -> Deferred[_Result]:
        """Return the cached result, or that of the call under way, or of a new call.

        :return: a new Deferred each time. Cancelling it does not cancel the call.
        """
        if self._cached is not None and self._clock.seconds() < self._cached[0]:
            return succeed(self._cached[1])
        waiter = self._waiters.wait()
        if not self._calling:
            self._calling = True
            # Others share the result, so it must not end with the deadline of the request that came first.
            with without_deadline():
                # A call that raises at once must end like any other, or all later callers would wait for it.
                calling = maybeDeferred(self._call)
            calling.addBoth(self._finish)
        return waiter

    def _finish(self, result: _Result | Failure) -> None:
        self._calling = False
        if not isinstance(result, Failure):
            self._cached = self._clock.seconds() + self._ttl(result), result
        self._waiters.fire(result)


class CoalescedReads(Generic[_Key, _Result]):
    """Coalesces concurrent reads of the same key. Nothing is cached: no caller gets a value read before its call.

    :param read: a coroutine function of the key; it has a deadline of its own.
    :param clock: provides the turns of the reactor.
    """

    # A read in progress may have taken its snapshot already, so a caller that comes meanwhile waits for the next read,
    # which all such callers share. That begins a few turns of the reactor later: most clients that were just answered
    # ask again at once, and then share it, too. The higher the load, the more callers share a read, and the database
    # sees one reader per key.

    def __init__(self, read: Callable[[_Key], Coroutine[Deferred[Any], Any, _Result]], clock: IReactorTime) -> None:
        self._read = read
        self._clock = clock
        self._in_progress: set[_Key] = set()
        self._waiting: dict[_Key, Waiters[_Result]] = {}

    def get(self, key: _Key) -> Deferred[_Result]:
        """Read a key.

        :return: Deferred firing with the result of a read that began after this call, or with its failure. Cancelling
            it ends the waiting only.
        """
        waiters = self._waiting.get(key)
        if waiters is None:
            waiters = self._waiting[key] = Waiters()
        waiter = waiters.wait()
        if key not in self._in_progress:
            self._begin(key)
        return waiter

    def _begin_in(self, turns: int, key: _Key) -> None:
        if turns:
            self._clock.callLater(0, self._begin_in, turns - 1, key)
        else:
            self._begin(key)

    def _begin(self, key: _Key) -> None:
        waiters = self._waiting.pop(key)
        self._in_progress.add(key)
        Deferred.fromCoroutine(self._read(key)).addBoth(self._finish, key, waiters)

    def _finish(self, outcome: _Result | Failure, key: _Key, waiters: Waiters[_Result]) -> None:
        if key in self._waiting:
            self._begin_in(_TURNS, key)
        else:
            self._in_progress.remove(key)
        waiters.fire(outcome)
