"""Tests for docs/metrics.md and docs/grafana.json: they tell of what there is, and of nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry import metrics

_DOCS = Path(__file__).parents[2] / "docs"
_METRIC = re.compile(r"\bnovasvc_[a-z_]+\b")
_WIDTH = 24
"""Columns of a dashboard."""


def told() -> dict[str, str]:
    """Return all names under which there are samples, and those of their families."""
    names = {}
    for family in metrics.families():
        names[family.name] = family.name
        if family.kind == "histogram":
            names.update({f"{family.name}{end}": family.name for end in ("_bucket", "_sum", "_count")})
    return names


class PageTests(SynchronousTestCase):
    """docs/metrics.md."""

    def setUp(self) -> None:
        self.text = (_DOCS / "metrics.md").read_text()

    def test_all(self) -> None:
        """Each metric has a row, with its kind, its labels and what it means."""
        lines = self.text.splitlines()
        for family in metrics.families():
            labels = ", ".join(f"`{label}`" for label in family.labels)
            begin = f"| `{family.name}` | {family.kind} | {labels} | {family.help} | "
            self.assertEqual(len([line for line in lines if line.startswith(begin)]), 1, begin)

    def test_no_other(self) -> None:
        """No other metric is in it."""
        self.assertEqual(set(_METRIC.findall(self.text)) - set(told()), set())


class DashboardTests(SynchronousTestCase):
    """docs/grafana.json."""

    def setUp(self) -> None:
        self.dashboard: dict[str, Any] = json.loads((_DOCS / "grafana.json").read_text())
        self.panels = self.dashboard["panels"]

    def expressions(self) -> Iterator[str]:
        for panel in self.panels:
            yield from (target["expr"] for target in panel.get("targets", ()))

    def test_metrics(self) -> None:
        """Each expression is of metrics that there are, and each metric is in one."""
        shown = set()
        for expression in self.expressions():
            names = _METRIC.findall(expression)
            self.assertTrue(names, expression)
            self.assertEqual([name for name in names if name not in told()], [], expression)
            shown |= {told()[name] for name in names}
        self.assertEqual({family.name for family in metrics.families()} - shown, set())

    def test_labels(self) -> None:
        """What is grouped by, or chosen, is a label of the metric, or one that Prometheus or a supervisor adds."""
        labels = {family.name: {*family.labels, "instance", "worker", "le"} for family in metrics.families()}
        for expression in self.expressions():
            known = set().union(*(labels[told()[name]] for name in _METRIC.findall(expression)))
            grouped = re.findall(r"\bby \(([^)]*)\)", expression)
            chosen = re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression)
            used = {name.strip() for names in grouped for name in names.split(",")} | set(chosen)
            self.assertEqual(used - known, set(), expression)

    def test_braces(self) -> None:
        """Each expression closes what it opens."""
        for expression in self.expressions():
            for opening, closing in ("()", "{}", "[]"):
                self.assertEqual(expression.count(opening), expression.count(closing), expression)

    def test_panels(self) -> None:
        """Each panel has a number of its own, a title, a kind, and a place that no other has."""
        numbers = [panel["id"] for panel in self.panels]
        self.assertEqual(len(numbers), len(set(numbers)))
        taken: set[tuple[int, int]] = set()
        for panel in self.panels:
            self.assertIn(panel["type"], {"row", "stat", "timeseries"})
            self.assertTrue(panel["title"])
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], _WIDTH)
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            self.assertEqual(taken & cells, set(), panel["title"])
            taken |= cells

    def test_importable(self) -> None:
        """It is what Grafana imports: no id of another installation, and the data source is chosen there."""
        self.assertIsNone(self.dashboard["id"])
        self.assertTrue(self.dashboard["title"] and self.dashboard["uid"] and self.dashboard["schemaVersion"])
        variables = {variable["name"] for variable in self.dashboard["templating"]["list"]}
        self.assertEqual(variables, {"datasource", "instance"})
        for panel in self.panels:
            for target in panel.get("targets", ()):
                self.assertEqual(target["datasource"]["uid"], "${datasource}")
            references = [target["refId"] for target in panel.get("targets", ())]
            self.assertEqual(len(references), len(set(references)))
