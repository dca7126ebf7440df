"""Open the registry for a command."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from novasvc.cli.database import require_database
from novasvc.cli.reactor import run_on_reactor
from novasvc.cli.thread_reactor import ThreadReactor
from novasvc.config import Settings
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.sql.services import connect_registry

_T = TypeVar("_T")


def with_registry(
    settings: Settings, function: Callable[[IServiceRegistry], Awaitable[_T]], reactor: ThreadReactor | None = None
) -> _T:
    """Open the registry, call the function with it, and close it.

    :param function: takes the open registry. It must not use the process's reactor, which does not run.
    :param reactor: for a function that waits; by default a new one.
    :return: the function's result.
    :raises ProblemError: the database file does not exist; none is created.
    :raises KeyboardInterrupt: the process was interrupted.
    """
    require_database(settings.database_url)

    async def work(reactor: Any) -> _T:
        registry = connect_registry(settings.database_url, reactor=reactor, migrate=False)
        try:
            await registry.open()
            return await function(registry)
        finally:
            await registry.close()

    return run_on_reactor(work, reactor or ThreadReactor())
