"""Nodes' descriptions of themselves for their pages: validated and cached."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from math import isfinite
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.api.page.history import History, read_history
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.registry.record import ServiceRecord

_MAX_NODES = 64
"""Cached nodes; the least recently used is evicted."""
_HISTORY_TTL = 10.0
"""Seconds for which a history is cached: a node adds to it as often."""
_MAX_ROWS = 200
"""Rows of a table."""
_MAX_TEXT = 500
"""Characters of a text."""

_FIELDS = {
    "version": str, "service_version": int, "pid": int, "worker": int, "state": str, "started_at": str,
    "uptime": float, "in_flight": int, "quarantined": int,
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
    "calls": {"method": str, "request_id": str, "seconds": float, "fraction": float, "text": str, "worker": int},
    "errors": {
        "time": str, "method": str, "namespace": str, "request_id": str, "error": str, "text": str, "seconds": float,
        "worker": int,
    },
    "workers": {
        "number": int, "server": str, "pid": int, "state": str, "since": str, "restarts": int, "memory": int,
        "trouble": str,
    },
    "events": {
        "time": str, "kind": str, "text": str, "outcome": str, "seconds": float, "request_id": str, "worker": int,
    },
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
    silent = answer.get("silent")
    numbers = silent if isinstance(silent, list) else []
    description["silent"] = [number for number in numbers[:_MAX_ROWS] if type(number) is int]
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
    :ivar description: coalesces requests, and caches a description, or the failure to get one, for a second.
    :ivar history: caches the history, or the failure to get it, for ten seconds.
    """

    record: ServiceRecord
    description: CoalescingCache[dict[str, Any] | Exception] = attrs.field(init=False)
    history: CoalescingCache[History | Exception] = attrs.field(init=False)


class NodeDescriptions:
    """Gets descriptions and histories from nodes, once for concurrent viewers.

    :param ask: a coroutine function that returns the response of a service's node to a method of the namespace "node".
    """

    def __init__(self, ask: Callable[[ServiceRecord, str], Awaitable[Any]], clock: IReactorTime) -> None:
        self._ask = ask
        self._clock = clock
        self._nodes: OrderedDict[str, _Node] = OrderedDict()

    async def get(self, record: ServiceRecord) -> tuple[dict[str, Any], History]:
        """Return the description of a node, and what its methods did in the last half hour.

        The history is empty if the node does not tell it: nodes of earlier versions do not.

        :raises APIError: the node gives no description; see :func:`novasvc.api.page.calls.call_node`.
        """
        node = self._node(record)
        describing, telling = node.description.get(), node.history.get()
        description = await describing
        if isinstance(description, Exception):
            telling.cancel()
            telling.addErrback(lambda failure: failure.trap(CancelledError) and None)
            raise description
        history = await telling
        return description, History() if isinstance(history, Exception) else history

    def _node(self, record: ServiceRecord) -> _Node:
        node = self._nodes.get(record.uuid)
        if node is None:
            node = self._nodes[record.uuid] = _Node(record)
            node.description = CoalescingCache(
                lambda: Deferred.fromCoroutine(self._get(node, "describe", read_description)), self._clock
            )
            node.history = CoalescingCache(
                lambda: Deferred.fromCoroutine(self._get(node, "history", read_history)),
                self._clock,
                lambda _: _HISTORY_TTL,
            )
            while len(self._nodes) > _MAX_NODES:
                self._nodes.popitem(last=False)
        self._nodes.move_to_end(record.uuid)
        node.record = record
        return node

    async def _get(self, node: _Node, method: str, read: Callable[[Any], Any]) -> Any:
        try:
            return read(await self._ask(node.record, method))
        except Exception as error:  # noqa: BLE001 - all viewers get it, for a moment
            return error
