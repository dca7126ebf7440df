"""Run one piece of work on the reactor, from its start to its end."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from novasvc.cli.missing import look_for_database
from novasvc.db.services import connect_registry
from novasvc.interfaces import IServiceRegistry
from novasvc.settings import Settings

_T = TypeVar("_T")


def with_registry(settings: Settings, function: Callable[[IServiceRegistry], Awaitable[_T]]) -> _T:
    """Open the registry, call the function with it, close it.

    :param function: takes the open registry.
    :return: what the function returns.
    :raises MissingDatabaseError: there is no such file; none is made.
    :raises KeyboardInterrupt: it was interrupted.
    """
    look_for_database(settings.database_url)
    from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor

    async def work() -> _T:
        registry = connect_registry(settings.database_url, reactor=reactor, migrate=False)
        try:
            await registry.open()
            return await function(registry)
        finally:
            await registry.close()

    return _run(reactor, work)


def _run(reactor: Any, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    outcomes: list[_T | Failure] = []

    def begin() -> None:
        Deferred.fromCoroutine(work()).addBoth(outcomes.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcomes:
        raise KeyboardInterrupt
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    return outcome
