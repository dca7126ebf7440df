"""The resources that the nodes of one process share: settings, reactor, transport, registry."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime

from novasvc.config import Settings, load
from novasvc.interfaces import IServiceRegistry, ITransport
from novasvc.node.errors import DirectoryError
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.reactor.threads import BlockingPool
from novasvc.registry.remote import RemoteRegistry
from novasvc.registry.sql.services import connect_registry
from novasvc.rpc import Client
from novasvc.rpc.admission import Siblings
from novasvc.rpc.backlog import Backlog
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from novasvc.workers.current import current_worker


class _Openable(Protocol):
    def open(self) -> Deferred[None]: ...

    def close(self) -> Deferred[None]: ...


_Resource = TypeVar("_Resource", bound=_Openable)


@attrs.define(eq=False)
class SharedConnection(Generic[_Resource]):
    """A connection shared by the nodes of a process: the first opens it, the last closes it.

    :param name: of the server, for the log: "database", "broker", "conductor".
    :param make: makes the connection, unopened. No thread or socket exists before the first node
        starts, so that a daemon may fork and settings may be checked.
    """

    name: str
    _make: Callable[[], _Resource]
    _lock: DeferredLock = attrs.field(factory=DeferredLock, init=False)
    _users: int = attrs.field(default=0, init=False)
    _resource: _Resource | None = attrs.field(default=None, init=False)

    async def acquire(self) -> _Resource:
        """Return the open connection. Each success must be followed by one :meth:`release`."""
        await self._lock.acquire()
        try:
            if self._resource is None:
                resource = self._make()
                try:
                    await resource.open()
                except BaseException:
                    await resource.close()
                    raise
                self._resource = resource
            self._users += 1
            return self._resource
        finally:
            self._lock.release()

    async def release(self) -> None:
        """Release the connection; the last release closes it."""
        await self._lock.acquire()
        try:
            self._users -= 1
            if self._users == 0 and self._resource is not None:
                resource, self._resource = self._resource, None
                await resource.close()
        finally:
            self._lock.release()


class ConductorConnection(SharedConnection[IServiceRegistry]):
    """The connection to the registry through a conductor; it holds the broker's connection too.

    :param broker: the connection to the broker.
    """

    def __init__(self, broker: SharedConnection[ITransport], clock: IReactorTime) -> None:
        super().__init__("conductor", self._make_registry)
        self._broker = broker
        self._clock = clock

    async def acquire(self) -> IServiceRegistry:
        """Return the registry; see :class:`SharedConnection`."""
        self._transport = await self._broker.acquire()
        try:
            return await super().acquire()
        except BaseException:
            await self._broker.release()
            raise

    async def release(self) -> None:
        """Release the registry and the broker."""
        await super().release()
        await self._broker.release()

    def _make_registry(self) -> IServiceRegistry:
        return RemoteRegistry(Client(self._transport, clock=self._clock))


@attrs.frozen(eq=False)
class Runtime:
    """The resources of the nodes of one process.

    :param settings: the configuration.
    :param reactor: the clock and event loop.
    :param broker: the connection to the broker.
    :param database: the connection to the ``services`` table.
    :param conductor: the connection to the same table for nodes that may not reach the database.
    :param run_blocking: runs a function with its arguments in a thread, and returns a
        Deferred of its result; see :meth:`novasvc.reactor.threads.BlockingPool.run_blocking`.
    :param worker: the number of this worker process; None if it is not a worker.
    :param backlog: requests that this worker has received and not begun, visible to its siblings; None in a process
        without siblings.
    :param siblings: asks the other workers that serve the same nodes; None without them.
    :param retry: takes the number of failures to connect, returns the seconds to wait.
    """

    settings: Settings
    reactor: Any
    broker: SharedConnection[ITransport]
    database: SharedConnection[IServiceRegistry]
    run_blocking: Callable[..., Deferred[Any]]
    worker: int | None = attrs.field(factory=lambda: current_worker().number)
    backlog: Backlog | None = attrs.field(factory=lambda: current_worker().backlog)
    siblings: Siblings | None = attrs.field(factory=lambda: current_worker().siblings)
    random_source: random.Random = attrs.field(factory=random.Random)
    retry: RetryPolicy = attrs.field(factory=jittered_backoff)
    conductor: SharedConnection[IServiceRegistry] = attrs.field(init=False)

    @conductor.default
    def _by_conductor(self) -> SharedConnection[IServiceRegistry]:
        return ConductorConnection(self.broker, self.reactor)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the settings: a worker has its own reactor and connections."""
        return _make_again, (self.settings,)

    @classmethod
    def from_settings(cls, settings: Settings, reactor: Any) -> "Runtime":
        """Make the runtime that the settings describe; nothing is opened yet.

        :param settings: checked; see :func:`novasvc.config.load`.
        :param reactor: provides IReactorTime, IReactorCore and IReactorFromThreads.
        """
        return cls(
            settings=settings,
            reactor=reactor,
            broker=SharedConnection("broker", lambda: _make_transport(settings, reactor)),
            database=SharedConnection("database", lambda: _reach_database(settings, reactor)),
            run_blocking=_blocking_pool(reactor).run_blocking,
        )


