"""The due times of one task with a cron line, by the host's wall clock."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

if TYPE_CHECKING:
    from novasvc.periodic.cron import CronLine  # imported by those who declare cron lines

_log = Logger()

LOOK_INTERVAL = 60.0
"""Seconds between two looks at the wall clock, which may be set meanwhile."""

CORRECTION = 3 * 3600.0
"""Seconds. A larger step of the wall clock corrects it, as in cron: due times that it passes over are left out."""

_SLIGHT = 60.0
"""Seconds. After a smaller step back, a line waits for its next due time: a minute at most."""

_MOST_COUNTED = 50
"""Due times that are counted as missed after one pause, so that a long pause costs no time."""

# Note [Steps of the wall clock]
#
# Each look compares how far the wall clock and the monotonic clock have come since the last one. Between two looks the
# wall clock may have been set:
# - forward by less than CORRECTION: the due times in between become one run, the others are missed;
# - back by less than CORRECTION: a line with a fixed time does not run again for the times that it ran for; a line with
#   "*" in minute or hour goes on by the new time;
# - by more, in either direction: the next due time is counted from the new time.
# So no step causes more than one run of a task.


@attrs.define(eq=False)
class CronSchedule:
    """Compute the due times of one task, and call a function at each; see :class:`novasvc.periodic.schedule.Schedule`.

    :param line: the cron line.
    :param clock: its seconds must be monotonic; it has the timers.
    :param wall_clock: returns Unix seconds; it may be set at any time.
    :param on_due: called at the due times while the schedule runs; never raises, never waits.
    """

    _clock: IReactorTime
    _line: "CronLine"
    _wall_clock: Callable[[], float]
    _on_due: Callable[[], object]
    last_due: float | None = attrs.field(default=None, init=False)
    """The last due time that was taken, Unix seconds."""
    _next: float = attrs.field(init=False)
    _first: float | None = attrs.field(default=None, init=False)
    _looked: tuple[float, float] = attrs.field(init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._look()
        self._next = self._line.after(self._looked[0])

    @property
    def due(self) -> float:
        """The first due time that was not taken yet, on the clock; it may be in the past."""
        at = self._clock.seconds() + self._next - self._wall_clock()
        return at if self._first is None else min(at, self._first)

    def take(self) -> tuple[int, float]:
        """Take the due times that have passed; each is taken once.

        :return: their number, and the seconds since the last of them.
        """
        before, now = self._looked, self._look()
        step = (now - before[0]) - (self._looked[1] - before[1])
        if abs(step) >= CORRECTION:
            _log.warn("the wall clock was set by {step:.0f} s: cron lines follow the new time", step=step)
            self._next = self._line.after(now)
        elif step < -_SLIGHT and not self._line.fixed:
            self._next = min(self._next, self._line.after(now))
        count, late = 0, 0.0
        if self._first is not None and self._first <= self._clock.seconds():
            count, late, self._first = 1, self._clock.seconds() - self._first, None
        while self._next <= now and count < _MOST_COUNTED:
            count, late, self.last_due = count + 1, now - self._next, self._next
            self._next = self._line.after(self._next)
        if self._next <= now:
            self._next = self._line.after(now)
        return count, late

    def start(self, delay: float | None, last_due: float | None = None) -> None:
        """Start to call at the due times.

        :param delay: seconds from now to a first due time outside the cron line; None for none.
        :param last_due: the last due time that an earlier leader ran for, Unix seconds. If others have passed since,
            the task is due now, once. None counts from now.
        """
        now = self._look()
        # The clock of the earlier leader's host may have been wrong.
        known = last_due is not None and last_due < now + CORRECTION
        self._next = self._line.after(last_due if known and last_due is not None else now)
        self._first = None if delay is None else self._clock.seconds() + delay
        self._set_timer()

    def restart(self) -> None:
        """Do nothing: a task that was started by hand is due at the times of its cron line all the same."""

    def stop(self) -> None:
        """Stop calling."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _look(self) -> float:
        now = self._wall_clock()
        self._looked = now, self._clock.seconds()
        return now

    def _set_timer(self) -> None:
        self._timer = self._clock.callLater(min(LOOK_INTERVAL, max(0.0, self.due - self._clock.seconds())), self._fire)

    def _fire(self) -> None:
        timer = self._timer
        self._on_due()  # it calls take()
        if self._timer is timer:  # it did not stop or start the schedule again
            self._set_timer()
