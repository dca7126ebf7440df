"""When one task is due: at a first time and every interval after it, however long the runs take."""

import math
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()

_ROUNDING = 1e-6
"""Part of an interval by which a timer may seem early and still be on time; see Note [Counting due times]."""

# Note [Counting due times]
# LoopingCall.withCount would count the due times, but it drops a call whose timer rounds to just
# before its interval: start it at 5 s with an interval of 0.1 s on a Clock that is moved from due
# time to due time, and a fifth of the calls never happens. So the loop is a plain LoopingCall,
# and the due times are counted here, forgiving a millionth of an interval.


@attrs.define(eq=False)
class Cadence:
    """The due times of one task, and the LoopingCall that calls at them.

    Works without the loop too: :meth:`take` then tells what fell due since it was last asked.

    :param clock: whose seconds count; they must not step.
    :param interval: seconds, > 0.
    :param first: the first due time, on the clock.
    :param fall_due: called at the due times while the loop runs; never raises, never waits.
    """

    _clock: IReactorTime
    interval: float
    _first: float
    _fall_due: Callable[[], object]
    _passed: int = attrs.field(default=0, init=False)
    _not_before: float = attrs.field(default=-math.inf, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _loop: LoopingCall | None = attrs.field(default=None, init=False)

    @property
    def due(self) -> float:
        """The next due time, on the clock; in the past if it was not taken yet."""
        return self._first + self._passed * self.interval

    def take(self) -> tuple[int, float]:
        """Count the due times that have passed, each of them once.

        :return: how many, and the seconds since the last of them.
        """
        now = self._clock.seconds()
        passed = math.floor((now - self._first) / self.interval + _ROUNDING) + 1
        if passed <= self._passed:
            return 0, 0.0
        count, self._passed = passed - self._passed, passed
        return count, max(0.0, now - (self.due - self.interval))

    def start(self, delay: float, not_before: float) -> None:
        """Begin to call at the due times.

        :param delay: seconds from now to the first one.
        :param not_before: seconds from now that :meth:`restart` keeps free too.
        """
        now = self._clock.seconds()
        self._first, self._passed, self._not_before = now + delay, 0, now + not_before
        # Made here, because a LoopingCall imports the global reactor when it is made.
        self._loop = LoopingCall(self._fall_due)
        self._loop.clock = self._clock
        if delay == self.interval:
            self._run_loop(self._loop, now=False)
        else:
            self._timer = self._clock.callLater(delay, self._begin, self._loop)

    def restart(self) -> None:
        """Let the next due time be one interval from now: the task has just been started by hand."""
        now = self._clock.seconds()
        self._first, self._passed = max(self._not_before, now + self.interval), 0
        if self._loop is not None and self._loop.running:
            self._loop.reset()
        elif self._timer is not None and self._timer.active():
            self._timer.reset(self._first - now)

    def stop(self) -> None:
        """Call no more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._timer = self._loop = None

    def _begin(self, loop: LoopingCall) -> None:
        started = self._clock.seconds()
        self._run_loop(loop, now=True)
        if loop is self._loop:
            # The loop counts from when it started, which a busy reactor makes later than planned.
            self._first, self._passed = started, 1

    def _run_loop(self, loop: LoopingCall, *, now: bool) -> None:
        loop.start(self.interval, now=now).addErrback(self._broke)

    def _broke(self, failure: Failure) -> None:
        _log.failure("a periodic task's loop has ended: it will not run again", failure)
