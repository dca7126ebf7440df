"""What a process had done, moment by moment: how rates and latencies went."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs


@attrs.frozen
class Sample:
    """What one process had done at a moment.

    :param methods: (calls, seconds that they took in all, or None) by name.
    """

    time: float
    methods: Mapping[str, tuple[int, float | None]]


def method_key(row: Mapping[str, Any]) -> str:
    """Return what a method is remembered by."""
    return f"{row['namespace'] or ''}.{row['method'] or ''} {row['version'] or ''}"


def take_sample(time: float, portrait: Mapping[str, Any]) -> Sample:
    """Return what a portrait says, with the moment at which it did."""
    methods = {}
    for row in portrait["methods"]:
        calls, mean = row["calls"] or 0, row["mean"]
        methods[method_key(row)] = calls, None if mean is None else mean * calls
    return Sample(time, methods)


def rates(samples: Sequence[Sample], key: str) -> list[float | None]:
    """Return a method's calls a second, between each two samples."""
    return [
        max(0, after.methods[key][0] - before.methods[key][0]) / (after.time - before.time)
        if key in before.methods and key in after.methods and after.time > before.time
        else None
        for before, after in pairwise(samples)
    ]


def latencies(samples: Sequence[Sample], key: str) -> list[float | None]:
    """Return the mean seconds of the calls that ended between each two samples; None where none did."""
    found: list[float | None] = []
    for before, after in pairwise(samples):
        calls, took = before.methods.get(key, (0, 0.0))
        more_calls, more_took = after.methods.get(key, (0, 0.0))
        known = more_calls > calls and more_took is not None
        found.append(max(0.0, (more_took or 0.0) - (took or 0.0)) / (more_calls - calls) if known else None)
    return found
