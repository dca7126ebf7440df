"""Tests for novasvc.registry.remote and novasvc.registry.encoding, on a Clock and in memory."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail

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
    DatabaseServerReadOnlyError,
    DatabaseUnavailableError,
    MigrationNeededError,
    ServiceNotFoundError,
    UnconfirmedError,
)
from novasvc.manager import Manager
from novasvc.registry.breaker import PROBE_PAUSE
from novasvc.registry.conductor import Conductor
from novasvc.registry.encoding import encode_record
from novasvc.registry.errors import CircuitOpenError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.record import ServiceChanges
from novasvc.registry.remote import TIMEOUT, RemoteRegistry
from novasvc.rpc import Client
from novasvc.rpc.target import Target
from novasvc.service import Service
from tests.support.conductor_rig import ConductorCase

OUTAGES = (
    DatabaseError("u", "it said no"),
    DatabaseUnavailableError("u", "away"),
    DatabaseLockedError("u", "locked"),
    DatabaseReadOnlyError("u", "read-only"),
    DatabaseServerReadOnlyError("u", "replica"),
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


class ErrorsTests(ConductorCase):
    """Tests for errors as the node gets them."""

    def silence(self) -> None:
        """Replace the conductor by a server that never replies."""
        transport = self.transport()
        self.successResultOf(transport.listen(Target("conductor", "c1"), lambda delivery: None, 10))

    def conductor_before(self, **methods: Callable[..., Any]) -> Service:
        """Start a conductor whose registry has these methods."""
        service = self.conductor()
        registry = SimpleNamespace(**methods)
        service.manager.attachments = attrs.evolve(service.manager.attachments, registry=registry)
        return service

    def test_unconfirmed(self) -> None:
        """An unconfirmed idempotent operation is sent again; an update is not, and counts as an outage."""
        self.conductor()
        transport = ForgetfulTransport(self.transport())
        remote = RemoteRegistry(Client(transport, clock=self.clock))
        record = self.successResultOf(self.ask(remote.register("h1", "novasvc-agent", "agent", 1)))
        self.successResultOf(self.ask(remote.beat(record.id)))
        self.assertEqual(len(transport.sent), 4)
        changing = self.ask(remote.update(record.id, ServiceChanges(disabled=True)))
        self.fleet.advance(1)
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
            self.fleet.advance(PROBE_PAUSE)
        self.assertEqual(len(log), 1, log)
        self.assertIn("the database does not answer in time; requests are refused until it does", log[0])

    def test_asks_another(self) -> None:
        """A conductor that is cut off from its database refuses, and its clients ask another one."""
        asked: list[int] = []

        def lose(service_id: int, incarnation: int | None) -> Deferred[None]:
            asked.append(service_id)
            return fail(DatabaseUnavailableError("u", "away"))

        self.conductor_before(beat=lose, prove_writable=lambda: fail(DatabaseUnavailableError("u", "away")))
        remote = self.remote()
        self.failureResultOf(self.ask(remote.beat(1)), DatabaseUnavailableError)
        self.fleet.start(Conductor, host="c2", topic="conductor")
        for _ in range(6):
            self.successResultOf(self.ask(remote.beat(1)))
        changed = self.successResultOf(self.ask(remote.update(1, ServiceChanges(disabled=True))))
        self.assertTrue(changed.disabled)
        self.assertEqual(asked, [1])

    def test_attempts(self) -> None:
        """Where all conductors refuse, it fails after a few attempts, with the reason."""
        self.conductor()
        remote = self.remote()
        self.registry.outage = DatabaseUnavailableError("u", "away")
        self.failureResultOf(self.ask(remote.beat(1)), DatabaseUnavailableError)
        error = self.failureResultOf(self.ask(remote.beat(1)), CircuitOpenError).value
        self.assertIn("request refused; an earlier one failed with 'away'", str(error))

    def test_asked_once(self) -> None:
        """A request that reached the database is not repeated: it may have been done."""
        asked: list[int] = []

        def lose(service_id: int) -> Deferred[None]:
            asked.append(service_id)
            return fail(DatabaseUnavailableError("u", "away"))

        self.conductor_before(delete=lose, prove_writable=Deferred)
        self.failureResultOf(self.ask(self.remote().delete(1)), DatabaseUnavailableError)
        self.assertEqual(asked, [1])

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
        self.fleet.advance(TIMEOUT - 0.1)
        self.assertNoResult(asked)
        self.fleet.advance(0.2)
        error = self.failureResultOf(asked, DatabaseUnavailableError).value
        self.assertEqual(error.problem, "it did not answer in time")

    def test_slow_database(self) -> None:
        """A slow database of the conductor is an outage; the conductor stops waiting when the node does."""
        cancelled: list[Any] = []
        service = self.conductor_before(beat=lambda *_: Deferred(cancelled.append))
        asked = self.ask(self.remote().beat(1))
        self.fleet.advance(TIMEOUT)
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
        transport = self.transport()
        client = Client(transport, clock=self.clock)
        self.conductor()
        asked = RemoteRegistry(client).beat(1)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(client.pending, 0)

    def test_bug(self) -> None:
        """A bug in the conductor is a DatabaseError with its text, not an outage."""
        self.conductor_before(beat=lambda *_: 1 / 0)
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

    def test_conductor_without_incarnations(self) -> None:
        """With a conductor of version 1.3 a start has no number, and a heartbeat with one is written."""
        self.conductor(OldConductor)
        remote = self.remote()
        start = ServiceStart(host="h1", binary="b", topic="t", version=7, owner="o", machine="m1")
        record = self.successResultOf(self.ask(remote.begin(start)))
        self.assertEqual((record.name, record.incarnation, record.version), ("b@h1", None, 7))
        self.successResultOf(self.ask(remote.beat(record.id, 3)))
        self.successResultOf(self.ask(remote.beat(record.id)))
        self.assertEqual(self.fleet.row("b", "h1").report_count, 2)
        self.failureResultOf(self.ask(remote.enter(record.id, 3, "ready")), DatabaseError)
        self.registry.outage = DatabaseUnavailableError("u", "away")
        self.failureResultOf(self.ask(remote.begin(start)), DatabaseUnavailableError)
        self.failureResultOf(self.ask(remote.beat(record.id, 3)), DatabaseUnavailableError)

    def test_older_without_outages(self) -> None:
        """With a conductor that is older than verdicts no outage is known; observers need a newer one."""
        self.conductor(OldConductor)
        self.assertEqual(self.successResultOf(self.ask(self.remote().outages(VerdictRule()))), Outages())
        error = self.failureResultOf(self.ask(self.remote().observations("o")), DatabaseError).value
        self.assertIn("observations", str(error))

    def test_not_a_conductor(self) -> None:
        """Another manager on the conductor's topic is a DatabaseError, not an outage."""
        self.conductor(Manager)
        error = self.failureResultOf(self.ask(self.remote().beat(1))).value
        self.assertIs(type(error), DatabaseError)
        self.assertIn("version 1.0 of namespace 'registry' is not served", str(error))


