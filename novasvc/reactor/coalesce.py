"""One question for all who ask it at the same time, and its answer for a moment more."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

_Answer = TypeVar("_Answer")


def _for_a_second(_: object) -> float:
    return 1.0


@attrs.define(eq=False)
class CoalescingCache(Generic[_Answer]):
    """Asks at most once at a time, and not again while the answer is fresh.

    :param ask: returns a Deferred of the answer, and bounds it.
    :param clock: measures the freshness.
    :param fresh: returns the seconds for which an answer is given again. Failures are not.
    """

    _ask: Callable[[], Deferred[_Answer]]
    _clock: IReactorTime
    _fresh: Callable[[_Answer], float] = _for_a_second
    _waiters: list[Deferred[_Answer]] = attrs.field(factory=list, init=False)
    _answer: tuple[float, _Answer] | None = attrs.field(default=None, init=False)
    _asking: bool = attrs.field(default=False, init=False)

    def get(self) -> Deferred[_Answer]:
        """Return the answer.

        :return: a new Deferred each time; cancelling it ends only the waiting.
        """
        if self._answer is not None and self._clock.seconds() < self._answer[0]:
            return succeed(self._answer[1])
        waiter: Deferred[_Answer] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        if not self._asking:
            self._asking = True
            self._ask().addBoth(self._answered)
        return waiter

    def _answered(self, answer: Any) -> None:
        self._asking = False
        if not isinstance(answer, Failure):
            self._answer = self._clock.seconds() + self._fresh(answer), answer
        while self._waiters:
            # Each waiter gets a Failure of its own: handling one must not clean another's.
            self._waiters.pop(0).callback(Failure(answer.value) if isinstance(answer, Failure) else answer)
