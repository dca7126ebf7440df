"""Many deadlines on one timer.

Nearly every call ends long before its deadline. One delayed call of the reactor per call would cost more
than the dispatch of the call. So the deadlines are in a heap, the reactor has one delayed call for the
earliest, and the entries of discarded keys are removed in bulk.
"""

from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_Key = TypeVar("_Key", bound=Hashable)

_SLACK = 64
"""Stale heap entries that are tolerated before a cleanup, beyond one for each live key."""


@attrs.define(eq=False)
class Deadlines(Generic[_Key]):
    """Call a function with each key whose deadline has passed.

    To discard a key, remove it from ``live``; its heap entry is removed later, when another key is added.
    The timer may stay armed after the last key is gone; :meth:`close` stops it.

    :param clock: the clock of the deadlines.
    :param expired: called once with each key whose deadline has passed, after the key was removed; must not raise.
    :ivar live: deadlines by key, in seconds on the clock.
    """

    _clock: IReactorTime
    _expired: Callable[[_Key], object]
    live: dict[_Key, float] = attrs.field(factory=dict, init=False)
    _heap: list[tuple[float, int, _Key]] = attrs.field(factory=list, init=False)
    _numbers: "count[int]" = attrs.field(factory=count, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _timer_at: float = attrs.field(default=0.0, init=False)

    def __len__(self) -> int:
        return len(self.live)

    def add(self, key: _Key, when: float) -> None:
        """Set a key's deadline; this replaces an earlier one.

        :param when: seconds on the clock.
        """
        if self.live.get(key) == when:
            return
        self.live[key] = when
        heappush(self._heap, (when, next(self._numbers), key))
        if self._timer is None or when < self._timer_at:
            self._arm()
        if len(self._heap) > 2 * len(self.live) + _SLACK:
            self._compact()

    def _compact(self) -> None:
        """Remove stale heap entries: discarded keys and replaced deadlines."""
        live = self.live
        self._heap = [entry for entry in self._heap if live.get(entry[2]) == entry[0]]
        heapify(self._heap)

    def close(self) -> None:
        """Discard all keys and stop the timer."""
        self.live.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        """Set the timer to the earliest deadline, unless it already fires before that."""
        when = self._heap[0][0]
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._clock.callLater(max(0.0, when - self._clock.seconds()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._heap:
            when, _, key = self._heap[0]
            stale = self.live.get(key) != when
            if not stale and when > now:
                self._arm()
                break
            heappop(self._heap)
            if not stale:
                del self.live[key]
                self._expired(key)
