"""The time that the stop of a node has: its grace, and what an interrupt leaves of it."""

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.reactor.abandon import abandon_on_cancel

_T = TypeVar("_T")

INTERRUPT_TIMEOUT = 1.0
"""Seconds for the whole stop of a node that is interrupted: to give messages back, and disconnect."""

CLEANUP_TIME = 0.15
"""Seconds for the same after the deadline of a drain: see Note [The deadline of a drain] in workers/exit_status.py."""

_MIN_STEP_TIME = 0.05
"""Seconds that each step gets even if earlier steps, or other nodes, have used up the rest."""


class TooLateError(Exception):
    """A step did not end by its deadline. Not TimeoutError, which the step itself may raise."""


class StopDeadline:
    """Limits each step of a stop. Without a grace or an interrupt, no step is limited.

    :ivar interrupted: an interrupt came.
    :ivar interrupted_early: it came before the deadline of the drain.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._reset_step_timer: Callable[[], None] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the deadline, and an interrupt. Called before a start."""
        self._ends_at: float | None = None
        self._interrupt_ends_at: float | None = None
        self.interrupted_early = False

    def begin(self, grace: float) -> None:
        """Begin the drain.

        :param grace: seconds for the work under way; 0 is no limit.
        """
        self._ends_at = self._clock.seconds() + grace if grace else None

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt came."""
        return self._interrupt_ends_at is not None

    def interrupt(self) -> None:
        """Limit the rest of the stop to INTERRUPT_TIMEOUT seconds. A step under way is limited, too."""
        if self.interrupted:
            return
        now = self._clock.seconds()
        self._interrupt_ends_at = now + INTERRUPT_TIMEOUT
        self.interrupted_early = True
        if self._ends_at is not None:
            self._interrupt_ends_at = min(self._interrupt_ends_at, self._ends_at + CLEANUP_TIME)
            # A supervisor that measures the same deadline may call this slightly before it: that is not early.
            self.interrupted_early = now < self._ends_at - CLEANUP_TIME
        if self._reset_step_timer is not None:
            self._reset_step_timer()

    async def limit(self, step: Deferred[_T], *, work: bool = False) -> _T:
        """Wait for a step within the time left until the deadline; after it, within a part of CLEANUP_TIME.

        :param work: the step waits for calls and tasks, which are cut short at once by an interrupt.
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
        self._reset_step_timer = set_timer
        try:
            result = await waiter
        except CancelledError:
            if not late:
                raise
        else:
            if not late:
                return result
        finally:
            self._reset_step_timer = None
            if timer is not None and timer.active():
                timer.cancel()
        raise TooLateError

    def _seconds_left(self, *, work: bool) -> float | None:
        now = self._clock.seconds()
        if self._interrupt_ends_at is not None:
            # Half of the rest, so that a step that hangs leaves time for the steps after it.
            return 0.0 if work else max(_MIN_STEP_TIME, (self._interrupt_ends_at - now) / 2)
        if self._ends_at is None:
            return None
        left = self._ends_at - now
        return max(0.0, left) if work else max(_MIN_STEP_TIME, left, (left + CLEANUP_TIME) / 2)
