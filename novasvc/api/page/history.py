"""Time series of a process's RPC methods: rates and latencies from samples of its counters."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs


@attrs.frozen
class Sample:
    """The counters of a process at one time.

    :param methods: key of a method -> number of calls, and their total duration in seconds or None.
    """

    time: float
    methods: Mapping[str, tuple[int, float | None]]


def method_key(row: Mapping[str, Any]) -> str:
    """Return the key of a method in a sample."""
    return f"{row['namespace'] or ''}.{row['method'] or ''} {row['version'] or ''}"


def take_sample(time: float, description: Mapping[str, Any]) -> Sample:
    """Return the sample of a node's description."""
    methods = {}
    for row in description["methods"]:
        calls, mean = row["calls"] or 0, row["mean"]
        methods[method_key(row)] = calls, None if mean is None else mean * calls
    return Sample(time, methods)


def rates(samples: Sequence[Sample], key: str) -> list[float | None]:
    """Return a method's calls per second between consecutive samples; None where they are unknown."""
    # max(0): a counter falls if the process restarts under the same process id.
    return [
        max(0, after.methods[key][0] - before.methods[key][0]) / (after.time - before.time)
        if key in before.methods and key in after.methods and after.time > before.time
        else None
        for before, after in pairwise(samples)
    ]


def latencies(samples: Sequence[Sample], key: str) -> list[float | None]:
    """Return the mean duration of the calls between consecutive samples, in seconds; None where there were none."""
    found: list[float | None] = []
    for before, after in pairwise(samples):
        calls, took = before.methods.get(key, (0, 0.0))
        more_calls, more_took = after.methods.get(key, (0, 0.0))
        known = more_calls > calls and more_took is not None
        found.append(max(0.0, (more_took or 0.0) - (took or 0.0)) / (more_calls - calls) if known else None)
    return found
