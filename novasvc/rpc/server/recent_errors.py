"""The last errors of a server's methods: what is behind a number of errors."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from novasvc.listing import shorten
from novasvc.telemetry.timestamps import iso_time

MOST = 50
"""Errors that are kept; the oldest is dropped first."""
_LONGEST = 300
"""Characters of an error's text."""

Row = dict[str, Any]
"""JSON: {"time": ISO 8601 in UTC, "method", "namespace": str or None, "request_id", "error": its class, "text",
"seconds": float}."""


class RecentErrors:
    """The last errors, in memory. Errors that a method's author expects are not among them.

    :param now: returns seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._rows: deque[Row] = deque(maxlen=MOST)

    def add(self, method: str, namespace: str | None, request_id: str, error: BaseException, seconds: float) -> None:
        """Add an error.

        :param seconds: for which the method ran.
        """
        try:
            text = str(error)
        except Exception:  # noqa: BLE001 - a user's class
            text = "its text cannot be shown"
        self._rows.append(
            {
                "time": iso_time(self._now()),
                "method": method,
                "namespace": namespace,
                "request_id": request_id[:_LONGEST],
                "error": type(error).__name__,
                "text": shorten(text, _LONGEST),
                "seconds": round(seconds, 6),
            }
        )

    def rows(self) -> list[Row]:
        """Return the errors, the latest last."""
        return [*self._rows]
