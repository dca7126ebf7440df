"""Several managers together in memory, on a clock that the test advances."""

import random
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar, cast, overload
from weakref import WeakSet

from twisted.python.failure import Failure

from novasvc import rpc
from novasvc.cli.run import topic_of
from novasvc.config import Settings
from novasvc.context import RequestContext
from novasvc.errors import StateError
from novasvc.node.manager_resources import make_client
from novasvc.node.runtime import Runtime
from novasvc.node.service import Service
from novasvc.registry.errors import ServiceNotFoundError
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.record import Records, ServiceRecord
from novasvc.rpc.errors import RPCTimeoutError
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from novasvc.testing.client import FleetClient
from novasvc.testing.errors import UnknownNodeError
from novasvc.testing.faults import Faults
from novasvc.testing.metrics import MetricsSince
from novasvc.testing.node import FleetNode
from novasvc.testing.runtime import make_runtime
from novasvc.testing.time import LIMIT, FleetTime
from novasvc.testing.traffic import SentMessage
from novasvc.testing.transport import FleetTransport, Network
from novasvc.testing.waiting import Answer
from novasvc.testing.work import work_under_way

_M = TypeVar("_M")

HOST = "host1"
"""The host of nodes for which the test names none."""

CALLER = "test"
"""The host of the test's own calls."""

_REQUESTS = "call", "cast", "fanout"


_running: "WeakSet[Fleet]" = WeakSet()
"""The fleets that are not stopped."""


