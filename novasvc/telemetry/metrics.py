"""The metrics of this process. docs/metrics.md says what each is good for.

They belong to the process, as its flight recorder does: see Note [One recorder a process] in
:mod:`novasvc.telemetry.flight`. Names, methods and types of errors are labels; arguments, addresses and
users' data are not.
"""

import platform
import re
from collections.abc import Iterator

import attrs

from novasvc._version import __version__
from novasvc.telemetry.instruments import (
    MAX_LABEL_SETS,
    OTHER,
    SECONDS,
    Counter,
    Document,
    Gauge,
    Histogram,
    MetricFamily,
    counter,
    gauge,
    histogram,
)

AnyMetricFamily = MetricFamily[Counter] | MetricFamily[Gauge] | MetricFamily[Histogram]

build = gauge("novasvc_build_info", "Always 1; the labels are the running versions.", "version", "python")

# -- RPC ---------------------------------------------------------------------------------------------

served = counter(
    "novasvc_rpc_server_calls_total",
    "Calls and casts that ended, by outcome: done, failed, expected (raised an error that its author declared), "
    "timed_out, cancelled (by the caller).",
    "topic",
    "namespace",
    "method",
    "outcome",
    most=5 * (MAX_LABEL_SETS + 1),
)
served_errors = counter(
    "novasvc_rpc_server_errors_total", "Errors that methods raised, by type.", "topic", "namespace", "method", "error"
)
served_seconds = histogram(
    "novasvc_rpc_server_duration_seconds",
    "Duration of methods.",
    "topic",
    "namespace",
    "method",
)
served_now = gauge("novasvc_rpc_server_in_flight", "Methods that are running.", "topic", "namespace", "method")
deliveries = counter(
    "novasvc_rpc_server_unserved_total",
    "Messages that did not run, or whose reply was lost, by reason: refused, malformed, duplicates, expired, "
    "given_back, quarantined, unanswered, cancelled.",
    "topic",
    "fate",
    most=2 * MAX_LABEL_SETS,
)


MAX_HANDLERS = 8
"""Handlers of events, and methods with ``allow=``, that have label sets of their own: a process has a few of them."""

not_allowed = counter(
    "novasvc_rpc_not_allowed_total",
    "Calls refused because their caller may not call the method.",
    "topic",
    "method",
    most=MAX_HANDLERS,
)
events_emitted = counter(
    "novasvc_events_emitted_total",
    "Events that this process published, by outcome: sent, unrouted (nobody is subscribed), failed.",
    "outcome",
    most=MAX_HANDLERS,
)
events_handled = counter(
    "novasvc_events_handled_total",
    "Runs of handlers of events, by outcome: done, failed, invalid (the payload is not what the handler's annotations "
    "say); and events that were quarantined.",
    "topic",
    "method",
    "outcome",
    most=4 * (MAX_HANDLERS + 1),
)
events_seconds = histogram(
    "novasvc_events_duration_seconds", "Duration of handlers of events.", "topic", "method", most=MAX_HANDLERS
)


@attrs.frozen(eq=False)
class DeliveryMetrics:
    """The messages that the servers of one topic did not run, or whose replies were lost; looked up once.

    :param refused: requests refused before their method began: no such method, invalid arguments, redelivered.
    :param malformed: messages that could not be decoded, and were dropped.
    :param duplicates: deliveries of messages that were settled before.
    :param expired: calls dropped before their method began, because the caller had stopped waiting.
    :param given_back: requests requeued before their method began.
    :param quarantined: poison messages moved to the quarantine queue.
    :param unanswered: replies that could not be published.
    :param cancelled: requests dropped before their method began, because the caller had cancelled the call.
    """

    refused: Counter
    malformed: Counter
    duplicates: Counter
    expired: Counter
    given_back: Counter
    quarantined: Counter
    unanswered: Counter
    cancelled: Counter

    @classmethod
    def of(cls, topic: str) -> "DeliveryMetrics":
        """Return the metrics of a topic, created at zero so that alerts see the first increase."""
        return cls(**{field.name: deliveries.at(topic, field.name) for field in attrs.fields(cls)})


