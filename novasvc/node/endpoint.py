"""The RPC namespace "node", which every node serves: inspect the node, run a task, drain, reload, restart."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from novasvc._version import __version__
from novasvc.context import RequestContext
from novasvc.errors import StateError
from novasvc.interfaces import IProcessControl
from novasvc.node.process_control import process_control
from novasvc.periodic.errors import UnknownTaskError
from novasvc.periodic.task import TaskStats
from novasvc.rpc import Server, expose
from novasvc.rpc.contracts.description import describe_errors, describe_methods
from novasvc.rpc.endpoint import Method
from novasvc.rpc.events.declare import describe_handlers
from novasvc.rpc.identity.allowed import OPERATORS
from novasvc.telemetry import flight
from novasvc.telemetry.metrics import MethodMetrics
from novasvc.telemetry.timestamps import iso_time
from novasvc.workers.control import client as inquiry
from novasvc.workers.errors import SupervisionError
from novasvc.workers.reports import truncated
from novasvc.workers.signals import is_taken

if TYPE_CHECKING:
    from novasvc.node.node import Node

_log = Logger()

EVENTS = 50
"""Events of the flight recorder that ``describe`` returns."""

CALLS = 50
"""Running calls that ``describe`` returns, the oldest ones."""

_PATIENCE = 1.5
"""Seconds for the supervisor to list its workers, or to begin a drain."""


@attrs.frozen(eq=False)
class NodeAPI:
    """The namespace "node", version 1.2. Of a node with workers, the worker that receives the call answers.

    :param node: the node that it describes.
    """

    _node: "Node"

    @expose(namespace="node", version="1.0", idempotent=True)
    async def describe(self, context: RequestContext) -> dict[str, Any]:
        """Describe the node's state, tasks, methods, workers, events and health.

        :return: {"host", "binary", "topic", "version": novasvc's, "service_version": int, "pid": int, "worker": int or
            None, "state", "incarnation": int or None, "fenced": why it takes in nothing, or None, "started_at": ISO
            8601 in UTC or None, "uptime": seconds or None, "in_flight": calls, "tasks": see :func:`task_row`,
            "methods": see :func:`method_rows`, "calls": the oldest CALLS as
            :meth:`novasvc.rpc.Server.running_calls` has them, without this one, "workers": as ISupervisor.workers has
            them, [] without a supervisor, "events": the last ones last, {"time": ISO 8601 in UTC, "kind", "text"},
            "health": see :data:`novasvc.node.health.Check`}.
        """
        node = self._node
        identity, clock, since, server = node.identity, node.runtime.reactor, node.running_since, node.server
        uptime = None if since is None else clock.seconds() - since
        # Concurrently, because the caller does not wait for long.
        asking = Deferred.fromCoroutine(self._workers())
        checks = await node.health.checks()
        workers = await asking
        return {
            "host": identity.host,
            "binary": identity.binary,
            "topic": node.topic,
            "version": __version__,
            "service_version": identity.version,
            "pid": os.getpid(),
            "worker": node.runtime.worker,
            "state": node.lifecycle.state,
            "incarnation": node.registration.number,
            "fenced": node.fence.reason,
            "started_at": None if uptime is None else iso_time(time.time() - uptime),
            "uptime": uptime,
            "in_flight": 0 if server is None else server.in_flight,
            "tasks": [task_row(stats, clock.seconds()) for stats in node.tasks.stats()],
            "methods": [] if server is None else method_rows(server.method_metrics),
            "calls": [] if server is None else _call_rows(server, context),
            "workers": workers,
            "events": [
                {"time": iso_time(event.time), "kind": event.kind, "text": event.text}
                for event in [event for event in flight.installed().events() if not _of_describe(event)][-EVENTS:]
            ],
            "health": checks,
        }

    @expose(namespace="node", version="1.1", idempotent=True)
    def interface(self, context: RequestContext) -> dict[str, Any]:
        """Describe what callers can use: methods with their types and errors, the events handled, the periodic tasks.

        :return: {"host", "binary", "topic", "methods": see
            :func:`novasvc.rpc.contracts.description.describe_methods`, "errors": see
            :func:`novasvc.rpc.contracts.description.describe_errors`, "events": see
            :func:`novasvc.rpc.events.declare.describe_handlers`, "tasks": [{"name", "spacing": seconds, "scope",
            "cron": line or None, "timezone": its time zone or None}]}.
        """
        node = self._node
        return {
            "host": node.identity.host,
            "binary": node.identity.binary,
            "topic": node.topic,
            "methods": describe_methods(node.endpoints),
            "errors": describe_errors(node.endpoints),
            "events": describe_handlers(node.event_handlers),
            "tasks": [
                {name: getattr(stats, name) for name in ("name", "spacing", "scope", "cron", "timezone")}
                for stats in node.tasks.stats()
            ],
        }

    @expose(namespace="node", version="1.0", expected=(StateError, UnknownTaskError))
    def run_task(self, context: RequestContext, name: str) -> dict[str, Any]:
        """Start a run of a periodic task now; the log and :meth:`describe` show its outcome.

        :param name: of the task.
        :return: {"started": true}.
        :raises UnknownTaskError: there is no task of this name.
        :raises StateError: the task is running, another node has its lease, or the node is stopping.
        """
        _log.info("running task {task} on request", task=name)
        self._node.tasks.begin(name)
        return {"started": True}

    @expose(namespace="node", version="1.2", idempotent=True)
    def twin_refused(self, context: RequestContext, machine: str, incarnation: int) -> None:
        """Note that another start of this service was refused, because this one is alive.

        :param machine: name of the machine of the other start.
        :param incarnation: number of this one.
        """
        if incarnation == self._node.registration.number:
            self._node.registration.note_refused(truncated(machine))

    @expose(namespace="node", version="1.2", idempotent=True)
    async def status(self, context: RequestContext) -> dict[str, Any]:
        """Tell whether the node works, and how its reloads went: the part of :meth:`describe` that operations need.

        :return: {"host", "binary", "topic", "version": novasvc's, "service_version": int, "pid": int, "worker": int or
            None, "state", "incarnation": int or None, "uptime": seconds or None, "problems": [the detail of each
            health check that fails], "reloads": see :meth:`novasvc.interfaces.ISupervisor.reload_report`, or None if
            its process cannot reload}.
        """
        node = self._node
        since = node.running_since
        asking = Deferred.fromCoroutine(self._reloads())
        checks = await node.health.checks()
        return {
            "host": node.identity.host,
            "binary": node.identity.binary,
            "topic": node.topic,
            "version": __version__,
            "service_version": node.identity.version,
            "pid": os.getpid(),
            "worker": node.runtime.worker,
            "state": node.lifecycle.state,
            "incarnation": _incarnation(node),
            "uptime": None if since is None else node.runtime.reactor.seconds() - since,
            "problems": [f"{check['name']}: {check['detail']}" for check in checks if not check["ready"]],
            "reloads": await asking,
        }

    @expose(namespace="node", version="1.2", expected=(SupervisionError, StateError), allow=OPERATORS)
    async def reload(self, context: RequestContext) -> dict[str, Any]:
        """Begin to reload: the supervisor replaces its workers, or the process starts its services anew.

        The call is answered at once; ``reloads`` of :meth:`status` tells the end.

        :return: {"reloading": "supervisor" or "process"}.
        :raises SupervisionError: the supervisor cannot be reached, or the reload cannot begin; its text says why.
        :raises StateError: the process is part of another application.
        """
        _log.warn("{node} was asked to reload", node=self._node.identity)
        if self._node.runtime.worker is not None:
            await self._ask("reload", wait=False)
            return {"reloading": "supervisor"}
        self._after_the_answer(self._control("reload").begin_reload)
        return {"reloading": "process"}

    @expose(namespace="node", version="1.2", expected=(SupervisionError, StateError), allow=OPERATORS)
    async def restart(self, context: RequestContext, incarnation: int | None = None) -> dict[str, Any]:
        """Drain, and run the same program again in place of the process, or of the supervisor with all its workers.

        The call is answered before.

        :param incarnation: restart only if this is the node's incarnation: a restart that is repeated, because its
            answer was lost, then does not happen twice.
        :return: {"restarting": "supervisor" or "process"}.
        :raises SupervisionError: the supervisor cannot be reached.
        :raises StateError: the node is another incarnation, or the process is part of another application.
        """
        node = self._node
        own = _incarnation(node)
        if incarnation is not None and incarnation != own:
            raise StateError(f"node {node.identity}", f"incarnation {own}", f"restart as incarnation {incarnation}")
        _log.warn("{node} was asked to restart", node=node.identity)
        if node.runtime.worker is not None:
            await self._ask("restart")
            return {"restarting": "supervisor"}
        self._after_the_answer(self._control("restart").restart)
        return {"restarting": "process"}

    @expose(namespace="node", version="1.0", expected=(SupervisionError,), allow=OPERATORS)
    async def drain(self, context: RequestContext) -> dict[str, Any]:
        """Drain and stop: the supervisor with all workers, or the process, or only this service.

        The call is answered before the end.

        :return: {"draining": "supervisor", "process" or "service"}. Only the service stops if the process is not
            novasvc's own, because a part of another application must not end that application.
        :raises SupervisionError: the supervisor cannot be reached.
        """
        node = self._node
        _log.warn("{node} was asked to drain", node=node.identity)
        if node.runtime.worker is not None:
            await self._ask("drain")
            return {"draining": "supervisor"}
        own = is_taken(signal.SIGTERM)
        self._after_the_answer(_end_process if own else self._stop)
        return {"draining": "process" if own else "service"}

    def _after_the_answer(self, function: Callable[[], object]) -> None:
        # Not now: a draining node waits for its calls, and this is one of them.
        self._node.runtime.reactor.callLater(0, function)

    def _control(self, wanted: str) -> IProcessControl:
        control = process_control.get(self._node.runtime.reactor)
        if control is None:
            raise StateError(f"node {self._node.identity}", "part of another application", f"{wanted} its process")
        return control

    def _stop(self) -> None:
        stopping = self._node.lifecycle.stop()
        stopping.addErrback(lambda failure: _log.failure("the node did not stop cleanly", failure))

    async def _workers(self) -> list[dict[str, Any]]:
        if self._node.runtime.worker is None:
            return []
        try:
            rows: list[dict[str, Any]] = await self._ask("workers")
        except SupervisionError as error:
            _log.warn("the supervisor does not list its workers: {error}", error=error)
            return []
        return rows

    async def _reloads(self) -> dict[str, Any] | None:
        if self._node.runtime.worker is None:
            control = process_control.get(self._node.runtime.reactor)
            return None if control is None else control.reload_report()
        try:
            told: dict[str, Any] = await self._ask("who")
        except SupervisionError as error:
            _log.warn("the supervisor does not tell of its reloads: {error}", error=error)
            return None
        return told.get("reloads")

    async def _ask(self, command: str, **arguments: Any) -> Any:
        runtime = self._node.runtime
        path = runtime.settings.control_socket
        return await inquiry.ask(runtime.reactor, path, command, timeout=_PATIENCE, **arguments)


def _incarnation(node: "Node") -> int | None:
    record = node.record
    return None if record is None or record.incarnation is None else record.incarnation.number


def task_row(task: TaskStats, now: float) -> dict[str, Any]:
    """Return the statistics of a periodic task as JSON.

    :param now: seconds on the runner's clock.
    :return: {"name", "spacing": seconds, "runs", "failures", "timeouts", "missed": due times, "running": bool,
        "last_lateness", "max_lateness", "last_duration": seconds or None, "next_due_in": seconds, "scope": "worker",
        "node" or "fleet", "cron": line or None, "timezone": its time zone or None, "leads": whether this process runs
        it, "fencing": number of its lease or None}.
    """
    return {
        "name": task.name,
        "spacing": task.spacing,
        "runs": task.runs,
        "failures": task.failures,
        "timeouts": task.timeouts,
        "missed": task.missed,
        "running": task.running,
        "last_lateness": task.last_lateness,
        "max_lateness": task.max_lateness,
        "last_duration": task.last_duration,
        "next_due_in": max(0.0, task.next_due - now),
        "scope": task.scope,
        "cron": task.cron,
        "timezone": task.timezone,
        "leads": task.leads,
        "fencing": task.fencing,
    }


def method_rows(metrics: Mapping[Method, MethodMetrics]) -> list[dict[str, Any]]:
    """Return the statistics of exposed methods since the start of this process, as JSON.

    :return: {"method", "namespace": str or None, "version", "calls": those that have ended, "errors", "in_flight",
        "mean", "p50", "p99": seconds or None, "bounds": [seconds], "counts": [int], of the histogram's buckets, one
        more than bounds} each.
    """
    rows = []
    for method, one in metrics.items():
        errors = one.failed.value + one.timed_out.value
        count = one.seconds.count
        rows.append(
            {
                "method": method.name,
                "namespace": method.exposure.namespace,
                "version": ".".join(map(str, method.version[:2])),
                "calls": int(one.done.value + one.expected.value + errors),
                "errors": int(errors),
                "in_flight": int(one.now.value),
                "mean": one.seconds.sum / count if count else None,
                "p50": one.seconds.quantile(0.5),
                "p99": one.seconds.quantile(0.99),
                "bounds": list(one.seconds.bounds),
                "counts": list(one.seconds.counts),
            }
        )
    return rows


def _call_rows(server: Server, context: RequestContext) -> list[dict[str, Any]]:
    calls = [
        {name: truncated(value) for name, value in call.items()}
        for call in server.running_calls()
        if (call["method"], call["request_id"]) != ("describe", context.request_id)
    ]
    return calls[:CALLS]


def _of_describe(event: flight.Event) -> bool:
    """Return whether an event is a call of ``describe``: repeated calls must not fill the list."""
    return event.kind == "call" and event.text.startswith("describe ")


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
