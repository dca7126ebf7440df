"""The RPC namespace "node", which every node serves: inspect the node, run a task, drain."""

import os
import signal
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from novasvc.context import RequestContext
from novasvc.errors import StateError
from novasvc.node.description import describe_history, describe_process
from novasvc.node.summary import summarize, summarize_history
from novasvc.node.troubles import find_troubles
from novasvc.periodic.errors import UnknownTaskError
from novasvc.rpc import expose
from novasvc.rpc.contracts.description import describe_errors, describe_methods
from novasvc.rpc.events.declare import describe_handlers
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

    @expose(namespace="node", version="1.0", expected=(SupervisionError,))
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
        # Not now: a draining node waits for its calls, and this is one of them.
        node.runtime.reactor.callLater(0, _end_process if own else self._stop)
        return {"draining": "process" if own else "service"}

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

    async def _ask(self, command: str, **arguments: Any) -> Any:
        runtime = self._node.runtime
        path = runtime.settings.control_socket
        return await inquiry.ask(runtime.reactor, path, command, timeout=_PATIENCE, **arguments)


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
