"""Reads of the same that are asked for at the same time: one does for all who wait."""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

_TURNS = 3
"""Turns of the reactor: in the first one answers are sent, in the others come the next questions."""

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class SharedReads(Generic[_Key, _Value]):
    """Reads for many. Nothing is kept: whoever asks gets what was there after they asked, never before.

    :param read: takes what is to be read; it has a deadline of its own.
    :param clock: has turns.
    """

    # A read that is under way may have looked already, so whoever comes now waits for the next one, which all who
    # come meanwhile share. That begins a few turns of the reactor later: most of those who were just answered ask
    # again, and then they share it, too. The busier it is, the more share, and the database sees one reader each.

    def __init__(self, read: Callable[[_Key], Awaitable[_Value]], clock: IReactorTime) -> None:
        self._read = read
        self._clock = clock
        self._under_way: set[_Key] = set()
        self._waiting: dict[_Key, list[Deferred[_Value]]] = {}

    def get(self, key: _Key) -> Deferred[_Value]:
        """Read something.

        :return: Deferred firing with what a read that began after this call found, or failing as it did. Cancelling
            it ends the waiting.
        """
        waiting: Deferred[_Value] = Deferred()
        self._waiting.setdefault(key, []).append(waiting)
        if key not in self._under_way:
            self._begin(key)
        return waiting

    def _begin_soon(self, key: _Key, turns: int) -> None:
        if turns:
            self._clock.callLater(0, self._begin_soon, key, turns - 1)
        else:
            self._begin(key)

    def _begin(self, key: _Key) -> None:
        served = self._waiting.pop(key)
        self._under_way.add(key)

        def ended(outcome: _Value | Failure) -> None:
            if key in self._waiting:
                self._begin_soon(key, _TURNS)
            else:
                self._under_way.remove(key)
            for waiting in served:
                # One that was cancelled takes no notice. Each gets a Failure of its own, which it may clean.
                if isinstance(outcome, Failure):
                    waiting.errback(Failure(outcome.value))
                else:
                    waiting.callback(outcome)

        async def read() -> _Value:
            return await self._read(key)

        Deferred.fromCoroutine(read()).addBoth(ended)
