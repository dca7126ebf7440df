"""Several managers together in memory, on a clock that the test advances."""

from collections.abc import Callable
from typing import Any, Self, TypeVar, overload
from weakref import WeakSet

from novasvc.cli.run import topic_of
from novasvc.errors import StateError
from novasvc.node.service import Service
from novasvc.registry.errors import ServiceNotFoundError
from novasvc.registry.record import Records, ServiceRecord
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from novasvc.testing.calls import FleetCalls
from novasvc.testing.errors import UnknownNodeError
from novasvc.testing.failures import Failures
from novasvc.testing.hosts import HOST
from novasvc.testing.metrics import MetricsSince
from novasvc.testing.node import FleetNode
from novasvc.testing.time import LIMIT
from novasvc.testing.work import work_under_way

_M = TypeVar("_M")

_running: "WeakSet[Fleet]" = WeakSet()
"""The fleets that are not stopped."""


class Fleet(FleetCalls):
    """Managers on one or several hosts, with a broker, a registry and a clock in memory.

    Each node runs as it would in a process: its hooks, calls, contracts, heartbeats and periodic tasks. Messages are
    encoded, queued, admitted and answered as over RabbitMQ. Nothing needs a server, a thread, a file or real time.
    Managers must take the time from ``self.attachments.reactor``.

    Time stands still until the test advances it: by :meth:`advance`, by :meth:`settle`, or by waiting for something.
    ``await fleet.call(...)`` waits, in any kind of ``async def`` test; :meth:`run` does the same in others. Each wait
    advances the time from one due time to the next, and ends with a NotSettledError at the limit.

    As a context manager it stops itself; otherwise call :meth:`stop` at the end of the test.

    :param limit: seconds on the fleet's clock that one wait may take.
    :param seed: seed of the random delays.
    :param settings: fields of :class:`novasvc.config.Settings` for all hosts. ``periodic_fuzzy_delay`` is 0 by default.
    :ivar nodes: its nodes, in the order in which they were made.
    :ivar registry: the ``services`` table; set its ``outage`` to an error to take the database away.
    """

    def __init__(self, *, limit: float = LIMIT, seed: int = 0, **settings: Any) -> None:
        super().__init__(limit, seed, settings)
        if not _running:
            # A family keeps 128 label sets and counts further ones under "other", which many tests would reach.
            metrics.reset()
        _running.add(self)
        self._metrics = MetricsSince()
        self._failures = Failures()
        self._failures.start()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.stop(check=error is None)

    # -- nodes -----------------------------------------------------------------------------------

    @overload
    def start(
        self,
        manager: Callable[..., _M],
        /,
        *,
        host: str = ...,
        topic: str | None = ...,
        binary: str | None = ...,
        worker: int | None = ...,
        **options: Any,
    ) -> FleetNode[_M]: ...

    @overload
    def start(
        self,
        manager: str,
        /,
        *,
        host: str = ...,
        topic: str | None = ...,
        binary: str | None = ...,
        worker: int | None = ...,
        **options: Any,
    ) -> FleetNode[Any]: ...

    def start(self, manager: Callable[..., Any] | str, /, **given: Any) -> FleetNode[Any]:
        """Start a node, and advance the time until it runs.

        :param manager: the class, a factory, or "package.module:Class".
        :param host: the host's name.
        :param topic: the topic; by default the name of the class, as ``novasvc run`` takes it: TeaShop is "tea_shop".
        :param binary: the binary; by default "novasvc-" and the topic.
        :param worker: the number of the worker process that the node runs in; None without a supervisor.
        :param options: for the manager's constructor; and report_interval, periodic_enable, periodic_fuzzy_delay,
            periodic_interval_max and db_allowed, as :class:`novasvc.service.Service` takes them.
        :raises StartError: it does not start; the error says which step failed, and why.
        :raises ManagerError: the manager cannot be made.
        """
        node = self.add(manager, **given)
        node.start()
        return node

    def add(
        self,
        manager: Callable[..., Any] | str,
        /,
        *,
        host: str = HOST,
        topic: str | None = None,
        binary: str | None = None,
        worker: int | None = None,
        **options: Any,
    ) -> FleetNode[Any]:
        """Make a node, and do not start it; otherwise as :meth:`start`."""
        if self._stopped:
            raise StateError("the fleet", "stopped", "take another node")
        topic = topic or _topic_of(manager)
        binary = binary or f"novasvc-{topic}"
        Target(topic, host)  # an invalid name is an error here, and not in the start
        options.setdefault("runtime", self.runtime(host, worker))
        node: FleetNode[Any] = FleetNode(self, Service(host, binary, topic, manager, **options))
        self.nodes.append(node)
        return node

    def node(self, name: str) -> FleetNode[Any]:
        """Return the node of a topic, or of "topic.host".

        :raises UnknownNodeError: there is none, or the topic has several.
        """
        found = [node for node in self.nodes if name in {node.topic, f"{node.topic}.{node.host}"}]
        if len(found) == 1:
            return found[0]
        names = ", ".join(f"{node.topic}.{node.host}" for node in self.nodes) or "none"
        problem = f"{len(found)} nodes have it" if found else "no node has it"
        raise UnknownNodeError(name, problem, f"there are: {names}")

    def stop(self, *, check: bool = True) -> None:
        """Stop all nodes, the last first. Faults are removed before, and hosts reconnected.

        :param check: fail if a fault was injected that no message met.
        :raises UnusedFaultError: there is such a fault.
        :raises NotSettledError: a node does not stop.
        """
        if self._stopped:
            return
        self._stopped = True
        _running.discard(self)
        self._failures.stop()
        self.faults.clear()
        for host in list(self._network.disconnected):
            self.reconnect(host)
        try:
            for node in reversed(self.nodes):
                node.stop()
            for client in self._clients.values():
                self.run(client.close())
        finally:
            for transport in list(self._network.transports):
                transport.close()
        self.clock.advance(0)
        if check:
            self.faults.check_used()

    # -- what is seen ------------------------------------------------------------------------------

    def rows(self) -> Records:
        """Return the rows of the ``services`` table, as they are now."""
        return self.run(self.registry.list(None, None, None))

    def row(self, binary: str, host: str) -> ServiceRecord:
        """Return the row of a service.

        :raises ServiceNotFoundError: there is none.
        """
        found = [row for row in self.rows() if (row.binary, row.host) == (binary, host)]
        if not found:
            raise ServiceNotFoundError(f"{binary}@{host}")
        return found[0]

    def metric(self, name: str, /, **labels: str) -> float:
        """Return by how much a counter has grown, or the number of observations, since the fleet was made.

        Metrics belong to the process, and are cleared when a fleet is made while no other one runs.

        :param name: as in docs/metrics.md: "novasvc_rpc_server_calls_total".
        :param labels: only the samples with these labels; the sum of several.
        :raises KeyError: there is no such metric, or it has no such label.
        """
        return self._metrics.read(name, labels)

    def flush_failures(self, *kinds: type[BaseException]) -> list[BaseException]:
        """Return the errors of handlers of events and of periodic tasks so far, and forget them.

        An event whose payload a handler's annotations refuse is an InvalidArgumentsError. Nobody else sees these
        errors. The pytest fixture ``fleet`` fails a test that leaves some.

        :param kinds: only these classes.
        """
        return self._failures.flush(*kinds)

    def check_failures(self) -> None:
        """Check that no handler of an event and no periodic task has failed, except for what was flushed.

        What is due now is done first: events are delivered, and tasks with ``run_immediately`` run.

        :raises UnseenFailureError: one has; its cause is the exception.
        """
        self.advance(0)
        self._failures.check()

    def under_way(self) -> list[str]:
        """Return what is under way, one sentence each: messages, calls, tasks, events, starts and stops."""
        return work_under_way(self.nodes, self._clients, self._network)


def _topic_of(manager: Callable[..., Any] | str) -> str:
    """Return the topic that ``novasvc run`` gives a manager.

    :raises TypeError: it is no class, or it is a function without a name.
    """
    if not isinstance(manager, str) and not callable(manager):
        raise TypeError(f"cannot start {manager!r}; give the manager's class, and the arguments of its constructor")
    name = manager if isinstance(manager, str) else getattr(manager, "__name__", "<")
    if name.startswith("<"):
        raise TypeError(f"cannot tell the topic of {manager!r}; give topic=")
    return topic_of(name)