def _make_again(settings: Settings) -> Runtime:
    from twisted.internet import reactor  # noqa: PLC0415 - the worker's

    return Runtime.from_settings(settings, reactor)


_memory_brokers: WeakKeyDictionary[Any, MemoryBroker] = WeakKeyDictionary()
"""By reactor. ``memory:`` connects all nodes of a process, even if they have different runtimes."""


_blocking_pools: WeakKeyDictionary[Any, BlockingPool] = WeakKeyDictionary()
"""By reactor. Threads live as long as the process, and a restarted node must reuse them."""


def _blocking_pool(reactor: Any) -> BlockingPool:
    if reactor not in _blocking_pools:
        _blocking_pools[reactor] = BlockingPool(reactor)
    return _blocking_pools[reactor]


def _make_transport(settings: Settings, reactor: Any) -> ITransport:
    if settings.transport_url.startswith("memory:"):
        memory = _memory_brokers.setdefault(reactor, MemoryBroker())
        return MemoryTransport(memory, clock=reactor, exchange=settings.control_exchange)
    # A node on memory: does not load AMQP and TLS.
    from novasvc.transport.amqp.configured import configured_transport  # noqa: PLC0415

    return configured_transport(settings, reactor)


def _reach_database(settings: Settings, reactor: Any) -> IServiceRegistry:
    if settings.database_in_state_dir:
        make_directory(settings.state_dir)
    return connect_registry(
        settings.database_url,
        reactor=reactor,
        enable_new_services=settings.enable_new_services,
        migrate=settings.migrate,
    )


def make_directory(path: Path) -> None:
    """Create the state directory, accessible only to its owner, if it does not exist.

    :raises DirectoryError: it cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        remedy = "make its parent writable for this user, or set state_dir to another"
        raise DirectoryError(f"state directory {str(path)!r}", error.strerror or str(error), remedy) from error


_process_runtime: Runtime | None = None


def process_runtime() -> Runtime:
    """Return the runtime of nodes that are given none; it corresponds to Nova's global CONF.

    Made on the first call, from ``NOVASVC_*`` variables and the files in ``NOVASVC_CONFIG``, on the
    global reactor.

    :raises ConfigurationError: the environment or a file has an error.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor

    return _process_runtime or set_process_runtime(Runtime.from_settings(load((), os.environ, {}).settings, reactor))


def drain_time() -> float:
    """Return the seconds that this process may spend on a drain; 0 for no limit.

    The supervisor's value, else that of the process's runtime, else the default.
    """
    grace = current_worker().grace
    if grace is not None:
        return grace
    return 60.0 if _process_runtime is None else _process_runtime.settings.graceful_shutdown_timeout


def set_process_runtime(runtime: Runtime) -> Runtime:
    """Set the process's runtime, for nodes made from now on; return it."""
    global _process_runtime  # noqa: PLW0603 - one in a process is what it is about
    _process_runtime = runtime
    return runtime