@attrs.frozen(eq=False)
class MethodMetrics:
    """The metrics of one method that a server runs, looked up once."""

    names: tuple[str, ...]
    done: Counter
    failed: Counter
    expected: Counter
    timed_out: Counter
    cancelled: Counter
    seconds: Histogram
    now: Gauge

    @classmethod
    def of(cls, topic: str, namespace: str | None, method: str) -> "MethodMetrics":
        """Return the metrics of a method."""
        names = served_now.bounded(topic, namespace or "", method)
        return cls(
            names,
            done=served.at(*names, "done"),
            failed=served.at(*names, "failed"),
            expected=served.at(*names, "expected"),
            timed_out=served.at(*names, "timed_out"),
            cancelled=served.at(*names, "cancelled"),
            seconds=served_seconds.at(*names),
            now=served_now.at(*names),
        )

    @classmethod
    def uncounted(cls) -> "MethodMetrics":
        """Return metrics that nobody sees, of a method whose calls are not counted."""
        names = (OTHER,) * 3
        return cls(names, Counter(), Counter(), Counter(), Counter(), Counter(), Histogram(SECONDS), Gauge())

    def raised(self, error: BaseException) -> None:
        """Count an error by its type."""
        served_errors.at(*self.names, type(error).__name__).value += 1


MAX_CALLED_METHODS = 80
"""Remote methods with label sets of their own. Bounded, because callers may use any name."""

called = counter(
    "novasvc_rpc_client_calls_total",
    "Calls from this process that ended, by outcome: replied, failed (an error came back), timed_out, unsent, "
    "unconfirmed (the connection was lost before the broker confirmed the message), cancelled (by "
    "the caller, or because the client was closed).",
    "topic",
    "method",
    "outcome",
    most=6 * (MAX_CALLED_METHODS + 1),
)
called_seconds = histogram(
    "novasvc_rpc_client_duration_seconds",
    "Time from a call to its reply, or until it was given up.",
    "topic",
    "method",
    most=MAX_CALLED_METHODS,
)
calls_in_flight = gauge("novasvc_rpc_client_in_flight", "Calls from this process that wait for a reply.")
resent = counter(
    "novasvc_rpc_client_resent_total",
    "Messages sent again because the connection was lost before the broker confirmed them.",
)
retried = counter(
    "novasvc_rpc_client_retries_total",
    "Attempts that were made because an earlier one of the same call failed; see novasvc.rpc.Retry.",
    "topic",
    "method",
    most=MAX_CALLED_METHODS,
)
casts = counter("novasvc_rpc_client_casts_total", "Casts and fanouts handed to the transport.", "topic", "method")


@attrs.frozen(eq=False)
class CallMetrics:
    """The metrics of the calls to one remote method, looked up once."""

    replied: Counter
    failed: Counter
    timed_out: Counter
    unsent: Counter
    unconfirmed: Counter
    cancelled: Counter
    seconds: Histogram

    def count(self, outcome: str) -> None:
        """Count an outcome, by its name."""
        counters = {name: getattr(self, name) for name in _OUTCOMES}
        counters[outcome].value += 1

    @classmethod
    def of(cls, topic: str, method: str) -> "CallMetrics":
        """Return the metrics of a remote method. Unknown names are bounded by MAX_CALLED_METHODS."""
        return _calls.get((topic, method)) or cls._add(topic, method)

    @classmethod
    def _add(cls, topic: str, method: str) -> "CallMetrics":
        names = called_seconds.bounded(topic, method)
        if names not in _calls:
            outcomes = {name: called.at(*names, name) for name in _OUTCOMES}
            _calls[names] = cls(**outcomes, seconds=called_seconds.at(*names))
        return _calls[names]


_OUTCOMES = ("replied", "failed", "timed_out", "unsent", "unconfirmed", "cancelled")
_calls: dict[tuple[str, ...], CallMetrics] = {}

# -- heartbeats and tasks ----------------------------------------------------------------------------

heartbeats = counter(
    "novasvc_heartbeats_total",
    "Heartbeats of the nodes of this process, by outcome: sent, failed, skipped (a liveness check failed).",
    "host",
    "binary",
    "outcome",
    most=3 * MAX_LABEL_SETS,
)
heartbeat_sent = gauge("novasvc_heartbeat_sent_timestamp_seconds", "Unix time of the last heartbeat.", "host", "binary")
verdicts = gauge(
    "novasvc_services",
    "Services of the fleet by binary and verdict (alive, suspect, down), in a process that observes the fleet.",
    "binary",
    "verdict",
    most=3 * MAX_LABEL_SETS,
)
outages = gauge(
    "novasvc_outages",
    "Outages that concern many services, in a process that observes the fleet: their services are suspect.",
)
fleet_read = gauge(
    "novasvc_fleet_read_timestamp_seconds",
    "Unix time of the read of the fleet that the numbers of services and outages are from.",
)
observer_calls = counter(
    "novasvc_observer_calls_total",
    "Calls of the methods of observers of the fleet that ended, by outcome: done, failed.",
    "observer",
    "outcome",
)
fenced = gauge(
    "novasvc_fenced",
    "1 while a node of this process is out of service: forced down, superseded, deleted, or silent for fence_after.",
    "host",
    "binary",
)
MAX_TASKS = 100
"""Tasks of a process with label sets of their own."""

