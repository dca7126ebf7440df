"""A simulation: nodes, callers, a broker and a database in one process, on one clock, from one seed."""

import gc
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import iscoroutinefunction
from traceback import format_exc
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from novasvc.config import Settings
from novasvc.errors import StateError
from novasvc.node.service import Service
from novasvc.rpc.events.declare import EventHandler
from novasvc.rpc.exposure import Exposure
from novasvc.rpc.target import Target
from novasvc.testing.simulation.broker import SimulatedBroker
from novasvc.testing.simulation.caller import Caller
from novasvc.testing.simulation.clock import ProcessClock, SimulationClock
from novasvc.testing.simulation.database import SimulatedDatabase
from novasvc.testing.simulation.faults import apply
from novasvc.testing.simulation.ledger import Ledger
from novasvc.testing.simulation.link import Weather
from novasvc.testing.simulation.node import SimulatedNode
from novasvc.testing.simulation.plan import KINDS, Fault, draw_plan
from novasvc.testing.simulation.process import SimulatedProcess
from novasvc.testing.simulation.promises import nodes_run, superseded_nodes_are_fenced
from novasvc.testing.simulation.randomness import Seed
from novasvc.testing.simulation.refusals import Refusals
from novasvc.testing.simulation.trace import Trace
from novasvc.testing.simulation.verdicts import VerdictWitness

WARM_UP = 15.0
"""Seconds for the nodes to start, before the first fault."""
_NODES_START = 5.0
"""Seconds until the callers begin: a cast to a topic that nobody has served yet is dropped, as over RabbitMQ."""
_STOP = 90.0
"""Seconds that the stop of a node may take, at most."""
_LAST = 5.0
"""Seconds for what is under way when the last process has ended."""
CALM = 60.0
"""Seconds without faults at the end: what was delayed arrives, and what was lost is found."""


