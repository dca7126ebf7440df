"""Tests for the conductor and its client, on a Clock and in memory."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import (
    DatabaseConflictError,
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseNewerError,
    DatabaseReadOnlyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InvalidArgumentsError,
    MigrationNeededError,
    ServiceNotFoundError,
    StartError,
    StateError,
    UnconfirmedError,
)
from novasvc.manager import Manager
from novasvc.node.runtime import Runtime, SharedConnection
from novasvc.registry.conductor import Conductor
from novasvc.registry.record import ServiceChanges
from novasvc.registry.remote import TIMEOUT, RemoteRegistry
from novasvc.rpc import Client, Endpoints
from novasvc.rpc.target import Target
from novasvc.service import Service
from novasvc.testing import memory_runtime

OUTAGES = (
    DatabaseError("u", "it said no"),
    DatabaseUnavailableError("u", "away"),
    DatabaseLockedError("u", "locked"),
    DatabaseReadOnlyError("u", "read-only"),
    DatabaseFullError("u", "full"),
    DatabaseConflictError("u", "taken"),
    DatabaseCorruptError("u", "no database"),
    DatabaseRefusedError("u", "wrong password"),
    DatabaseNewerError("u", "newer", "0009", "0002"),
    MigrationNeededError("u", "empty", None, "0002"),
)


class ForgetfulTransport:
    """A transport that loses the connection at the first attempt to send each message."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.sent: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Any:
        again = body in self.sent
        self.sent.append(body)
        if again:
            return self._transport.send(target, body, ttl, mandatory)
        return fail(UnconfirmedError(str(target), "the connection was lost"))


