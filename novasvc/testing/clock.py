"""A Clock that advances from one due time to the next."""

from collections.abc import Callable
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING, Any

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock, LoopingCall

from novasvc.testing.errors import BusyClockError

if TYPE_CHECKING:
    from novasvc.testing.threads import SteppedCalls

CALLS_AT_ONE_MOMENT = 20_000
"""The most calls that are due at one moment; more are taken for a loop without an end."""


class SteppedClock(Clock):
    """A Clock on which each delayed call sees the time for which it was scheduled.

    ``Clock.advance(60)`` sets the time first, and then runs what was due meanwhile: all of it sees the end of the
    minute, and a loop of one second runs once. Here the loop runs sixty times, as on a reactor.

    :ivar stepping: whether a delayed call is running now.
    :ivar in_thread: whether a function is running that would have a thread of its own, see novasvc.testing.threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stepping = self.in_thread = False
        self._calls_at = (0.0, 0)

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:  # noqa: A002 - IReactorTime's name
        """Schedule a call; see IReactorTime. A negative delay is an AssertionError, as on Twisted's reactors."""
        assert delay >= 0, f"{delay} is not greater than or equal to 0 seconds"
        return super().callLater(delay, callable, *args, **kw)

    def advance(self, amount: float) -> None:
        """Advance the time by some seconds, from due time to due time.

        :param amount: seconds, >= 0; 0 runs what is due now, and what that schedules for now.
        :raises ValueError: the amount is negative.
        :raises BusyClockError: the calls at one moment do not end.
        """
        if amount < 0:
            raise ValueError(f"cannot advance by {amount!r} seconds; time does not go back")
        end = self.seconds() + amount
        while self.step(end):
            pass
        self.rightNow = max(self.rightNow, end)

    def jump(self, amount: float) -> None:
        """Let some seconds pass in which nothing runs, as when the reactor is blocked; then run what is overdue.

        :param amount: seconds, >= 0.
        """
        self.rightNow += amount
        self.advance(0)

    def step(self, end: float = inf) -> bool:
        """Advance the time to the next due time, and run the one call that is due first.

        :param end: seconds on this clock after which nothing is run.
        :return: False, and the time stays, if nothing is due until then.
        :raises BusyClockError: the calls at one moment do not end.
        """
        call = self.next_call()
        if call is None or call.getTime() > end:
            return False
        self.calls.remove(call)
        self._run(call, call.getTime())
        return True

    def _run(self, call: DelayedCall, due: float) -> None:
        """Advance the time to a due time, and run the call that is due then.

        :param call: removed from the calls that wait.
        :raises BusyClockError: the calls at one moment do not end.
        """
        self.rightNow = max(self.rightNow, due)
        moment, calls = self._calls_at
        self._calls_at = self.rightNow, calls + 1 if moment == self.rightNow else 1
        if self._calls_at[1] > CALLS_AT_ONE_MOMENT:
            self._calls_at = self.rightNow, 0
            problem = f"{CALLS_AT_ONE_MOMENT} calls ran at {self.rightNow:g} s, and another is due"
            raise BusyClockError(describe_call(call), problem, "let it wait for some time before it is called again")
        outer, self.stepping = (self.stepping, self.in_thread), True
        self.in_thread = False
        try:
            # As Clock.advance does it, which would run all calls of this moment, even if they never end.
            call.called = 1
            call.func(*call.args, **call.kw)
        finally:
            self.stepping, self.in_thread = outer

    def advance_until(self, done: Callable[[], bool], end: float = inf) -> bool:
        """Advance the time until something is done; return False if nothing is due any more before that.

        :param end: seconds on this clock after which nothing is run.
        """
        while not done():
            if not self.step(end):
                return False
        return True

    def run_as_thread(self, function: Callable[[], Any]) -> Any:
        """Run a function that would have a thread of its own; return its result."""
        outer, self.in_thread = self.in_thread, True
        try:
            return function()
        finally:
            self.in_thread = outer

    @cached_property
    def blocking_calls(self) -> "SteppedCalls":
        """What such functions wait by."""
        from novasvc.testing.threads import SteppedCalls  # noqa: PLC0415 - it imports this module

        return SteppedCalls(self)

    def next_call(self) -> DelayedCall | None:
        """Return the delayed call that is due first, or None."""
        # Not the first of the list, which is not sorted again when a call is delayed or reset.
        return min(self.calls, key=DelayedCall.getTime, default=None)


def describe_call(call: DelayedCall) -> str:
    """Return the name of the function that a delayed call runs."""
    function: Any = call.func
    while isinstance(function, partial | LoopingCall):
        function = function.func if isinstance(function, partial) else function.f
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
