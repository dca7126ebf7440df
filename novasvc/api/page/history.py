"""What the methods of a node did in the last half hour, as the node tells it: rates and durations for charts."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import attrs

_MAX_METHODS = 200
_MAX_LENGTH = 1000
"""Figures of a method."""
_RECENT = 6
"""Intervals that the current rate is taken from: a minute."""


@attrs.frozen
class Series:
    """The figures of one method in each interval, the newest last.

    :param rates: calls per second.
    :param durations: mean seconds of a call; None where there were none.
    """

    rates: Sequence[float | None] = ()
    durations: Sequence[float | None] = ()

    @property
    def rate(self) -> float | None:
        """Calls per second in the last minute; None if that is unknown."""
        known = [value for value in self.rates[-_RECENT:] if value is not None]
        return sum(known) / len(known) if known else None


@attrs.frozen
class History:
    """The histories of a node's methods.

    :param seconds: how far they reach back; 0 if the node does not tell.
    :param series: by the key of the method.
    """

    seconds: float = 0.0
    series: Mapping[str, Series] = attrs.field(factory=dict)

    def of(self, row: Mapping[str, Any]) -> Series:
        """Return the series of a method. One that was not called has rates of zero.

        :param row: of the table "methods" of a description.
        """
        if not self.seconds:
            return Series()
        return self.series.get(_key(row)) or Series([0.0, 0.0], [None, None])


def _key(row: Mapping[str, Any]) -> str:
    return f"{row.get('namespace') or ''}.{row.get('method') or ''} {row.get('version') or ''}"


def read_history(document: Any) -> History:
    """Validate the response of a node to "history"; what is not as it should be is left out.

    :param document: JSON of :meth:`novasvc.node.endpoint.NodeAPI.history`.
    """
    answer = document if isinstance(document, dict) else {}
    interval, length = _number(answer.get("interval")), _number(answer.get("length"))
    rows = answer.get("methods")
    if not interval or not isinstance(rows, list):
        return History()
    series = {}
    for row in rows[:_MAX_METHODS]:
        calls, seconds = (_figures(row, name) for name in ("calls", "seconds"))
        if len(calls) == len(seconds):
            rates = [count / interval for count in calls]
            durations = [spent / count if count > 0 else None for count, spent in zip(calls, seconds, strict=True)]
            series[_key(row)] = Series(rates, durations)
    return History(interval * min(length, _MAX_LENGTH), series)


def _figures(row: Any, name: str) -> list[float]:
    figures = row.get(name) if isinstance(row, dict) else None
    return [*map(_number, figures[-_MAX_LENGTH:])] if isinstance(figures, list) else []


def _number(value: Any) -> float:
    """Return a number that is not below zero; 0 for all else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return max(0.0, float(value)) if is_number else 0.0
