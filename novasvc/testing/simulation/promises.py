"""What must hold in each run, whatever the faults: the promises that the ledger is checked against."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from novasvc.registry.liveness import is_up
from novasvc.registry.record import Records
from novasvc.testing.clock import describe_call
from novasvc.testing.simulation.ledger import Request, Run

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

_TESTING = "novasvc.testing."

_SLACK = 0.001
"""Seconds by which a clock's rounding may differ."""
_MOST_RUNS = 100
"""Runs of one idempotent request: about one in each second that its caller waits, at most."""
_PROMPT = 10.0
"""Seconds within which a call must be answered while nothing is wrong."""


def ends_by_deadline(simulation: "Simulation") -> Iterator[str]:
    """Each call ends by its timeout, on its caller's clock."""
    for request in simulation.ledger.requests.values():
        if request.ended is None or request.waited is None:
            yield f"{_name(request)} never ended"
        elif (
            request.timeout is not None
            and request.waited > request.timeout + _SLACK
            and not simulation.was_paused(request.process, request.ended)
        ):
            yield f"{_name(request)} ended after {request.waited:.3f} s; its timeout was {request.timeout:g} s"


def runs_at_most_once(simulation: "Simulation") -> Iterator[str]:
    """Each request runs a method that is not idempotent at most once, whatever ids its messages have.

    A method that calls itself within a request does so with other arguments.
    """
    runs: dict[tuple[str, str, str | None], list[Run]] = defaultdict(list)
    for run in simulation.ledger.runs:
        if run.kind == "serve" and run.key not in simulation.idempotent:
            runs[run.key, run.request, run.args].append(run)
    for (key, request, _), several in runs.items():
        if len(several) > 1:
            where = ", ".join(f"{run.process} at {run.began:.3f} s" for run in several)
            yield f"{key} of {request} ran {len(several)} times: {where}"


def runs_are_bounded(simulation: "Simulation") -> Iterator[str]:
    """No request runs again and again without a pause, whatever is refused or lost."""
    for request in simulation.ledger.requests.values():
        if len(request.runs) > _MOST_RUNS:
            yield f"{_name(request)} ran {len(request.runs)} times"


def answers_come_from_runs(simulation: "Simulation") -> Iterator[str]:
    """Each call that has a result has that of a run of its own."""
    for request in simulation.ledger.requests.values():
        if request.kind != "call" or request.outcome != "result":
            continue
        results = [run.result for run in request.runs if run.outcome == "result"]
        if not results:
            yield f"{_name(request)} has a result, and no run of it has"
        elif None not in results and request.result not in results:
            yield f"{_name(request)} has the result {request.result}, and its run had {results[0]}"


def nothing_is_lost(simulation: "Simulation") -> Iterator[str]:
    """Each cast to an idempotent method, and each event, runs to its end once the broker has it.

    If the broker has lost the queue, it may have lost what was in it.
    """
    topics = {topic for topic, _ in simulation.lost_queues}
    for request in simulation.ledger.requests.values():
        taken = request.kind != "call" and request.outcome == "result" and request.idempotent
        kept = request.kind == "event" or request.key.partition(".")[0] not in topics
        if taken and kept and not any(run.outcome == "result" for run in request.runs):
            yield f"{_name(request)} was taken by the broker, and never ran to its end"


def calls_succeed_in_calm(simulation: "Simulation") -> Iterator[str]:
    """Each call to a topic in a time without faults has a result; to stop and to start a node is no fault."""
    times = [(begin, end) for begin, end, fault in simulation.disturbances if fault.kind != "restart"]
    for request in simulation.ledger.requests.values():
        began, ended = request.began, request.ended
        to_any = request.kind == "call" and request.server is None
        if not to_any or ended is None or request.timeout is None or request.timeout < _PROMPT:
            continue
        if request.outcome != "result" and not any(begin <= ended and began <= end for begin, end in times):
            yield f"{_name(request)} ended with {request.outcome}, and nothing was wrong meanwhile"


