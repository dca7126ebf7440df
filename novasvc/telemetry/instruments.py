"""Counters, gauges and histograms with a bounded number of label sets."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Generic, TypeVar

import attrs

# Note [Instruments of our own]
#
# What is counted in every call must cost next to nothing. prometheus_client takes a lock for each
# change: the five changes of one call take 4 microseconds with its instruments, and less than 1 with
# these, which only the reactor's thread changes. These also travel between processes as JSON, where
# prometheus_client's multi-process mode needs files. And a process that serves no /metrics does not
# load prometheus_client (1 MB and 45 ms per worker): only novasvc.api.metrics does, and converts.

OTHER = "other"
"""The value of every label of a sample that came after ``most`` label sets existed."""

MAX_LABEL_SETS = 128
"""Label sets of a metric family."""

LONGEST = 64
"""Characters of a label value."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Default bucket bounds of a histogram of durations, in seconds."""

Document = dict[str, Any]
"""A metric family as JSON: {"name", "kind", "help", "labels": [str], "samples": [[[label value], sample]]}.

A sample is a number. Of a histogram it is {"counts": [int], "sum": float}, and the family has "bounds": [float].
"""


@attrs.define(eq=False)
class Scalar:
    """The value of a counter or a gauge for one label set. Assign to ``value``."""

    value: float = 0
    has_data = True

    def sample(self) -> float:
        """Return the value for a :data:`Document`."""
        return self.value


@attrs.define(eq=False)
class Counter(Scalar):
    """A counter: its value only grows."""


@attrs.define(eq=False)
class Gauge(Scalar):
    """A gauge: its value goes up and down."""


@attrs.define(eq=False)
class Histogram:
    """A histogram for one label set.

    :param bounds: upper bounds of the buckets, inclusive, ascending. One bucket without a bound follows.
    :ivar counts: observations per bucket, not cumulative.
    """

    bounds: Sequence[float]
    counts: list[int] = attrs.field(init=False)
    sum: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def has_data(self) -> bool:
        """Whether anything was observed."""
        return any(self.counts)

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Add an observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def quantile(self, part: float) -> float | None:
        """Estimate a quantile by linear interpolation within its bucket.

        :param part: 0 to 1.
        :return: None without observations; the last bound if the quantile lies in the bucket without a bound.
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

    def sample(self) -> Document:
        """Return the buckets and the sum for a :data:`Document`."""
        return {"counts": list(self.counts), "sum": self.sum}


_Child = TypeVar("_Child", Counter, Gauge, Histogram)


@attrs.define(eq=False)
class MetricFamily(Generic[_Child]):
    """All instruments of one metric name, one for each label set.

    A label set that appears when there are ``most`` already is counted under :data:`OTHER`, so input
    from outside cannot make a family grow without bound.

    :param name: the metric's name with its unit, as Prometheus requires; a counter's ends in "_total".
    :param kind: "counter", "gauge" or "histogram".
    :param help: the help text, one sentence.
    :param labels: the label names.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    _make: Callable[[], _Child]
    most: int = MAX_LABEL_SETS
    _children: dict[tuple[str, ...], _Child] = attrs.field(factory=dict, init=False)

    def at(self, *values: str) -> _Child:
        """Return the instrument of a label set, created at zero. The same label set gives the same instrument.

        :raises ValueError: the number of values is not that of the labels.
        """
        return self._children.get(values) or self._add(values)

    def bounded(self, *values: str) -> tuple[str, ...]:
        """Return the label set under which these values are counted: truncated, or all :data:`OTHER`."""
        short = tuple(value[:LONGEST] for value in values)
        room = short in self._children or len(self._children) < self.most
        return short if room else (OTHER,) * len(values)

    def clear(self) -> None:
        """Drop all label sets. Instruments returned before are not exported any more."""
        self._children.clear()

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], _Child]]:
        """Yield each label set and its instrument."""
        yield from self._children.items()

    def document(self) -> Document:
        """Return the family as JSON, without empty histograms: they are long."""
        samples = [[list(values), child.sample()] for values, child in self._children.items() if child.has_data]
        document: Document = {"name": self.name, "kind": self.kind, "help": self.help, "labels": list(self.labels)}
        if self.kind == "histogram":
            document["bounds"] = list(getattr(self._make(), "bounds"))  # noqa: B009 - only a Histogram has them
        return {**document, "samples": samples}

    def _add(self, values: tuple[str, ...]) -> _Child:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, and was given {values}")
        return self._children.setdefault(self.bounded(*values), self._make())


def counter(name: str, text: str, *labels: str, most: int = MAX_LABEL_SETS) -> MetricFamily[Counter]:
    """Make a family of counters.

    :param text: the help text.
    :param most: label sets, > 0.
    """
    return MetricFamily(name, "counter", text, labels, Counter, most)


def gauge(name: str, text: str, *labels: str, most: int = MAX_LABEL_SETS) -> MetricFamily[Gauge]:
    """Make a family of gauges.

    :param text: the help text.
    :param most: label sets, > 0.
    """
    return MetricFamily(name, "gauge", text, labels, Gauge, most)


def histogram(
    name: str, text: str, *labels: str, bounds: Sequence[float] = SECONDS, most: int = MAX_LABEL_SETS
) -> MetricFamily[Histogram]:
    """Make a family of histograms.

    :param text: the help text.
    :param bounds: upper bounds of the buckets, ascending; see :class:`Histogram`.
    :param most: label sets, > 0.
    """
    return MetricFamily(name, "histogram", text, labels, lambda: Histogram(bounds), most)
