"""Tests for the rule that decides whether a service is up."""

from datetime import datetime

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceRecord


def record(**changes: object) -> ServiceRecord:
    fresh = ServiceRecord(
        id=1,
        uuid="u",
        host="h1",
        binary="novasvc-agent",
        topic="agent",
        disabled=False,
        disabled_reason=None,
        forced_down=False,
        report_count=0,
        created_at=datetime(2026, 1, 1),  # noqa: DTZ001 - the table's form
        updated_at=None,
        last_seen_up=None,
        version=7,
        age=0.0,
    )
    return attrs.evolve(fresh, **changes)


class IsUpTests(SynchronousTestCase):
    """Tests for novasvc.registry.liveness.is_up."""

    def test_boundary(self) -> None:
        """A service is up while its age is at most service_down_time."""
        self.assertTrue(is_up(record(age=60.0), 60))
        self.assertFalse(is_up(record(age=60.001), 60))

    def test_forced_down(self) -> None:
        """A service that was forced down is down, however fresh its heartbeat is."""
        self.assertFalse(is_up(record(forced_down=True), 60))

    def test_disabled(self) -> None:
        """A disabled service can be up."""
        self.assertTrue(is_up(record(disabled=True), 60))

    def test_future(self) -> None:
        """A time stamp in the future, left by a database whose clock was set back, counts as fresh."""
        self.assertTrue(is_up(record(age=-3600.0), 60))
