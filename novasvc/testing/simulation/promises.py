"""What must hold in each run, whatever the faults: the promises that the ledger is checked against."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError

from novasvc.context import RequestContext
from novasvc.errors import NovasvcError
from novasvc.registry.liveness import is_up
from novasvc.registry.record import Records
from novasvc.rpc.errors import (
    InvalidArgumentsError,
    NotAllowedError,
    RemoteError,
    ResultNotSerializableError,
    UnconfirmedError,
    UnsupportedVersionError,
)
from novasvc.rpc.events.notification import Notification
from novasvc.rpc.events.run import InvalidPayloadError
from novasvc.testing.clock import describe_call
from novasvc.testing.simulation.ledger import Request, Run
from novasvc.transport.buffering import longest_wait

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

_TESTING = "novasvc.testing."

_SLACK = 0.001
"""Seconds by which a clock's rounding may differ."""
_DRIFT = 0.03
"""The part of a time by which two clocks may differ."""
_LATE = 0.5
"""Seconds that a request has waited in a queue and that its server does not count."""
_MOST_RUNS = 100
"""Runs of one idempotent request: about one in each second that its caller waits, at most."""
_GIVE_UP = 2.0
"""Seconds before the timeout of a call in which a run that is cancelled by it may end."""
_OF_THE_AUTHOR = (
    CancelledError,
    InvalidArgumentsError,
    NotAllowedError,
    ResultNotSerializableError,
    UnsupportedVersionError,
)
"""Errors of a call that is wrong, that its caller has cancelled, or whose method is wrong."""
_SHORT = 15.0
"""Seconds that a fault may last which an idempotent call survives."""
_LONG = 45.0
"""Seconds for which such a call must wait: two sides notice a lost connection, and the method runs again."""
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


