"""Tests for novasvc.telemetry.instruments: what is counted, and how much of it at the most."""

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry.instruments import LONGEST, OTHER, Histogram, counter, gauge, histogram


class FamilyTests(SynchronousTestCase):
    """Tests for novasvc.telemetry.instruments.MetricFamily."""

    def test_counts(self) -> None:
        """The same labels have the same figure, others have another one."""
        family = counter("c_total", "What.", "method")
        family.at("a").value += 1
        family.at("a").value += 1
        family.at("b").value += 1
        self.assertEqual({values: child.value for values, child in family}, {("a",): 2, ("b",): 1})

    def test_document(self) -> None:
        """A family can be told as JSON, with its name, kind, help and labels."""
        family = gauge("g_bytes", "How much.", "host", "binary")
        family.at("h", "b").value = 7
        expected = {
            "name": "g_bytes",
            "kind": "gauge",
            "help": "How much.",
            "labels": ["host", "binary"],
            "samples": [[["h", "b"], 7]],
        }
        self.assertEqual(json.loads(json.dumps(family.document())), expected)

    def test_histogram(self) -> None:
        """A histogram's document has its bounds and its buckets; one of nothing is left out."""
        family = histogram("h_seconds", "How long.", "method", bounds=(1.0, 2.0))
        family.at("never")
        for seconds in (0.5, 1.0, 1.5, 9.0):
            family.at("m").observe(seconds)
        document = family.document()
        self.assertEqual(document["bounds"], [1.0, 2.0])
        self.assertEqual(document["samples"], [[["m"], {"counts": [2, 1, 1], "sum": 12.0}]])

    def test_cap(self) -> None:
        """When there are as many sets of labels as there may be, all that come are counted as "other"."""
        family = counter("c_total", "What.", "topic", "method", most=3)
        for number in range(1000):
            family.at("t", str(number)).value += 1
        self.assertEqual(len(list(family)), 4)
        self.assertEqual(family.at(OTHER, OTHER).value, 997)
        family.at("t", "1").value += 1
        self.assertEqual(family.at("t", "1").value, 2)

    def test_long_values(self) -> None:
        """A label's value is cut off, and what is cut to the same value is one."""
        family = counter("c_total", "What.", "name")
        family.at("x" * 1000).value += 1
        family.at("x" * 2000).value += 1
        self.assertEqual({values: child.value for values, child in family}, {("x" * LONGEST,): 2})

    def test_wrong_labels(self) -> None:
        """Who gives too few labels, or too many, is told so."""
        family = counter("c_total", "What.", "name")
        self.assertRaises(ValueError, family.at)
        self.assertRaises(ValueError, family.at, "a", "b")

    def test_clear(self) -> None:
        """A family that is cleared begins with nothing."""
        family = gauge("g", "What.", "state")
        family.at("ready").value = 1
        family.clear()
        self.assertEqual(family.document()["samples"], [])


class DistributionTests(SynchronousTestCase):
    """Tests for novasvc.telemetry.instruments.Histogram."""

    def test_nothing(self) -> None:
        """Of nothing there is no quantile."""
        self.assertIsNone(Histogram((1.0,)).quantile(0.99))

    def test_quantile(self) -> None:
        """A quantile lies between the bounds of its bucket."""
        seen = Histogram((0.1, 1.0, 10.0))
        for _ in range(99):
            seen.observe(0.5)
        seen.observe(5.0)
        self.assertEqual((seen.count, seen.sum), (100, 54.5))
        for part, least, most in ((0.5, 0.1, 1.0), (0.99, 0.1, 1.0), (1.0, 1.0, 10.0)):
            value = seen.quantile(part)
            assert value is not None
            self.assertTrue(least <= value <= most, (part, value))

    def test_beyond(self) -> None:
        """What is above all bounds counts as the last of them."""
        seen = Histogram((1.0,))
        seen.observe(100.0)
        self.assertEqual(seen.quantile(0.5), 1.0)

    @given(st.lists(st.floats(min_value=0, max_value=100), min_size=1), st.floats(min_value=0.01, max_value=1))
    def test_any(self, values: list[float], part: float) -> None:
        """Whatever was seen, a quantile is within the bucket of the true one."""
        bounds = (0.5, 1.0, 5.0, 20.0, 100.0)
        seen = Histogram(bounds)
        for value in values:
            seen.observe(value)
        estimate = seen.quantile(part)
        true = sorted(values)[max(0, -int(-part * len(values) // 1) - 1)]
        upper = next(bound for bound in bounds if true <= bound)
        lower = max((bound for bound in (0.0, *bounds) if bound < upper), default=0.0)
        assert estimate is not None
        self.assertTrue(lower <= estimate <= upper * (1 + 1e-9), (estimate, lower, upper))
