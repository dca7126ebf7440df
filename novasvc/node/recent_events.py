"""The last events of a process, one for each call or run: its beginning and its end are one line."""

import re
from collections.abc import Iterable
from typing import Any

from novasvc.telemetry.flight import Event
from novasvc.telemetry.timestamps import iso_time

MOST = 100
"""Events that are told."""

_CALL = re.compile(
    r"(?P<what>\S+) (?P<outcome>began|done|failed|timed out|was cut short|was cancelled by its caller)"
    r"(?: (?P<request>\S+))?(?: (?P<error>\S+))?"
)
_PAIRED = {"call", "task"}
"""Kinds of events that have a beginning and an end; see the callers of :func:`novasvc.telemetry.flight.note`."""


def event_rows(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return events as JSON, the beginning and the end of a call or a run as one.

    :param events: oldest first.
    :return: the last MOST, by their ends, the latest last: {"time": of the beginning, ISO 8601 in UTC, "kind", "text"},
        and for a call or a run {"outcome": "running", "done", "failed", ..., "seconds": float or None, "request_id":
        str or None} as well.
    """
    rows: list[dict[str, Any] | None] = []
    begun: dict[tuple[str, str, str | None], tuple[Event, int]] = {}
    for event in events:
        found = _CALL.fullmatch(event.text) if event.kind in _PAIRED else None
        if found is None:
            rows.append({"time": iso_time(event.time), "kind": event.kind, "text": event.text})
            continue
        is_call = event.kind == "call"
        request, error = (found["request"], found["error"]) if is_call else (None, found["request"])
        key = event.kind, found["what"], request
        row = {
            "time": iso_time(event.time),
            "kind": event.kind,
            "text": found["what"] + (f": {error}" if error else ""),
            "outcome": found["outcome"],
            "seconds": None,
            "request_id": request,
        }
        if found["outcome"] == "began":
            row["outcome"] = "running"
            begun[key] = event, len(rows)
        elif key in begun:
            beginning, place = begun.pop(key)
            rows[place] = None
            row |= {"time": iso_time(beginning.time), "seconds": round(max(0.0, event.time - beginning.time), 6)}
        rows.append(row)
    return [row for row in rows if row is not None][-MOST:]
