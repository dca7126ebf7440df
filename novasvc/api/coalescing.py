"""Coalesced reads: one read serves all callers that wait for the same thing."""

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

_TURNS = 3
"""Turns of the reactor between two reads: the first sends the responses, the others receive the next requests."""

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class CoalescedReads(Generic[_Key, _Value]):
    """Coalesces concurrent reads of the same key. Nothing is cached: no caller gets a value read before its call.

    :param read: coroutine function of a key, with its own deadline.
    :param clock: the reactor.
    """

    # A read in progress may have taken its snapshot already, so a caller that comes meanwhile waits for the next read,
    # which all such callers share. That begins a few turns of the reactor later: most clients that were just answered
    # ask again at once, and then share it, too. The higher the load, the more callers share a read, and the database
    # sees one reader per key.

    def __init__(self, read: Callable[[_Key], Coroutine[Deferred[Any], Any, _Value]], clock: IReactorTime) -> None:
        self._read = read
        self._clock = clock
        self._in_progress: set[_Key] = set()
        self._waiting: dict[_Key, list[Deferred[_Value]]] = {}

    def get(self, key: _Key) -> Deferred[_Value]:
        """Read a key.

        :return: Deferred firing with the result of a read that began after this call, or with its failure. Cancelling
            it ends the waiting only.
        """
        waiter: Deferred[_Value] = Deferred()
        self._waiting.setdefault(key, []).append(waiter)
        if key not in self._in_progress:
            self._begin(key)
        return waiter

    def _begin_in(self, turns: int, key: _Key) -> None:
        if turns:
            self._clock.callLater(0, self._begin_in, turns - 1, key)
        else:
            self._begin(key)

    def _begin(self, key: _Key) -> None:
        served = self._waiting.pop(key)
        self._in_progress.add(key)

        def ended(outcome: _Value | Failure) -> None:
            if key in self._waiting:
                self._begin_in(_TURNS, key)
            else:
                self._in_progress.remove(key)
            for waiter in served:
                # A cancelled Deferred ignores this. Each waiter gets a Failure of its own, which it may clean.
                if isinstance(outcome, Failure):
                    waiter.errback(Failure(outcome.value))
                else:
                    waiter.callback(outcome)

        Deferred.fromCoroutine(self._read(key)).addBoth(ended)
