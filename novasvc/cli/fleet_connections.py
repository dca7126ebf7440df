"""What the commands of `novasvc fleet` connect to: the registry, and the broker once nodes are to be called."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from novasvc.cli.remote import make_transport, require_process, signer_of
from novasvc.config import Settings
from novasvc.interfaces import IOperationStore, IServiceRegistry

if TYPE_CHECKING:
    from novasvc.fleet.calls import NodeCalls

_T = TypeVar("_T")

_CLOSE_TIMEOUT = 2.0
"""Seconds for the connection to the broker to close; the result has been printed by then."""


@attrs.frozen(eq=False)
class FleetConnections:
    """The connections of one command.

    :param registry: open.
    :param store: the operations, in the same database.
    :param clock: the reactor.
    :param connect: connects to the broker.
    """

    settings: Settings
    registry: IServiceRegistry
    store: IOperationStore
    clock: Any
    connect: Callable[[], Coroutine[Any, Any, "NodeCalls"]]


def with_fleet(settings: Settings, function: Callable[[FleetConnections], Coroutine[Any, Any, _T]]) -> _T:
    """Open the registry, call the function on the reactor, and close what was opened.

    :raises ProblemError: the database file does not exist; none is created.
    :raises KeyboardInterrupt: the process was interrupted.
    """
    from novasvc.cli.database import require_database  # noqa: PLC0415 - `--help` does not need it
    from novasvc.cli.reactor import run_on_reactor  # noqa: PLC0415
    from novasvc.registry.sql.services import connect_registry  # noqa: PLC0415

    require_database(settings.database_url)

    async def work(reactor: Any) -> _T:
        async with AsyncExitStack() as stack:
            registry = connect_registry(settings.database_url, reactor=reactor, migrate=False)
            stack.push_async_callback(_closed, registry.close)
            await registry.open()

            async def connect() -> "NodeCalls":
                return await _connect(settings, reactor, stack)

            return await function(FleetConnections(settings, registry, registry.operations, reactor, connect))

    return run_on_reactor(work)


async def _connect(settings: Settings, reactor: Any, stack: AsyncExitStack) -> "NodeCalls":
    """Connect to the broker.

    :raises ProblemError: there is no broker, and no service of this user runs on this host.
    :raises BrokerError: the broker cannot be used.
    """
    from twisted.internet.defer import Deferred  # noqa: PLC0415 - see above

    from novasvc.fleet.calls import NodeCalls  # noqa: PLC0415
    from novasvc.rpc import Client  # noqa: PLC0415

    if not settings.uses_broker:
        require_process(settings)
    transport = make_transport(settings, reactor)
    # Not make_client(): each of thousands of nodes that are away would cost a connection to the database to explain it.
    client = Client(transport, clock=reactor, mandatory=True, signer=signer_of(settings))

    async def close() -> None:
        await client.close()
        await transport.close()

    def closing() -> Deferred[None]:
        # Errors of the close are ignored: the process exits, and its connections with it.
        ended = Deferred.fromCoroutine(close()).addTimeout(_CLOSE_TIMEOUT, reactor)
        return ended.addErrback(lambda _: None)

    stack.push_async_callback(_closed, closing)
    await transport.open()
    return NodeCalls(client, reactor)


async def _closed(close: Callable[[], Any]) -> None:
    await close()