class ConductorTestCase(SynchronousTestCase):
    """A test with a registry in memory, reached through a conductor and a broker in memory."""

    def setUp(self) -> None:
        self.runtime = memory_runtime(periodic_enable=False)
        self.clock: Clock = self.runtime.reactor
        self.registry: Any = self.done(self.runtime.database.acquire())
        self.services: list[Service] = []
        self.addCleanup(self.stop_all)

    def stop_all(self) -> None:
        for service in reversed(self.services):
            service.stop()
            self.turn()

    def done(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def turn(self) -> None:
        """Deliver messages and replies."""
        self.clock.pump([0] * 12)

    def conductor(self, manager: type[Manager] = Conductor) -> Service:
        service = Service("c1", "novasvc-conductor", "conductor", manager, runtime=self.runtime)
        self.services.append(service)
        self.successResultOf(service.start())
        return service

    def remote(self) -> RemoteRegistry:
        registry: RemoteRegistry = self.done(self.runtime.conductor.acquire())
        return registry

    def ask(self, asked: Deferred[Any]) -> Deferred[Any]:
        self.turn()
        return asked

    def log(self) -> list[str]:
        """Collect log events of level warn and above."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event["log_level"] >= LogLevel.warn:
                lines.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines


class ErrorsTests(ConductorTestCase):
    """Tests for errors as the node gets them."""

    def silence(self) -> None:
        """Replace the conductor by a server that never replies."""
        transport = self.done(self.runtime.broker.acquire())
        self.successResultOf(transport.listen(Target("conductor", "c1"), lambda delivery: None, 10))

    def conductor_before(self, beat: Callable[[int], Any]) -> Service:
        """Start a conductor whose registry has this beat()."""
        service = self.conductor()
        registry = SimpleNamespace(beat=beat)
        service.manager.attachments = attrs.evolve(service.manager.attachments, registry=registry)
        return service

    def test_unconfirmed(self) -> None:
        """An unconfirmed idempotent operation is sent again; an update is not, and counts as an outage."""
        self.conductor()
        transport = ForgetfulTransport(self.done(self.runtime.broker.acquire()))
        remote = RemoteRegistry(Client(transport, clock=self.clock))
        record = self.successResultOf(self.ask(remote.register("h1", "novasvc-agent", "agent", 1)))
        self.successResultOf(self.ask(remote.beat(record.id)))
        self.assertEqual(len(transport.sent), 4)
        changing = self.ask(remote.update(record.id, ServiceChanges(disabled=True)))
        self.clock.advance(1)
        self.assertIn("was lost meanwhile", self.failureResultOf(changing, DatabaseUnavailableError).value.problem)
        self.assertEqual(len(transport.sent), 5)

    def test_database(self) -> None:
        """Each error of the conductor's database arrives unchanged, and is not logged as a failure of the conductor."""
        self.conductor()
        remote = self.remote()
        log = self.log()
        for outage in OUTAGES:
            self.registry.outage = outage
            error = self.failureResultOf(self.ask(remote.beat(1))).value
            self.assertIs(type(error), type(outage))
            self.assertEqual((error.args, str(error)), (outage.args, str(outage)))
        self.registry.outage = None
        self.assertEqual(log, [])

    def test_not_found(self) -> None:
        """A missing row is a ServiceNotFoundError that names it."""
        self.conductor()
        error = self.failureResultOf(self.ask(self.remote().get("no-such")), ServiceNotFoundError).value
        self.assertEqual(error.service, "no-such")

    def test_no_conductor(self) -> None:
        """Without a conductor the database is unavailable at once."""
        error = self.failureResultOf(self.ask(self.remote().beat(1)), DatabaseUnavailableError).value
        self.assertIn("database conductor: no node serves the topic 'conductor'", str(error))

    def test_silent_conductor(self) -> None:
        """A conductor that does not answer is an outage after TIMEOUT seconds."""
        self.silence()
        asked = self.ask(self.remote().beat(1))
        self.clock.advance(TIMEOUT - 0.1)
        self.assertNoResult(asked)
        self.clock.advance(0.2)
        error = self.failureResultOf(asked, DatabaseUnavailableError).value
        self.assertEqual(error.problem, "it did not answer in time")

    def test_slow_database(self) -> None:
        """A slow database of the conductor is an outage; the conductor stops waiting when the node does."""
        cancelled: list[Any] = []
        service = self.conductor_before(lambda _: Deferred(cancelled.append))
        asked = self.ask(self.remote().beat(1))
        self.clock.advance(TIMEOUT)
        self.turn()
        self.failureResultOf(asked, DatabaseUnavailableError)
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(service.node.server.in_flight, 0)

    def test_closed(self) -> None:
        """After close() pending and later calls fail with DatabaseUnavailableError."""
        self.silence()
        remote = self.remote()
        waiting = remote.beat(1)
        self.successResultOf(remote.close())
        self.failureResultOf(waiting, DatabaseUnavailableError)
        self.failureResultOf(remote.beat(1), DatabaseUnavailableError)

    def test_cancelled(self) -> None:
        """A cancelled call is forgotten."""
        transport = self.done(self.runtime.broker.acquire())
        client = Client(transport, clock=self.clock)
        self.conductor()
        asked = RemoteRegistry(client).beat(1)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(client.pending, 0)

    def test_bug(self) -> None:
        """A bug in the conductor is a DatabaseError with its text, not an outage."""
        self.conductor_before(lambda _: 1 / 0)
        error = self.failureResultOf(self.ask(self.remote().beat(1))).value
        self.assertIs(type(error), DatabaseError)
        self.assertIn("database conductor: 'beat' failed with ZeroDivisionError: division by zero", str(error))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_unwritable(self) -> None:
        """prove_writable() checks the conductor's database."""
        self.conductor()
        self.successResultOf(self.ask(self.remote().prove_writable()))
        self.registry.unwritable = DatabaseFullError("u", "full")
        self.failureResultOf(self.ask(self.remote().prove_writable()), DatabaseFullError)

    def test_old_conductor(self) -> None:
        """With a conductor without prove_writable, a read takes its place."""
        self.conductor(OldConductor)
        self.successResultOf(self.ask(self.remote().prove_writable()))
        self.registry.outage = DatabaseUnavailableError("u", "away")
        self.failureResultOf(self.ask(self.remote().prove_writable()), DatabaseUnavailableError)

    def test_not_a_conductor(self) -> None:
        """Another manager on the conductor's topic is a DatabaseError, not an outage."""
        self.conductor(Manager)
        error = self.failureResultOf(self.ask(self.remote().beat(1))).value
        self.assertIs(type(error), DatabaseError)
        self.assertIn("version 1.0 of namespace 'registry' is not served", str(error))


class OldConductor(Manager):
    """A conductor of version 1.0."""

    @rpc.expose(namespace="registry", version="1.0", expected=(DatabaseError, ServiceNotFoundError))
    async def get(self, context: RequestContext, service: str) -> None:
        await self.attachments.registry.get(service)


class Liar(Manager):
    """A conductor that answers what the test sets."""

    answer: Any = None

    @rpc.expose(namespace="registry")
    def get(self, context: RequestContext, service: str) -> Any:
        return self.answer

    @rpc.expose(namespace="registry")
    def list(self, context: RequestContext, **filters: Any) -> Any:
        return self.answer

    @rpc.expose(namespace="registry")
    def beat(self, context: RequestContext, service_id: int) -> Any:
        return self.answer


class AnswerTests(ConductorTestCase):
    """Tests for malformed answers."""

    ROW: ClassVar = {
        "id": 1,
        "uuid": "0",
        "host": "h1",
        "binary": "b",
        "topic": None,
        "disabled": False,
        "disabled_reason": None,
        "forced_down": False,
        "report_count": 2,
        "created_at": "2024-02-29T12:00:00.000001",
        "updated_at": None,
        "last_seen_up": None,
        "version": 0,
        "age": 7,
    }

    def setUp(self) -> None:
        super().setUp()
        self.liar = self.conductor(Liar).manager

    def problem(self, asked: Deferred[Any]) -> str:
        error = self.failureResultOf(self.ask(asked)).value
        self.assertIs(type(error), DatabaseError)
        return str(error)

    def test_good_row(self) -> None:
        """A row is decoded with its time stamps; unknown fields are ignored, and an age may be an integer."""
        self.liar.answer = {**self.ROW, "zone": "new in 1.1"}
        record = self.successResultOf(self.ask(self.remote().get("1")))
        self.assertEqual((record.created_at.isoformat(), record.age), ("2024-02-29T12:00:00.000001", 7.0))
        self.assertIs(type(record.age), float)

    def test_malformed_rows(self) -> None:
        """A row with a missing or mistyped field is an error that names the field."""
        remote = self.remote()
        lacking = {name: value for name, value in self.ROW.items() if name not in {"age", "id"}}
        answers = (
            (None, "row is NoneType, not dict"),
            ([self.ROW], "row is list, not dict"),
            (lacking, "row has no age, id"),
            ({**self.ROW, "id": "1"}, "id is str, not int"),
            ({**self.ROW, "id": True}, "id is bool, not int"),
            ({**self.ROW, "disabled": 0}, "disabled is int, not bool"),
            ({**self.ROW, "host": None}, "host is NoneType, not str"),
            ({**self.ROW, "topic": {}}, "topic is dict, not str or NoneType"),
            ({**self.ROW, "age": "7"}, "age is str, not float"),
            ({**self.ROW, "created_at": "yesterday"}, "Invalid isoformat string: 'yesterday'"),
            ({**self.ROW, "created_at": "2024-02-29T12:00:00+01:00"}, "created_at is str, not datetime or NoneType"),
        )
        for answer, problem in answers:
            self.liar.answer = answer
            self.assertIn(f"its answer to 'get' cannot be read: {problem}", self.problem(remote.get("1")))

    def test_malformed_list(self) -> None:
        """A malformed list, or one with a malformed row, is an error."""
        remote = self.remote()
        for answer in ({"rows": []}, [self.ROW, 1]):
            self.liar.answer = answer
            self.assertIn("its answer to 'list' cannot be read", self.problem(remote.list(None, None, None)))

    def test_answer_to_beat(self) -> None:
        """A result of beat() is an error."""
        self.liar.answer = 1
        self.assertIn("its answer to 'beat' cannot be read", self.problem(self.remote().beat(1)))


class ConductorTests(ConductorTestCase):
    """Tests for the conductor's messages."""

    def call(self, method: str, **args: Any) -> Deferred[Any]:
        client = self.services[0].rpc.prepare(topic="conductor", namespace="registry", version="1.0")
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
            ("beat", {"service_id": "1"}, "service_id is str, not int"),
            ("beat", {"service_id": True}, "service_id is bool, not int"),
            ("get", {"service": 1}, "service is int, not str"),
            ("list", {"host": ["h1"]}, "host is list, not str or NoneType"),
            ("update", {"service_id": 1, "disabled": "yes"}, "disabled is str, not bool or NoneType"),
            ("update", {"service_id": 1, "report_count": 0}, "unknown: report_count"),
            ("register", {"host": "h", "binary": None, "topic": None, "version": 0}, "binary is NoneType, not str"),
            ("register", {"host": "h", "binary": "b", "topic": None}, "missing: version"),
        )
        for method, args, problem in calls:
            error = self.failureResultOf(self.call(method, **args), InvalidArgumentsError).value
            self.assertEqual((error.method, error.problem), (method, problem))
        self.assertEqual([row.report_count for row in self.successResultOf(self.registry.list(None, None, None))], [1])
        self.assertEqual(log, [])

    def test_what_may_run_twice(self) -> None:
        """All operations but update are idempotent."""
        methods = {method.name: method.exposure.idempotent for method in Endpoints(Conductor("c1"))}
        expected = dict.fromkeys(("register", "beat", "prove_writable", "get", "list", "page", "count", "delete"), True)
        self.assertEqual(methods, {**expected, "update": False})

    def test_other_exchange(self) -> None:
        """A conductor is found in the control exchange of the settings."""
        self.runtime = memory_runtime(control_exchange="other")
        self.clock = self.runtime.reactor
        self.conductor()
        remote = self.remote()
        changed = self.successResultOf(self.ask(remote.update(1, ServiceChanges(forced_down=True))))
        self.assertTrue(changed.forced_down)


