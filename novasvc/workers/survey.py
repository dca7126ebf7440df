"""What a supervisor tells of all its workers at once: their figures in one scrape, and their health."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import Document
from novasvc.workers.process import WorkerProcess
from novasvc.workers.slot import Slot

FIGURES_PATIENCE = 1.0
"""Seconds that workers have to tell their figures; who has not by then is left out."""

HEALTH_PATIENCE = 3.0
"""Seconds that workers have to see how they are; they give each leg two."""

_SILENCE = 3.0
"""Seconds without a turn of its reactor after which a worker is not even asked: it hangs, or was stopped."""

_OURS = "supervisor"
"""The label of the supervisor's own figures, where those of workers have their number."""

Row = dict[str, Any]


async def survey_figures(slots: Iterable[Slot]) -> list[Document]:
    """Ask all workers for their figures, and add the supervisor's own.

    Each sample has the label "worker": a number, or "supervisor"; what is said of workers (novasvc_worker*) has that
    already where it is meant. A worker that does not answer in time is left out, and novasvc_worker_up is 0 for it.

    :return: documents, each name once.
    """
    places = _places(slots)
    answers = await _ask(places, "figures", FIGURES_PATIENCE)
    metrics.workers.clear()
    metrics.worker_up.clear()
    metrics.worker_memory.clear()
    for slot, answer in zip(places, answers, strict=True):
        metrics.workers.at(slot.name, slot.state).value += 1
        metrics.worker_up.at(slot.name, str(slot.number)).value = int(answer is not None)
        if slot.process is not None and (memory := slot.process.memory) is not None:
            metrics.worker_memory.at(slot.name, str(slot.number)).value = memory
    merged: dict[str, Document] = {}
    _merge(merged, metrics.documents(), _OURS)
    for slot, answer in zip(places, answers, strict=True):
        _merge(merged, answer or (), str(slot.number))
    return list(merged.values())


async def survey_health(slots: Iterable[Slot]) -> list[Row]:
    """Ask all workers how they are.

    :return: a row for each: number, server, pid, state; "services": [{"service": str, "legs": see
        novasvc.node.health.Check}], or None if it does not answer.
    """
    places = _places(slots)
    answers = await _ask(places, "health", HEALTH_PATIENCE)
    return [{**row(slot), "services": answer} for slot, answer in zip(places, answers, strict=True)]


def row(slot: Slot) -> Row:
    """Say which worker it is."""
    pid = None if slot.process is None else slot.process.pid
    return {"number": slot.number, "server": slot.name, "pid": pid, "state": slot.state}


def _places(slots: Iterable[Slot]) -> list[Slot]:
    """Return one place for each number: of two, the one whose worker stays."""
    places: dict[int, Slot] = {}
    for slot in sorted(slots, key=lambda slot: (slot.number, slot.state == "draining")):
        places.setdefault(slot.number, slot)
    return list(places.values())


async def _ask(slots: Sequence[Slot], what: str, patience: float) -> list[Any]:
    asking = [_asked(slot.process, what, patience) for slot in slots]
    return await gatherResults(asking, consumeErrors=True)


def _asked(process: WorkerProcess | None, what: str, patience: float) -> Deferred[Any]:
    answer: Deferred[Any] = Deferred()
    if process is None or process.silent > _SILENCE:
        answer.callback(None)
        return answer
    return process.ask(what, patience)


def _merge(merged: dict[str, Document], documents: Iterable[Document], worker: str) -> None:
    for document in documents:
        own = document["name"].startswith("novasvc_worker")
        told = document if own else _labelled(document, worker)
        known = merged.setdefault(told["name"], {**told, "samples": []})
        # Of another version, after a reload, it may be another thing with the same name.
        if _shape(known) == _shape(told):
            known["samples"].extend(told["samples"])


def _labelled(document: Document, worker: str) -> Document:
    samples = [[[*values, worker], figure] for values, figure in document["samples"]]
    return {**document, "labels": [*document["labels"], "worker"], "samples": samples}


def _shape(document: Mapping[str, Any]) -> tuple[Any, ...]:
    return document["kind"], document["labels"], document.get("bounds")
