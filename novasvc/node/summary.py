"""Adds up what the workers of a node say of it: figures are those of the whole node, whoever answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from novasvc.node.description import CALLS
from novasvc.node.recent_events import MOST as EVENTS
from novasvc.rpc.server.recent_errors import MOST as ERRORS
from novasvc.telemetry.instruments import Histogram

Row = dict[str, Any]


def summarize(own: Row, others: Sequence[Row]) -> Row:
    """Return the description of a node with several workers.

    :param own: the description by the process that answers.
    :param others: those by the other workers.
    :return: like ``own``: counters and calls of all; lists with "worker", the number of the worker, in each row.
    """
    if not others:
        return own
    all_ = sorted([own, *others], key=lambda row: row["worker"] or 0)
    return {
        **own,
        "uptime": max((row["uptime"] for row in all_ if row["uptime"] is not None), default=None),
        "in_flight": sum(row["in_flight"] for row in all_),
        "quarantined": sum(row["quarantined"] for row in all_),
        "tasks": _merged((row["tasks"] for row in all_), ("name",), _add_task),
        "methods": _merged((row["methods"] for row in all_), ("namespace", "method", "version"), _add_method),
        "calls": sorted(_with_worker(all_, "calls"), key=lambda call: -call["seconds"])[:CALLS],
        "errors": _latest(all_, "errors", ERRORS),
        "events": _latest(all_, "events", EVENTS),
        "health": _merged((_checks(row) for row in all_), ("name",), _add_check),
    }


def summarize_history(own: Row, others: Sequence[Row]) -> Row:
    """Return the history of a node with several workers: the figures of the same intervals added.

    :param own: see :meth:`novasvc.node.history.MethodHistory.rows`; ``others`` likewise.
    """
    all_ = [own, *others]
    newest = max(row["newest"] for row in all_)
    first = min(row["newest"] - row["length"] for row in all_)
    length = min(newest - first, max((row["length"] for row in all_), default=0) + 1)
    methods: dict[tuple[Any, ...], Row] = {}
    for row in all_:
        begin = length - (newest - row["newest"]) - row["length"]
        for method in row["methods"]:
            key = method["namespace"], method["method"], method["version"]
            names = {name: method[name] for name in ("method", "namespace", "version")}
            sums = methods.setdefault(
                key, {**names, "calls": [0] * length, "errors": [0] * length, "seconds": [0.0] * length}
            )
            for figure in ("calls", "errors", "seconds"):
                for place, value in enumerate(method[figure], begin):
                    if 0 <= place < length:
                        sums[figure][place] += value
    return {"interval": own["interval"], "newest": newest, "length": length, "methods": [*methods.values()]}


def _merged(
    tables: Iterable[Sequence[Row]], names: tuple[str, ...], add: Callable[[Row, Mapping[str, Any]], None]
) -> list[Row]:
    found: dict[tuple[Any, ...], Row] = {}
    for table in tables:
        for row in table:
            key = tuple(row[name] for name in names)
            if key in found:
                add(found[key], row)
            else:
                found[key] = dict(row)
    return [*found.values()]


def _add_task(task: Row, other: Mapping[str, Any]) -> None:
    for name in ("runs", "failures", "timeouts", "missed"):
        task[name] += other[name]
    task["running"] = task["running"] or other["running"]
    for name in ("last_lateness", "max_lateness", "last_duration"):
        task[name] = _most(task[name], other[name])
    # A task with the scope "node" or "fleet" is due where it is led.
    if other["leads"]:
        task["next_due_in"] = min(task["next_due_in"], other["next_due_in"]) if task["leads"] else other["next_due_in"]
        task |= {"leads": True, "fencing": other["fencing"] if task["fencing"] is None else task["fencing"]}


def _most(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _add_method(method: Row, other: Mapping[str, Any]) -> None:
    for name in ("calls", "errors", "in_flight"):
        method[name] += other[name]
    if method["bounds"] != other["bounds"]:
        return  # a worker of another version: the durations of the first one are shown
    both = Histogram(method["bounds"])
    both.counts = [one + another for one, another in zip(method["counts"], other["counts"], strict=True)]
    both.sum = sum((row["mean"] or 0.0) * sum(row["counts"]) for row in (method, other))
    method |= {
        "counts": both.counts,
        "mean": both.sum / both.count if both.count else None,
        "p50": both.quantile(0.5),
        "p99": both.quantile(0.99),
    }


def _checks(row: Row) -> list[Row]:
    """Return the health checks of a worker; one that is not ready names the worker."""
    return [
        check if check["ready"] else {**check, "detail": f"worker {row['worker']}: {check['detail']}"}
        for check in row["health"]
    ]


def _add_check(check: Row, other: Mapping[str, Any]) -> None:
    if check["ready"] and not other["ready"]:
        check |= other


def _with_worker(all_: Iterable[Row], table: str) -> list[Row]:
    return [{**entry, "worker": row["worker"]} for row in all_ for entry in row[table]]


def _latest(all_: Iterable[Row], table: str, most: int) -> list[Row]:
    return sorted(_with_worker(all_, table), key=lambda entry: entry["time"])[-most:]
