"""Tests for the silences that a database keeps."""

import sqlite3
from contextlib import closing
from typing import Any

import attrs
from sqlalchemy import event
from twisted.internet.defer import gatherResults

from novasvc.errors import DatabaseRefusedError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.sql import services as services_module
from novasvc.registry.sql import silences
from novasvc.registry.verdicts import judge_all
from tests.support.waiting import until
from tests.unit.registry.sql.test_migrate import NOVAS, SECOND_KEY
from tests.unit.registry.sql.test_services import RegistryCase

START = ServiceStart(host="h1", binary="agent", topic="agent", version=1, owner="o", machine="m")


class SilenceTests(RegistryCase):
    """Tests for novasvc.registry.sql.silences."""

    def silences(self) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute("SELECT service_id, began, ended FROM novasvc_silences ORDER BY id").fetchall()

    def seen(self, ago: str) -> None:
        """Set the last heartbeat of all services."""
        self.execute("UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now', ?) || '000'", f"-{ago}")

    async def test_recorded(self) -> None:
        """A silence of more than three quarters of service_down_time is recorded, and a shorter one is not."""
        registry = self.make()
        record = await registry.begin(START)
        await registry.beat(record.id, 1)
        self.seen("44 seconds")
        await registry.beat(record.id, 1)
        self.assertEqual(self.silences(), [])
        self.seen("46 seconds")
        await registry.beat(record.id, 1)
        ((service_id, began, ended),) = self.silences()
        self.assertEqual(service_id, record.id)
        self.assertLess(began, ended)

    async def test_not_of_refused(self) -> None:
        """A heartbeat that is refused ends no silence."""
        registry = self.make()
        record = await registry.begin(START)
        await registry.beat(record.id, 1)
        self.seen("70 seconds")
        failed = [registry.beat(record.id, number) for number in (2, 3)]
        for beat in failed:
            beat.addErrback(lambda _: None)
        await gatherResults(failed)
        self.assertEqual(self.silences(), [])

    async def test_before_the_first(self) -> None:
        """The first heartbeat of a service ends no silence, however long its start took."""
        registry = self.make()
        record = await registry.begin(START)
        self.execute("UPDATE services SET created_at = '2020-01-01 00:00:00.000000'")
        await registry.beat(record.id, 1)
        self.assertEqual(self.silences(), [])

    async def test_purged(self) -> None:
        """Silences that ended more than an hour ago are not read, and deleted by a process that writes heartbeats."""
        registry = self.make()
        record = await registry.begin(START)
        for ago in ("-2 hours", "-3 hours", "-1 second"):
            self.execute(
                "INSERT INTO novasvc_silences (service_id, began, ended) VALUES (?, '2020-01-01 00:00:00.000000', "
                "strftime('%Y-%m-%d %H:%M:%f', 'now', ?) || '000')",
                record.id,
                ago,
            )
        registry._purge_at = 0.0
        self.patch(silences, "LARGEST_PURGE", 1)
        self.patch(silences, "_OLD", silences._OLD.limit(1))
        await registry.beat(record.id, 1)
        await until(lambda: len(self.silences()) == 1)
        self.assertGreater(registry._purge_at, services_module._PURGE_INTERVAL)

    async def test_nulls(self) -> None:
        """Rows with NULL wherever Nova allows it are judged, and do not keep others from it."""
        registry = self.make()
        for number in range(6):
            record = await registry.begin(attrs.evolve(START, host=f"h{number}", owner=str(number)))
            await registry.beat(record.id, 1)
        self.execute("DELETE FROM novasvc_incarnations WHERE service_id < 3")
        nulls = "host, binary, topic, disabled, disabled_reason, forced_down, version, uuid, created_at, updated_at"
        self.execute(f"UPDATE services SET {', '.join(f'{name} = NULL' for name in nulls.split(', '))} WHERE id < 3")  # noqa: S608
        self.execute("UPDATE services SET created_at = '2020-01-01 00:00:00.000000' WHERE id > 2")
        self.seen("70 seconds")
        self.execute(
            "UPDATE novasvc_incarnations "
            "SET since = '2020-01-01 00:00:00.000000', started_at = '2020-01-01 00:00:00.000000'"
        )
        self.execute("UPDATE services SET last_seen_up = NULL WHERE id = 1")
        await registry.beat(record.id, 1)
        fleet = await judge_all(registry, VerdictRule())
        self.assertEqual([record.id for record, _ in fleet.services], [2, 3, 4, 5, 6])
        self.assertEqual([verdict.status for _, verdict in fleet.services], ["suspect"] * 4 + ["alive"])

    async def test_database_of_nova(self) -> None:
        """In Nova's own database no silence is recorded, and verdicts follow from the rows."""
        self.path = self.path.with_name("nova")
        self.url = f"sqlite:///{self.path}"
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executescript(NOVAS.format(more=SECOND_KEY))
        registry = self.make(migrate=False)
        await registry.open()
        for number in range(6):
            record = await registry.register(f"h{number}", "nova-compute", "compute", 1)
            await registry.beat(record.id)
        self.seen("70 seconds")
        await registry.beat(record.id)
        fleet = await judge_all(registry, VerdictRule())
        self.assertEqual([verdict.status for _, verdict in fleet.services], ["suspect"] * 5 + ["alive"])
        self.assertNotEqual(fleet.outages, Outages())
        error = await self.assertFailure(registry.observations("o"), DatabaseRefusedError)
        self.assertIn("it has no tables of novasvc", str(error))
        await self.assertFailure(registry.observe("o", 1, []), DatabaseRefusedError)


