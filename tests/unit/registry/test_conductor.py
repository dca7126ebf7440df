"""Tests for the conductor, and for a node that uses it, on a Clock and in memory."""

from typing import Any, ClassVar

import attrs
from twisted.internet.defer import Deferred

from novasvc.context import RequestContext
from novasvc.errors import (
    DatabaseUnavailableError,
    InvalidArgumentsError,
    StartError,
    StateError,
)
from novasvc.manager import Manager
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.registry.conductor import Conductor
from novasvc.registry.record import ServiceChanges
from novasvc.rpc import Endpoints
from novasvc.service import Service
from tests.support.conductor_rig import ConductorCase


class ConductorTests(ConductorCase):
    """Tests for the conductor's messages."""

    def call(self, method: str, **args: Any) -> Deferred[Any]:
        client = self.fleet.client(topic="conductor", namespace="registry", version="1.0")
        return self.ask(client.call(RequestContext(), method, **args))

    def test_row_on_the_wire(self) -> None:
        """A row is sent as an object with ISO 8601 time stamps."""
        self.conductor()
        row = self.successResultOf(self.call("get", service="1"))
        self.assertEqual((row["host"], row["topic"], row["report_count"]), ("c1", "conductor", 1))
        self.assertEqual((row["created_at"], row["age"]), ("1970-01-01T00:00:00.000000", 0.0))

    def test_mistyped_arguments(self) -> None:
        """A mistyped argument is rejected before anything is done, and the error names it."""
        self.conductor()
        log = self.log()
        calls: tuple[tuple[str, dict[str, Any], str], ...] = (
            ("beat", {"service_id": "1"}, "service_id: expected int, got str"),
            ("beat", {"service_id": True}, "service_id: expected int, got bool"),
            ("get", {"service": 1}, "service: expected str, got int"),
            ("list", {"host": ["h1"]}, "host: expected str | null, got array"),
            ("update", {"service_id": 1, "disabled": "yes"}, "disabled: expected bool | null, got str"),
            ("update", {"service_id": 1, "report_count": 0}, "unknown: report_count"),
            ("register", {"host": "h", "binary": None, "topic": None, "version": 0}, "binary: expected str, got null"),
            ("register", {"host": "h", "binary": "b", "topic": None}, "missing: version"),
            ("begin", {"start": {"host": "h"}}, "start: object missing required field binary"),
            (
                "enter",
                {"service_id": 1, "incarnation": 1, "state": "lost"},
                "state: invalid enum value 'lost'; allowed: 'draining', 'failed', 'ready', 'starting', 'stopped'",
            ),
        )
        for method, args, problem in calls:
            error = self.failureResultOf(self.call(method, **args), InvalidArgumentsError).value
            self.assertEqual((error.method, error.problem), (method, problem))
        self.assertEqual([row.report_count for row in self.successResultOf(self.registry.list(None, None, None))], [1])
        self.assertEqual(log, [])

    def test_what_may_run_twice(self) -> None:
        """All operations but update are idempotent."""
        methods = {method.name: method.exposure.idempotent for method in Endpoints(Conductor("c1"))}
        reads_and_writes = (
            "register",
            "begin",
            "enter",
            "beat",
            "prove_writable",
            "get",
            "list",
            "page",
            "count",
            "delete",
        )
        leases = ("hold_leases", "release_leases", "list_leases")
        verdicts = ("outages", "observations", "observe")
        expected = dict.fromkeys((*reads_and_writes, "begin", "enter", *leases, *verdicts), True)
        self.assertEqual(methods, {**expected, "update": False})


class ExchangeTests(ConductorCase):
    fleet_settings: ClassVar[dict[str, Any]] = {"periodic_enable": False, "control_exchange": "other"}

    def test_other_exchange(self) -> None:
        """A conductor is found in the control exchange of the settings."""
        self.conductor()
        changed = self.successResultOf(self.ask(self.remote().update(1, ServiceChanges(forced_down=True))))
        self.assertTrue(changed.forced_down)


