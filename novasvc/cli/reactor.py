"""Run one piece of work on the reactor, from its start to its end."""

import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_T = TypeVar("_T")

_GRACE = 2.0
"""Seconds that work has to tidy up after an interruption; a second one ends the process at once."""


def run_on_reactor(work: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine function on the process's reactor, and return its result.

    :param work: takes the reactor; is cancelled if the process is interrupted.
    :raises KeyboardInterrupt: it was interrupted.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor

    outcomes: list[_T | Failure] = []
    interrupted = False
    the_reactor: Any = reactor

    def begin() -> None:
        working = Deferred.fromCoroutine(work(the_reactor)).addBoth(outcomes.append)
        the_reactor.addSystemEventTrigger("before", "shutdown", interrupt, working)
        working.addBoth(stop)

    def stop(_: object) -> None:
        if not interrupted:
            the_reactor.stop()

    def interrupt(working: Deferred[Any]) -> Deferred[None] | None:
        nonlocal interrupted
        if outcomes:
            return None
        interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        tidy: Deferred[None] = Deferred()
        working.addBoth(lambda _: None).chainDeferred(tidy)
        working.cancel()
        # What is not done in time ends with the process.
        return tidy.addTimeout(_GRACE, the_reactor).addErrback(lambda _: None)

    the_reactor.callWhenRunning(begin)
    the_reactor.run()
    if interrupted:
        raise KeyboardInterrupt
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    return outcome
