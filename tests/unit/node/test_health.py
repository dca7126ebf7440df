"""Tests for novasvc.node.health: what a node stands on, and whether it is there."""

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc.errors import DatabaseFullError, DatabaseReadOnlyError, DatabaseUnavailableError, MigrationNeededError
from novasvc.interfaces import IHealthy
from novasvc.manager import Manager
from novasvc.node.health import CheckHistory, check_migration, check_reactor
from novasvc.node.runtime import SharedConnection
from novasvc.service import Service
from novasvc.telemetry import metrics
from novasvc.testing import MemoryRegistry, memory_runtime
from tests.support.flight_rig import record_flight


class Registry(MemoryRegistry):
    """Answers as the test says, if it wants to.

    :ivar asked: questions for one row.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.asked = 0
        self.on_get: Callable[[], Deferred[Any]] | None = None
        self.proofs = 0

    def get(self, service: str) -> Deferred[Any]:
        self.asked += 1
        return super().get(service) if self.on_get is None else self.on_get()

    def prove_writable(self) -> Deferred[None]:
        self.proofs += 1
        return super().prove_writable()


class Leaves(Manager):
    """Takes its time to leave."""

    def cleanup_host(self) -> Deferred[None]:
        return Deferred()


class HealthCase(SynchronousTestCase):
    """A node in memory."""

    def setUp(self) -> None:
        self.recorder = record_flight(self)
        self.addCleanup(metrics.reset)
        self.clock = Clock()
        self.registry = Registry(self.clock)
        runtime = attrs.evolve(
            memory_runtime(self.clock, host="h1"), database=SharedConnection("database", lambda: self.registry)
        )
        self.service = Service("h1", "nova-x", "x", Manager, runtime=runtime)
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.registry.outage = None
        if self.service.state in {"starting", "running"}:
            self.service.stop()
        self.clock.pump([1.0] * 70)

    def legs(self) -> dict[str, dict[str, Any]]:
        told = self.successResultOf(self.service.health())
        self.assertEqual(told["service"], "nova-x@h1")
        return {leg["name"]: leg for leg in told["legs"]}

    def unready(self) -> dict[str, str]:
        """Return the details of the legs that are not ready."""
        return {name: leg["detail"] for name, leg in self.legs().items() if not leg["ready"]}


class NodeHealthTests(HealthCase):
    """Tests for NodeHealth."""

    def test_interface(self) -> None:
        """A Service is IHealthy."""
        verifyObject(IHealthy, self.service)

    def test_before(self) -> None:
        """Before its start nothing is ready, and each leg says why."""
        expected = {
            "service": "it is initial",
            "broker": "it has not been reached: the node is initial",
            "database": "it has not been reached: the node is initial",
            "migration": "the schema was not read yet",
            "consumers": "no messages reach it: it is initial",
        }
        self.assertEqual(self.unready(), expected)

    def test_running(self) -> None:
        """When it runs, all are ready."""
        self.successResultOf(self.service.start())
        self.assertEqual(self.unready(), {})

    def test_waiting(self) -> None:
        """A start that waits for the database says so, and why."""
        self.registry.outage = DatabaseUnavailableError("sqlite:///x", "it is gone")
        self.service.startService()
        self.clock.pump([0.1] * 3)
        self.assertIn("it is gone", self.unready()["database"])
        self.assertEqual(self.unready()["service"], "it is starting")

    def test_database(self) -> None:
        """A database that goes away is one leg that is not ready; a row that was deleted is none."""
        self.successResultOf(self.service.start())
        self.successResultOf(self.registry.delete(self.service.node.record.id))  # type: ignore[union-attr]  # it runs
        self.clock.advance(1.1)
        self.assertEqual(self.unready(), {})
        self.registry.outage = DatabaseUnavailableError("sqlite:///x", "it is gone")
        self.assertEqual(self.unready(), {}, "it was asked less than a second ago")
        self.clock.advance(1.1)
        self.assertEqual(list(self.unready()), ["database"])

    def test_unwritable(self) -> None:
        """A database that can be read and not written is not ready, as the last heartbeat has shown."""
        self.successResultOf(self.service.start())
        self.registry.unwritable = DatabaseFullError("sqlite:///x", "database or disk is full")
        self.clock.pump([1.1] * 10)
        problem = f"heartbeats cannot be written: {self.registry.unwritable}"
        self.assertEqual(self.unready(), {"database": problem})
        self.registry.unwritable = None
        self.clock.pump([1.1] * 10)
        self.assertEqual(self.unready(), {})
        self.assertEqual(self.registry.proofs, 0)

    def test_unwritable_without_heartbeats(self) -> None:
        """A node whose heartbeats are withheld tries by itself whether the database can be written."""
        self.successResultOf(self.service.start())
        node = self.service.node
        assert node.heartbeat is not None
        node.heartbeat.stop()
        self.registry.unwritable = DatabaseReadOnlyError("sqlite:///x", "attempt to write a readonly database")
        self.clock.pump([1.1] * 30)
        self.assertEqual(self.unready(), {"database": str(self.registry.unwritable)})
        self.assertEqual(self.registry.proofs, 1)

    def test_hanging(self) -> None:
        """A database that does not answer is waited for 1.5 seconds, by all who ask at once."""
        self.successResultOf(self.service.start())
        self.registry.on_get, self.registry.asked = Deferred, 0
        asked = [self.service.health() for _ in range(5)]
        self.clock.advance(1.4)
        self.assertNoResult(asked[0])
        self.clock.advance(0.2)
        for each in asked:
            (leg,) = [leg for leg in self.successResultOf(each)["legs"] if not leg["ready"]]
            self.assertEqual((leg["name"], leg["detail"]), ("database", "no answer within 1.5 s"))
        self.assertEqual(self.registry.asked, 1)

    def test_broken_registry(self) -> None:
        """A registry that fails in a way of its own is not ready, and harms nothing."""
        self.successResultOf(self.service.start())
        self.registry.on_get = lambda: succeed(None).addCallback(lambda _: 1 / 0)
        self.assertIn("ZeroDivisionError", self.unready()["database"])

    def test_broker_away(self) -> None:
        """While the broker is away, the consumers' detail says that: the node runs."""
        self.successResultOf(self.service.start())
        transport = self.service.node.transport
        self.successResultOf(transport.close())  # type: ignore[union-attr]  # it runs
        problem = transport.problem()  # type: ignore[union-attr]
        details = {"broker": problem, "consumers": f"no messages reach it: the broker is unavailable: {problem}"}
        self.assertEqual(self.unready(), details)

    def test_under_way(self) -> None:
        """A node that drains says that it takes in calls of operations under way, and nothing else."""
        runtime = self.service.node.runtime
        self.service = Service("h1", "nova-x", "x", Leaves, runtime=runtime)
        self.successResultOf(self.service.start())
        self.service.stop()
        expected = "no messages reach it: it is draining, and accepts only calls of operations under way"
        self.assertEqual(self.unready(), {"service": "it is draining", "consumers": expected})

    def test_draining(self) -> None:
        """A node that drains is not ready: nothing new is to come to it."""
        self.successResultOf(self.service.start())
        self.successResultOf(self.service.stop())
        self.assertEqual(self.unready()["service"], "it is stopped")
        self.assertEqual(self.unready()["consumers"], "no messages reach it: it is stopped")