class QuietTests(RegistryCase):
    """Outages are found without reading the rows, if there can be none."""

    def age_starts(self) -> None:
        """A start is a sign of life, too: let it be long ago."""
        for column in ("since", "started_at"):
            self.execute(f"UPDATE novasvc_incarnations SET {column} = '2019-01-01 00:00:00.000000'")  # noqa: S608

    async def read(self, registry: Any) -> tuple[Outages, list[str]]:
        """Return the outages, and the statements that read them."""
        statements: list[str] = []

        def find(connection: Any) -> Outages:
            event.listen(connection, "before_cursor_execute", lambda *given: statements.append(given[2]))
            return silences.read_outages(connection, VerdictRule(), ours=True)

        return await registry._engine.run(find), statements

    async def test_quiet(self) -> None:
        """With one service that is silent for a while, and others that died long ago, two statements do."""
        registry = self.make()
        for number in range(8):
            record = await registry.begin(attrs.evolve(START, host=f"h{number}", owner=str(number)))
            await registry.beat(record.id, 1)
        self.age_starts()
        self.execute("UPDATE services SET last_seen_up = '2020-01-01 00:00:00.000000' WHERE id < 4")
        self.execute(
            "UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now', '-70 seconds') WHERE id = 4"
        )
        outages, statements = await self.read(registry)
        self.assertEqual((outages, len(statements)), (Outages(), 2))
        fleet = await judge_all(registry, VerdictRule())
        self.assertEqual([verdict.status for _, verdict in fleet.services], ["down"] * 4 + ["alive"] * 4)

    async def test_lost_starts(self) -> None:
        """The rows are read if services that were down for long are lost together while they start, and not deleted."""
        registry = self.make()
        for number in range(8):
            record = await registry.begin(attrs.evolve(START, host=f"h{number}", owner=str(number)))
            await registry.beat(record.id, 1)
        self.age_starts()
        self.execute("UPDATE services SET created_at = '2019-01-01 00:00:00.000000'")
        self.execute("UPDATE services SET last_seen_up = '2020-01-01 00:00:00.000000' WHERE id < 6")
        self.assertEqual(len((await self.read(registry))[1]), 2)
        self.execute(
            "UPDATE novasvc_incarnations SET until = strftime('%Y-%m-%d %H:%M:%f', 'now', '-70 seconds') || '000' "
            "WHERE service_id < 6"
        )
        (mass,) = (await self.read(registry))[0].masses
        self.assertEqual((mass.silent, mass.services), (5, 8))
        fleet = await judge_all(registry, VerdictRule())
        self.assertEqual([verdict.status for _, verdict in fleet.services], ["suspect"] * 5 + ["alive"] * 3)
        for service_id in range(1, 6):
            await registry.delete(service_id)
        self.assertEqual(len((await self.read(registry))[1]), 2)

    async def test_not_quiet(self) -> None:
        """Two that are silent, nobody who is heard, a silent conductor, or a recorded silence: the rows are read."""
        registry = self.make()
        for number in range(8):
            topic = "conductor" if number == 7 else "agent"
            start = attrs.evolve(START, host=f"h{number}", owner=str(number), topic=topic, binary=topic)
            await registry.beat((await registry.begin(start)).id, 1)
        self.age_starts()
        for change, found in (
            (
                "UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now', '-70 seconds') WHERE id < 4",
                True,
            ),
            ("UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now')", False),
            (
                "UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now', '-70 seconds') WHERE id = 8",
                False,
            ),
            ("UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now', '-70 seconds')", True),
        ):
            self.execute(change)
            outages, statements = await self.read(registry)
            self.assertEqual(outages != Outages(), found, change)
            self.assertEqual(len(statements) > 2, "'now')" not in change, change)
        await registry.beat(1, 1)
        self.execute("UPDATE services SET last_seen_up = strftime('%Y-%m-%d %H:%M:%f', 'now')")
        self.assertGreater(len((await self.read(registry))[1]), 2)
