"""The figures that a process keeps of itself. docs/metrics.md says what each is good for.

They are the process's, as its flight recorder is: see Note [One recorder a process] in :mod:`novasvc.telemetry.flight`.
Names, methods and types of errors are labels; arguments, addresses and what users write are not.
"""

import platform
import re
from collections.abc import Iterator

import attrs

from novasvc._version import __version__
from novasvc.telemetry.instruments import (
    MOST,
    OTHER,
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

build = gauge("novasvc_build_info", "Always 1; the labels tell what runs.", "version", "python")

# -- RPC ---------------------------------------------------------------------------------------------

served = counter(
    "novasvc_rpc_server_calls_total",
    "Calls and casts that came to an end, by outcome: done, failed, expected (raised what its author declared), "
    "timed_out.",
    "topic",
    "namespace",
    "method",
    "outcome",
    most=4 * (MOST + 1),
)
served_errors = counter(
    "novasvc_rpc_server_errors_total", "What methods raised, by type.", "topic", "namespace", "method", "error"
)
served_seconds = histogram(
    "novasvc_rpc_server_duration_seconds",
    "Time from a method's beginning to its end.",
    "topic",
    "namespace",
    "method",
)
served_now = gauge("novasvc_rpc_server_in_flight", "Methods that run.", "topic", "namespace", "method")
deliveries = counter(
    "novasvc_rpc_server_unserved_total",
    "Messages that were not run, or whose reply was lost, by fate: refused, malformed, duplicates, expired, "
    "given_back, quarantined, unanswered.",
    "topic",
    "fate",
)


@attrs.frozen(eq=False)
class MethodMetrics:
    """What is counted of a method that a server runs."""

    names: tuple[str, ...]
    done: Counter
    failed: Counter
    expected: Counter
    timed_out: Counter
    seconds: Histogram
    now: Gauge

    @classmethod
    def of(cls, topic: str, namespace: str | None, method: str) -> "MethodMetrics":
        """Return them, looked up once and for all."""
        names = served_now.bounded(topic, namespace or "", method)
        return cls(
            names,
            done=served.at(*names, "done"),
            failed=served.at(*names, "failed"),
            expected=served.at(*names, "expected"),
            timed_out=served.at(*names, "timed_out"),
            seconds=served_seconds.at(*names),
            now=served_now.at(*names),
        )

    def raised(self, error: BaseException) -> None:
        """Count the type of an error."""
        served_errors.at(*self.names, type(error).__name__).value += 1


MOST_CALLED = 80
"""Methods of others that are counted each for itself: their names may be anything that somebody asked for."""

called = counter(
    "novasvc_rpc_client_calls_total",
    "Calls of this process that came to an end, by outcome: replied, failed (an error came back), timed_out, unsent, "
    "unconfirmed (the connection was lost before the broker confirmed the message), cancelled.",
    "topic",
    "method",
    "outcome",
    most=6 * (MOST_CALLED + 1),
)
called_seconds = histogram(
    "novasvc_rpc_client_duration_seconds",
    "Time from a call to its reply, or to the end of waiting.",
    "topic",
    "method",
    most=MOST_CALLED,
)
called_now = gauge("novasvc_rpc_client_in_flight", "Calls of this process that wait for a reply.")
resent = counter(
    "novasvc_rpc_client_resent_total",
    "Messages that were sent again because the connection was lost before the broker confirmed them.",
)
casts = counter(
    "novasvc_rpc_client_casts_total", "Casts and fanouts that were given to the transport.", "topic", "method"
)


@attrs.frozen(eq=False)
class CallMetrics:
    """What is counted of the calls of one method of others."""

    replied: Counter
    failed: Counter
    timed_out: Counter
    unsent: Counter
    unconfirmed: Counter
    cancelled: Counter
    seconds: Histogram

    @classmethod
    def of(cls, topic: str, method: str) -> "CallMetrics":
        """Return them; both names may be anything that somebody asked for."""
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
    "Heartbeats of the nodes of this process, by outcome: sent, failed, skipped (a proof of life is missing).",
    "host",
    "binary",
    "outcome",
    most=3 * MOST,
)
heartbeat_sent = gauge(
    "novasvc_heartbeat_sent_timestamp_seconds", "When the last heartbeat was sent, since the epoch.", "host", "binary"
)
tasks = counter(
    "novasvc_task_runs_total",
    "Runs of periodic tasks that came to an end, by outcome: done, failed, timed_out, cancelled.",
    "manager",
    "task",
    "outcome",
    most=4 * MOST,
)
tasks_missed = counter(
    "novasvc_task_missed_total",
    "Due times that passed while the task was running, or the reactor was not.",
    "manager",
    "task",
)
task_lateness = histogram(
    "novasvc_task_lateness_seconds", "Time from a due time to the run that it caused.", "manager", "task"
)
task_seconds = histogram(
    "novasvc_task_duration_seconds",
    "Time that runs took.",
    "manager",
    "task",
    bounds=(0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0),
)
tasks_now = gauge("novasvc_task_running", "1 while a run is under way.", "manager", "task")