tasks = counter(
    "novasvc_task_runs_total",
    "Runs of periodic tasks that ended, by outcome: done, failed, timed_out, cancelled.",
    "manager",
    "task",
    "outcome",
    most=4 * MAX_TASKS,
)
tasks_missed = counter(
    "novasvc_task_missed_total",
    "Due times missed because the task was still running, or the reactor was blocked.",
    "manager",
    "task",
    most=MAX_TASKS,
)
task_lateness = histogram(
    "novasvc_task_lateness_seconds", "Time from a due time to the start of its run.", "manager", "task", most=MAX_TASKS
)
task_seconds = histogram(
    "novasvc_task_duration_seconds",
    "Duration of runs.",
    "manager",
    "task",
    bounds=(0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0),
    most=MAX_TASKS,
)
MAX_LED_TASKS = 32
"""Tasks of a node or of a fleet with label sets of their own."""

tasks_led = gauge(
    "novasvc_task_led",
    "1 while this process leads a task that one process of the node or of the fleet runs, else 0.",
    "manager",
    "task",
    most=MAX_LED_TASKS,
)
task_leads = counter(
    "novasvc_task_lead_changes_total",
    "Changes of the lead of a task in this process, by outcome: gained, lost (its lease was not renewed in time).",
    "manager",
    "task",
    "outcome",
    most=2 * MAX_LED_TASKS,
)
tasks_now = gauge("novasvc_task_running", "1 while the task is running.", "manager", "task", most=MAX_TASKS)

# -- broker and database -----------------------------------------------------------------------------

broker_connected = gauge("novasvc_broker_connected", "Open connections to the broker.", "connection")
broker_blocked = gauge("novasvc_broker_blocked", "Connections that the broker has blocked.", "connection")
broker_lost = counter("novasvc_broker_connections_lost_total", "Lost connections to the broker.", "connection")
broker_reconnects = counter("novasvc_broker_reconnects_total", "Reconnections after a lost connection.", "connection")
database_wait = histogram("novasvc_database_wait_seconds", "Time that transactions waited for a thread.")
database_seconds = histogram("novasvc_database_duration_seconds", "Duration of transactions in their thread.")
database_beats = counter(
    "novasvc_database_heartbeats_total",
    "Heartbeats that this process wrote: its own and, in a conductor, those of others.",
)
database_beat_commits = counter("novasvc_database_heartbeat_commits_total", "Transactions that wrote heartbeats.")
database_waiting = gauge("novasvc_database_waiting", "Transactions that wait for a thread.")
database_errors = counter("novasvc_database_errors_total", "Failed transactions, by the type of the error.", "error")
threads_busy = gauge("novasvc_threads_busy", "Threads that run blocking functions.")
threads_waiting = gauge("novasvc_threads_waiting", "Blocking functions that wait for a thread.")

# -- HTTP --------------------------------------------------------------------------------------------

requests = counter(
    "novasvc_http_requests_total",
    "Requests that ended. The route is the server's template, not the path; the status is 1xx to 5xx, or gone if the "
    "client had disconnected.",
    "server",
    "route",
    "method",
    "status",
    most=3 * MAX_LABEL_SETS,  # a client that tries every method and route must not use up all label sets
)
request_seconds = histogram(
    "novasvc_http_duration_seconds", "Time from a request's head to the end of its response.", "server", "route"
)
requests_now = gauge("novasvc_http_in_flight", "Requests in progress.", "server")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def request_begins(server: str) -> None:
    """Count the start of a request.

    :param server: the server's name, one of a small fixed set.
    """
    requests_now.at(server).value += 1


def request_ends(server: str, route: str, method: str, status: int, seconds: float) -> None:
    """Count the end of a request, whatever its outcome. Called once for each start.

    :param route: a template such as "/v2.1/os-services/{id}", or a prefix; never the path. "" if no route matched.
    :param method: as the client sent it.
    :param status: 100 to 599; 0 if the client disconnected before the response.
    :param seconds: from the request's head to its end.
    """
    requests_now.at(server).value -= 1
    known = method if method in _METHODS else OTHER
    requests.at(server, route, known, f"{status // 100}xx" if status else "gone").value += 1
    request_seconds.at(server, route).observe(seconds)