def runs_begin_in_time(simulation: "Simulation") -> Iterator[str]:
    """No call begins to run when its time is up."""
    for request in simulation.ledger.requests.values():
        if request.timeout is None:
            continue
        # The clocks of the caller, of the broker and of the server have measured the time.
        latest = request.began + request.timeout * (1 + 2 * _DRIFT) + _LATE
        for run in request.runs:
            if run.began > latest:
                after = f"{run.began - request.began:.3f} s; its timeout was {request.timeout:g} s"
                yield f"{_name(request)} began to run at {run.process} after {after}"


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

    An event does so once for each topic that handles it. A run that has raised is at its end, too; that of an event is
    repeated, until the event is quarantined. If the broker has lost the queue, it may have lost what was in it.
    """
    topics = {topic for topic, _ in simulation.lost_queues}
    for request in simulation.ledger.requests.values():
        if request.kind == "call" or request.outcome != "result" or not request.idempotent:
            continue
        if request.kind == "event":
            for topic, timeout in _handling(simulation, request):
                runs = [run for run in request.runs if run.key == f"{topic}.{request.key}"]
                if not _is_handled(simulation, request, runs, timeout):
                    yield f"{_name(request)} was taken by the broker, and {topic} never handled it to its end"
        elif request.key.partition(".")[0] not in topics:
            exposure = simulation.methods[request.key]
            if not any(run.outcome == "result" or _has_failed(run, exposure.timeout) for run in request.runs):
                yield f"{_name(request)} was taken by the broker, and never ran to its end"


def _handling(simulation: "Simulation", request: Request) -> Iterator[tuple[str, float]]:
    """Yield the topics all of whose nodes handle an event, and the handlers' shortest timeout.

    Only those are meant that had subscribed when the event was sent.
    """
    event = Notification(
        event_type=request.key, payload=None, publisher_id="", priority="info", context=RequestContext(), message_id="-"
    )
    for topic, starts in simulation.handlers.items():
        found = [[each.subscription.timeout for each in handlers if each.handles(event)] for _, handlers in starts]
        if all(found) and min(began for began, _ in starts) <= request.began:
            yield topic, min(map(min, found))


def _is_handled(simulation: "Simulation", request: Request, runs: list[Run], timeout: float) -> bool:
    if any(run.outcome == "result" for run in runs):
        return True
    failed = [run for run in runs if _has_failed(run, timeout)]
    died = [run for run in runs if run.outcome is None and simulation.process(run.process).ended_at is not None]
    # A payload that no handler accepts is quarantined at once, without a run.
    return len(failed) + len(died) >= simulation.event_attempts or any(
        request.request.encode() in body and InvalidPayloadError.__name__ in reason
        for body, reason in simulation.broker.queues.quarantine
    )


def _has_failed(run: Run, timeout: float | None) -> bool:
    """Return whether a run has raised, or was cancelled because its time was up; a shutdown cancels others."""
    if run.outcome != "CancelledError":
        return run.outcome not in {None, "result"}
    return timeout is not None and run.ended is not None and run.ended - run.began >= timeout * (1 - _DRIFT)


def calls_succeed_in_calm(simulation: "Simulation") -> Iterator[str]:
    """Each call to a topic in a time without faults has a result; to stop and to start a node is no fault."""
    times = [(begin, end) for begin, end, fault in simulation.disturbances if fault.kind != "restart"]
    for request in simulation.ledger.requests.values():
        began, ended = request.began, request.ended
        to_any = request.kind == "call" and request.server is None
        if not to_any or ended is None or request.timeout is None or request.timeout < _PROMPT:
            continue
        in_calm = not any(begin <= ended and began <= end for begin, end in times)
        if request.outcome != "result" and in_calm and not _is_refused_or_failed(simulation, request):
            yield f"{_name(request)} ended with {request.outcome}, and nothing was wrong meanwhile"


def _is_refused_or_failed(simulation: "Simulation", request: Request) -> bool:
    """Return whether the author of the test or of the manager is the reason for the error of a call."""
    exposure = simulation.methods.get(request.key)
    if exposure is None or issubclass(request.error or Exception, _OF_THE_AUTHOR):
        return True
    for run in request.runs:
        if _has_failed(run, exposure.timeout) and not _is_of_the_framework(run.error):
            return True
        if _end(simulation, run) >= (request.ended or 0.0) - _GIVE_UP:
            return True  # it takes longer than its caller waits
    return False


def _is_of_the_framework(error: type[BaseException] | None) -> bool:
    return error is not None and issubclass(error, NovasvcError) and not issubclass(error, RemoteError)


def methods_exist(simulation: "Simulation") -> Iterator[str]:
    """Return the requests for methods that no node has: a mistake of the test, which would test nothing."""
    for key in sorted({each.key for each in simulation.ledger.requests.values() if each.kind != "event"}):
        if key not in simulation.methods:
            yield f"no node exposes {key}; correct the name of the topic or of the method"


def errors_are_typed(simulation: "Simulation") -> Iterator[str]:
    """Each request that fails does so with an error of the framework, or with what its method has raised."""
    for request in simulation.ledger.requests.values():
        error = request.error
        if error is None or issubclass(error, NovasvcError | CancelledError):
            continue
        if all(run.outcome != request.outcome for run in request.runs):
            yield f"{_name(request)} ended with {request.outcome}, which no run of it has raised"


def idempotent_calls_survive(simulation: "Simulation") -> Iterator[str]:
    """Each idempotent call is sent again until its time is up, and outlives short cuts and deaths of others."""
    for request in simulation.ledger.requests.values():
        ended, timeout = request.ended, request.timeout
        if not (request.kind == "call" and request.idempotent and request.error and ended and timeout):
            continue
        faults = [fault for begin, end, fault in simulation.disturbances if begin <= ended and request.began <= end]
        if request.error is UnconfirmedError:
            refused = any(fault.kind in {"lost queue", "broker refusal"} for fault in faults)
            # Without a connection it is buffered for most of its time, so that its caller gets the reason.
            early = request.waited is not None and request.waited < longest_wait(timeout) - _SLACK
            if early and not refused and all(run.error is not UnconfirmedError for run in request.runs):
                yield f"{_name(request)} ended with UnconfirmedError after {request.waited:.3f} s of {timeout:g} s"
        elif request.server is None and timeout >= _LONG and not _is_refused_or_failed(simulation, request):
            places = {place for fault in faults for place in fault.places}
            minor = all(fault.kind in {"cut", "kill", "restart"} and fault.seconds <= _SHORT for fault in faults)
            hosts = {node.host for node in simulation.nodes if node.topic == request.key.partition(".")[0]}
            if minor and hosts - places and simulation.process(request.process).host not in places:
                yield f"{_name(request)} ended with {request.outcome}, though {min(hosts - places)} was there"


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
    runs_begin_in_time,
    answers_come_from_runs,
    nothing_is_lost,
    calls_succeed_in_calm,
    errors_are_typed,
    idempotent_calls_survive,
    one_leader,
    methods_exist,
    work_ends,
    nothing_is_left,
)
"""What :func:`check` checks, in this order."""


def check(simulation: "Simulation") -> list[str]:
    """Return what was not kept in a run that is over, one sentence each; a promise that raises is not kept."""
    broken = list(simulation.ledger.problems)
    for promise in (*PROMISES, *simulation.promises):
        name = getattr(promise, "__name__", None) or repr(promise)  # a partial has no name
        try:
            broken += [f"{name}: {problem}" for problem in promise(simulation)]
        except Exception as error:  # noqa: BLE001 - such as that of an assert: the seed is to be named
            broken.append(f"{name}: it raised {error!r}")
    return broken
