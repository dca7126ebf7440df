"""Run one piece of work on the reactor, from its start to its end."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_T = TypeVar("_T")


def on_reactor(work: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine function on the process's reactor, and return its result.

    :param work: takes the reactor.
    :raises KeyboardInterrupt: it was interrupted.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor

    outcomes: list[_T | Failure] = []
    the_reactor: Any = reactor

    def begin() -> None:
        Deferred.fromCoroutine(work(the_reactor)).addBoth(outcomes.append).addBoth(lambda _: the_reactor.stop())

    the_reactor.callWhenRunning(begin)
    the_reactor.run()
    if not outcomes:
        raise KeyboardInterrupt
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    return outcome
