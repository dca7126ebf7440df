"""The growth of metrics during a test."""

from collections.abc import Mapping
from typing import Any

from novasvc.telemetry import metrics


class MetricsSince:
    """The metrics of this process, compared with what they were when this was made."""

    def __init__(self) -> None:
        self._before = {family.name: _samples(family.document()) for family in metrics.families()}

    def read(self, name: str, labels: Mapping[str, str]) -> float:
        """Return the growth of the samples with these labels; see :meth:`novasvc.testing.Fleet.metric`."""
        family = next((family for family in metrics.families() if family.name == name), None)
        if family is None:
            raise KeyError(f"there is no metric {name!r}; docs/metrics.md lists them")
        document = family.document()
        for label in labels:
            if label not in document["labels"]:
                raise KeyError(f"{name} has no label {label!r}; it has: {', '.join(document['labels'])}")
        before = self._before.get(name, {})
        return sum(
            value - before.get(values, 0.0)
            for values, value in _samples(document).items()
            if labels.items() <= dict(zip(document["labels"], values, strict=True)).items()
        )


def _samples(document: Mapping[str, Any]) -> dict[tuple[str, ...], float]:
    """Return the value of each sample by its labels' values; of a histogram the number of observations."""
    return {
        tuple(values): float(sum(sample["counts"]) if isinstance(sample, dict) else sample)
        for values, sample in document["samples"]
    }
