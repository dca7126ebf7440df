"""Coalesce concurrent calls and cache the result briefly."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.reactor.waiters import Waiters

_Result = TypeVar("_Result")


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
            self._call().addBoth(self._finish)
        return waiter

    def _finish(self, result: Any) -> None:
        self._calling = False
        if not isinstance(result, Failure):
            self._cached = self._clock.seconds() + self._ttl(result), result
        self._waiters.fire(result)
