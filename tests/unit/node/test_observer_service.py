"""Tests for an observer in a service tree."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseUnavailableError, ObserverError
from novasvc.node.observer_service import ObserverService
from novasvc.node.runtime import Runtime
from novasvc.node.tree import ServiceTree
from novasvc.registry.record import ServiceChanges
from novasvc.testing import MemoryRegistry, memory_runtime
from novasvc.workers.reports import waited_for
from tests.unit.registry.test_observer import Recorder


class ObserverServiceTests(SynchronousTestCase):
    """Tests for novasvc.node.observer_service.ObserverService."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.runtime: Runtime = memory_runtime(self.clock)
        self.registry: MemoryRegistry = self.runtime.database._make()  # type: ignore[assignment]
        self.observer = Recorder()

    def add_forced(self) -> None:
        """Register a service that is forced down."""
        record = self.successResultOf(self.registry.register("h1", "agent", "agent", 1))
        self.registry.update(record.id, ServiceChanges(forced_down=True))

    def test_tree(self) -> None:
        """In a tree it observes with the settings of the process until it is stopped; then another one is told."""
        self.add_forced()
        service = ObserverService(self.observer, "o", runtime=self.runtime, interval=2)
        tree = ServiceTree()
        service.setServiceParent(tree)
        tree.startService()
        self.successResultOf(tree.when_started())
        self.assertEqual(self.observer.told, [("down", "agent@h1")])
        (lease,) = self.successResultOf(self.registry.list_leases())
        self.assertEqual(
            (lease.topic, lease.task, lease.holder), ("novasvc.observers", "o", self.runtime.settings.host)
        )
        self.successResultOf(tree.stopService())
        (lease,) = self.successResultOf(self.registry.list_leases())
        self.assertTrue(lease.is_free)

    def test_outage(self) -> None:
        """It waits for the database, and says so; a stop ends that."""
        self.add_forced()
        self.registry.outage = DatabaseUnavailableError("memory:", "away")
        service = ObserverService(self.observer, "o", runtime=self.runtime)
        service.startService()
        started = service.when_started()
        self.clock.advance(1)
        self.assertNoResult(started)
        self.assertEqual(waited_for(service), "database")
        self.registry.outage = None
        self.clock.pump([1] * 5)
        self.successResultOf(started)
        self.assertEqual(self.observer.told, [("down", "agent@h1")])
        self.successResultOf(service.stopService())
        self.registry.outage = DatabaseUnavailableError("memory:", "away")
        other = ObserverService(self.observer, "o", runtime=self.runtime)
        other.startService()
        self.successResultOf(other.stopService())

    def test_mistake(self) -> None:
        """An object that is no observer is refused when the service is made."""
        error = self.assertRaises(ObserverError, ObserverService, object(), "o", runtime=self.runtime)
        self.assertIn("does not provide IServiceObserver", str(error))

    def test_specification(self) -> None:
        """A worker makes an equal one of its arguments."""
        service = ObserverService(self.observer, "o", runtime=self.runtime, interval=2)
        made = service.specification().build(self.clock)
        self.assertIsInstance(made, ObserverService)
        self.assertIsNot(made, service)
        self.assertEqual(made.specification(), service.specification())
