"""Tests for migrations, and that nodes do not import Alembic."""

import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from twisted.trial.unittest import SynchronousTestCase

import novasvc
from novasvc.errors import (
    DatabaseCorruptError,
    DatabaseError,
    DatabaseNewerError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
)
from novasvc.registry.sql import migrate
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.schema import HEAD, REVISIONS, metadata

NOVAS = """
    CREATE TABLE services (
        created_at DATETIME, updated_at DATETIME, deleted_at DATETIME, id INTEGER NOT NULL PRIMARY KEY,
        host VARCHAR(255), "binary" VARCHAR(255), topic VARCHAR(255), report_count INTEGER NOT NULL,
        disabled BOOLEAN, deleted INTEGER, disabled_reason VARCHAR(255), last_seen_up DATETIME,
        forced_down BOOLEAN, version INTEGER, uuid VARCHAR(36), {more}
        CONSTRAINT uniq_services0host0topic0deleted UNIQUE (host, topic, deleted)
    );
    CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);
    INSERT INTO alembic_version VALUES ('abcdef123456');
"""
"""The table as Nova's migrations make it, in Nova's own database; the second key is left to the test."""

SECOND_KEY = 'CONSTRAINT uniq_services0host0binary0deleted UNIQUE (host, "binary", deleted),'


class MigrateTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.migrate."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.url = f"sqlite:///{self.path}"
        self.address = DatabaseAddress.parse(self.url)

    def execute(self, script: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executescript(script)

    def read(self, query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    def test_revisions(self) -> None:
        """REVISIONS are those of the migration scripts, in order."""
        scripts = ScriptDirectory(str(Path(migrate.__file__).with_name("migrations")))
        self.assertEqual(scripts.get_heads(), [HEAD])
        self.assertEqual(tuple(script.revision for script in scripts.walk_revisions())[::-1], REVISIONS)

    def test_same_as_the_schema(self) -> None:
        """The migrations result in the tables of the schema module."""
        migrate.upgrade(self.url)
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            self.assertEqual(compare_metadata(context, metadata), [])

    def test_created_is_migrated(self) -> None:
        """Directly created tables equal those of the migrations."""
        migrate.upgrade(self.url)
        migrated = self.outline()
        self.path = self.path.with_suffix(".created")
        self.assertTrue(migrate.create(f"sqlite:///{self.path}"))
        self.assertEqual(self.outline(), migrated)
        self.assertTrue(migrate.check(f"sqlite:///{self.path}"))

    def outline(self) -> list[object]:
        """Return every table, column, index and row of a fresh database."""
        tables = [name for (name,) in self.read("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [
            (
                table,
                self.read(f"PRAGMA table_info({table})"),
                sorted(
                    (unique, origin, self.read(f"PRAGMA index_info({name})"))
                    for _, name, unique, origin, _ in self.read(f"PRAGMA index_list({table})")
                ),
                self.read(f"SELECT * FROM {table}"),  # noqa: S608 - our own names
            )
            for table in tables
        ]

    def test_create_beside_others(self) -> None:
        """create() leaves a database with other tables alone."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE other (id INTEGER)")
        self.assertFalse(migrate.create(self.url))
        self.assertIsNone(migrate.current(self.url))

    def test_create_twice(self) -> None:
        """A second create() is no error."""
        self.assertTrue(migrate.create(self.url))
        self.assertTrue(migrate.create(self.url))

    def test_upgrade(self) -> None:
        """upgrade() migrates to the head; a second one does nothing."""
        self.assertIsNone(migrate.current(self.url))
        self.assertFalse(migrate.check(self.url))
        self.assertFalse(self.path.exists())
        self.assertEqual(migrate.upgrade(self.url), HEAD)
        self.assertEqual(migrate.current(self.url), HEAD)
        self.assertTrue(migrate.check(self.url))
        self.assertEqual(migrate.upgrade(self.url), HEAD)

    def test_file_mode(self) -> None:
        """The database and the files beside it have mode 0600, whatever the umask."""
        for umask in (0o000, 0o022, 0o777):
            self.path = self.path.with_suffix(f".{umask:o}")
            before = os.umask(umask)
            try:
                migrate.upgrade(f"sqlite:///{self.path}")
                with closing(sqlite3.connect(self.path)) as connection:
                    connection.execute("UPDATE services SET id = id")
                    connection.execute("DELETE FROM services")
                    files = list(self.path.parent.glob(f"{self.path.name}*"))
                    self.assertEqual({stat.S_IMODE(file.stat().st_mode) for file in files}, {0o600}, files)
                    self.assertEqual(len(files), 3)
            finally:
                os.umask(before)

    def test_mode_of_a_file_that_was_there(self) -> None:
        """The mode of an existing file is kept."""
        self.path.touch()
        self.path.chmod(0o640)
        migrate.upgrade(self.url)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)

    def test_adopts_novas_table(self) -> None:
        """Nova's own table is adopted with its rows; Nova's version table is left alone."""
        self.execute(NOVAS.format(more=SECOND_KEY))
        self.execute("INSERT INTO services (host, report_count, deleted) VALUES ('h1', 3, 0)")
        migrate.upgrade(self.url)
        self.assertTrue(migrate.check(self.url))
        self.assertEqual(self.read("SELECT host, report_count FROM services"), [("h1", 3)])
        self.assertEqual(self.read("SELECT version_num FROM alembic_version"), [("abcdef123456",)])

    def test_somebody_elses_table(self) -> None:
        """A table of this name that is not Nova's is refused with what it lacks, and nothing is changed."""
        for script, lacks in (
            ("CREATE TABLE services (id INTEGER PRIMARY KEY, name TEXT)", "the column created_at"),
            (NOVAS.format(more=""), "a unique key of host, binary, deleted"),
        ):
            self.path = self.path.with_suffix(".other" + self.path.suffix)
            self.execute(script)
            error = self.assertRaises(DatabaseRefusedError, migrate.upgrade, f"sqlite:///{self.path}")
            self.assertIn(lacks, str(error))
            self.assertEqual(self.read("SELECT name FROM sqlite_master WHERE name LIKE 'novasvc%'"), [])

    def test_newer(self) -> None:
        """A database of a newer version is refused with both revisions, and left as it is."""
        migrate.upgrade(self.url)
        self.execute("UPDATE novasvc_alembic_version SET version_num = '0999'")
        for function in (migrate.check, migrate.upgrade):
            error = self.assertRaises(DatabaseNewerError, function, self.url)
            self.assertEqual((error.found, error.known), ("0999", HEAD))
        self.assertEqual(migrate.current(self.url), "0999")

    def test_all_or_nothing(self) -> None:
        """A migration that fails halfway leaves nothing behind."""
        self.execute("CREATE TABLE x (y); CREATE INDEX services_uuid_idx ON x (y)")
        self.assertRaises(DatabaseError, migrate.upgrade, self.url)
        self.assertEqual(self.read("SELECT name FROM sqlite_master WHERE name LIKE '%ser%' AND type = 'table'"), [])

    def test_not_a_database(self) -> None:
        """A file that is not a database is a DatabaseCorruptError, and is not touched."""
        self.path.write_text("not a database at all, only text\n" * 100)
        for function in (migrate.current, migrate.upgrade):
            self.assertRaises(DatabaseCorruptError, function, self.url)
        self.assertTrue(self.path.read_text().endswith("only text\n"))

    def test_no_directory(self) -> None:
        """A path in a missing directory is refused, and the error names it."""
        error = self.assertRaises(DatabaseRefusedError, migrate.upgrade, f"sqlite:///{self.path}/no/db.sqlite")
        self.assertIn(f"{self.path}/no/db.sqlite", error.problem)

    def test_at_the_same_time(self) -> None:
        """Concurrent migrations of an empty file succeed."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: migrate.upgrade_in_child(self.address, 60), range(4)))
        self.assertEqual(self.read("SELECT version_num FROM novasvc_alembic_version"), [(HEAD,)])


class UpgradeInChildTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.migrate.upgrade_in_child."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.address = DatabaseAddress.parse(f"sqlite:///{self.path}")

    def test_upgrade(self) -> None:
        """The child migrates to the head."""
        migrate.upgrade_in_child(self.address, 60)
        self.assertTrue(migrate.check(self.address.render()))

    def test_error(self) -> None:
        """The child's error is raised in the parent, with the same text and attributes."""
        migrate.upgrade(self.address.render())
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE novasvc_alembic_version SET version_num = '0999'")
        here = self.assertRaises(DatabaseNewerError, migrate.upgrade, self.address.render())
        there = self.assertRaises(DatabaseNewerError, migrate.upgrade_in_child, self.address, 60)
        self.assertEqual((there.args, str(there)), (here.args, str(here)))

    def executable(self, script: str) -> None:
        """Replace sys.executable by a script."""
        path = Path("python").absolute()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.patch(sys, "executable", str(path))

    def test_crash(self) -> None:
        """A child that crashes is a DatabaseError with its status and last line of output."""
        self.executable("echo one >&2; echo 'MemoryError: two' >&2; exit 7")
        error = self.assertRaises(DatabaseError, migrate.upgrade_in_child, self.address, 60)
        self.assertIn("ended with status 7: MemoryError: two", str(error))

    def test_silent_crash(self) -> None:
        """A child that is killed is a DatabaseError, too."""
        self.executable("kill -9 $$")
        error = self.assertRaises(DatabaseError, migrate.upgrade_in_child, self.address, 60)
        self.assertIn("ended with status -9", str(error))

    def test_invented_error(self) -> None:
        """A child can only name subclasses of DatabaseError."""
        self.executable("""echo '["SystemExit", {"url": "u", "problem": "p"}]'; exit 1""")
        self.assertIn("status 1", str(self.assertRaises(DatabaseError, migrate.upgrade_in_child, self.address, 60)))

    def test_no_interpreter(self) -> None:
        """Without an interpreter it is a DatabaseError."""
        self.patch(sys, "executable", "/no/such/python")
        error = self.assertRaises(DatabaseError, migrate.upgrade_in_child, self.address, 60)
        self.assertIn("cannot be started", str(error))

    def test_secrets(self) -> None:
        """The URL is neither in the child's arguments nor in its environment."""
        self.executable("{ env; echo $@; } | grep -q hunter2 && echo leaked >&2 || echo kept >&2; exit 1")
        address = DatabaseAddress.parse("postgresql://u:hunter2@127.0.0.1:1/n")
        error = self.assertRaises(DatabaseError, migrate.upgrade_in_child, address, 60)
        self.assertTrue(str(error.problem).endswith("kept"), error)

    def test_deadline(self) -> None:
        """A child that takes too long is killed, and the error names the time."""
        error = self.assertRaises(DatabaseUnavailableError, migrate.upgrade_in_child, self.address, 0.01)
        self.assertIn("0.01 s", str(error))

    def test_working_directory(self) -> None:
        """Modules in the working directory are not imported."""
        Path("alembic.py").write_text("raise SystemExit(3)")
        migrate.upgrade_in_child(self.address, 60)


class NoAlembicTests(SynchronousTestCase):
    """Tests that a node does not import Alembic; see Note [Migrations in a child process]."""

    def test_never_imported(self) -> None:
        """Neither the first start, which migrates, nor a later one imports Alembic."""
        program = (
            "import sys\n"
            "from twisted.internet.task import react\n"
            "from novasvc.registry.sql.services import connect_registry\n"
            "async def main(reactor):\n"
            "    registry = connect_registry(sys.argv[1], reactor=reactor)\n"
            "    await registry.open()\n"
            "    await registry.close()\n"
            "    assert 'alembic' not in sys.modules\n"
            "from twisted.internet.defer import Deferred\n"
            "react(lambda reactor: Deferred.fromCoroutine(main(reactor)))\n"
        )
        root = str(Path(novasvc.__file__).parents[1])
        for _ in range(2):
            subprocess.run(
                [sys.executable, "-c", program, f"sqlite:///{Path('x.sqlite').absolute()}"],
                check=True,
                timeout=50,
                env={**os.environ, "PYTHONPATH": root},
            )
