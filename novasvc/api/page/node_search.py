"""Which errors and events the page of a service shows, as in its URL."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

KINDS = ("call", "task", "problem", "other")
"""Kinds of events to filter by; "problem" is every call or run that did not succeed."""
_MAX_TEXT = 100
_GOOD = {None, "done", "running"}


@attrs.frozen
class NodeSearch:
    """A filter of errors and events.

    :param kind: one of KINDS; "" matches all.
    :param text: part of the text, the method or the request id; "" matches all.
    """

    kind: str = ""
    text: str = ""

    @classmethod
    def read(cls, args: Mapping[bytes, Sequence[bytes]]) -> "NodeSearch":
        """Parse query parameters; invalid ones are ignored."""
        kind, text = (
            args.get(name, [b""])[0].decode("utf-8", "replace").strip()[:_MAX_TEXT] for name in (b"kind", b"find")
        )
        return cls(kind if kind in KINDS else "", text)

    def events(self, description: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a node that match, newest first."""
        return [event for event in reversed(description["events"]) if self._is_kind(event) and self._says(event)]

    def errors(self, description: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the errors of a node that match, newest first."""
        return [error for error in reversed(description["errors"]) if self._says(error)]

    def _is_kind(self, event: Mapping[str, Any]) -> bool:
        match self.kind:
            case "problem":
                return event["outcome"] not in _GOOD
            case "other":
                return event["kind"] not in {"call", "task"}
        return not self.kind or event["kind"] == self.kind

    def _says(self, row: Mapping[str, Any]) -> bool:
        words = (row.get(name) or "" for name in ("method", "text", "error", "request_id"))
        return self.text.casefold() in "\n".join(words).casefold()
