"""The schema on PostgreSQL and MariaDB: made at once, or by the migrations, is the same."""

from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import sqlalchemy
from twisted.trial.unittest import SynchronousTestCase

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