class Fleet(FleetTime):
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
        super().__init__(limit)
        self.registry = MemoryRegistry(self.clock)
        self.nodes: list[FleetNode[Any]] = []
        self._random = random.Random(seed)  # noqa: S311 - a test's
        self._settings = {"periodic_fuzzy_delay": 0, **settings}
        self._network = Network(self.clock)
        self._runtimes: dict[tuple[str, int | None], Runtime] = {}
        self._transports: dict[str, FleetTransport] = {}
        self._clients: dict[str, rpc.Client] = {}
        if not _running:
            # A family keeps 128 label sets and counts further ones under "other", which many tests would reach.
            metrics.reset()
        _running.add(self)
        self._metrics = MetricsSince()
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
        topic = topic or topic_of(manager if isinstance(manager, str) else getattr(manager, "__name__", ""))
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

    def runtime(self, host: str = HOST, worker: int | None = None) -> Runtime:
        """Return the resources of a host's processes, for parts other than managers, such as a WSGIService."""
        known = self._runtimes.get((host, worker))
        if known is None:
            settings = Settings(**{"host": host, **self._settings})
            known = self._runtimes[host, worker] = make_runtime(
                settings,
                self.clock,
                lambda: FleetTransport(self._network, host, settings.control_exchange),
                self.registry,
                self._random,
                worker,
            )
        return known

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

    # -- calls and events --------------------------------------------------------------------------

    def call(self, target: str, method: str, /, **args: Any) -> Answer[Any]:
        """Call a method, as another service would; :meth:`client` gives more choice.

        :param target: the topic, or "topic.host".
        :param args: the method's arguments by name.
        :return: fires with the result, JSON values; fails as :meth:`novasvc.rpc.Client.call`. Nothing runs before it is
            awaited, or the time is advanced.
        """
        return cast("Answer[Any]", self._to(target).call(RequestContext(), method, **args))

    def cast(self, target: str, method: str, /, **args: Any) -> Answer[None]:
        """Send a request without a reply; otherwise as :meth:`call`."""
        return cast("Answer[None]", self._to(target).cast(RequestContext(), method, **args))

    def fanout(self, topic: str, method: str, /, **args: Any) -> Answer[None]:
        """Send a request to each host of a topic; otherwise as :meth:`cast`."""
        return cast("Answer[None]", self._to(topic).fanout(RequestContext(), method, **args))

    def client(self, host: str = CALLER, **prepared: Any) -> rpc.Client:
        """Return a client of a host, whose results can be awaited as those of :meth:`call`.

        :param host: the host that calls, for faults and for the list of messages.
        :param prepared: as for :meth:`novasvc.rpc.Client.prepare`: topic, server, timeout, version, ...
        """
        client = self._clients.get(host)
        if client is None:
            client = self._clients[host] = make_client(self.runtime(host), self._transport(host), lambda: self.registry)
        # It has all methods of a client. A subclass would not do: prepare() makes clients of its own class.
        return cast("rpc.Client", FleetClient(client.prepare(**prepared) if prepared else client, self.answer))

    def emit(self, event_type: str, payload: Any, *, priority: str = "info", host: str = CALLER) -> Answer[None]:
        """Publish a notification, as another service would.

        :param event_type: such as "order.placed".
        :param payload: JSON values.
        """
        notifier = rpc.Notifier(self._transport(host), publisher_id=f"{CALLER}.{host}")
        return self.answer(notifier.notify(priority, RequestContext(), event_type, payload))

    def messages(self, topic: str | None = None, method: str | None = None) -> list[SentMessage]:
        """Return the requests that were sent, the oldest first, with who received and answered them.

        :param topic: only those to topics that match this pattern.
        :param method: only those of methods that match this pattern.
        """
        return self._network.traffic.select(topic, method, _REQUESTS)

    def events(self, event_type: str | None = None) -> list[SentMessage]:
        """Return the notifications that were sent, the oldest first.

        :param event_type: only those of types that match this pattern, such as "order.*".
        """
        return self._network.traffic.select(None, event_type, ("event",))

    def _to(self, target: str) -> rpc.Client:
        # A topic may have dots, if a node serves it.
        topics = [node.topic for node in self.nodes if f"{target}.".startswith(f"{node.topic}.")]
        topic = max(topics, key=len, default=target.partition(".")[0])
        return self.client(topic=topic, server=target[len(topic) + 1 :] or None)

    def _transport(self, host: str) -> FleetTransport:
        transport = self._transports.get(host)
        if transport is None:
            exchange = self.runtime(host).settings.control_exchange
            transport = self._transports[host] = FleetTransport(self._network, host, exchange)
            self._network.transports.append(transport)
        return transport

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

    # -- faults ------------------------------------------------------------------------------------

    @property
    def faults(self) -> Faults:
        """The faults that are injected into messages; see :class:`novasvc.testing.Faults`."""
        return self._network.faults

    def disconnect(self, *hosts: str) -> None:
        """Take the connection to the broker from hosts.

        What they have not settled is delivered again, and what they send is buffered until :meth:`reconnect`.

        :raises UnknownNodeError: a host is not known to the fleet.
        """
        self._check_hosts(hosts)
        self._network.disconnected.update(hosts)
        for transport in self._on(hosts):
            transport.disconnect()

    def reconnect(self, *hosts: str) -> None:
        """Give hosts their connection back; those that have one keep it.

        :raises UnknownNodeError: a host is not known to the fleet.
        """
        self._check_hosts(hosts)
        lost = [host for host in hosts if host in self._network.disconnected]
        self._network.disconnected.difference_update(lost)
        for transport in self._on(lost):
            transport.reconnect()

    def _check_hosts(self, hosts: tuple[str, ...]) -> None:
        known = sorted({host for host, _ in self._runtimes})
        for host in hosts:
            if host not in known:
                raise UnknownNodeError(host, "the fleet has no such host", f"there are: {', '.join(known) or 'none'}")

    def _on(self, hosts: Iterable[str]) -> list[FleetTransport]:
        return [transport for transport in self._network.transports if transport.host in hosts]

    def under_way(self) -> list[str]:
        """Return what is under way, one sentence each: messages, calls, tasks, events, starts and stops."""
        return work_under_way(self.nodes, self._clients, self._network)

    def _explain(self, failure: Failure) -> Failure:
        """Add to the error of a call that timed out what became of its message."""
        error = failure.value
        if isinstance(error, RPCTimeoutError):
            topic = error.target.partition(".")[0]
            sent = [message for message in self.messages(None, error.method) if message.topic.startswith(topic)]
            if sent:
                error.add_note(f"In the fleet: {sent[-1]!r}. A manager must wait on self.attachments.reactor.")
        return failure
