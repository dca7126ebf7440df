"""The RPC namespace "node", which every node serves: inspect the node, run a task, drain, reload, restart."""

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from novasvc._version import __version__
from novasvc.context import RequestContext
from novasvc.errors import StateError
from novasvc.interfaces import IProcessControl
from novasvc.node.description import describe_history, describe_process
from novasvc.node.process_control import process_control
from novasvc.node.summary import summarize, summarize_history
from novasvc.node.troubles import find_troubles
from novasvc.periodic.errors import UnknownTaskError
from novasvc.rpc import expose
from novasvc.rpc.contracts.description import describe_errors, describe_methods
from novasvc.rpc.events.declare import describe_handlers
from novasvc.rpc.identity.allowed import OPERATORS
from novasvc.workers.control import client as inquiry
from novasvc.workers.errors import SupervisionError
from novasvc.workers.reports import truncated
from novasvc.workers.signals import is_taken

if TYPE_CHECKING:
    from novasvc.node.node import Node

_log = Logger()

_PATIENCE = 1.5
"""Seconds for the supervisor to list its workers, or to begin a drain."""


@attrs.frozen(eq=False)
class NodeAPI:
    """The namespace "node", version 1.3. Of a node with workers, the worker that receives the call answers, for all.

    :param node: the node that it describes.
    """

    _node: "Node"

    @expose(namespace="node", version="1.0", idempotent=True, counted=False)
    async def describe(self, context: RequestContext) -> dict[str, Any]:
        """Describe the node's state, tasks, methods, workers, errors, events and health.

        With workers, counters are those of all workers, and "worker" in a row of a list is the number of the worker
        that it is of; "version", "pid", "worker", "state", "started_at" are those of the worker that answers.

        :return: {"host", "binary", "topic", "version": novasvc's, "service_version": int, "pid": int, "worker": int or
            None, "state", "incarnation": int or None, "fenced": why it takes in nothing, or None, "started_at": ISO
            8601 in UTC or None, "uptime": seconds or None, "in_flight": calls, "tasks": see
            :func:`novasvc.node.description.task_row`, "methods": see
            :func:`novasvc.node.description.method_rows`, "calls": the oldest ones as
            :meth:`novasvc.rpc.Server.running_calls` has them, "workers": as ISupervisor.workers has them, [] without a
            supervisor, "silent": numbers of the workers that did not answer, and are not in the figures, "errors": see
            :mod:`novasvc.rpc.server.recent_errors`, "quarantined": messages that were quarantined in the last half
            hour, "events": see :func:`novasvc.node.recent_events.event_rows`, "health": see
            :data:`novasvc.node.health.Check`}.
        """
        # Concurrently, because the caller does not wait for long.
        asking = Deferred.fromCoroutine(self._workers("describe"))
        own = await describe_process(self._node)
        workers, others, silent = await asking
        return {**summarize(own, others), "workers": workers, "silent": silent}

    @expose(namespace="node", version="1.3", idempotent=True, counted=False)
    async def history(self, context: RequestContext) -> dict[str, Any]:
        """Return what the methods did in the last half hour, in all workers.

        :return: see :meth:`novasvc.node.history.MethodHistory.rows`.
        """
        _, others, _ = await self._workers("history")
        return summarize_history(describe_history(self._node), others)

    @expose(namespace="node", version="1.3", idempotent=True, counted=False)
    async def troubles(self, context: RequestContext) -> list[dict[str, Any]]:
        """Return what is wrong in the node although it sends heartbeats.

        :return: [{"title", "why", "since": ISO 8601 in UTC or None}], see :func:`novasvc.node.troubles.find_troubles`.
        """
        asking = Deferred.fromCoroutine(self._workers("describe"))
        own = await describe_process(self._node)
        workers, others, silent = await asking
        return find_troubles(summarize(own, others), workers, silent)

    @expose(namespace="node", version="1.1", idempotent=True, counted=False)
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
            "incarnation": node.registration.number,
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
        own = node.registration.number
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
        control = process_control.get(node.runtime.reactor)
        end = _end_process if control is None else control.drain
        self._after_the_answer(end if own else self._stop)
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

    async def _workers(self, what: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
        """Ask the supervisor about the workers.

        :return: its rows of them; the descriptions of this node by the other workers; and the numbers of workers that
            are ready, but do not answer. All are empty without a supervisor.
        """
        worker, identity = self._node.runtime.worker, self._node.identity
        if worker is None:
            return [], [], []
        try:
            rows, answers = await gatherResults(
                [Deferred.fromCoroutine(self._ask("workers")), Deferred.fromCoroutine(self._ask("inspect", what=what))],
                consumeErrors=True,
            )
        except FirstError as error:
            _log.warn("the supervisor does not describe its workers: {error}", error=error.subFailure.value)
            return [], [], []
        others, silent = [], []
        for answer in answers:
            if answer["number"] == worker:
                continue
            if answer["services"] is None and answer["state"] in {"ready", "hung"}:
                silent.append(answer["number"])
            others += [
                each
                for each in answer["services"] or ()
                if (each["host"], each["binary"]) == (identity.host, identity.binary)
            ]
        return rows, others, silent

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


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
