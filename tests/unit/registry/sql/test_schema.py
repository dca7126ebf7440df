"""Tests for the tables, and for the database's clock in each dialect."""

from sqlalchemy import select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.sql.schema import HEAD, REVISIONS, database_now, services


class ServicesTableTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.schema.services."""

    def test_no_defaults(self) -> None:
        """No column has a default, as in Nova."""
        for column in services.columns:
            self.assertIsNone(column.default)
            self.assertIsNone(column.server_default)

    def test_nulls(self) -> None:
        """Only id and report_count are NOT NULL, as in Nova."""
        self.assertEqual({c.name for c in services.columns if not c.nullable}, {"id", "report_count"})

    def test_types(self) -> None:
        """Each dialect gets the types that Nova's migrations give it."""
        expected = {
            sqlite: ("created_at DATETIME", "id INTEGER NOT NULL", "disabled BOOLEAN", "host VARCHAR(255)"),
            postgresql: ("created_at TIMESTAMP WITHOUT TIME ZONE", "id SERIAL NOT NULL", '"binary" VARCHAR(255)'),
            mysql: ("created_at DATETIME", "id INTEGER NOT NULL AUTO_INCREMENT", "disabled BOOL", "`binary` VARCHAR"),
        }
        for module, fragments in expected.items():
            ddl = str(CreateTable(services).compile(dialect=module.dialect()))
            for fragment in fragments:
                self.assertIn(fragment, ddl)
            self.assertNotIn("CHECK", ddl)

    def test_keys(self) -> None:
        """The unique keys have Nova's names, by which Nova distinguishes violations."""
        ddl = str(CreateTable(services))
        self.assertIn("CONSTRAINT uniq_services0host0topic0deleted UNIQUE (host, topic, deleted)", ddl)
        self.assertIn('CONSTRAINT uniq_services0host0binary0deleted UNIQUE (host, "binary", deleted)', ddl)
        (index,) = services.indexes
        self.assertEqual(str(CreateIndex(index)), "CREATE UNIQUE INDEX services_uuid_idx ON services (uuid)")

    def test_head(self) -> None:
        """HEAD is the last revision, and revisions are unique."""
        self.assertEqual(HEAD, REVISIONS[-1])
        self.assertEqual(len(set(REVISIONS)), len(REVISIONS))


class DatabaseNowTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.schema.database_now."""

    def test_dialects(self) -> None:
        """Each dialect uses the database's clock, in UTC, in the format of the table's time stamps."""
        for module, sql in (
            (sqlite, "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"),
            (postgresql, "(clock_timestamp() AT TIME ZONE 'utc')"),
            (mysql, "utc_timestamp(6)"),
        ):
            self.assertIn(sql, str(select(database_now()).compile(dialect=module.dialect())))

    def test_in_an_update(self) -> None:
        """The clock is part of the statement; no time of this host is sent."""
        statement = update(services).values(last_seen_up=database_now()).compile(dialect=sqlite.dialect())
        self.assertEqual(statement.params, {})