class NodeTests(ConductorCase):
    """Tests for a node with db_allowed = false."""

    def node(self, **settings: Any) -> Service:
        def refuse() -> Any:
            raise AssertionError("it reached for the database")

        # A database that must not be touched.
        runtime = self.fleet.runtime("h1")
        self.apart: Runtime = attrs.evolve(
            runtime,
            settings=attrs.evolve(runtime.settings, **settings),
            database=SharedConnection("database", refuse),
        )
        node = self.fleet.add(Manager, host="h1", topic="x", binary="nova-x", db_allowed=False, runtime=self.apart)
        return node.service

    def started(self) -> Service:
        service = self.node()
        self.successResultOf(self.ask(service.start()))
        return service

    def row(self) -> Any:
        rows = self.successResultOf(self.registry.list("h1", None, None))
        return rows[0] if rows else None

    def test_registers_and_beats(self) -> None:
        """A node registers and sends heartbeats through the conductor, and its manager uses it, too."""
        self.conductor()
        service = self.started()
        self.assertEqual((self.row().binary, self.row().report_count), ("nova-x", 1))
        self.fleet.advance(10)
        self.assertEqual((self.row().report_count, self.row().age), (2, 0.0))
        listed = service.manager.attachments.registry.list(None, None, None)
        self.assertEqual([row.host for row in self.successResultOf(self.ask(listed))], ["h1", "c1"])

    def test_waits_for_conductor(self) -> None:
        """Without a conductor a node waits for one, and says so."""
        log = self.log()
        service = self.node()
        started = self.ask(service.start())
        self.fleet.advance(100)
        self.assertNoResult(started)
        self.assertEqual(service.node.waiting_for, "conductor")
        self.assertEqual(len(log), 1, log)
        self.assertIn("the conductor is unavailable; retrying", log[0])
        self.conductor()
        self.fleet.advance(31)
        self.successResultOf(started)
        self.assertIsNone(service.node.waiting_for)
        self.assertGreater(self.row().report_count, 0)

    def test_waits_for_database(self) -> None:
        """A node waits for the conductor's database, too."""
        self.conductor()
        self.registry.outage = DatabaseUnavailableError("u", "away")
        started = self.ask(self.node().start())
        self.fleet.advance(5)
        self.assertNoResult(started)
        self.registry.outage = None
        self.fleet.advance(31)
        self.successResultOf(started)

    def test_fail_fast(self) -> None:
        """With fail_fast a start without a conductor fails, and nothing stays open."""
        error = self.failureResultOf(self.ask(self.node(fail_fast=True).start()), StartError).value
        self.assertIn(
            "nova-x@h1 did not start; step registration failed: database conductor: no node serves", str(error)
        )
        self.fleet.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_waiting(self) -> None:
        """A stop while a node waits for a conductor ends the start at once."""
        service = self.node()
        started = self.ask(service.start())
        self.successResultOf(service.stop())
        self.failureResultOf(started, StateError)
        self.fleet.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_outage(self) -> None:
        """An outage of the conductor logs one error; heartbeats resume afterwards."""
        conductor = self.conductor()
        self.started()
        self.successResultOf(self.ask(conductor.stop()))
        log = self.log()
        self.fleet.advance(90)
        self.assertEqual(len(log), 1, log)
        self.assertIn("model server went away: database conductor: it did not answer in time", log[0])
        before = self.row().report_count
        self.successResultOf(self.ask(conductor.start()))
        self.fleet.advance(30)
        self.assertGreater(self.row().report_count, before)
        self.assertLess(self.row().age, 30)

    def test_deleted_row(self) -> None:
        """A deleted row stays deleted: its node is fenced, and says so."""
        self.conductor()
        service = self.started()
        self.successResultOf(self.registry.delete(self.row().id))
        self.fleet.advance(30)
        self.assertIsNone(self.row())
        self.assertIn("an operator has deleted its row", service.node.fence.reason)

    def test_stop(self) -> None:
        """After a stop the row stays, and no call is pending."""
        conductor, service = self.conductor(), self.started()
        self.successResultOf(self.ask(service.stop()))
        self.assertIsNotNone(self.row())
        self.successResultOf(self.ask(conductor.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNone(self.apart.broker._resource)

    def test_kill(self) -> None:
        """kill() deletes the row through the conductor."""
        service = self.started_with_conductor()
        self.successResultOf(self.ask(service.kill()))
        self.assertIsNone(self.row())

    def test_kill_without_row(self) -> None:
        """kill() without a row logs a warning."""
        service = self.started_with_conductor()
        self.successResultOf(self.registry.delete(self.row().id))
        log = self.log()
        self.successResultOf(self.ask(service.kill()))
        self.assertEqual(log, ["the row of nova-x@h1 was deleted already"])

    def test_kill_without_conductor(self) -> None:
        """kill() without a conductor stops the node, and fails."""
        conductor, service = self.conductor(), self.started()
        self.successResultOf(self.ask(conductor.stop()))
        killed = self.ask(service.kill())
        self.fleet.advance(30)
        self.failureResultOf(killed, DatabaseUnavailableError)
        self.assertEqual(service.state, "stopped")

    def test_start_again(self) -> None:
        """A node can be started again, with its old row."""
        service = self.started_with_conductor()
        self.successResultOf(self.ask(service.stop()))
        self.successResultOf(self.ask(service.start()))
        self.assertEqual(self.row().report_count, 2)

    def started_with_conductor(self) -> Service:
        self.conductor()
        return self.started()
