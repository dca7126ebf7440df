"""Tests for the rows as a real Nova would read them, with the standard library's sqlite3."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from sqlalchemy import event
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from novasvc.errors import (
    DatabaseConflictError,
    DatabaseCorruptError,
    DatabaseNewerError,
    DatabaseRefusedError,
    MigrationNeededError,
    ServiceTwinError,
)
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.liveness import is_up
from novasvc.registry.query import ServiceQuery
from novasvc.registry.record import ServiceChanges
from novasvc.registry.sql import migrate
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.engine import Engine
from novasvc.registry.sql.rows import DISABLED_REASON
from novasvc.registry.sql.services import ServiceRegistry, connect_registry
from tests.unit.registry.sql.test_migrate import NOVAS, SECOND_KEY

STAMP = r"\A\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}000\Z"

START = ServiceStart(host="h9", binary="b", topic="t", version=7, owner="owner", machine="m1")


class RegistryCase(TestCase):
    """A test with a registry in a file."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.url = f"sqlite:///{self.path}"
        migrate.upgrade(self.url)

    def make(self, **options: Any) -> ServiceRegistry:
        registry = connect_registry(self.url, reactor=reactor, **options)
        self.addCleanup(registry.close)
        return registry

    def rows(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM services ORDER BY id")]

    def execute(self, statement: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement, values)


class RowTests(RegistryCase):
    """Tests for the format of rows."""

    async def test_new_row(self) -> None:
        """A new row has all columns, flags as 0 and 1, and time stamps with six decimals and no zone."""
        record = await self.make().register("h1", "novasvc-agent", "agent", 7)
        (row,) = self.rows()
        self.assertRegex(row.pop("created_at"), STAMP)
        self.assertEqual(row.pop("uuid"), record.uuid)
        self.assertEqual(
            row,
            {
                "id": 1,
                "updated_at": None,
                "deleted_at": None,
                "host": "h1",
                "binary": "novasvc-agent",
                "topic": "agent",
                "report_count": 0,
                "disabled": 0,
                "deleted": 0,
                "disabled_reason": None,
                "last_seen_up": None,
                "forced_down": 0,
                "version": 7,
            },
        )
        self.assertIs(type(row["disabled"]), int)

    async def test_stamps(self) -> None:
        """A heartbeat writes the same UTC time stamp into both columns."""
        registry = self.make()
        record = await registry.register("h1", "b", "t", 7)
        await registry.beat(record.id)
        (row,) = self.rows()
        self.assertRegex(row["last_seen_up"], STAMP)
        self.assertEqual(row["updated_at"], row["last_seen_up"])
        stamp = datetime.fromisoformat(row["last_seen_up"]).replace(tzinfo=UTC)
        self.assertLess(abs(datetime.now(UTC) - stamp), timedelta(seconds=30))

    async def test_delete(self) -> None:
        """A deleted row keeps updated_at, and has its own id and the time in deleted and deleted_at."""
        registry = self.make()
        record = await registry.register("h1", "b", "t", 7)
        await registry.beat(record.id)
        (before,) = self.rows()
        await registry.delete(record.id)
        (after,) = self.rows()
        self.assertRegex(after.pop("deleted_at"), STAMP)
        self.assertEqual(after, {**{k: v for k, v in before.items() if k != "deleted_at"}, "deleted": record.id})

    async def test_update(self) -> None:
        """An update writes what changed and updated_at, nothing else."""
        registry = self.make()
        record = await registry.register("h1", "b", "t", 7)
        (before,) = self.rows()
        await registry.update(record.id, ServiceChanges(disabled=True, disabled_reason="disk"))
        (after,) = self.rows()
        changed = {name for name in before if before[name] != after[name]}
        self.assertEqual(changed, {"disabled", "disabled_reason", "updated_at"})
        self.assertEqual(after["disabled"], 1)

    async def test_new_services_disabled(self) -> None:
        """Without enable_new_services a new row is disabled with a reason; an existing one stays as it is."""
        old = await self.make().register("h1", "b", "t", 7)
        registry = self.make(enable_new_services=False)
        new = await registry.register("h2", "b", "t", 7)
        self.assertEqual((new.disabled, new.disabled_reason), (True, DISABLED_REASON))
        again = await registry.register("h1", "b", "t", 7)
        self.assertEqual((again.id, again.disabled, again.disabled_reason), (old.id, False, None))


class ForeignRowTests(RegistryCase):
    """Tests for rows of other writers."""

    def insert(self, **columns: Any) -> None:
        row = {"host": "h1", "binary": "nova-compute", "report_count": 3, "deleted": 0, **columns}
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" * len(row))
        self.execute(f"INSERT INTO services ({names}) VALUES ({marks})", *row.values())  # noqa: S608 - our own names

    async def test_nova(self) -> None:
        """A row in Nova's format is read."""
        self.insert(
            created_at="2026-01-02 03:04:05.000006",
            updated_at="2026-01-02 03:05:05.100007",
            last_seen_up="2026-01-02 03:05:05.100006",
            topic="compute",
            disabled=1,
            disabled_reason="AUTO: gone",
            forced_down=1,
            version=73,
            uuid="5f3a8a2e-6b1f-4b0e-9a51-0d8b8a0c4e55",
        )
        (record,) = await self.make().list(None, None, None)
        self.assertEqual(record.created_at, datetime(2026, 1, 2, 3, 4, 5, 6))  # noqa: DTZ001 - the table's form
        self.assertEqual(record.last_seen_up, datetime(2026, 1, 2, 3, 5, 5, 100006))  # noqa: DTZ001
        self.assertEqual((record.disabled, record.forced_down, record.version), (True, True, 73))

    async def test_nulls(self) -> None:
        """NULL columns are read as their defaults; a row without time stamps is very old."""
        self.insert()
        (record,) = await self.make().list(None, None, None)
        self.assertEqual((record.disabled, record.forced_down, record.version, record.uuid), (False, False, 0, ""))
        self.assertGreater(record.age, timedelta(days=365 * 50).total_seconds())

    async def test_begin_with_nulls(self) -> None:
        """A service whose row has NULL where Nova allows it begins its first incarnation there."""
        self.insert(topic=None)
        registry = self.make()
        record = await registry.begin(attrs.evolve(START, host="h1", binary="nova-compute"))
        await registry.beat(record.id, 1)
        record = await registry.get(str(record.id))
        assert record.incarnation is not None
        self.assertEqual((record.incarnation.number, record.report_count, record.version), (1, 4, 7))

    async def test_foreign_incarnation(self) -> None:
        """A state of a newer version is read as it is, and counts as running; tags that are no JSON are left out."""
        registry = self.make()
        record = await registry.begin(START)
        await registry.beat(record.id, 1)
        self.execute("UPDATE novasvc_incarnations SET state = 'warming', tags = '{{'")
        (record,) = await registry.list(None, None, None)
        assert record.incarnation is not None
        self.assertEqual((record.incarnation.state, record.incarnation.tags), ("warming", ()))
        self.assertTrue(is_up(record, 60))
        self.assertEqual((await registry.count(ServiceQuery())).up, 1)

    async def test_clock_that_jumped(self) -> None:
        """A row that a host stamped a day ahead changes neither twins nor heartbeats."""
        registry = self.make()
        record = await registry.begin(START)
        for modifier in ("+1 day", "-1 day"):
            self.execute(f"UPDATE services SET last_seen_up = datetime('now', '{modifier}')")  # noqa: S608
            await self.assertFailure(registry.begin(attrs.evolve(START, owner="other")), ServiceTwinError)
            await registry.beat(record.id, 1)

    async def test_deleted_null(self) -> None:
        """A row whose ``deleted`` is NULL is invisible, as it is in Nova."""
        self.insert(deleted=None)
        self.assertEqual(await self.make().list(None, None, None), [])

    async def test_unreadable_stamp(self) -> None:
        """An invalid time stamp is a DatabaseCorruptError."""
        self.insert(last_seen_up="yesterday")
        error = await self.assertFailure(self.make().list(None, None, None), DatabaseCorruptError)
        self.assertIn("yesterday", str(error))

    async def test_invalid_argument(self) -> None:
        """An argument that is not Unicode is not taken for a corrupt table."""
        registry = self.make()
        for reading in (
            registry.list("h\udcff", None, None),
            registry.get("\udcff"),
            registry.page(ServiceQuery(text="\udcff")),
            registry.page(ServiceQuery(after="\udcff")),
        ):
            await self.assertFailure(reading, UnicodeEncodeError)


class AgeTests(RegistryCase):
    """Tests for ages, by the database's clock."""

    async def test_age(self) -> None:
        """The age counts from last_seen_up, or from created_at before the first heartbeat; it may be negative."""
        registry = self.make()
        record = await registry.register("h1", "b", "t", 7)
        for column, modifier, age in (
            ("created_at", "-100 seconds", 100),
            ("last_seen_up", "-10 seconds", 10),
            ("last_seen_up", "+50 seconds", -50),
        ):
            self.execute(f"UPDATE services SET {column} = strftime('%Y-%m-%d %H:%M:%f', 'now', ?) || '000'", modifier)  # noqa: S608
            self.assertLess(abs((await registry.get(str(record.id))).age - age), 5)

    async def test_clock_of_the_host(self) -> None:
        """No statement contains a time of this host. 45 s is the length of a silence that is recorded."""
        sent: list[Any] = []
        engine = Engine(DatabaseAddress.parse(self.url), reactor=reactor)
        registry = ServiceRegistry(engine, new_uuid=lambda: "a uuid")
        self.addCleanup(registry.close)
        await engine.block(lambda sql: event.listen(sql, "before_cursor_execute", lambda *given: sent.append(given[3])))
        record = await registry.register("h1", "b", "t", 7)
        await registry.beat(record.id)
        await registry.update(record.id, ServiceChanges(forced_down=True))
        await registry.delete(record.id)
        values = {value for parameters in sent for value in parameters}
        self.assertEqual(values, {"h1", "b", "t", 7, "a uuid", None, 0, 1, 45.0})


class RaceTests(RegistryCase):
    """Tests for concurrent writers."""

    async def test_register(self) -> None:
        """Concurrent registrations of one service create one row."""
        barrier = threading.Barrier(8, timeout=30)

        def uuid_when_all_are_there() -> str:
            # Called between the look-up and the insert: all eight have seen that there is no row.
            barrier.wait()
            return f"uuid of {threading.get_ident()}"

        registries = []
        for _ in range(8):
            engine = Engine(DatabaseAddress.parse(self.url), reactor=reactor)
            registries.append(ServiceRegistry(engine, new_uuid=uuid_when_all_are_there))
            self.addCleanup(registries[-1].close)
        records = await gatherResults([each.register("h1", "b", "t", 7) for each in registries])
        self.assertEqual({record.id for record in records}, {1})
        self.assertEqual(len(self.rows()), 1)

    async def test_topic_is_taken(self) -> None:
        """A topic that another binary of the host has is a DatabaseConflictError, and creates no row."""
        registry = self.make()
        await registry.register("h1", "one", "agent", 7)
        error = await self.assertFailure(registry.register("h1", "two", "agent", 7), DatabaseConflictError)
        self.assertIn("another service of host 'h1' has the topic 'agent'", str(error))
        self.assertEqual([row["binary"] for row in self.rows()], ["one"])


class GivenUpTests(RegistryCase):
    """Tests for changes whose callers give up while their transactions wait for the database."""

    async def give_up(self, change: Callable[[], Deferred[Any]], *others: Callable[[], Deferred[Any]]) -> list[Any]:
        """Begin changes while another process has the database, cancel the first; return the results of the others."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            changing = change()
            waiting = [each() for each in others]
            await deferLater(reactor, 0, lambda: None)  # batches have begun
            changing.cancel()
            await self.assertFailure(changing, CancelledError)
            other.execute("ROLLBACK")
        return [await each for each in waiting]

    async def test_begin(self) -> None:
        """A start is not written; others of its batch are."""
        registry = self.make()
        starts = [partial(registry.begin, attrs.evolve(START, host=host)) for host in ("h1", "h2")]
        (record,) = await self.give_up(*starts)
        self.assertEqual([each.id for each in await registry.list(None, None, None)], [record.id])
        self.assertEqual(record.host, "h2")

    async def test_begin_alone(self) -> None:
        """A start that is tried again because of a conflict is not written, either."""
        registry = self.make()
        for awaited in ([False], [True, False, False]):
            answers = iter(awaited)
            trying = Deferred.fromCoroutine(registry._begin_alone(START, partial(next, answers)))
            await self.assertFailure(trying, CancelledError)
            self.assertEqual(list(answers), [])
        self.assertEqual(self.rows(), [])

    async def test_enter(self) -> None:
        """A state is not written, because its caller may have entered the next one; a stop is, as the last one."""
        registry = self.make()
        record = await registry.begin(START)
        for state, expected in (("ready", "starting"), ("draining", "starting"), ("stopped", "stopped")):
            await self.give_up(partial(registry.enter, record.id, 1, state))
            (record,) = await registry.list(None, None, None)
            assert record.incarnation is not None
            self.assertEqual(record.incarnation.state, expected)

    async def test_update(self) -> None:
        """A change of an operator is not written."""
        registry = self.make()
        record = await registry.begin(START)
        await self.give_up(partial(registry.update, record.id, ServiceChanges(disabled=True)))
        self.assertFalse((await registry.get(record.uuid)).disabled)


class OpenTests(RegistryCase):
    """Tests for novasvc.registry.sql.services.ServiceRegistry.open."""

    async def test_migrates(self) -> None:
        """open() creates the schema, once."""
        self.path.unlink()
        for _ in range(2):
            registry = self.make()
            await registry.open()
            self.assertEqual(await registry.list(None, None, None), [])
            await registry.close()

    async def test_may_not_migrate(self) -> None:
        """With migrate=False nothing is created, and the error says what to do."""
        self.path.unlink()
        error = await self.assertFailure(self.make(migrate=False).open(), MigrationNeededError)
        self.assertIn("novasvc db upgrade", str(error))
        self.assertIsNone(error.found)
        self.assertFalse(self.path.exists())

    async def test_need_not_migrate(self) -> None:
        """With migrate=False a database at the head opens."""
        self.assertIsNone(await self.make(migrate=False).open())

    async def test_newer(self) -> None:
        """A database of a newer version does not open; the error names both revisions."""
        self.execute("UPDATE novasvc_alembic_version SET version_num = '0999'")
        error = await self.assertFailure(self.make().open(), DatabaseNewerError)
        self.assertEqual((error.found, error.known), ("0999", migrate.HEAD))

    async def test_again(self) -> None:
        """open() can be retried after a failure."""
        registry = self.make()
        (there := self.path.with_name("x")).hardlink_to(self.path)
        self.path.unlink()
        self.path.mkdir()
        error = await self.assertFailure(registry.open(), DatabaseRefusedError)
        self.assertIn("is a directory", str(error))
        self.path.rmdir()
        there.rename(self.path)
        await registry.open()
        self.assertEqual(await registry.list(None, None, None), [])


class ConnectRegistryTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.services.connect_registry."""

    def test_nothing_happens(self) -> None:
        """Making a registry starts no thread and touches no file, because a daemon forks after it."""
        before = threading.active_count()
        path = Path(self.mktemp())
        registry = connect_registry(f"sqlite:///{path.absolute()}", reactor=reactor)
        self.assertEqual(threading.active_count(), before)
        self.assertFalse(path.exists())
        self.assertIsNone(self.successResultOf(registry.close()))

    def test_bad_url(self) -> None:
        """An invalid URL is refused at once."""
        self.assertRaises(DatabaseRefusedError, connect_registry, "no url", reactor=reactor)


class NovasOwnTests(TestCase):
    """Tests for Nova's own database."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        now = datetime.now(UTC).replace(tzinfo=None)
        recent, old = (str(now - timedelta(seconds=seconds, microseconds=1)) for seconds in (5, 300))
        row = "INSERT INTO services VALUES (?,?,NULL,?,?,?,?,?,?,0,?,?,?,?,?)"
        numbered = [f"6f1a2b3c-0000-4000-8000-00000000000{number}" for number in range(4)]
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executescript(NOVAS.format(more=SECOND_KEY))
            connection.executemany(
                row,
                [
                    (old, recent, 1, "n1", "nova-compute", "compute", 30, 0, None, recent, 0, 74, numbered[0]),
                    (old, old, 2, "n2", "nova-compute", "compute", 9, 1, "AUTO: lost", old, 0, 74, numbered[1]),
                    (old, None, 3, "n1", "nova-metadata", None, 0, 0, None, None, 0, 74, numbered[2]),
                ],
            )
        self.before = self.path.read_bytes()

    def make(self, **options: Any) -> ServiceRegistry:
        registry = connect_registry(f"sqlite:///{self.path}", reactor=reactor, **options)
        self.addCleanup(registry.close)
        return registry

    async def test_read(self) -> None:
        """Rows are read without a write: no table is added, and the journal mode stays."""
        registry = self.make(migrate=False)
        await registry.open()
        records = await registry.list(None, None, None)
        self.assertEqual(
            [(record.host, record.topic) for record in records], [("n1", "compute"), ("n2", "compute"), ("n1", None)]
        )
        self.assertEqual([is_up(record, 60) for record in records[:2]], [True, False])
        self.assertEqual((records[1].disabled, records[1].disabled_reason), (True, "AUTO: lost"))
        self.assertEqual((await registry.get(records[0].uuid)).id, records[0].id)
        await registry.close()
        self.assertEqual(self.path.read_bytes(), self.before)
        self.assertEqual([path.name for path in self.path.parent.glob(f"{self.path.name}*")], [self.path.name])

    async def test_change(self) -> None:
        """Changes are written as Nova writes them, and need no table of novasvc."""
        registry = self.make(migrate=False)
        await registry.open()
        await registry.update(1, ServiceChanges(disabled=True, disabled_reason="disk"))
        with closing(sqlite3.connect(self.path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            row = connection.execute("SELECT disabled, disabled_reason FROM services WHERE id = 1").fetchone()
        self.assertEqual((tables, row), ({"services", "alembic_version"}, (1, "disk")))

    async def test_incarnations(self) -> None:
        """Without a table for them, a start is registered without a number, and numbers and states are passed over."""
        registry = self.make(migrate=False)
        await registry.open()
        record = await registry.begin(attrs.evolve(START, host="n1", binary="nova-compute", topic="compute"))
        self.assertEqual((record.id, record.incarnation, record.version), (1, None, 7))
        await registry.beat(1, 42)
        await registry.enter(1, 42, "stopped")
        self.assertEqual((await registry.get("1")).report_count, 31)
        self.assertEqual((await registry.count(ServiceQuery(host="n1", topic="compute"))).up, 1)
        self.assertEqual(len((await registry.page(ServiceQuery(up=True, service_down_time=60))).rows), 1)

    async def test_unknown_columns(self) -> None:
        """Columns that a newer Nova has added are left alone."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("ALTER TABLE services ADD COLUMN mood TEXT DEFAULT 'good'")
        registry = self.make()
        await registry.open()
        record = await registry.begin(attrs.evolve(START, host="n1", binary="nova-compute", topic="compute"))
        await registry.beat(record.id, 1)
        new = await registry.begin(START)
        self.assertEqual((record.id, new.id), (1, 4))
        self.assertEqual(len(await registry.list(None, None, None)), 4)

    async def test_another_table(self) -> None:
        """A table that lacks columns of Nova's asks for `novasvc db upgrade`, which names them."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("ALTER TABLE services DROP COLUMN forced_down")
        await self.assertFailure(self.make(migrate=False).open(), MigrationNeededError)