class OldConductor(Manager):
    """A conductor of version 1.3, without prove_writable."""

    @rpc.expose(namespace="registry", version="1.0", expected=(DatabaseError, ServiceNotFoundError))
    async def get(self, context: RequestContext, service: str) -> None:
        await self.attachments.registry.get(service)

    @rpc.expose(namespace="registry", version="1.3", expected=(DatabaseError, ServiceNotFoundError))
    async def register(self, context: RequestContext, host: str, binary: str, topic: str | None, version: int) -> Any:
        record = encode_record(await self.attachments.registry.register(host, binary, topic, version))
        del record["incarnation"]
        return record

    @rpc.expose(namespace="registry", version="1.0", expected=(DatabaseError, ServiceNotFoundError))
    def beat(self, context: RequestContext, service_id: int) -> Any:
        return self.attachments.registry.beat(service_id)


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


class AnswerTests(ConductorCase):
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

    def test_incarnation(self) -> None:
        """The incarnation of a row is decoded with its time stamps and tags; unknown fields and states pass."""
        moment = "2024-02-29T12:00:00.000001"
        incarnation = {
            "number": 3,
            "state": "warming",
            "since": moment,
            "until": None,
            "reason": None,
            "calls": 0,
            "machine": "m1",
            "pid": 7,
            "started_at": moment,
            "zone": None,
            "tags": ["gpu"],
            "mood": "new in 1.5",
        }
        self.liar.answer = {**self.ROW, "incarnation": incarnation}
        found = self.successResultOf(self.ask(self.remote().get("1"))).incarnation
        self.assertEqual(
            (found.number, found.state, found.tags, found.since.isoformat()), (3, "warming", ("gpu",), moment)
        )
        for changes, problem in (
            ({"number": "3"}, "number is str, not int"),
            ({"tags": [1]}, "tag is int, not str"),
            ({"since": None}, "since is NoneType, not datetime"),
        ):
            self.liar.answer = {**self.ROW, "incarnation": {**incarnation, **changes}}
            self.assertIn(f"its answer to 'get' cannot be read: {problem}", self.problem(self.remote().get("1")))

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
