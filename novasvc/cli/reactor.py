"""Run a coroutine on the reactor, and stop the reactor when it has finished."""

import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_T = TypeVar("_T")

_CLEANUP_TIMEOUT = 2.0
"""Seconds for clean-up after an interrupt; a second interrupt kills the process."""


def run_on_reactor(work: Callable[[Any], Coroutine[Any, Any, _T]], reactor: Any = None) -> _T:
    """Run a coroutine function on a reactor, and return its result or raise its exception.

    :param work: takes the reactor; cancelled if the process is interrupted.
    :param reactor: one that has not run yet, because a reactor cannot be restarted; None is the process's.
    :raises KeyboardInterrupt: the process was interrupted.
    """
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor

    outcomes: list[_T | Failure] = []
    interrupted = False
    # None is one that was not set from Python, and cannot be set again.
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def begin() -> None:
        working = Deferred.fromCoroutine(work(reactor)).addBoth(outcomes.append)
        reactor.addSystemEventTrigger("before", "shutdown", interrupt, working)
        working.addBoth(stop)

    def stop(_: object) -> None:
        if not interrupted:
            reactor.stop()

    def interrupt(working: Deferred[Any]) -> Deferred[None] | None:
        nonlocal interrupted
        if outcomes:
            return None
        interrupted = True
        # The reactor, which has caught the first SIGINT, waits for the Deferred that this trigger returns.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        cleaned_up: Deferred[None] = Deferred()
        working.addBoth(lambda _: None).chainDeferred(cleaned_up)
        working.cancel()
        # Clean-up that does not finish in time is abandoned: the process exits.
        return cleaned_up.addTimeout(_CLEANUP_TIMEOUT, reactor).addErrback(lambda _: None)

    reactor.callWhenRunning(begin)
    reactor.run()
    if interrupted:
        raise KeyboardInterrupt
    # A reactor leaves its own, and the next one would take them for the user's.
    for number, handler in handlers.items():
        signal.signal(number, handler)
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    return outcome
