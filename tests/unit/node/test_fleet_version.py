"""Tests for novasvc.node.fleet_version, in nodes that start."""

from typing import Any, ClassVar
from unittest.mock import ANY

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager
from novasvc.errors import DatabaseError, DatabaseUnavailableError, ServiceTooOldError, StartError
from novasvc.testing import FleetMixin, MemoryRegistry


class Old(Manager):
    service_version = 4


class New(Manager):
    service_version = 5


class FleetVersionTests(FleetMixin, SynchronousTestCase):
    """Nodes that start in a fleet of other versions."""

    def start(self, manager: Any, host: str, **options: Any) -> Any:
        return self.fleet.start(manager, host=host, topic="work", binary="work", **options)

    def refused(self, host: str = "old") -> ServiceTooOldError:
        with self.assertRaises(StartError) as caught:
            self.start(Old, host)
        error = caught.exception.__cause__
        assert isinstance(error, ServiceTooOldError)
        self.assertIn(str(error), str(caught.exception))
        self.assertTrue(caught.exception.is_final)
        return error

    def test_too_old(self) -> None:
        """A service that is older than all others does not start, says what to do, and leaves no row."""
        for host in "ab":
            self.start(New, host)
        error = self.refused()
        self.assertEqual(error.args, ("work@old", 4, 5, ANY))
        self.assertIn("the service version 4, and the lowest of the others that are up is 5 (on a)", str(error))
        self.assertIn("allow_older_service = true", str(error))
        self.assertEqual({row.host for row in self.fleet.rows()}, {"a", "b"})

    def test_many(self) -> None:
        """In a large fleet the oldest is found, too, wherever its row is."""
        for number in range(12):
            self.start(New, f"n{number}")
        self.refused()
        (row,) = [row for row in self.fleet.rows() if row.host == "n11"]
        registry = self.fleet.registry
        self.fleet.run(registry.register(row.host, row.binary, row.topic, 4))
        self.start(Old, "old")

    def test_mixed(self) -> None:
        """It starts while another one of its version is up, or none at all, and so does a newer one."""
        self.start(Old, "a")
        self.start(New, "b")
        self.start(Old, "c")

    def test_other_binary(self) -> None:
        """Services of another binary do not count."""
        self.start(New, "a")
        self.fleet.start(Old, host="b", topic="other")

    def test_down(self) -> None:
        """Services that are down do not count."""
        new = self.start(New, "a")
        self.refused()
        new.stop()
        self.fleet.advance(61)
        self.start(Old, "b")

    def test_restart(self) -> None:
        """The last old one in a rolling upgrade can be restarted, but not after a long time away."""
        old = self.start(Old, "old")
        self.start(New, "a")
        old.stop()
        old = self.start(Old, "old")
        old.stop()
        self.fleet.advance(61)
        self.refused()

    def test_one_host(self) -> None:
        """The service of a single host can be downgraded."""
        self.start(New, "a").stop()
        self.start(Old, "a")

    def test_downgrade(self) -> None:
        """A host of several is not downgraded by mistake."""
        for host in "ab":
            node = self.start(New, host)
        node.stop()
        self.refused("b")

    def test_outage(self) -> None:
        """A registry that is away is waited for."""
        self.start(New, "a")
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "away")
        node = self.fleet.add(Old, host="old", topic="work", binary="work")
        starting = node.service.start()
        self.fleet.advance(5)
        self.assertEqual(node.service.waiting_for, "database")
        self.fleet.registry.outage = None
        with self.assertRaises(StartError):
            self.fleet.run(starting)

    def test_old_conductor(self) -> None:
        """A registry that cannot compare versions does not keep a service from starting."""

        def page(_registry: MemoryRegistry, _query: Any) -> Deferred[Any]:
            return fail(DatabaseError("conductor", "'page' failed with InvalidArgumentsError: sort"))

        self.start(New, "a")
        self.patch(MemoryRegistry, "page", page)
        self.start(Old, "b")


class OverrideTests(FleetMixin, SynchronousTestCase):
    """Nodes with allow_older_service."""

    fleet_settings: ClassVar[dict[str, Any]] = {"allow_older_service": True}

    def test_allowed(self) -> None:
        """With the setting, it starts."""
        self.fleet.start(New, host="a", topic="work", binary="work")
        self.fleet.start(Old, host="b", topic="work", binary="work")
