"""What the supervisor tells of its workers: their rows, metrics, health, and dumps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import Document
from novasvc.telemetry.timestamps import iso_time
from novasvc.workers.process import WorkerProcess
from novasvc.workers.slot import Slot

METRICS_TIMEOUT = 1.0
"""Seconds for workers to report metrics; a worker that is late is left out."""

HEALTH_TIMEOUT = 3.0
"""Seconds for workers to check their health; each dependency gets two of them."""

DESCRIPTION_TIMEOUT = 1.0
"""Seconds for workers to describe their services. A node has to answer its caller within two."""

_MAX_HEARTBEAT_AGE = 3.0
"""A worker whose reactor is blocked for longer than this many seconds is not queried: it hangs, or is stopped."""

_SUPERVISOR = "supervisor"
"""Value of the label "worker" for the supervisor's own metrics."""

Row = dict[str, Any]


async def collect_metrics(slots: Iterable[Slot]) -> list[Document]:
    """Collect the metrics of all workers and of the supervisor.

    The label "worker" is added to each sample: a number, or "supervisor". The supervisor's own novasvc_worker* metrics
    are about workers, and are left as they are. A worker that does not answer in time is left out, and its
    novasvc_worker_up is 0.

    :return: one document per metric name.
    """
    current = _current_slots(slots)
    answers = await _query_all(current, "metrics", METRICS_TIMEOUT)
    metrics.workers.clear()
    metrics.worker_up.clear()
    metrics.worker_memory.clear()
    for slot, answer in zip(current, answers, strict=True):
        metrics.workers.at(slot.name, slot.state).value += 1
        metrics.worker_up.at(slot.name, str(slot.number)).value = int(answer is not None)
        if slot.process is not None and (memory := slot.process.memory) is not None:
            metrics.worker_memory.at(slot.name, str(slot.number)).value = memory
    merged: dict[str, Document] = {}
    _merge(merged, metrics.documents(), _SUPERVISOR)
    for slot, answer in zip(current, answers, strict=True):
        _merge(merged, answer or (), str(slot.number))
    return list(merged.values())


async def collect_health(slots: Iterable[Slot]) -> list[Row]:
    """Collect the health of all workers.

    :return: a row per worker: number, server, pid, state; "services": [{"service": str, "legs": see
        novasvc.node.health.Check}], or None if it does not answer.
    """
    current = _current_slots(slots)
    answers = await _query_all(current, "health", HEALTH_TIMEOUT)
    return [{**_row(slot), "services": answer} for slot, answer in zip(current, answers, strict=True)]


async def collect_descriptions(slots: Iterable[Slot], what: str) -> list[Row]:
    """Collect what workers know of their services; see :meth:`novasvc.interfaces.ISupervisor.inspect`."""
    current = _current_slots(slots)
    answers = await _query_all(current, what, DESCRIPTION_TIMEOUT)
    return [{**_row(slot), "services": answer} for slot, answer in zip(current, answers, strict=True)]


async def collect_dumps(slots: Iterable[Slot]) -> list[Row]:
    """Collect the stacks, calls and events of all workers; see :meth:`novasvc.interfaces.ISupervisor.dump`."""
    return await gatherResults([Deferred.fromCoroutine(_dump(slot)) for slot in slots], consumeErrors=True)


def worker_rows(slots: Iterable[Slot]) -> list[Row]:
    """Return a row for each worker; see :meth:`novasvc.interfaces.ISupervisor.workers`."""
    return [
        {
            **_row(slot),
            "since": iso_time(slot.since),
            "restarts": slot.restarts,
            "memory": None if slot.process is None else slot.process.memory,
            "trouble": slot.trouble,
        }
        for slot in sorted(slots, key=lambda slot: slot.number)
    ]


async def _dump(slot: Slot) -> Row:
    columns, process = _row(slot), slot.process
    if process is None:
        return {**columns, "stacks": "", "calls": None, "events": []}
    calls = await process.calls()
    stacks = await process.dump()
    events = [{"time": iso_time(event.time), "kind": event.kind, "text": event.text} for event in process.events]
    return {**columns, "stacks": stacks, "calls": calls, "events": events}


def _row(slot: Slot) -> Row:
    """Return the columns that identify a worker."""
    pid = None if slot.process is None else slot.process.pid
    return {"number": slot.number, "server": slot.name, "pid": pid, "state": slot.state}


def _current_slots(slots: Iterable[Slot]) -> list[Slot]:
    """Return one slot per number: during a replacement, the one that is not draining."""
    current: dict[int, Slot] = {}
    for slot in sorted(slots, key=lambda slot: (slot.number, slot.state == "draining")):
        current.setdefault(slot.number, slot)
    return list(current.values())


def _query_all(slots: Sequence[Slot], name: str, timeout: float) -> Deferred[list[Any]]:
    return gatherResults([_query(slot.process, name, timeout) for slot in slots], consumeErrors=True)


def _query(process: WorkerProcess | None, name: str, timeout: float) -> Deferred[Any]:
    answer: Deferred[Any] = Deferred()
    if process is None or process.heartbeat_age > _MAX_HEARTBEAT_AGE:
        answer.callback(None)
        return answer
    return process.query(name, timeout)


def _merge(merged: dict[str, Document], documents: Iterable[Document], worker: str) -> None:
    for document in documents:
        own = document["name"].startswith("novasvc_worker")
        labelled = document if own else _labelled(document, worker)
        known = merged.setdefault(labelled["name"], {**labelled, "samples": []})
        # A worker of another version may have the same metric name with other labels: drop it rather than mix.
        if _shape(known) == _shape(labelled):
            known["samples"].extend(labelled["samples"])


def _labelled(document: Document, worker: str) -> Document:
    samples = [[[*values, worker], figure] for values, figure in document["samples"]]
    return {**document, "labels": [*document["labels"], "worker"], "samples": samples}


def _shape(document: Mapping[str, Any]) -> tuple[Any, ...]:
    return document["kind"], document["labels"], document.get("bounds")
