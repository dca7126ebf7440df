"""The resources that the nodes of one process share: settings, reactor, transport, registry."""

import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReactorUNIX
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.config import Settings, load
from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IServiceRegistry, ISpecification, ISpecified, ITransport
from novasvc.middleware import load_middleware
from novasvc.node.errors import DirectoryError
from novasvc.node.machine_name import name_machine
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.reactor.local import ReactorLocal
from novasvc.reactor.threads import BlockingPool
from novasvc.registry.remote import RemoteRegistry
from novasvc.registry.sql.services import connect_registry
from novasvc.rpc import Client
from novasvc.rpc.identity.authorization import Authorizer
from novasvc.rpc.identity.keys import read_callers, read_signing_key
from novasvc.rpc.identity.signature import Signer, Verifier
from novasvc.rpc.server.admission import Siblings
from novasvc.rpc.server.unstarted_record import UnstartedRecord
from novasvc.transport.local import HostSockets, LocalTransport
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from novasvc.workers.current import EndsAlone, SharedStart, current_worker

_log = Logger()


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
                except Exception:
                    await close_quietly(resource.close, self.name)
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
        except Exception:
            await close_quietly(self._broker.release, self._broker.name)
            raise

    async def release(self) -> None:
        """Release the registry and the broker."""
        try:
            await super().release()
        finally:
            await self._broker.release()

    def _make_registry(self) -> IServiceRegistry:
        return RemoteRegistry(Client(self._transport, clock=self._clock))


async def close_quietly(close: Callable[[], Awaitable[None]], name: str) -> None:
    """Close a resource after an opening that failed, and log a failure to close it.

    The caller raises the error of the opening. It may be the cancellation that ends a node's start; if a failure to
    close took its place, the start would wait for the end of an outage, and go on.
    """
    try:
        await close()
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller raises the first error
        shown = error if isinstance(error, NovasvcError) else describe(error)
        _log.warn("closing the connection to the {name} failed: {error}", name=name, error=shown)


