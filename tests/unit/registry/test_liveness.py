"""Tests for the rule that decides whether a service is up."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.liveness import is_up
from tests.support.records import record


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
