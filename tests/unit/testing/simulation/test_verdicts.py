"""Tests for novasvc.testing.simulation.verdicts."""

import unittest

from novasvc.testing.simulation.verdicts import Span, is_interrupted, longest_silence, of_broker


class LongestSilenceTests(unittest.TestCase):
    """Tests for longest_silence. Each silence is 20 s longer than its faults."""

    def test_none(self) -> None:
        """Without a fault no heartbeat is missing."""
        self.assertEqual(longest_silence([], 100.0), 0.0)

    def test_overlap(self) -> None:
        """Faults that overlap, in any order, are one silence, and each second counts once."""
        self.assertEqual(longest_silence([Span(30.0, 60.0, "kill"), Span(10.0, 40.0, "kill")], 100.0), 70.0)

    def test_too_close(self) -> None:
        """Between faults that are 20 s apart no heartbeat may have arrived."""
        self.assertEqual(longest_silence([Span(10.0, 20.0, "kill"), Span(40.0, 50.0, "kill")], 100.0), 60.0)

    def test_apart(self) -> None:
        """Between others some have, so the longer one counts."""
        self.assertEqual(longest_silence([Span(10.0, 20.0, "kill"), Span(41.0, 56.0, "kill")], 100.0), 35.0)

    def test_until_now(self) -> None:
        """A fault that goes on counts until now."""
        self.assertEqual(longest_silence([Span(10.0, 80.0, "kill")], 30.0), 40.0)

    def test_long_ago(self) -> None:
        """A silence excuses nothing two minutes after its end."""
        self.assertEqual(longest_silence([Span(10.0, 80.0, "kill")], 200.0), 90.0)
        self.assertEqual(longest_silence([Span(10.0, 80.0, "kill")], 201.0), 0.0)

    def test_only_interrupted(self) -> None:
        """Of two faults that are a moment apart, some services may miss both, and others none: it can be asked for."""
        spans = [
            Span(10.0, 25.0, "kill"),
            Span(26.0, 65.0, "kill"),
            Span(200.0, 290.0, "kill"),
            Span(250.0, 300.0, "kill"),
        ]
        self.assertEqual(longest_silence(spans[:2], 70.0, is_interrupted), 75.0)
        self.assertEqual(longest_silence(spans, 300.0), 120.0)
        self.assertEqual(longest_silence(spans, 300.0, is_interrupted), 0.0)

    def test_only_of_broker(self) -> None:
        """A silence that the broker was a part of, from the first fault on, can be asked for."""
        spans = [Span(10.0, 50.0, "kill"), Span(48.0, 100.0, "broker stall"), Span(300.0, 400.0, "kill")]
        self.assertEqual(longest_silence(spans[:1], 60.0, of_broker), 0.0)
        self.assertEqual(longest_silence(spans[:2], 80.0, of_broker), 90.0)
        self.assertEqual(longest_silence(spans, 400.0, of_broker), 0.0)