@implementer(ISpecified)
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
    :param unstarted_record: requests that this worker has received and not begun, for its siblings; None in a process
        without siblings.
    :param siblings: asks the other workers that serve the same nodes; None without them.
    :param start: what this worker shares with its siblings; None in a process that is not a worker.
    :param ends_alone: asks whether an end concerns only this worker; None without siblings.
    :param machine: name of this machine; see :func:`novasvc.node.machine_name.name_machine`.
    :param wall_clock: returns Unix seconds, for cron lines.
    :param given_middleware: what :func:`novasvc.middleware.load_middleware` takes; by default the setting
        rpc_middleware.
    :param retry: takes the number of failures to connect, returns the seconds to wait.
    """

    settings: Settings
    reactor: Any
    broker: SharedConnection[ITransport]
    database: SharedConnection[IServiceRegistry]
    run_blocking: Callable[..., Deferred[Any]]
    worker: int | None = attrs.field()
    unstarted_record: UnstartedRecord | None = attrs.field()
    siblings: Siblings | None = attrs.field()
    start: SharedStart | None = attrs.field()
    ends_alone: EndsAlone | None = attrs.field()
    machine: str = attrs.field(factory=name_machine)
    random_source: random.Random = attrs.field(factory=random.Random)
    retry: RetryPolicy = attrs.field(factory=jittered_backoff)
    wall_clock: Callable[[], float] = attrs.field(default=time.time)
    given_middleware: Sequence[Any] = attrs.field(
        default=attrs.Factory(lambda self: self.settings.rpc_middleware, takes_self=True)
    )
    conductor: SharedConnection[IServiceRegistry] = attrs.field(init=False)

    @worker.default
    def _worker_number(self) -> int | None:
        return current_worker(self.reactor).number

    @unstarted_record.default
    def _worker_record(self) -> UnstartedRecord | None:
        return current_worker(self.reactor).unstarted_record

    @siblings.default
    def _worker_siblings(self) -> Siblings | None:
        return current_worker(self.reactor).siblings

    @start.default
    def _worker_start(self) -> SharedStart | None:
        return current_worker(self.reactor).start

    @ends_alone.default
    def _worker_ends_alone(self) -> EndsAlone | None:
        return current_worker(self.reactor).ends_alone

    @conductor.default
    def _by_conductor(self) -> SharedConnection[IServiceRegistry]:
        return ConductorConnection(self.broker, self.reactor)

    @cached_property
    def middleware(self) -> Sequence[Any]:
        """The middleware of this process, outermost first. Imported on first use: it is the user's code.

        :raises MiddlewareError: one cannot be imported or made, or is no middleware.
        """
        return load_middleware(self.given_middleware)

    @cached_property
    def signer(self) -> Signer | None:
        """What signs the calls of this process; None without rpc_signing_key_file.

        :raises SettingError: the file cannot be used.
        """
        path = self.settings.rpc_signing_key_file
        return None if path is None else Signer(read_signing_key(path), time.time)

    @cached_property
    def authorizer(self) -> Authorizer:
        """What decides about the callers of methods with ``allow=``.

        :raises SettingError: rpc_callers_file cannot be used.
        """
        path = self.settings.rpc_callers_file
        if path is None:
            return Authorizer(trust_unsigned=not self.settings.uses_broker)
        verifier = Verifier(read_callers(path), self.settings.rpc_signature_max_age, time.time)
        return Authorizer(verifier, operators=frozenset(self.settings.rpc_operators))

    def specification(self) -> "RuntimeSpecification":
        """Return what a worker makes its runtime of; see :class:`~novasvc.interfaces.ISpecified`."""
        return RuntimeSpecification(self.settings)

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
            run_blocking=_blocking_pools.get(reactor).run_blocking,
        )


@implementer(ISpecification)
@attrs.frozen
class RuntimeSpecification:
    """A :class:`Runtime` as its settings: each process has its own reactor and connections."""

    settings: Settings

    def build(self, reactor: Any) -> Runtime:
        """Make the runtime; nothing is opened yet."""
        return Runtime.from_settings(self.settings, reactor)


_memory_brokers = ReactorLocal(lambda _: MemoryBroker())
"""``memory:`` connects all nodes of a process, even if they have different runtimes."""

_blocking_pools = ReactorLocal(BlockingPool)
"""Threads live as long as the process, and a restarted node must reuse them."""

_host_sockets: ReactorLocal[dict[Path, HostSockets]] = ReactorLocal(lambda _: {})
"""By directory. The nodes of a process share the socket by which the other processes of their host reach them."""

_process_runtimes: ReactorLocal[Runtime | None] = ReactorLocal(lambda _: None)
"""The runtime of nodes that are given none."""


def _make_transport(settings: Settings, reactor: Any) -> ITransport:
    if not settings.uses_broker:
        if not (IReactorUNIX.providedBy(reactor) and IReactorFDSet.providedBy(reactor)):
            # A Clock, in a test: there is no other process.
            return MemoryTransport(_memory_brokers.get(reactor), clock=reactor, exchange=settings.control_exchange)
        sockets, directory = _host_sockets.get(reactor), settings.socket_dir
        if directory not in sockets:
            sockets[directory] = HostSockets(_memory_brokers.get(reactor), reactor, directory)
        return LocalTransport(sockets[directory], exchange=settings.control_exchange)
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
        service_down_time=settings.service_down_time,
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


def process_runtime(reactor: Any = None) -> Runtime:
    """Return the runtime of nodes that are given none; it corresponds to Nova's global CONF.

    Made on the first call, from ``NOVASVC_*`` variables and the files in ``NOVASVC_CONFIG``.

    :param reactor: None is the global reactor.
    :raises ConfigurationError: the environment or a file has an error.
    """
    if reactor is None:
        from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor

    runtime = _process_runtimes.get(reactor)
    return runtime or set_process_runtime(Runtime.from_settings(load((), os.environ, {}).settings, reactor))


def set_process_runtime(runtime: Runtime) -> Runtime:
    """Set the runtime for nodes on its reactor that are given none, from now on; return it."""
    _process_runtimes.set(runtime.reactor, runtime)
    return runtime


def drain_time(reactor: Any) -> float:
    """Return the seconds that this process may spend on a drain; 0 for no limit.

    The supervisor's value, else that of the process's runtime, else the default.
    """
    grace = current_worker(reactor).grace
    if grace is not None:
        return grace
    runtime = _process_runtimes.get(reactor)
    return 60.0 if runtime is None else runtime.settings.graceful_shutdown_timeout
