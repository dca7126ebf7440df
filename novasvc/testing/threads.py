"""Blocking functions in a fleet: one at a time, in the thread of the test, as if each had a thread of its own."""

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from novasvc.errors import StateError
from novasvc.rpc.blocking import MAX_WAITING, ReactorCalls
from novasvc.rpc.errors import ReactorThreadError, RPCTimeoutError
from novasvc.testing.clock import SteppedClock

# Note [Waiting without threads]
#
# A blocking method that calls another one waits in its thread, while the reactor goes on. Here it holds the thread of
# the test, so its wait itself advances the time, until it has its result or its call has timed out. What is due
# meanwhile runs within the wait. The function begins in a turn of its own, and not within the server that called it,
# which could not begin another call meanwhile.
#
# Waits that overlap end in the reverse order of their begin, because one is on the stack of the other. A fleet can live
# with that; a simulation cannot. Many methods wait at a time there, so most would time out, and the wait of a process
# that is killed could never end. So a simulation refuses such waits.

LONGEST_WAIT = 86_400.0
"""Seconds that a blocking function may wait; more are taken for a wait without an end."""


def run_blocking(clock: SteppedClock, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
    """Run a function in the next turn, in a copy of the current context variables; it may wait by SteppedCalls.

    :return: Deferred of its result. Cancelled before that turn, it never runs.
    """
    run = partial(copy_context().run, function, *args, **kwargs)
    return deferLater(clock, 0, clock.run_as_thread, run)


class SteppedCalls(ReactorCalls):
    """Runs work for blocking functions of a fleet, see Note [Waiting without threads]."""

    def __init__(self, clock: SteppedClock) -> None:
        super().__init__(clock, MAX_WAITING)
        self._clock = clock

    def check(self) -> None:
        """Check that this is a blocking function.

        :raises ReactorThreadError: it is what would run in the reactor's thread.
        """
        if not self._clock.in_thread:
            raise ReactorThreadError

    def run(self, work: Callable[[], Awaitable[Any]], target: str, method: str) -> Any:
        """Run work in the next turn, and advance the time until it has ended; see the base class.

        :raises RPCTimeoutError: nothing is due any more that could end it, or it does not end within LONGEST_WAIT.
        """
        self.check()
        began = self._clock.seconds()
        outcomes: list[Any] = []

        async def run() -> Any:
            return await work()

        running = deferLater(self._clock, 0, copy_context().run, Deferred.fromCoroutine, run())
        running.addBoth(outcomes.append)
        if not self._clock.advance_until(lambda: bool(outcomes), began + LONGEST_WAIT):
            running.cancel()
            problem = "nothing is due any more on the clock of the fleet"
            if self._clock.next_call() is not None:
                problem = f"after {LONGEST_WAIT:g} s of the fleet's time nothing has ended the wait"
            raise RPCTimeoutError(target, method, self._clock.seconds() - began, unconfirmed=problem)
        (outcome,) = outcomes
        if isinstance(outcome, Failure):
            outcome.raiseException()
        return outcome


class RefusedCalls(SteppedCalls):
    """Refuses the waits of blocking functions of a simulation, see Note [Waiting without threads].

    :param refused: called with the error's text for each of them: a method may handle the error.
    """

    def __init__(self, clock: SteppedClock, refused: Callable[[str], object]) -> None:
        super().__init__(clock)
        self._refused = refused

    def run(self, work: Callable[[], Awaitable[Any]], target: str, method: str) -> Any:
        """Refuse to wait.

        :raises StateError: always; it says what to do.
        """
        self.check()
        wanted = f"have a blocking function wait for {method!r} of {target}; make the function a coroutine"
        error = StateError("a simulation", "in one thread", wanted)
        self._refused(str(error))
        raise error
