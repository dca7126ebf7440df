"""Nodes' descriptions of themselves for their pages: validated, cached and sampled."""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.api.page.history import Sample, take_sample
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.registry.record import ServiceRecord

_MAX_SAMPLES = 90
"""Samples per process."""
_MAX_NODES = 64
"""Cached nodes; the least recently used is evicted."""
_MAX_PROCESSES = 16
"""Processes that are sampled per node: each request may be answered by another worker."""
_MAX_ROWS = 200
"""Rows of a table."""
_MAX_TEXT = 500
"""Characters of a text."""

_FIELDS = {
    "version": str, "service_version": int, "pid": int, "worker": int, "state": str, "started_at": str,
    "uptime": float, "in_flight": int,
}  # fmt: skip
_TABLES: Mapping[str, Mapping[str, type]] = {
    "tasks": {
        "name": str, "spacing": float, "runs": int, "failures": int, "missed": int, "running": bool,
        "last_lateness": float, "max_lateness": float, "last_duration": float, "next_due_in": float,
        "scope": str, "cron": str, "timezone": str, "leads": bool, "fencing": int,
    },
    "methods": {
        "method": str, "namespace": str, "version": str, "calls": int, "errors": int, "in_flight": int,
        "mean": float, "p50": float, "p99": float,
    },
    "calls": {"method": str, "request_id": str, "seconds": float, "fraction": float, "text": str},
    "workers": {
        "number": int, "server": str, "pid": int, "state": str, "since": str, "restarts": int, "memory": int,
        "trouble": str,
    },
    "events": {"time": str, "kind": str, "text": str},
    "health": {"name": str, "ready": bool, "detail": str, "since": str},
}  # fmt: skip


def read_description(document: Any) -> dict[str, Any]:
    """Validate the response of a node to "describe". Fields that are missing, or of another type, are None.

    Nothing is taken for granted, because the node may run another version.

    :param document: JSON of :meth:`novasvc.node.endpoint.NodeAPI.describe`.
    """
    answer = document if isinstance(document, dict) else {}
    description: dict[str, Any] = _typed(answer, _FIELDS)
    for name, fields in _TABLES.items():
        rows = answer.get(name)
        chosen = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        description[name] = [_typed(row, fields) for row in chosen[:_MAX_ROWS]]
    return description


def _typed(row: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    return {name: _value(row.get(name), kind) for name, kind in fields.items()}


def _value(value: Any, kind: type) -> Any:
    if kind is str:
        return value[:_MAX_TEXT] if isinstance(value, str) else None
    if kind is bool or isinstance(value, bool):  # bool is a subclass of int, and no number here
        return value if kind is bool and isinstance(value, bool) else None
    if not isinstance(value, int | float) or not isfinite(value):
        return None
    return kind(value)


@attrs.define(eq=False)
class _Node:
    """The cache entry of one node.

    :param record: its row at the last request.
    :ivar cache: coalesces requests, and caches a description, or the failure to get one, for a second.
    :ivar samples: process id -> samples, the most recently used last.
    """

    record: ServiceRecord
    cache: CoalescingCache[dict[str, Any] | Exception] = attrs.field(init=False)
    samples: OrderedDict[int, deque[Sample]] = attrs.field(factory=OrderedDict, init=False)


class NodeDescriptions:
    """Gets descriptions from nodes, once for concurrent viewers, and keeps samples of each process for time series.

    :param ask: a coroutine function that returns the response of a service's node to "describe".
    """

    def __init__(self, ask: Callable[[ServiceRecord], Awaitable[Any]], clock: IReactorTime) -> None:
        self._ask = ask
        self._clock = clock
        self._nodes: OrderedDict[str, _Node] = OrderedDict()

    async def get(self, record: ServiceRecord) -> tuple[dict[str, Any], Sequence[Sample]]:
        """Return the description of a node, and the samples of the process that gave it.

        :raises APIError: the node gives none; see :func:`novasvc.api.page.calls.call_node`.
        """
        node = self._node(record)
        description = await node.cache.get()
        if isinstance(description, Exception):
            raise description
        return description, [*node.samples.get(description["pid"] or 0, ())]

    def _node(self, record: ServiceRecord) -> _Node:
        node = self._nodes.get(record.uuid)
        if node is None:
            node = self._nodes[record.uuid] = _Node(record)
            node.cache = CoalescingCache(lambda: Deferred.fromCoroutine(self._describe(node)), self._clock)
            while len(self._nodes) > _MAX_NODES:
                self._nodes.popitem(last=False)
        self._nodes.move_to_end(record.uuid)
        node.record = record
        return node

    async def _describe(self, node: _Node) -> dict[str, Any] | Exception:
        try:
            description = read_description(await self._ask(node.record))
        except Exception as error:  # noqa: BLE001 - all viewers get it, for a second
            return error
        samples = node.samples.setdefault(description["pid"] or 0, deque(maxlen=_MAX_SAMPLES))
        samples.append(take_sample(self._clock.seconds(), description))
        while len(node.samples) > _MAX_PROCESSES:
            node.samples.popitem(last=False)
        return description
