"""The time of a fleet, which the test advances."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from novasvc.errors import StateError
from novasvc.testing.clock import SteppedClock
from novasvc.testing.errors import NotSettledError
from novasvc.testing.waiting import Answer, has_result, run_awaitable

_T = TypeVar("_T")

LIMIT = 300.0
"""Seconds on the fleet's clock that one wait may take."""


class FleetTime:
    """Time that stands still until a test advances it.

    :param limit: seconds on this clock that one wait may take.
    :ivar clock: the clock; provides IReactorTime.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self.clock = SteppedClock()
        self._limit = limit

    def under_way(self) -> list[str]:
        """Return what is under way, one sentence each."""
        return []

    def seconds(self) -> float:
        """Return the time of the fleet: seconds since it was made."""
        return self.clock.seconds()

    def advance(self, seconds: float) -> None:
        """Advance the time, from each due time to the next: heartbeats, tasks, timeouts, delays of the managers.

        :param seconds: >= 0; with 0 only what is due now is done.
        """
        self._check_outside("advance")
        self.clock.advance(seconds)

    def settle(self, limit: float | None = None) -> None:
        """Advance the time until nothing is under way: no message, call, task, event, start or stop.

        Heartbeats and tasks that fall due meanwhile are done. The time does not advance for later ones, nor for delays
        that nothing under way waits for; :meth:`advance` does that.

        :param limit: seconds on the fleet's clock; the fleet's own by default.
        :raises NotSettledError: something is still under way then, or can never end. The error names it.
        """
        self._check_outside("settle")
        self.clock.advance(0)
        self._step_until(lambda: not self.under_way(), "settle()", limit)

    def run(self, awaitable: Awaitable[_T], limit: float | None = None) -> _T:
        """Wait for a Deferred or a coroutine, and return its result; the time is advanced as far as is needed.

        :param limit: seconds on the fleet's clock for each Deferred that is waited for; the fleet's own by default.
        :raises NotSettledError: it does not end within that time, or never. The error names what is still under way.
        """
        self._check_outside("run")
        return run_awaitable(awaitable, lambda waiting: self._finish(waiting, limit))

    def answer(self, deferred: Deferred[_T]) -> Answer[_T]:
        """Return a Deferred that can be awaited in any ``async def`` test, because that advances the time."""
        return Answer(deferred.addErrback(self._explain), self._finish)

    def _explain(self, failure: Failure) -> Failure:
        """Add to an error what the test's author asks for next."""
        return failure

    def _finish(self, waiting: Deferred[Any], limit: float | None = None) -> None:
        """Advance the time until a Deferred has fired. Within a call of the clock, leave that to the outer wait."""
        if not self.clock.stepping:
            self._step_until(lambda: has_result(waiting), "the wait for a result", limit)

    def _step_until(self, done: Callable[[], bool], what: str, limit: float | None) -> None:
        limit = self._limit if limit is None else limit
        end = self.seconds() + limit
        while not done():
            if not self.clock.step(end):
                if self.clock.next_call() is not None:
                    self.clock.advance(max(0.0, end - self.seconds()))  # a blocking wait may have gone past it
                raise self._not_settled(what, limit)

    def _not_settled(self, what: str, limit: float) -> NotSettledError:
        still = "; ".join(self.under_way()) or "nothing of the fleet"
        if self.clock.next_call() is None:
            problem = f"nothing is due any more, and still under way is: {still}"
        else:
            problem = f"after {limit:g} s of the fleet's time, still under way is: {still}"
        remedy = "managers must wait on self.attachments.reactor, and a test must fire the Deferreds that it made"
        return NotSettledError(what, problem, remedy)

    def _check_outside(self, wanted: str) -> None:
        if self.clock.stepping:
            raise StateError(
                "the fleet", "advancing the time", f"{wanted}; await the Deferred with fleet.run() instead"
            )
