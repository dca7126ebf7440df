"""The time that the stop of a node has: its grace, and what an order to hurry leaves of it."""

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.reactor.abandon import abandon_on_cancel

_T = TypeVar("_T")

HURRY_TIME = 1.0
"""Seconds for the whole stop of a node that is told to hurry: to give messages back, and disconnect."""

CLEANUP_TIME = 0.15
"""Seconds for the same after the deadline of a drain: see Note [The deadline of a drain] in workers/exit_status.py."""

_LEAST = 0.05
"""Seconds that each step gets even if earlier steps, or other nodes, have used up the rest."""


class TooLateError(Exception):
    """A step did not end by its deadline. Not TimeoutError, which the step itself may raise."""


class StopDeadline:
    """Limits each step of a stop. Without a grace and an order to hurry, no step is limited.

    :ivar hurried: an order to hurry came.
    :ivar hurried_early: it came before the deadline of the drain.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._shorten: Callable[[], None] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the deadline, and an order to hurry. Called before a start."""
        self._ends_at: float | None = None
        self._hurry_ends_at: float | None = None
        self.hurried_early = False

    def begin(self, grace: float) -> None:
        """Begin the drain.

        :param grace: seconds for the work under way; 0 is no limit.
        """
        self._ends_at = self._clock.seconds() + grace if grace else None

    @property
    def hurried(self) -> bool:
        """Whether an order to hurry came."""
        return self._hurry_ends_at is not None

    def hurry(self) -> None:
        """Limit the rest of the stop to HURRY_TIME seconds. A step under way is limited, too."""
        if self.hurried:
            return
        now = self._clock.seconds()
        self._hurry_ends_at = now + HURRY_TIME
        self.hurried_early = True
        if self._ends_at is not None:
            self._hurry_ends_at = min(self._hurry_ends_at, self._ends_at + CLEANUP_TIME)
            # A supervisor that measures the same deadline may call this slightly before it: that is not early.
            self.hurried_early = now < self._ends_at - CLEANUP_TIME
        if self._shorten is not None:
            self._shorten()

    async def limit(self, step: Deferred[_T], *, work: bool = False) -> _T:
        """Wait for a step within the time left until the deadline; after it, within a part of CLEANUP_TIME.

        :param work: the step waits for calls and tasks, which are cut short at once by an order to hurry.
        :raises TooLateError: the step did not end in time, and was cancelled.
        """
        waiter = abandon_on_cancel(step)
        late = False
        timer: IDelayedCall | None = None

        def give_up() -> None:
            nonlocal late
            late = True
            waiter.cancel()

        def set_timer() -> None:
            nonlocal timer
            if timer is not None and timer.active():
                timer.cancel()
            seconds = self._seconds_left(work=work)
            timer = None if seconds is None else self._clock.callLater(seconds, give_up)

        set_timer()
        self._shorten = set_timer
        try:
            result = await waiter
        except CancelledError:
            if not late:
                raise
        else:
            if not late:
                return result
        finally:
            self._shorten = None
            if timer is not None and timer.active():
                timer.cancel()
        raise TooLateError

    def _seconds_left(self, *, work: bool) -> float | None:
        now = self._clock.seconds()
        if self._hurry_ends_at is not None:
            # Half of the rest, so that a step that hangs leaves time for the steps after it.
            return 0.0 if work else max(_LEAST, (self._hurry_ends_at - now) / 2)
        if self._ends_at is None:
            return None
        left = self._ends_at - now
        return max(0.0, left) if work else max(_LEAST, left, (left + CLEANUP_TIME) / 2)
