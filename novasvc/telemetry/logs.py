"""Log observers: they add fields to events, and write events as text or as JSON.

Every event gets the fields of the node it belongs to (host, binary, topic) and the request id of
the request that is being served. Both come from context variables, so a manager's own Logger
needs no setup. Code that a node starts runs in the node's context, and so do functions in
threads (``run_blocking``, transactions).

A callback on a plain Deferred is the exception: Twisted runs it wherever the Deferred is fired,
mostly outside of any node or request. A coroutine keeps its context across each ``await``, so
write a coroutine, or wrap the callback: ``d.addCallback(partial(copy_context().run, callback))``.
"""

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from io import TextIOWrapper
from typing import Any, TextIO

import attrs
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
)
from zope.interface import implementer

from novasvc.context import current_context
from novasvc.telemetry.timestamps import iso_time

NO_NODE: Mapping[str, str | None] = {"host": None, "binary": None, "topic": None}

node_fields: ContextVar[Mapping[str, str | None]] = ContextVar("novasvc_node", default=NO_NODE)
"""host, binary and topic of the node whose code is running."""


def pluralize(number: int, noun: str) -> str:
    """Return a number and its noun: "1 call", "2 calls".

    :param noun: in the singular, with a regular plural.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@implementer(ILogObserver)
@attrs.frozen
class FieldsObserver:
    """Add host, binary, topic and request_id to an event that lacks them, and pass it on.

    :param observer: gets the event with its fields.
    :param default: the fields of events that belong to no node, such as twistd's own.
    """

    _observer: Callable[[LogEvent], None]
    _default: Mapping[str, str | None] = NO_NODE

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on with the fields added; fields that the event has are kept."""
        context = current_context.get()
        added = {**self._default, "request_id": context and context.request_id}
        fields = node_fields.get()
        self._observer({**added, **event} if fields is NO_NODE else {**added, **fields, **event})


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def format_text(event: LogEvent) -> str:
    """Format an event as one line: time, source and level, node, request, message; a traceback follows.

    Further lines, of the message or of the traceback, are indented, so that none can pass for another event.
    """
    node = f"{event['binary']}@{event['host']} {event['topic']}" if event.get("binary") else "-"
    if "worker_number" in event:
        node += f" worker {event['worker_number']}"
    source = f"{event.get('log_namespace', '-')}#{_level(event)}"
    text = _indented(f"{formatEvent(event)}{_traceback(event)}")
    line = f"{_time(event)} [{source}] [{node} {event.get('request_id') or '-'}] {text}\n"
    # The text may contain peers' and users' data: escape control characters, which could move a terminal's
    # cursor, and characters that cannot be encoded.
    if line[:-1].isprintable():
        return line
    return line.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode()


def format_json(event: LogEvent) -> str:
    """Format an event as one flat JSON object on a line of its own."""
    fields: dict[str, Any] = {
        "time": _time(event),
        "level": _level(event),
        "logger": event.get("log_namespace"),
        "message": _indented(formatEvent(event)),
        **{name: event.get(name) for name in ("host", "binary", "topic", "request_id")},
        **({"worker": event["worker_number"]} if "worker_number" in event else {}),
    }
    if "log_failure" in event:
        fields["traceback"] = _traceback(event).lstrip("\n")
    return json.dumps(fields, default=str) + "\n"


def make_observer(
    file: TextIO, *, as_json: bool = False, level: str = "info", default: Mapping[str, str | None] = NO_NODE
) -> ILogObserver:
    """Make the observer that writes a process's log.

    :param file: gets the lines.
    :param as_json: write JSON lines instead of text.
    :param level: "debug", "info", "warn", "error" or "critical": events below it are dropped.
    :param default: the fields of events that belong to no node.
    """
    if isinstance(file, TextIOWrapper):
        # Standard output in a locale without UTF-8 would raise an exception, and the event would be lost.
        file.reconfigure(errors="backslashreplace")
    written = FieldsObserver(FileLogObserver(file, format_json if as_json else format_text), default)
    minimum = LogLevelFilterPredicate(defaultLogLevel=LogLevel.levelWithName(level))
    return FilteringLogObserver(written, [minimum])


def _time(event: LogEvent) -> str:
    return iso_time(event.get("log_time", 0.0))


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    return "-" if level is None else level.name


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _traceback(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return "" if failure is None else "\n" + failure.getTraceback().rstrip()
