"""Figures: counters, gauges and histograms, with labels whose number is bounded."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Generic, TypeVar

import attrs

# Note [Figures of our own]
#
# What is counted at every call has to cost next to nothing. prometheus_client takes a lock for each
# change: the five of a call are 4 microseconds with its instruments, and less than 1 with these, that
# are changed in the reactor's thread and nowhere else. They can be told by one process to another
# as JSON, as prometheus_client's own multi-process mode can do by files only. And who never writes an
# exposition does not pay for loading prometheus_client, a megabyte and 45 ms in each worker:
# novasvc.api.metrics does, and makes its metrics of these.

OTHER = "other"
"""The value of all labels of what came when there were MOST sets of them."""

MOST = 128
"""Sets of labels of a family."""

LONGEST = 64
"""Characters of a label's value."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The bounds of histograms of time."""

Document = dict[str, Any]
"""A family as JSON: {"name", "kind", "help", "labels": [str], "samples": [[[str], figure]]}; a figure is a number, or
of a histogram {"counts": [int], "sum": float}, and the family has "bounds": [float] then."""


@attrs.define(eq=False)
class Number:
    """A counter or a gauge. Whoever counts changes its value."""

    value: float = 0
    is_told = True

    def figure(self) -> float:
        """Return what a document has."""
        return self.value


@attrs.define(eq=False)
class Distribution:
    """A histogram.

    :param bounds: upper ones of the buckets, inclusive; one more without a bound follows.
    :ivar counts: by bucket, not added up.
    """

    bounds: Sequence[float]
    counts: list[int] = attrs.field(init=False)
    sum: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def is_told(self) -> bool:
        """Whether there is anything."""
        return any(self.counts)

    @property
    def count(self) -> int:
        """How often something was observed."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def quantile(self, part: float) -> float | None:
        """Estimate the value that a part of all values is not above.

        :param part: 0 to 1.
        :return: None if there is nothing yet; of what is in the bucket without a bound, the last bound.
        """
        wanted = part * self.count
        if not wanted:
            return None
        lower = 0.0
        for bound, count, below in zip(self.bounds, self.counts, accumulate(self.counts), strict=False):
            if below >= wanted:
                return min(bound, lower + (bound - lower) * (count - (below - wanted)) / count)
            lower = bound
        return lower

    def figure(self) -> Document:
        """Return what a document has."""
        return {"counts": list(self.counts), "sum": self.sum}


_Child = TypeVar("_Child", Number, Distribution)


@attrs.define(eq=False)
class Family(Generic[_Child]):
    """The figures of one name, one for each set of labels' values.

    A set that comes when there are ``most`` of them is counted under :data:`OTHER`: nothing that comes from
    outside can make the figures grow for ever.

    :param name: with its unit, as Prometheus has it; "_total" at the end of a counter's.
    :param kind: "counter", "gauge" or "histogram".
    :param help: what it tells, in a sentence.
    :param labels: their names.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    _make: Callable[[], _Child]
    most: int = MOST
    _children: dict[tuple[str, ...], _Child] = attrs.field(factory=dict, init=False)

    def at(self, *values: str) -> _Child:
        """Return the figure of these labels' values; it stays the same one."""
        return self._children.get(values) or self._add(values)

    def kept(self, *values: str) -> tuple[str, ...]:
        """Return the labels' values under which these are counted."""
        short = tuple(value[:LONGEST] for value in values)
        room = short in self._children or len(self._children) < self.most
        return short if room else (OTHER,) * len(values)

    def clear(self) -> None:
        """Forget all labels' values: who counts again begins with none."""
        self._children.clear()

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], _Child]]:
        """Return the labels' values and the figures that there are."""
        yield from self._children.items()

    def document(self) -> Document:
        """Return all of it as JSON. Histograms of nothing are left out: they are long."""
        samples = [[list(values), child.figure()] for values, child in self._children.items() if child.is_told]
        told: Document = {"name": self.name, "kind": self.kind, "help": self.help, "labels": list(self.labels)}
        if self.kind == "histogram":
            told["bounds"] = list(getattr(self._make(), "bounds"))  # noqa: B009 - only a Distribution has them
        return {**told, "samples": samples}

    def _add(self, values: tuple[str, ...]) -> _Child:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, and was given {values}")
        return self._children.setdefault(self.kept(*values), self._make())


def counter(name: str, text: str, *labels: str, most: int = MOST) -> Family[Number]:
    """Make a family of counters."""
    return Family(name, "counter", text, labels, Number, most)


def gauge(name: str, text: str, *labels: str) -> Family[Number]:
    """Make a family of gauges."""
    return Family(name, "gauge", text, labels, Number)


def histogram(
    name: str, text: str, *labels: str, bounds: Sequence[float] = SECONDS, most: int = MOST
) -> Family[Distribution]:
    """Make a family of histograms.

    :param bounds: of the buckets, ascending; see :class:`Distribution`.
    """
    return Family(name, "histogram", text, labels, lambda: Distribution(bounds), most)
