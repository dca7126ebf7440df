"""The due times of one task: a first time and every interval after it, however long the runs take."""

import math
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()

_ROUNDING = 1e-6
"""Fraction of an interval by which a timer may be early and count as on time; see Note [Counting due times]."""

# Note [Counting due times]
# LoopingCall.withCount counts due times, but drops a call whose timer rounds to just before its
# interval: started at 5 s with an interval of 0.1 s on a Clock that advances from due time to due
# time, it drops a fifth of the calls. So the loop is a plain LoopingCall, and the due times are
# counted here with a tolerance of a millionth of an interval.


@attrs.define(eq=False)
class Schedule:
    """Compute the due times of one task, and call a function at each.

    :meth:`take` also works without :meth:`start`; it then returns the due times since the previous call.

    :param clock: its seconds must be monotonic.
    :param interval: seconds, > 0.
    :param first: the first due time, on the clock.
    :param on_due: called at the due times while the loop runs; never raises, never waits.
    """

    _clock: IReactorTime
    interval: float
    _first: float
    _on_due: Callable[[], object]
    last_due: None = attrs.field(default=None, init=False)
    """Due times of an interval mean nothing to another process."""
    _passed: int = attrs.field(default=0, init=False)
    _not_before: float = attrs.field(default=-math.inf, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _loop: LoopingCall | None = attrs.field(default=None, init=False)

    @property
    def due(self) -> float:
        """The first due time that was not taken yet, on the clock; it may be in the past."""
        return self._first + self._passed * self.interval

    def take(self) -> tuple[int, float]:
        """Take the due times that have passed; each is taken once.

        :return: their number, and the seconds since the last of them.
        """
        now = self._clock.seconds()
        passed = math.floor((now - self._first) / self.interval + _ROUNDING) + 1
        if passed <= self._passed:
            return 0, 0.0
        count, self._passed = passed - self._passed, passed
        return count, max(0.0, now - (self.due - self.interval))

    def start(self, delay: float, not_before: float) -> None:
        """Start to call at the due times.

        :param delay: seconds from now to the first due time.
        :param not_before: seconds from now before which :meth:`restart` sets no due time.
        """
        now = self._clock.seconds()
        self._first, self._passed, self._not_before = now + delay, 0, now + not_before
        # Made here, because LoopingCall's constructor imports the global reactor.
        self._loop = LoopingCall(self._on_due)
        self._loop.clock = self._clock
        if delay == self.interval:
            self._run_loop(self._loop, now=False)
        else:
            self._timer = self._clock.callLater(delay, self._begin, self._loop)

    def restart(self) -> None:
        """Set the next due time to one interval from now, because the task was started by hand."""
        now = self._clock.seconds()
        self._first, self._passed = max(self._not_before, now + self.interval), 0
        if self._loop is not None and self._loop.running:
            self._loop.reset()
        elif self._timer is not None and self._timer.active():
            self._timer.reset(self._first - now)

    def stop(self) -> None:
        """Stop calling."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._timer = self._loop = None

    def _begin(self, loop: LoopingCall) -> None:
        started = self._clock.seconds()
        self._run_loop(loop, now=True)
        if loop is self._loop:
            # The loop's intervals start here, and a busy reactor may have called this later than planned.
            self._first, self._passed = started, 1

    def _run_loop(self, loop: LoopingCall, *, now: bool) -> None:
        loop.start(self.interval, now=now).addErrback(self._loop_failed)

    def _loop_failed(self, failure: Failure) -> None:
        _log.failure("the loop of a periodic task failed; the task will not run again", failure)
