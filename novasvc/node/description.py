"""What one process knows of its node, as JSON; :mod:`novasvc.node.summary` adds up those of all workers."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from novasvc._version import __version__
from novasvc.node.history import NO_HISTORY, name_of
from novasvc.node.recent_events import event_rows
from novasvc.periodic.task import TaskStats
from novasvc.rpc.endpoint import Method
from novasvc.telemetry import flight
from novasvc.telemetry.metrics import MethodMetrics
from novasvc.telemetry.timestamps import iso_time
from novasvc.workers.reports import truncated

if TYPE_CHECKING:
    from novasvc.node.node import Node

CALLS = 50
"""Running calls that are told, the oldest ones."""


async def describe_process(node: "Node") -> dict[str, Any]:
    """Describe a node as far as this process knows it.

    :return: see :meth:`novasvc.node.endpoint.NodeAPI.describe`, without "workers" and "processes".
    """
    identity, clock, since, server = node.identity, node.runtime.reactor, node.running_since, node.server
    uptime = None if since is None else clock.seconds() - since
    checks = await node.health.checks()
    calls = [] if server is None else server.running_calls()
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
        "in_flight": len(calls),
        "tasks": [task_row(stats, clock.seconds()) for stats in node.tasks.stats()],
        "methods": [] if server is None else method_rows(server.method_metrics),
        "calls": [{name: truncated(value) for name, value in call.items()} for call in calls[:CALLS]],
        "errors": [] if server is None else server.recent_errors,
        "quarantined": 0 if node.history is None else node.history.quarantined,
        "events": event_rows(flight.installed().events()),
        "health": checks,
    }


def describe_history(node: "Node") -> dict[str, Any]:
    """Return what a node's methods did in this process.

    :return: {"host", "binary"} and what :meth:`novasvc.node.history.MethodHistory.rows` returns.
    """
    history = NO_HISTORY if node.history is None else node.history.rows()
    return {"host": node.identity.host, "binary": node.identity.binary, **history}


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

    Methods whose calls are not counted are left out.

    :return: {"method", "namespace": str or None, "version", "calls": those that have ended, "errors", "in_flight",
        "mean", "p50", "p99": seconds or None, "bounds": [seconds], "counts": [int], of the histogram's buckets, one
        more than bounds} each.
    """
    rows = []
    for method, one in metrics.items():
        if not method.exposure.counted:
            continue
        errors = one.failed.value + one.timed_out.value
        count = one.seconds.count
        rows.append(
            {
                **name_of(method),
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
