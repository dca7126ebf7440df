"""Tests for novasvc.telemetry.timestamps."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry.timestamps import iso_time


class ISOTimeTests(SynchronousTestCase):
    def test_formatted(self) -> None:
        """A time is shown in UTC, with milliseconds and its offset."""
        self.assertEqual(iso_time(1795399384.5674), "2026-11-23T02:03:04.567+00:00")
        self.assertEqual(iso_time(0), "1970-01-01T00:00:00.000+00:00")

    def test_out_of_range(self) -> None:
        """A time that datetime cannot hold, of a host whose clock was wrong, is shown in seconds."""
        for seconds in (1e20, -1e20, float("nan"), float("inf")):
            self.assertEqual(iso_time(seconds), f"{seconds!r} s")