# -- broker and database -----------------------------------------------------------------------------

broker_connected = gauge("novasvc_broker_connected", "Connections that are there.", "connection")
broker_blocked = gauge("novasvc_broker_blocked", "Connections on which the broker takes no messages.", "connection")
broker_lost = counter("novasvc_broker_connections_lost_total", "Connections that were lost.", "connection")
broker_reconnects = counter(
    "novasvc_broker_reconnects_total", "Times that a lost connection was there again.", "connection"
)
database_wait = histogram("novasvc_database_wait_seconds", "Time that transactions waited for a thread.")
database_seconds = histogram("novasvc_database_duration_seconds", "Time that transactions took in their thread.")
database_waiting = gauge("novasvc_database_waiting", "Transactions that wait for a thread.")
database_errors = counter("novasvc_database_errors_total", "Transactions that failed, by the error's type.", "error")
threads_busy = gauge("novasvc_threads_busy", "Threads that run functions that block.")
threads_waiting = gauge("novasvc_threads_waiting", "Functions that wait for such a thread.")

# -- HTTP --------------------------------------------------------------------------------------------

requests = counter(
    "novasvc_http_requests_total",
    "Requests that came to an end. A route is what the server calls it, not the path; the status is 1xx to 5xx, or "
    "gone if the client was.",
    "server",
    "route",
    "method",
    "status",
    most=3 * MOST,  # whoever asks for everything by every method is not to hide what comes after them
)
request_seconds = histogram(
    "novasvc_http_duration_seconds", "Time from a request's head to the end of its answer.", "server", "route"
)
requests_now = gauge("novasvc_http_in_flight", "Requests that are being answered.", "server")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def request_begins(server: str) -> None:
    """Count a request that has come.

    :param server: the server's name, one of a few.
    """
    requests_now.at(server).value += 1


def request_ends(server: str, route: str, method: str, status: int, seconds: float) -> None:
    """Count its end, however it ended; called once for each that began.

    :param route: a template, as "/v2.1/os-services/{id}", or a prefix; never the path itself. "" is none that is known.
    :param method: what the client sent.
    :param status: 100 to 599; 0 if there was no answer, because the client had gone.
    :param seconds: from its head to its end.
    """
    requests_now.at(server).value -= 1
    known = method if method in _METHODS else OTHER
    requests.at(server, route, known, f"{status // 100}xx" if status else "gone").value += 1
    request_seconds.at(server, route).observe(seconds)


# -- the supervisor ----------------------------------------------------------------------------------

worker_restarts = counter(
    "novasvc_worker_restarts_total",
    "Workers that ended although their supervisor had not told them to, and were replaced.",
    "server",
)
worker_hangs = counter("novasvc_worker_hangs_total", "Workers that were given up because they hung.", "server")
workers = gauge("novasvc_workers", "Workers by their state; see docs/workers.md.", "server", "state")
worker_up = gauge(
    "novasvc_worker_up", "1 if the worker has told its figures for this scrape, else 0.", "server", "worker"
)
worker_memory = gauge(
    "novasvc_worker_private_memory_bytes", "Memory that the worker shares with no process.", "server", "worker"
)

# -- the process -------------------------------------------------------------------------------------

lag_seconds = histogram(
    "novasvc_reactor_lag_seconds", "How much later than it was due the reactor called what is due each second."
)
last_lag = gauge(
    "novasvc_reactor_last_lag_seconds", "How much later than it was due the reactor did that the last time."
)
resident = gauge("novasvc_process_resident_memory_bytes", "Memory of the process.")
cpu = counter("novasvc_process_cpu_seconds_total", "Time of processors that the process has used.")
descriptors = gauge("novasvc_process_open_fds", "Descriptors that are open.")
most_descriptors = gauge("novasvc_process_max_fds", "Descriptors that may be open.")
started = gauge("novasvc_process_start_time_seconds", "When the process began, since the epoch.")
process_threads = gauge("novasvc_process_threads", "Threads of the process.")


def update_process_metrics() -> None:
    """Look at this process; done before its figures are told."""
    import resource  # noqa: PLC0415 - only who is asked for figures needs it

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


def add(family: AnyMetricFamily) -> None:
    """Have a family of somebody else's told with ours: a manager's, say.

    :raises ValueError: the name is taken, or is none.
    """
    if not _NAME.fullmatch(family.name) or any(family.name == known.name for known in families()):
        raise ValueError(f"{family.name!r} is no name for a metric, or is taken")
    _added[family.name] = family


def families() -> Iterator[AnyMetricFamily]:
    """Return all families, ours first."""
    for family in tuple(globals().values()):
        if isinstance(family, MetricFamily):
            yield family
    yield from _added.values()


def reset() -> None:
    """Begin anew, in a process that was forked from one that counted; who counts already goes on uncounted."""
    _calls.clear()
    for family in families():
        family.clear()


def documents() -> list[Document]:
    """Return all figures of this process, families without a sample left out."""
    build.at(__version__, platform.python_version()).value = 1
    update_process_metrics()
    return [document for family in families() if (document := family.document())["samples"]]