# -- the supervisor ----------------------------------------------------------------------------------

worker_restarts = counter(
    "novasvc_worker_restarts_total",
    "Workers that exited unexpectedly and were replaced.",
    "server",
)
worker_hangs = counter("novasvc_worker_hangs_total", "Workers that were replaced because they hung.", "server")
worker_recycled = counter(
    "novasvc_worker_recycled_total",
    "Workers that were replaced because they were old, had served much or had taken much memory.",
    "server",
)
workers = gauge("novasvc_workers", "Workers, by state; see docs/workers.md.", "server", "state")
worker_up = gauge(
    "novasvc_worker_up", "1 if the worker reported its metrics for this scrape, else 0.", "server", "worker"
)
worker_memory = gauge(
    "novasvc_worker_private_memory_bytes",
    "Memory of the worker that no other process shares.",
    "server",
    "worker",
)

# -- the process -------------------------------------------------------------------------------------

lag_seconds = histogram(
    "novasvc_reactor_lag_seconds", "How late the reactor called a function that is due once a second."
)
last_lag = gauge("novasvc_reactor_last_lag_seconds", "The last value of novasvc_reactor_lag_seconds.")
resident = gauge("novasvc_process_resident_memory_bytes", "Resident memory of the process.")
cpu = counter("novasvc_process_cpu_seconds_total", "CPU time that the process has used.")
descriptors = gauge("novasvc_process_open_fds", "Open file descriptors.")
most_descriptors = gauge("novasvc_process_max_fds", "The limit of open file descriptors.")
started = gauge("novasvc_process_start_time_seconds", "Unix time of the start of the process.")
process_threads = gauge("novasvc_process_threads", "Threads of the process.")


def update_process_metrics() -> None:
    """Read this process's memory, CPU time and descriptors into its metrics. Called before each export."""
    import resource  # noqa: PLC0415 - only processes whose metrics are read need it

    import psutil  # noqa: PLC0415

    process = psutil.Process()
    with process.oneshot():
        resident.at().value = process.memory_info().rss
        times = process.cpu_times()
        cpu.at().value = times.user + times.system
        started.at().value = process.create_time()
        process_threads.at().value = process.num_threads()
        descriptors.at().value = process.num_fds()
    most_descriptors.at().value = resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# -- all of them -------------------------------------------------------------------------------------


_added: dict[str, AnyMetricFamily] = {}
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


def add(family: AnyMetricFamily) -> None:
    """Export a metric family of another package, such as a manager, with ours.

    :raises ValueError: the name is taken, or is not a valid name of a metric; or a label is given twice, is not a valid
        name of a label, or has a meaning already: "worker", which a supervisor adds, and "le" of histograms.
    """
    if not _NAME.fullmatch(family.name) or any(_names(family) & _names(known) for known in families()):
        raise ValueError(f"{family.name!r} is taken, or is not a valid name of a metric")
    taken = {"worker", "le"} if family.kind == "histogram" else {"worker"}
    for number, label in enumerate(family.labels):
        if label in {*taken, *family.labels[:number]} or not _LABEL.fullmatch(label):
            raise ValueError(f"the label {label!r} of {family.name!r} is taken, or is not a valid name of a label")
    _added[family.name] = family


def _names(family: AnyMetricFamily) -> set[str]:
    """Return a family's name, and the names under which Prometheus gets its samples."""
    if family.kind == "histogram":
        return {family.name, *(f"{family.name}{end}" for end in ("_bucket", "_sum", "_count"))}
    # The format adds "_total" to the name of a counter that lacks it.
    return {family.name, f"{family.name.removesuffix('_total')}_total"} if family.kind == "counter" else {family.name}


def families() -> Iterator[AnyMetricFamily]:
    """Yield all families, ours first."""
    for family in tuple(globals().values()):
        if isinstance(family, MetricFamily):
            yield family
    yield from _added.values()


def reset() -> None:
    """Clear all metrics. Called in a forked process: instruments looked up before the fork are not exported."""
    _calls.clear()
    for family in families():
        family.clear()


def documents() -> list[Document]:
    """Return all metrics of this process, without families that have no samples."""
    build.at(__version__, platform.python_version()).value = 1
    update_process_metrics()
    return [document for family in families() if (document := family.document())["samples"]]
