"""Nodes that are told to drain, restart and reload, on a Clock: real messages and a real registry, no processes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock, LoopingCall
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import StateError
from novasvc.fleet.calls import NodeCalls
from novasvc.fleet.plan import BatchSize, Limits, make_nodes
from novasvc.fleet.run import OperationRun
from novasvc.registry.incarnation import Incarnation, ServiceStart
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.operation import Operation, OperationNode, OperationRequest
from novasvc.registry.record import ServiceRecord
from novasvc.rpc import BaseAPI, Client, Endpoints, Server
from novasvc.rpc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from novasvc.workers.errors import ReloadError

NOW = datetime(2026, 1, 1)  # noqa: DTZ001 - the table's form
TOPIC = "agent"


def make_record(number: int, **given: Any) -> ServiceRecord:
    """Return a row."""
    values: dict[str, Any] = {
        "id": number,
        "uuid": f"00000000-0000-4000-8000-{number:012}",
        "host": f"h{number}",
        "binary": "novasvc-agent",
        "topic": TOPIC,
        "disabled": False,
        "disabled_reason": None,
        "forced_down": False,
        "report_count": 1,
        "created_at": NOW,
        "updated_at": NOW,
        "last_seen_up": NOW,
        "version": 0,
        "age": 1.0,
    }
    return ServiceRecord(**{**values, **given})


def make_incarnation(**given: Any) -> Incarnation:
    """Return the incarnation of a service that is ready."""
    values: dict[str, Any] = {
        "number": 1,
        "state": "ready",
        "since": NOW,
        "until": None,
        "reason": None,
        "calls": 0,
        "machine": "m1",
        "pid": 100,
        "started_at": NOW,
        "zone": None,
        "tags": (),
    }
    return Incarnation(**{**values, **given})


class NodeProcess:
    """A process with one node: it takes commands, and does after a while what they say.

    :param host: its host.
    :param pid: its number; two nodes with one number are one process, which the first restarts and reloads.
    :param middleware: of its server.
    :ivar told: the commands that it got.
    :ivar trouble: what it does in place of a restart: "" for a restart that succeeds, "fails" for a start that fails,
        "vanishes" for a process that never comes back, "ignores" for one that goes on as it was, "is sick" for a node
        that is ready, but not healthy.
    :ivar reload_time: seconds that its reloads take.
    :ivar reload_problem: why its reloads fail.
    """

    def __init__(
        self,
        rig: "FleetRig",
        host: str,
        pid: int,
        *,
        legacy: bool = False,
        middleware: Sequence[Any] = (),
        **start: Any,
    ) -> None:
        self.rig, self.host, self.pid, self.legacy, self.middleware = rig, host, pid, legacy, middleware
        self.machine = start.pop("machine", f"machine of {host}")
        self.started_as = start
        self.told: list[str] = []
        self.trouble = ""
        self.reload_time = 2.0
        self.reload_problem: str | None = None
        self.reloads: dict[str, Any] = {"ended": 0, "under_way": False, "problem": None}
        self.state = "stopped"
        self.record: ServiceRecord
        self.since = 0.0
        self._server: Server | None = None
        self._starts = 0
        self._beating = LoopingCall(self._beat)
        self._beating.clock = rig.clock

    def start(self) -> None:
        """Begin an incarnation, and serve, as soon as there is a database."""
        if self.rig.registry.outage is not None:
            self.rig.clock.callLater(1, self.start)
            return
        self._starts += 1
        if self.legacy:
            self.record = self.rig.result(self.rig.registry.register(self.host, "novasvc-agent", TOPIC, 0))
        else:
            start = ServiceStart(
                host=self.host,
                binary="novasvc-agent",
                topic=TOPIC,
                version=0,
                owner=f"{self.host}.{self._starts}",
                machine=self.machine,
                pid=self.pid,
                **self.started_as,
            )
            self.record = self.rig.result(self.rig.registry.begin(start))
        if self.trouble == "fails":
            self._enter("failed", reason="init_host: no disk")
            return
        self.state, self.since = "running", self.rig.clock.seconds()
        self._server = self.rig.serve(self)
        self._enter("ready")
        self._beating.start(10)

    def _beat(self) -> Deferred[None]:
        beating = self.rig.registry.beat(self.record.id, None if self.legacy else self.number)
        return beating.addErrback(lambda _: None)

    @property
    def number(self) -> int:
        """Its incarnation."""
        assert self.record.incarnation is not None
        return self.record.incarnation.number

    def _enter(self, state: Any, **given: Any) -> None:
        if not self.legacy:
            entering = self.rig.registry.enter(self.record.id, self.number, state, **given)
            self.rig.result(entering.addErrback(lambda _: None))  # the row may have been deleted

    def stop(self, *, cleanly: bool = True) -> None:
        """Serve no more."""
        if self._beating.running:
            self._beating.stop()
        if self._server is not None:
            server, self._server = self._server, None
            self.rig.result(server.close())
        self.state = "stopped"
        if cleanly:
            self._enter("stopped")

    def drain(self, again: bool = False) -> None:  # noqa: FBT002
        """Drain for two seconds, then stop; and start again a second later."""
        self.state = "draining"
        self._enter("draining", until=60.0, calls=1)
        self.rig.clock.callLater(2, self._end, again)

    def _end(self, again: bool) -> None:
        if self.rig.registry.outage is not None:
            self.rig.clock.callLater(1, self._end, again)
            return
        self.stop(cleanly=self.trouble != "vanishes")
        if again and self.trouble != "vanishes":
            self.rig.clock.callLater(1, self.start)

    def reload(self) -> None:
        """Reload for a while."""
        self.reloads.update(under_way=True, problem=None)
        self.rig.clock.callLater(self.reload_time, self._reloaded)

    def _reloaded(self) -> None:
        self.reloads.update(ended=self.reloads["ended"] + 1, under_way=False, problem=self.reload_problem)

    @property
    def together(self) -> list["NodeProcess"]:
        """The nodes of the same process, with this one."""
        return [each for each in self.rig.processes if (each.machine, each.pid) == (self.machine, self.pid)]


class StandInAPI:
    """The namespace "node" of a process."""

    def __init__(self, process: NodeProcess) -> None:
        self._process = process

    @rpc.expose(namespace="node", version="1.2")
    def status(self, context: RequestContext) -> dict[str, Any]:
        process = self._process
        return {
            "state": process.state,
            "uptime": process.rig.clock.seconds() - process.since,
            "problems": ["broker: refused"] if process.trouble == "is sick" else [],
            "reloads": process.reloads,
        }

    @rpc.expose(namespace="node", version="1.0")
    def drain(self, context: RequestContext) -> None:
        self._take("drain", self._process.drain)

    @rpc.expose(namespace="node", version="1.2", expected=(StateError,))
    def restart(self, context: RequestContext, incarnation: int | None = None) -> None:
        process = self._process
        if incarnation is not None and incarnation != process.number:
            raise StateError(process.host, f"incarnation {process.number}", f"restart as incarnation {incarnation}")
        self._take("restart", lambda: None if process.trouble == "ignores" else self._restart())

    @rpc.expose(namespace="node", version="1.2", expected=(ReloadError,))
    def reload(self, context: RequestContext) -> None:
        if self._process.trouble == "refuses":
            raise ReloadError("workers = -1 is not a whole number")
        if self._process.reloads["under_way"]:
            raise ReloadError("another reload is under way")
        self._take("reload", lambda: [process.reload() for process in self._process.together])

    def _restart(self) -> None:
        for process in self._process.together:
            process.drain(again=True)

    def _take(self, command: str, act: Any) -> None:
        self._process.told.append(command)
        # After the answer, as a node does.
        self._process.rig.clock.callLater(0, act)


class Watching:
    """Remembers what an operation shows."""

    def __init__(self) -> None:
        self.waves: list[list[str]] = []
        self.ended: list[tuple[str, str, str | None]] = []

    def changed(self, node: OperationNode) -> None:
        if node.state != "running":
            self.ended.append((node.name.partition("@")[2], node.state, node.detail))

    def wave(self, number: int, nodes: Sequence[OperationNode]) -> None:
        self.waves.append([node.name.partition("@")[2] for node in nodes])


class FleetRig(SynchronousTestCase):
    """A registry, a broker and processes on one Clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = MemoryRegistry(self.clock)
        self.store = self.registry.operations
        self.broker = MemoryBroker()
        self.processes: list[NodeProcess] = []
        self.client = Client(self.connect(), clock=self.clock, mandatory=True)
        self.calls = NodeCalls(self.client, self.clock)
        self.watching = Watching()

    def connect(self) -> MemoryTransport:
        transport = MemoryTransport(self.broker, clock=self.clock)
        self.result(transport.open())
        return transport

    def serve(self, process: NodeProcess) -> Server:
        server = Server(
            self.connect(),
            Target(TOPIC, process.host),
            Endpoints(BaseAPI(TOPIC), StandInAPI(process)),
            clock=self.clock,
            concurrency=64,
            run_blocking=maybeDeferred,
            middleware=process.middleware,
        )
        self.result(server.start())
        return server

    def result(self, doing: Deferred[Any]) -> Any:
        """Return the result of what ends at once."""
        self.clock.advance(0)
        return self.successResultOf(doing)

    def add(self, host: str, **given: Any) -> NodeProcess:
        """Start a process."""
        process = NodeProcess(self, host, given.pop("pid", 100 + len(self.processes)), **given)
        self.processes.append(process)
        process.start()
        return process

    def records(self) -> list[ServiceRecord]:
        found: list[ServiceRecord] = self.result(self.registry.list(None, None, None))
        return found

    def begin(self, kind: str, *, owner: str = "a", options: Any = None, **limits: Any) -> OperationRun:
        """Store an operation for all processes; its run has not begun."""
        given = Limits(**{"batch": BatchSize(2), "canary": 1, "timeout": 60.0, **limits})
        request = OperationRequest(
            kind=kind,
            options={**given.to_json(), **(options or {})},
            owner=owner,
            operator=f"{owner}@box",
            nodes=make_nodes(self.records(), given),
        )
        return self.make_run(self.result(self.store.begin(request)))

    def make_run(self, operation: Operation) -> OperationRun:
        return OperationRun(
            operation=operation,
            nodes=self.result(self.store.nodes(operation.id)),
            registry=self.registry,
            store=self.store,
            calls=None if operation.kind in {"enable", "disable"} else self.calls,
            clock=self.clock,
            service_down_time=60.0,
            observer=self.watching,
        )

    def run_on(self, running: Deferred[Any], limit: float = 3600.0, step: float = 0.1) -> float:
        """Let time pass until it has ended, or the limit; return the seconds."""
        began = self.clock.seconds()
        while not running.called and self.clock.seconds() - began < limit:
            self.clock.advance(step)
        return self.clock.seconds() - began

    def finish(self, run: OperationRun) -> Operation:
        """Run an operation to its end."""
        running = Deferred.fromCoroutine(run.run())
        self.run_on(running)
        ended: Operation = self.successResultOf(running)
        return ended

    def told(self) -> list[list[str]]:
        return [process.told for process in self.processes]
