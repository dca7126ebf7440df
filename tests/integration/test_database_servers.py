"""The schema on PostgreSQL and MariaDB: made at once, or by the migrations, is the same."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import sqlalchemy
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseRefusedError
from novasvc.registry.sql import migrate
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.schema import HEAD, metadata
from tests.servers import MariaDB, PostgreSQL, database_url
from tests.servers.databases import DatabaseServer


def tables(url: str) -> dict[str, object]:
    """Return what a database says of its tables."""
    engine = DatabaseAddress.parse(url).make_engine(connections=1, wait_timeout=10.0)
    try:
        inspector = sqlalchemy.inspect(engine)
        return {
            name: (
                [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)],
                inspector.get_pk_constraint(name),
                sorted(inspector.get_unique_constraints(name), key=str),
                sorted(inspector.get_indexes(name), key=str),
                inspector.get_table_options(name),
            )
            for name in sorted(inspector.get_table_names())
        }
    finally:
        engine.dispose()


class PostgreSQLMigrationTests(SynchronousTestCase):
    kind: ClassVar[type[DatabaseServer]] = PostgreSQL

    def test_same(self) -> None:
        """An empty database gets the same tables at once and by the migrations."""
        made, migrated = (database_url(self, self.kind) for _ in range(2))
        self.assertTrue(migrate.create(made))
        self.assertEqual(migrate.upgrade(migrated), HEAD)
        self.assertEqual(tables(made), tables(migrated))
        self.assertEqual(set(tables(made)), set(metadata.tables))

    def test_again(self) -> None:
        """Migrating what is up to date changes nothing."""
        url = database_url(self, self.kind)
        self.assertIsNone(migrate.current(url))
        for _ in range(2):
            migrate.upgrade(url)
            self.assertTrue(migrate.check(url))

    def test_side_by_side(self) -> None:
        """Nodes that start at the same time migrate one after the other."""
        url = database_url(self, self.kind)
        with ThreadPoolExecutor(4) as pool:
            self.assertEqual(list(pool.map(migrate.upgrade, [url] * 4)), [HEAD] * 4)


class MariaDBMigrationTests(PostgreSQLMigrationTests):
    kind = MariaDB

    def test_interrupted(self) -> None:
        """What is interrupted goes on where it was: MariaDB keeps the tables, but not the revision."""
        whole = database_url(self, self.kind)
        migrate.create(whole)
        for migration in (migrate.create, migrate.upgrade):
            url = database_url(self, self.kind)
            made: set[str] = set()
            while self.interrupt(migration, url, made):
                pass
            self.assertTrue(migrate.check(url))
            self.assertEqual(tables(url), tables(whole))
            self.assertGreater(len(made), len(metadata.tables))

    def interrupt(self, migration: Callable[[str], object], url: str, made: set[str]) -> bool:
        """Begin a migration, and interrupt it after its next change of the schema; return whether there was one.

        :param made: the changes of earlier calls; the next one is added.
        """

        def end(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.lstrip().startswith("CREATE") and statement not in made:
                made.add(statement)
                raise KeyboardInterrupt

        sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", end)
        try:
            migration(url)
        except KeyboardInterrupt:
            return True
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", end)
        return False

    def test_interrupted_elsewhere(self) -> None:
        """A table ``services`` that is not Nova's is not taken for what an interrupted call has made."""
        url = database_url(self, self.kind)
        engine = DatabaseAddress.parse(url).make_engine(connections=1, wait_timeout=10.0)
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE services (id INTEGER)")
        for _ in range(2):
            self.assertFalse(migrate.create(url))
            self.assertRaises(DatabaseRefusedError, migrate.upgrade, url)