class Simulation:
    """Nodes, callers, a broker and a database in one process, on one clock, from one seed.

    The nodes are real: their hooks, servers, clients, heartbeats, leases and tasks. The broker and the database are in
    memory, and the network between them and each process delays and loses what it carries. Each process has a clock
    of its own, which drifts. All that is random comes from the seed, so the same seed gives the same run.

    :param seed: a number.
    :param duration: seconds in which faults begin, after WARM_UP.
    :param faults: how many faults are drawn.
    :param kinds: of :data:`novasvc.testing.simulation.KINDS`; all by default.
    :param keep_trace: keep the lines of the trace.
    :param settings: fields of :class:`novasvc.config.Settings` for all processes.
    :ivar clock: the clock that all share.
    :ivar plan: the faults; change it before :meth:`run`.
    :ivar ledger: what was asked for, and what ran.
    :ivar trace: what happened.
    :ivar disturbances: for each fault: when it began, when its traces are over, and the fault.
    :ivar promises: what else is to be checked at the end: functions that take the simulation, and return what is wrong,
        one sentence each.
    :ivar over: the time of the faults is over.
    :ivar methods: the methods of all nodes, "stock.count", and their options.
    :ivar idempotent: those of them that are idempotent.
    :ivar handlers: of each topic, for each start of a node: when it was started, and its handlers of events.
    :ivar lost_queues: topic and host of the queues that the broker has forgotten.
    """

    def __init__(
        self,
        seed: int,
        *,
        duration: float = 60.0,
        faults: int = 4,
        kinds: Sequence[str] = tuple(KINDS),
        keep_trace: bool = True,
        **settings: Any,
    ) -> None:
        unknown = set(kinds) - set(KINDS)
        if unknown:
            raise ValueError(f"there is no fault {min(unknown)!r}; there are: {', '.join(KINDS)}")
        self.seed = Seed(seed)
        self.clock = SimulationClock()
        self.trace = Trace(self.clock.seconds, keep_trace)
        source = self.seed.source("simulation")
        self.weather = Weather(source.choice((0.001, 0.005, 0.05)))
        self.weather_of_clocks = source.choice((0.0, 0.001, 0.02))
        self.broker = SimulatedBroker(self.clock, self.trace)
        self.broker.queues.attach(self.clock)
        drift = 1 + source.uniform(-self.weather_of_clocks, self.weather_of_clocks)
        database_clock = ProcessClock(self.clock, 1_800_000_000.0, drift)
        self.database = SimulatedDatabase(self.clock, database_clock, self.seed.source("database"), self.trace)
        self.refusals = Refusals(self)
        self.database.begun = self.refusals.begun
        self.ledger = Ledger(self.clock.seconds, self.trace.note)
        self.nodes: list[SimulatedNode] = []
        self.callers: list[Caller] = []
        self.processes: list[SimulatedProcess] = []
        self.disturbances: list[tuple[float, float, Fault]] = []
        self.methods: dict[str, Exposure] = {}
        self.idempotent: set[str] = set()
        self.handlers: dict[str, list[tuple[float, Sequence[EventHandler]]]] = {}
        self.lost_queues: set[tuple[str, str | None]] = set()
        self.verdicts = VerdictWitness(self)
        self.promises: list[Callable[[Simulation], Iterable[str]]] = []
        self.over = False
        self.plan: list[Fault] | None = None
        self._duration, self._faults, self._kinds = duration, faults, kinds
        self._settings = {"periodic_fuzzy_delay": 0, **settings}
        self._ran = False
        checked = Settings(**self._settings)
        self.service_down_time, self.event_attempts = checked.service_down_time, checked.event_attempts

    # -- what takes part -------------------------------------------------------------------------

    def node(
        self,
        manager: Callable[..., Any] | str,
        /,
        *,
        host: str,
        topic: str,
        binary: str | None = None,
        **options: Any,
    ) -> SimulatedNode:
        """Add a node, which is started when the simulation runs.

        :param manager: the class, a factory, or "package.module:Class"; called for each start of the node.
        :param binary: by default "novasvc-" and the topic.
        :param options: for the manager's constructor, and for :class:`novasvc.node.service.Service`: db_allowed=False
            has it use a conductor, a node of :class:`novasvc.registry.conductor.Conductor` that was added before.
        :raises ValueError: the host has such a node.
        """
        self._check_new("node")
        if any((each.host, each.topic) == (host, topic) for each in self.nodes):
            raise ValueError(f"there is a node of {topic!r} on {host!r} already; give it another host")
        Target(topic, host)  # an invalid name is an error here, and not in the start
        node = SimulatedNode(self, manager, host, topic, binary or f"novasvc-{topic}", options)
        self.nodes.append(node)
        return node

    def caller(self, host: str, work: Callable[[Caller], Coroutine[Deferred[Any], Any, None]]) -> Caller:
        """Add a process that calls others; see :class:`Caller`.

        :raises TypeError: the work is no coroutine function.
        """
        self._check_new("caller")
        if not iscoroutinefunction(work):
            raise TypeError(f"work is {work!r}; give an `async def` that takes the caller")
        if any(each.host == host for each in self.callers):
            raise ValueError(f"there is a caller on {host!r} already; give it another host")
        caller = Caller(self, host, work)
        self.callers.append(caller)
        return caller

    def _check_new(self, what: str) -> None:
        if self._ran:
            raise StateError("the simulation", "over", f"take another {what}; add it before it runs")

    def add_process(self, host: str, name: str, lock: str | None = None) -> SimulatedProcess:
        """Make a process; called for each start of a node."""
        process = SimulatedProcess(self, host, name, self._settings, lock)
        self.processes.append(process)
        return process

    def know_methods(self, topic: str, service: Service) -> None:
        """Note which methods a node has, and which of them may run twice."""
        for method in service.node.endpoints:
            self.methods[f"{topic}.{method.name}"] = method.exposure
            if method.exposure.idempotent:
                self.idempotent.add(f"{topic}.{method.name}")

    def know_handlers(self, topic: str, service: Service) -> None:
        """Note which events a node that has started handles."""
        self.handlers.setdefault(topic, []).append((self.clock.rightNow, service.node.event_handlers))

    def not_started(self, node: SimulatedNode, error: BaseException | None) -> None:
        """Note that a node was not started."""
        self.ledger.problem("started", f"{node} was not started: {error}")

    def nodes_on(self, host: str) -> list[SimulatedNode]:
        """Return the nodes of a host."""
        return [node for node in self.nodes if node.host == host]

    def processes_on(self, host: str) -> list[SimulatedProcess]:
        """Return the processes of a host that live."""
        return [process for process in self.running() if process.host == host]

    def process(self, name: str) -> SimulatedProcess:
        """Return the process of a name."""
        return next(process for process in self.processes if process.name == name)

    def was_paused(self, name: str, moment: float) -> bool:
        """Return whether a process was paused at a moment, or had just been."""
        host = self.process(name).host
        return any(
            begin <= moment <= end
            for begin, end, fault in self.disturbances
            if fault.kind == "pause" and host in fault.places
        )

    def running(self) -> list[SimulatedProcess]:
        """Return the processes that live."""
        return [process for process in self.processes if not process.ended]

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run it to its end.

        :raises StateError: it ran before.
        """
        if self._ran:
            raise StateError("the simulation", "over", "run again; make another one with the same seed")
        self._ran = True
        hosts = list(dict.fromkeys([*(node.host for node in self.nodes), *(each.host for each in self.callers)]))
        if self.plan is None:
            end = WARM_UP + self._duration
            self.plan = draw_plan(self.seed.source("plan"), hosts, WARM_UP, end, self._faults, self._kinds)
        observer = cast("Any", self._logged)
        globalLogPublisher.addObserver(observer)
        try:
            with self.seed.ids(), _own_garbage():
                self._run()
        finally:
            globalLogPublisher.removeObserver(observer)

    def _run(self) -> None:
        assert self.plan is not None
        for node in self.nodes:
            node.start()
        for caller in self.callers:
            self.clock.callLater(_NODES_START, self._begin_work, caller)
        self.clock.callLater(WARM_UP, self.verdicts.look)
        for fault in self.plan:
            self.clock.callLater(fault.at, apply, self, fault)
        self._advance(WARM_UP + self._duration)
        self.over = True
        self.trace.note("calm", "", "no further fault, no further request")
        for node in self.nodes:
            node.start_again()
        longest = max([end for _, end, _ in self.disturbances], default=0.0)
        self._advance(max(self.clock.seconds(), longest) + CALM)
        for promise in (nodes_run, superseded_nodes_are_fenced):
            for text in promise(self):
                self.ledger.problem(promise.__name__, text)
        self.verdicts.stop()
        self._stop()

    def _stop(self) -> None:
        """Stop the nodes, in the reverse order: those that others need come first, and so stop last."""
        self.trace.note("stop", "", "all nodes")
        for node in reversed(self.nodes):
            for process in (*node.superseded, node.process):
                if process is not None and not process.ended:
                    process.stop()
                    self._advance(self.clock.seconds() + _STOP, partial(_has_ended, process))
        for caller in self.callers:
            caller.process.close()
        self._advance(self.clock.seconds() + _LAST)

    def _advance(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Advance the time, until something is done if that comes first."""
        clock = self.clock
        while not done():
            try:
                while clock.step(until):
                    if done():
                        return
            except Exception:  # noqa: BLE001 - a reactor logs what a call raises, and goes on
                self.ledger.problem("reactor", f"a call raised: {format_exc()}")
            else:
                clock.rightNow = max(clock.rightNow, until)
                return

    def _begin_work(self, caller: Caller) -> None:
        caller.start().addErrback(self._caller_failed, caller)

    def _caller_failed(self, failure: Failure, caller: Caller) -> None:
        self.ledger.problem("work", f"that of caller {caller.host} raised: {failure.getTraceback()}")

    def _logged(self, event: LogEvent) -> None:
        """Take what a node logs as a bug of its own for a problem: Deferreds whose errors nobody handles."""
        if event["log_level"] is LogLevel.critical and "log_failure" in event:
            self.ledger.problem("logged", event["log_failure"].getTraceback())


# Note [Garbage of a simulation]
#
# The error of a Deferred that nobody handles is logged when the Deferred is collected. If it is part of a reference
# cycle, the garbage collector decides when that is: it depends on what else the process has allocated. So what was
# there before is exempt, and what the run leaves is collected once, at its end: the error is that of this seed, at the
# same time in each run of it. That takes less time, too, than to collect again and again.


@contextmanager
def _own_garbage() -> Iterator[None]:
    """Collect the garbage of a run at its end, and no other; see Note [Garbage of a simulation]."""
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _has_ended(process: SimulatedProcess) -> bool:
    return process.ended
