"""The clocks of a simulation: one that all share, and one of each process, which runs fast or slow, stops and ends."""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from novasvc.testing.clock import SteppedClock

if TYPE_CHECKING:
    from novasvc.testing.threads import RefusedCalls


class SimulationClock(SteppedClock):
    """A SteppedClock for tens of thousands of delayed calls: they are in a heap.

    Calls that are due at the same moment run in the order in which they were scheduled.
    """

    # Note [The heap of delayed calls]
    #
    # An entry has the time, on this clock, for which it was made. A call that was delayed since is put back when its
    # entry comes up. A call that was moved to an earlier time got another entry; the old one is passed over.

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, int, DelayedCall, ProcessClock | None]] = []
        self._numbers = count()

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:  # noqa: A002 - IReactorTime's name
        """Schedule a call; see SteppedClock."""
        assert delay >= 0, f"{delay} is not greater than or equal to 0 seconds"
        call = DelayedCall(self.rightNow + delay, callable, args, kw, _nothing, self.push, self.seconds)
        self.push(call)
        return call

    def push(self, call: DelayedCall, process: "ProcessClock | None" = None) -> None:
        """Add an entry for a delayed call, which has a new time.

        :param process: the clock that the call's time is on; None for this clock.
        """
        due = call.getTime() if process is None else process.due(call)
        heappush(self._heap, (due, next(self._numbers), call, process))

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        """Return the calls that wait, in no particular order."""
        return list({id(call): call for _, _, call, _ in self._heap if call.active()}.values())

    def waiting(self, process: "ProcessClock") -> list[DelayedCall]:
        """Return the calls of one process that wait, in the order of their times."""
        calls = {id(call): call for _, _, call, owner in self._heap if owner is process and call.active()}
        return sorted(calls.values(), key=DelayedCall.getTime)

    def next_call(self) -> DelayedCall | None:
        """Return the delayed call that is due first, or None; see SteppedClock."""
        heap = self._heap
        while heap:
            when, _, call, process = heap[0]
            if call.active() and (process is None or not process.ended):
                due = call.getTime() if process is None else process.due(call)
                if due == when:
                    return call
                if due > when:
                    heappush(heap, (due, next(self._numbers), call, process))
            heappop(heap)
        return None

    def step(self, end: float = inf) -> bool:
        """Run the one call that is due first; see SteppedClock."""
        call = self.next_call()
        if call is None or self._heap[0][0] > end:
            return False
        due, _, _, process = heappop(self._heap)
        if process is not None:
            process.reach(call.getTime())
        self._run(call, due)
        return True


@implementer(IReactorTime)
class ProcessClock:
    """The monotonic clock of one process, and its reactor.

    :param world: the clock that all share.
    :param offset: what it shows when the other one shows 0, in seconds.
    :param rate: its seconds in each second of the other one: 1.01 is a clock that runs fast.
    :ivar ended: the process has died: none of its calls is run any more.
    :ivar blocking_calls: what refuses the waits of its blocking functions; set by the process.
    """

    blocking_calls: "RefusedCalls"

    def __init__(self, world: SimulationClock, offset: float = 0.0, rate: float = 1.0) -> None:
        self._world = world
        self._offset = offset
        self.rate = rate
        self._reached = offset
        self._resumes = 0.0
        self.ended = False

    def seconds(self) -> float:
        """Return its time; see IReactorTime."""
        # Not before the time of the call that runs: rounding must not let a timer see that it is not due yet.
        return max(self._reached, self._offset + self._world.rightNow * self.rate)

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:  # noqa: A002 - IReactorTime's name
        """Schedule a call on this clock; see SteppedClock."""
        assert delay >= 0, f"{delay} is not greater than or equal to 0 seconds"
        call = DelayedCall(self.seconds() + delay, callable, args, kw, _nothing, self._moved, self.seconds)
        self._world.push(call, self)
        return call

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        """Return the calls of all processes that wait; see IReactorTime."""
        return self._world.getDelayedCalls()

    def waiting(self) -> list[DelayedCall]:
        """Return the calls of this process that wait."""
        return self._world.waiting(self)

    def _moved(self, call: DelayedCall) -> None:
        self._world.push(call, self)

    def due(self, call: DelayedCall) -> float:
        """Return the time, on the clock that all share, at which a call is due."""
        return max((call.getTime() - self._offset) / self.rate, self._resumes)

    def reach(self, seconds: float) -> None:
        """Note that a call of this time runs now."""
        self._reached = max(self._reached, seconds)

    def pause(self, until: float) -> None:
        """Run nothing until a time on the shared clock, as if the process were stopped; what is due then runs late."""
        self._resumes = max(self._resumes, until)

    # -- blocking functions, see novasvc.testing.threads -------------------------------------------

    def run_as_thread(self, function: Callable[[], Any]) -> Any:
        """Run a function that would have a thread of its own; see SteppedClock."""
        return self._world.run_as_thread(function)


def _nothing(_: DelayedCall) -> None:
    """Leave the entry of a cancelled call in the heap, where it is passed over."""
