"""What a node tells about itself, as its page shows it: checked, and remembered for a while."""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.api.errors import APIError
from novasvc.api.page.history import Sample, take_sample
from novasvc.registry.record import ServiceRecord

_FRESH = 1.0
"""Seconds for which an answer does for all who look."""
_SAMPLES = 90
"""Answers of a process that are remembered."""
_NODES = 64
"""Nodes whose answers are remembered."""
_PROCESSES = 16
"""Processes of a node whose answers are remembered."""
_ROWS = 200
"""Rows of a kind that are shown."""
_LONGEST = 500
"""Characters of a text that are shown."""

_FIELDS = {
    "version": str, "service_version": int, "pid": int, "worker": int, "state": str, "started_at": str,
    "uptime": float, "in_flight": int,
}  # fmt: skip
_TABLES: Mapping[str, Mapping[str, type]] = {
    "tasks": {
        "name": str, "spacing": float, "runs": int, "failures": int, "missed": int, "running": bool,
        "last_lateness": float, "max_lateness": float, "last_duration": float, "next_due_in": float,
    },
    "methods": {
        "method": str, "namespace": str, "version": str, "calls": int, "errors": int, "in_flight": int,
        "mean": float, "p50": float, "p99": float,
    },
    "workers": {
        "number": int, "server": str, "pid": int, "state": str, "since": str, "restarts": int, "memory": int,
        "trouble": str,
    },
    "events": {"time": str, "kind": str, "text": str},
    "health": {"name": str, "ready": bool, "detail": str, "since": str},
}  # fmt: skip


def read_portrait(document: Any) -> dict[str, Any]:
    """Take what a node answered to "describe"; what is missing or of another type, as in another version, is None.

    :param document: JSON of :meth:`novasvc.node.endpoint.NodeAPI.describe`.
    """
    answer = document if isinstance(document, dict) else {}
    portrait: dict[str, Any] = _typed(answer, _FIELDS)
    for name, fields in _TABLES.items():
        rows = answer.get(name)
        chosen = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        portrait[name] = [_typed(row, fields) for row in chosen[:_ROWS]]
    return portrait


def _typed(row: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    return {name: _value(row.get(name), kind) for name, kind in fields.items()}


def _value(value: Any, kind: type) -> Any:
    if kind is str:
        return value[:_LONGEST] if isinstance(value, str) else None
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if not isinstance(value, int | float) or not isfinite(value):
        return None
    return kind(value)


@attrs.define
class _Remembered:
    asked_at: float = float("-inf")
    answer: dict[str, Any] | Exception | None = None
    asking: "Deferred[None] | None" = None
    samples: "OrderedDict[int, deque[Sample]]" = attrs.field(factory=OrderedDict)


class Portraits:
    """Asks nodes about themselves: once for all who look, and remembers what they said while somebody does.

    :param ask: returns the answer of a service's node to "describe".
    """

    def __init__(self, ask: Callable[[ServiceRecord], Awaitable[Any]], clock: IReactorTime) -> None:
        self._ask = ask
        self._clock = clock
        self._nodes: OrderedDict[str, _Remembered] = OrderedDict()

    async def get(self, record: ServiceRecord) -> tuple[dict[str, Any], Sequence[Sample]]:
        """Return what a node tells, and what its process has told before.

        :raises APIError: it does not; see :func:`novasvc.api.page.calls.call_node`.
        """
        known = self._nodes.setdefault(record.uuid, _Remembered())
        self._nodes.move_to_end(record.uuid)
        while len(self._nodes) > _NODES:
            self._nodes.popitem(last=False)
        if known.asking is None and self._clock.seconds() - known.asked_at >= _FRESH:
            known.asking = Deferred.fromCoroutine(self._look(record, known))
        if known.asking is not None:
            await _after(known.asking)
        answer = known.answer
        if not isinstance(answer, dict):
            raise answer or APIError(503, "it was not asked yet")
        return answer, [*known.samples.get(answer["pid"] or 0, ())]

    async def _look(self, record: ServiceRecord, known: _Remembered) -> None:
        try:
            answer = read_portrait(await self._ask(record))
        except Exception as error:  # noqa: BLE001 - those who wait are to have it
            known.answer = error
        else:
            known.answer = answer
            samples = known.samples.setdefault(answer["pid"] or 0, deque(maxlen=_SAMPLES))
            samples.append(take_sample(self._clock.seconds(), answer))
            while len(known.samples) > _PROCESSES:
                known.samples.popitem(last=False)
        finally:
            known.asked_at = self._clock.seconds()
            known.asking = None


def _after(deferred: "Deferred[None]") -> "Deferred[None]":
    """Return a Deferred that fires when another one does; to cancel it leaves that alone."""
    after: Deferred[None] = Deferred()

    def fired(result: Any) -> Any:
        if not after.called:
            after.callback(None)
        return result

    deferred.addBoth(fired)
    return after