class LegsTests(SynchronousTestCase):
    """Tests for CheckHistory."""

    def test_since(self) -> None:
        """A leg says when it was first found as it is, whatever is said of it meanwhile."""
        clock = Clock()
        history = CheckHistory(clock.seconds)
        since = []
        for verdict in ((True, "a"), (True, "b"), (False, "c"), (False, "d"), (True, "e")):
            clock.advance(1)
            leg = history.check("broker", verdict)
            self.assertEqual((leg["name"], leg["ready"], leg["detail"]), ("broker", *verdict))
            since.append(leg["since"][17:19])
        self.assertEqual(since, ["01", "01", "03", "03", "05"])


class VerdictTests(SynchronousTestCase):
    """Tests for the verdicts that need no node."""

    def test_migration(self) -> None:
        """A schema that needs a migration is said to, and whoever reached the registry has seen that it does not."""
        error = MigrationNeededError("sqlite:///x", "it has no schema yet", found=None, known="0001")
        self.assertEqual(check_migration(error, reached=False), (False, str(error)))
        self.assertTrue(check_migration(None, reached=True)[0])
        other = DatabaseUnavailableError("sqlite:///x", "gone")
        self.assertEqual(check_migration(other, reached=False), (False, "the schema was not read yet"))

    def test_reactor(self) -> None:
        """A reactor that was late is not ready; one that is not watched is given the benefit of the doubt."""
        self.addCleanup(metrics.reset)
        recorder = record_flight(self)
        self.assertEqual(check_reactor(), (True, "it is not watched"))
        recorder.beat(1e12)  # in the future: nobody has missed a turn
        metrics.last_lag.at().value = 0.25
        self.assertEqual(check_reactor(), (True, "it was 250 ms late"))
        metrics.last_lag.at().value = 1.5
        self.assertEqual(check_reactor(), (False, "it was 1500 ms late"))

    def test_silent_reactor(self) -> None:
        """One whose heart has not beaten for long is late by as much."""
        self.addCleanup(metrics.reset)
        record_flight(self).beat(1.0)
        ready, detail = check_reactor()
        self.assertFalse(ready)
        self.assertRegex(detail, r"^it was \d{4,} ms late$")