class NodeTests(ConductorTestCase):
    """Tests for a node with db_allowed = false."""

    def node(self, **settings: Any) -> Service:
        def refuse() -> Any:
            raise AssertionError("it reached for the database")

        # The same broker as the conductor's, and a database that must not be touched.
        self.apart: Runtime = attrs.evolve(
            self.runtime,
            settings=attrs.evolve(self.runtime.settings, **settings),
            database=SharedConnection("database", refuse),
        )
        service = Service("h1", "nova-x", "x", Manager, db_allowed=False, runtime=self.apart)
        self.services.append(service)
        return service

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
        self.clock.advance(10)
        self.turn()
        self.assertEqual((self.row().report_count, self.row().age), (2, 0.0))
        listed = service.manager.attachments.registry.list(None, None, None)
        self.assertEqual([row.host for row in self.successResultOf(self.ask(listed))], ["h1", "c1"])

    def test_waits_for_conductor(self) -> None:
        """Without a conductor a node waits for one, and says so."""
        log = self.log()
        service = self.node()
        started = self.ask(service.start())
        self.clock.pump([1.0] * 100)
        self.assertNoResult(started)
        self.assertEqual(service.node.waiting_for, "conductor")
        self.assertEqual(len(log), 1, log)
        self.assertIn("the conductor is unavailable; retrying", log[0])
        self.services.remove(service)
        self.conductor()
        self.services.append(service)
        self.clock.pump([1.0] * 31)
        self.successResultOf(started)
        self.assertIsNone(service.node.waiting_for)
        self.assertGreater(self.row().report_count, 0)

    def test_waits_for_database(self) -> None:
        """A node waits for the conductor's database, too."""
        self.conductor()
        self.registry.outage = DatabaseUnavailableError("u", "away")
        started = self.ask(self.node().start())
        self.clock.pump([1.0] * 5)
        self.assertNoResult(started)
        self.registry.outage = None
        self.clock.pump([1.0] * 31)
        self.successResultOf(started)

    def test_fail_fast(self) -> None:
        """With fail_fast a start without a conductor fails, and nothing stays open."""
        error = self.failureResultOf(self.ask(self.node(fail_fast=True).start()), StartError).value
        self.assertIn("nova-x@h1 did not start: register failed: database conductor: no node serves", str(error))
        self.turn()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_waiting(self) -> None:
        """A stop while a node waits for a conductor ends the start at once."""
        service = self.node()
        started = self.ask(service.start())
        self.successResultOf(service.stop())
        self.failureResultOf(started, StateError)
        self.turn()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_outage(self) -> None:
        """An outage of the conductor logs one error; heartbeats resume afterwards."""
        conductor = self.conductor()
        self.started()
        self.successResultOf(self.ask(conductor.stop()))
        log = self.log()
        self.clock.pump([1.0] * 90)
        self.assertEqual(len(log), 1, log)
        self.assertIn("model server went away: database conductor: no node serves the topic", log[0])
        before = self.row().report_count
        self.successResultOf(self.ask(conductor.start()))
        self.clock.pump([1.0] * 30)
        self.assertGreater(self.row().report_count, before)
        self.assertLess(self.row().age, 30)

    def test_deleted_row(self) -> None:
        """A deleted row is registered again through the conductor."""
        self.conductor()
        self.started()
        self.successResultOf(self.registry.delete(self.row().id))
        self.clock.advance(10)
        self.turn()
        self.assertEqual(self.row().report_count, 1)

    def test_stop(self) -> None:
        """After a stop the row stays, and no call is pending."""
        service = self.started_with_conductor()
        self.successResultOf(self.ask(service.stop()))
        self.assertIsNotNone(self.row())
        self.successResultOf(self.ask(self.services[0].stop()))
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
        service = self.started_with_conductor()
        self.successResultOf(self.ask(self.services[0].stop()))
        killed = self.ask(service.kill())
        self.clock.pump([1.0] * 30)
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