def one_leader(simulation: "Simulation") -> Iterator[str]:
    """No two processes have the same fencing number of a task, nor run it at the same time, unless one was paused.

    The numbers grow with each new leader.
    """
    by_task: dict[str, list[Run]] = defaultdict(list)
    for run in simulation.ledger.runs:
        if run.fencing is not None:
            by_task[run.key].append(run)
    for task, runs in by_task.items():
        holders: dict[int | None, str] = {}
        for run in runs:
            holder = holders.setdefault(run.fencing, run.process)
            if holder != run.process:
                yield f"{run.process} and {holder} both had the fencing number {run.fencing} of {task}"
        before = highest = runs[0]
        for run in runs[1:]:
            ended = _end(simulation, before)
            if run.began < ended and not simulation.was_paused(before.process, run.began):
                until, since = f"until {ended:.3f} s", f"since {run.began:.3f} s"
                yield f"{task} ran at {before.process} {until}, and at {run.process} {since}"
            if (run.fencing or 0) < (highest.fencing or 0) and not simulation.was_paused(run.process, run.began):
                numbers = f"{run.fencing} at {run.process} after {highest.fencing} at {highest.process}"
                yield f"{task} had the fencing number {numbers}"
            before = max(before, run, key=partial(_end, simulation))
            highest = max(highest, run, key=lambda each: each.fencing or 0)


def _end(simulation: "Simulation", run: Run) -> float:
    """Return when a run ended; a process that died has ended it then."""
    if run.ended is not None:
        return run.ended
    died = simulation.process(run.process).ended_at
    return simulation.clock.seconds() if died is None else died


def nodes_run(simulation: "Simulation") -> Iterator[str]:
    """After the calm all nodes run, and others see them as up. Checked before they are stopped."""
    rows = {(row.binary, row.host): row for row in _rows(simulation)}
    for node in simulation.nodes:
        process = node.process
        state = None if process is None or process.service is None else process.service.state
        row = rows.get((node.binary, node.host))
        if process is None or process.ended or state != "running":
            yield f"{node} does not run: it is {state}"
        elif row is None:
            yield f"{node} runs, and has no row"
        elif process.is_fenced:
            yield f"{node} is fenced: {process.service and process.service.node.fence.reason}"
        elif not is_up(row, process.runtime.settings.service_down_time):
            yield f"{node} runs, and is down: its last heartbeat was {row.age:.1f} s ago"


def superseded_nodes_are_fenced(simulation: "Simulation") -> Iterator[str]:
    """Return the processes that do not know that another one has taken their place. Checked before they are stopped."""
    for node in simulation.nodes:
        for process in node.superseded:
            if not (process.ended or process.is_fenced):
                yield f"{process.name} is not fenced, and {node.process and node.process.name} has taken its place"


def work_ends(simulation: "Simulation") -> Iterator[str]:
    """Return the callers that go on when the simulation is over."""
    for caller in simulation.callers:
        if caller.works:
            yield f"caller {caller.host} goes on; write its loop as `while not caller.over`, and let calls end"


def nothing_is_left(simulation: "Simulation") -> Iterator[str]:
    """When all have stopped, no message waits, none is unsettled, and no timer of a process runs on."""
    for process in simulation.processes:
        if process.clock.ended:
            continue
        if not process.ended:
            yield f"{process.name} did not stop"
        unsettled = sum(transport.unsettled for transport in process.transports)
        if unsettled:
            yield f"{process.name} left {unsettled} deliveries unsettled"
        timers = sorted({name for name in map(describe_call, process.clock.waiting()) if _TESTING not in name})
        if timers:
            yield f"{process.name} left timers: {', '.join(timers)}"
    for name, messages in simulation.broker.waiting():
        if name not in simulation.lost_queues:
            topic, host = name
            yield f"{messages} messages wait in the queue of {topic if host is None else f'{topic}.{host}'}"


def _rows(simulation: "Simulation") -> Records:
    found: Records = []
    simulation.database.registry.list(None, None, None).addCallback(found.extend)
    return found


def _name(request: Request) -> str:
    where = request.key if request.server is None else f"{request.key} at {request.server}"
    return f"{request.kind} {where} of {request.process} ({request.request}, at {request.began:.3f} s)"


PROMISES: tuple[Callable[["Simulation"], Iterator[str]], ...] = (
    ends_by_deadline,
    runs_at_most_once,
    runs_are_bounded,
    answers_come_from_runs,
    nothing_is_lost,
    calls_succeed_in_calm,
    one_leader,
    work_ends,
    nothing_is_left,
)
"""What :func:`check` checks, in this order."""


def check(simulation: "Simulation") -> list[str]:
    """Return what was not kept in a run that is over, one sentence each."""
    broken = list(simulation.ledger.problems)
    for promise in (*PROMISES, *simulation.promises):
        broken += [f"{promise.__name__}: {problem}" for problem in promise(simulation)]
    return broken
