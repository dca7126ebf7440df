"""Tests for novasvc.node.elections: nodes in memory whose tasks run once in a node, or once in a fleet."""

from typing import Any

import attrs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.manager import Manager
from novasvc.node.elections import make_elections
from novasvc.node.host_election import FileElection, ProcessElection
from novasvc.periodic import periodic_task
from novasvc.registry.conductor import Conductor
from novasvc.registry.election import LeaseElection
from novasvc.registry.heartbeat import ServiceIdentity
from novasvc.service import Service
from novasvc.testing import MemoryRegistry, memory_runtime

IDENTITY = ServiceIdentity("h1", "novasvc-shop", "shop")


class Shop(Manager):
    """A task of the node and one of the fleet; each notes who ran it."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.node_runs = 0
        self.fencing: list[int | None] = []

    @periodic_task(spacing=5)
    def sweep(self, context: RequestContext) -> None:
        self.node_runs += 1

    @periodic_task(spacing=5, scope="fleet")
    def bill(self, context: RequestContext) -> None:
        self.fencing.append(context.fencing)


class NodeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.runtime = memory_runtime(periodic_fuzzy_delay=0, task_lease_time=12.0)
        self.clock: Clock = self.runtime.reactor
        self.services: list[Service] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        for service in reversed(self.services):
            service.stop()
            self.wait(5)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.25] * round(4 * seconds))

    def node(self, host: str, manager: type[Manager] = Shop, topic: str = "shop", **options: Any) -> Any:
        service = Service(host, f"novasvc-{topic}", topic, manager, runtime=self.runtime, **options)
        self.services.append(service)
        service.start()
        self.wait(1)
        self.assertEqual(service.state, "running")
        return service.manager

    def stop(self, number: int) -> None:
        stopped = self.services.pop(number).stop()
        self.wait(5)
        self.successResultOf(stopped)

    def test_fleet(self) -> None:
        """Each node runs its own tasks; the fleet's runs on one node, and on another when that one has stopped."""
        one, two = self.node("h1"), self.node("h2")
        self.wait(30)
        self.assertTrue(one.node_runs >= 6)
        self.assertTrue(two.node_runs >= 5)
        self.assertEqual(({*one.fencing}, two.fencing), ({1}, []))
        self.stop(0)
        self.wait(12)
        self.assertEqual({*two.fencing}, {2})

    def test_spacing_across_restarts(self) -> None:
        """A fleet's task keeps its spacing when its node is restarted all the time."""
        runs = 0
        for _ in range(10):
            manager = self.node("h1")
            self.wait(1)
            runs += len(manager.fencing)
            self.assertEqual(manager.node_runs, 0)
            self.stop(0)
        self.assertGreaterEqual(runs, 7)

    def test_through_a_conductor(self) -> None:
        """A node without the database has leases through the conductor."""
        self.node("c1", Conductor, "conductor")
        manager = self.node("h1", db_allowed=False)
        self.wait(10)
        self.assertTrue(manager.fencing)
        registry = self.runtime.database._resource
        (lease,) = self.successResultOf(registry.list_leases())  # type: ignore[union-attr]
        self.assertEqual((lease.topic, lease.task, lease.holder), ("shop", "bill", "h1"))


class MakeTests(SynchronousTestCase):
    def test_kinds(self) -> None:
        """A worker agrees with its siblings by a file, a process without a supervisor needs none."""
        runtime = memory_runtime()
        registry = MemoryRegistry(runtime.reactor)
        make = make_elections(runtime, IDENTITY, "shop", registry)
        self.assertIsNone(make("worker"))
        self.assertIsInstance(make("node"), ProcessElection)
        self.assertIsInstance(make("fleet"), LeaseElection)
        make = make_elections(attrs.evolve(runtime, worker=2), IDENTITY, "shop", registry)
        self.assertIsInstance(make("node"), FileElection)
        self.assertEqual(make("fleet")._holder, "h1 worker 2")  # type: ignore[union-attr]

    def test_file(self) -> None:
        """Nodes of other hosts or topics have other files, whatever characters their names have."""
        runtime = attrs.evolve(memory_runtime(), worker=1)
        registry = MemoryRegistry(runtime.reactor)
        names = set()
        for host, topic in (("h1", "a/b"), ("h1", "a"), ("h1/a", "b"), ("x" * 255, "../y")):
            election: Any = make_elections(runtime, ServiceIdentity(host, "b", topic), topic, registry)("node")
            names.add(election._file.name)
            self.assertRegex(election._file.name, r"\A[0-9a-f]{32}\.lock\Z")
        self.assertEqual(len(names), 4)
