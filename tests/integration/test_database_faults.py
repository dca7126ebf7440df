"""What can happen to an SQLite file: each fault has its own error, harms nobody, and is over when its reason is."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

import novasvc
from novasvc.errors import (
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    MigrationNeededError,
)
from novasvc.registry.sql import migrate
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.engine import Engine
from novasvc.registry.sql.services import ServiceRegistry

WAIT_TIMEOUT = 0.2
NOBODY = 65534

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""
"""A process that begins a transaction and keeps it until its standard input ends."""

REGISTER = """
import sys
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from novasvc.registry.sql.services import connect_registry
async def main(reactor):
    registry = connect_registry(sys.argv[1], reactor=reactor)
    await registry.open()
    sys.stdin.readline()
    record = await registry.register("h1", "novasvc-agent", "agent", 7)
    for _ in range(20):
        await registry.beat(record.id)
    await registry.close()
    print(record.id, record.uuid)
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""
"""A node: opens, waits for a line, registers, and beats twenty times."""

FILL = """
from pathlib import Path
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from novasvc.registry.sql.services import connect_registry
from novasvc.errors import DatabaseError
path, before = Path("{path}"), {before}
async def main(reactor):
    registry = connect_registry("sqlite:///" + str(path), reactor=reactor)
    await registry.open()
    record = await registry.register("h1", "novasvc-agent", "agent", 7)
    for _ in range(before):
        await registry.beat(record.id)
    filling = path.with_name("filling")
    with filling.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    await deferLater(reactor, 1.1)  # as long as it is known that there is room
    await tell(registry.beat(record.id), "beaten")
    await tell(registry.prove_writable(), "proven")
    filling.unlink()
    await tell(registry.beat(record.id), "beaten")
    await tell(registry.prove_writable(), "proven")
    await registry.close()
async def tell(trying, well):
    try:
        await trying
    except DatabaseError as error:
        print(type(error).__name__ + ": " + str(error))
    else:
        print(well)
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""
"""A registry on a disk that becomes full, and has room again."""

PROBE = """
import os
from pathlib import Path
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from novasvc import Manager
from novasvc.api.backend import Backend
from novasvc.api.health import APIHealth
from novasvc.node.runtime import Runtime
from novasvc.service import Service
from novasvc.config import Settings
path = Path("{path}")
async def main(reactor):
    settings = Settings(database_url="sqlite:///" + str(path), report_interval=1, state_dir=path.parent)
    runtime = Runtime.from_settings(settings, reactor)
    node = Service("h1", "novasvc-agent", "agent", Manager, report_interval=1, periodic_enable=False, runtime=runtime)
    await node.start()
    backend = Backend(runtime)
    await backend.open()
    api = APIHealth(backend)
    async def tell():
        await deferLater(reactor, 2.5)
        for told in (await node.health(), await api.report()):
            (leg,) = (leg for leg in told["legs"] if leg["name"] == "database")
            print(leg["ready"], leg["detail"])
    await tell()
    filling = path.with_name("filling")
    with filling.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    await tell()
    filling.unlink()
    await tell()
    await backend.close()
    await node.stop()
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""
"""A node, and an API, on a disk that becomes full, and has room again; prints a leg of each, three times."""


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be a user whom permissions bind, which they do not the one who may run the tests: root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class FaultCase(TestCase):
    """A registry with one registered service, in a directory that others may enter."""

    async def setUp(self) -> None:
        self.directory = self.open_directory()
        self.path = self.directory / "novasvc.sqlite"
        self.url = f"sqlite:///{self.path}"
        self.registry = self.make()
        migrate.upgrade(self.url)
        await self.registry.open()
        self.record = await self.registry.register("h1", "novasvc-agent", "agent", 7)

    def open_directory(self) -> Path:
        directory = Path(tempfile.mkdtemp()).resolve()
        directory.chmod(0o755)
        self.addCleanup(shutil.rmtree, directory)
        return directory

    def make(self, query: str = "") -> ServiceRegistry:
        engine = Engine(DatabaseAddress.parse(self.url + query), reactor=reactor, wait_timeout=WAIT_TIMEOUT)
        registry = ServiceRegistry(engine)
        self.addCleanup(registry.close)
        return registry

    async def assert_beats(self, registry: ServiceRegistry | None = None) -> None:
        """See that all is well."""
        registry = registry or self.registry
        before = await registry.get(self.record.uuid)
        await registry.beat(self.record.id)
        self.assertEqual((await registry.get(self.record.uuid)).report_count, before.report_count + 1)

    async def assert_fails(self, kind: type[DatabaseError], deferred: Any, *words: str) -> None:
        error = await self.assertFailure(deferred, DatabaseError)
        self.assertIs(type(error), kind, error)
        self.assertIn(str(self.path), str(error))
        for word in words:
            self.assertIn(word, str(error))
        self.assertEqual(len(str(error).splitlines()), 1)


class LockedTests(FaultCase):
    """Another process holds the lock."""

    def hold(self, begin: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(self.path), begin],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        self.assertEqual(process.stdout.readline(), "held\n")
        return process

    async def test_writing(self) -> None:
        """A write waits for the busy timeout, then says that it is locked; reads go on; kill -9 frees it."""
        process = self.hold("BEGIN IMMEDIATE")
        await self.assert_fails(DatabaseLockedError, self.registry.beat(self.record.id), "locked")
        await self.assert_fails(DatabaseLockedError, self.registry.register("h2", "b", "t", 7))
        self.assertEqual(len(await self.registry.list(None, None, None)), 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        await self.assert_beats()
        self.assertEqual(len(await self.registry.list(None, None, None)), 1)

    async def test_opening(self) -> None:
        """A database that is locked at the start is one worth a retry, and opens when it is free."""
        await self.registry.close()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
        process = self.hold("BEGIN EXCLUSIVE")
        registry = self.make()
        await self.assert_fails(DatabaseLockedError, registry.open(), "locked")
        self.assertTrue(issubclass(DatabaseLockedError, DatabaseUnavailableError))
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        await registry.open()
        await self.assert_beats(registry)


class ReadOnlyTests(FaultCase):
    """The file cannot be written to."""

    async def test_asked_for(self) -> None:
        """With mode=ro in the URL, reads work and writes say that it is read-only."""
        registry = self.make("?mode=ro")
        await registry.open()
        self.assertEqual(len(await registry.list(None, None, None)), 1)
        await self.assert_fails(DatabaseReadOnlyError, registry.beat(self.record.id), "readonly")
        await self.assert_fails(DatabaseReadOnlyError, registry.prove_writable(), "readonly")

    async def test_directory(self) -> None:
        """A directory that this user may not write to is named."""
        await self.registry.close()
        self.path.chmod(0o666)
        self.directory.chmod(0o555)
        registry = self.make()
        with unprivileged():
            await self.assert_fails(
                DatabaseReadOnlyError, registry.beat(self.record.id), f"permission to write to {self.directory}"
            )
        self.directory.chmod(0o777)
        with unprivileged():
            await self.assert_beats(registry)
            await registry.close()

    async def test_file(self) -> None:
        """A file that this user may read but not write is named."""
        await self.registry.close()
        self.path.chmod(0o444)
        self.directory.chmod(0o777)
        registry = self.make()
        with unprivileged():
            await self.assert_fails(DatabaseReadOnlyError, registry.beat(self.record.id), f"write to {self.path}")

    async def test_unreadable(self) -> None:
        """A file that this user may not even read is refused by name."""
        await self.registry.close()
        self.path.chmod(0o000)
        registry = self.make()
        with unprivileged():
            await self.assert_fails(DatabaseRefusedError, registry.open(), f"permission to read {self.path}")

    async def test_directory_nobody_may_enter(self) -> None:
        """A directory that this user may not enter is refused by name."""
        await self.registry.close()
        self.directory.chmod(0o600)
        registry = self.make()
        with unprivileged():
            await self.assert_fails(DatabaseRefusedError, registry.beat(1), "Permission denied")

    async def test_made_in_a_directory_that_is_not_ours(self) -> None:
        """A new file that cannot be made is a read-only place, not a traceback from the child."""
        self.directory.chmod(0o555)
        with unprivileged():
            error = self.assertRaises(DatabaseReadOnlyError, migrate.upgrade, f"{self.url}.new")
        self.assertIn(f"{self.path}.new", str(error))


class FullTests(FaultCase):
    """No space is left."""

    async def test_full(self) -> None:
        """A row that has no room is refused; beats, which need none, go on; with room again all is well."""
        engine = self.registry._engine

        def limit(pages: int) -> Any:
            return engine.run(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}"))

        await limit(1)  # SQLite takes the present size instead
        with self.assertRaises(DatabaseFullError) as caught:
            for n in range(500):
                await self.registry.register(f"host-{n}" + "x" * 200, "b", "t", 7)
        self.assertIn("full", str(caught.exception))
        await self.assert_beats()
        await limit(100_000)
        await self.registry.register("h2", "b", "t", 7)

    async def test_file_size(self) -> None:
        """A limit that the system sets is an error, too, and the file stays whole."""
        # Imported here: the limit must not outlive the statement below, whatever fails.
        import resource  # noqa: PLC0415

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        await self.registry.list(None, None, None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            error = await self.assertFailure(self.registry.register("h2", "b", "t", 7), DatabaseError)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.assertIsInstance(error, DatabaseUnavailableError)
        await self.assert_beats()
        self.assertEqual(len(await self.registry.list(None, None, None)), 1)


class FullDiskTests(FaultCase):
    """No space is left on the disk itself. It is a small one, made for the test, and needs no rights to be made."""

    SIZE = 8 * 2**20

    async def setUp(self) -> None:
        await super().setUp()
        await self.registry.close()

    def run_there(self, script: str) -> str:
        """Run a script where :attr:`directory` is a small disk; return what it prints."""
        mount = f'mount -t tmpfs -o size={self.SIZE} tmpfs "{self.directory}" && exec "$0" -c "$1"'
        environment = {**os.environ, "PYTHONPATH": str(Path(novasvc.__file__).parents[1])}
        own = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", "--mount", *own, "sh", "-c", mount, sys.executable, script]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def beats(self, before: int) -> list[str]:
        """Beat, fill the disk, beat, prove, make room, beat; return what each of the last four has shown."""
        said = self.run_there(FILL.format(path=self.path, before=before))
        return said.splitlines()

    def test_new_file(self) -> None:
        """A heartbeat that has no room fails, and goes on when there is room again."""
        self.assert_said(self.beats(1))

    def test_old_file(self) -> None:
        """So does one that needs no room, in a file that has its pages: the next row would not fit."""
        self.assert_said(self.beats(1200))

    @pytest.mark.long
    def test_probes(self) -> None:
        """A node and an API on a full disk are not ready, and say why; with room again they are."""
        said = self.run_there(PROBE.format(path=self.path)).splitlines()
        self.assertEqual([line.split()[0] for line in said], ["True"] * 2 + ["False"] * 2 + ["True"] * 2, said)
        self.assertRegex(said[2], "heartbeats cannot be written: .*(full|No space left)")
        self.assertRegex(said[3], "(full|No space left)")

    def assert_said(self, said: list[str]) -> None:
        full, proof, again, proven = said
        for refusal in (full, proof):
            self.assertRegex(refusal, "^DatabaseFullError: .*(full|No space left)")
        self.assertEqual([again, proven], ["beaten", "proven"])


class DamagedTests(FaultCase):
    """The file is not what it was."""

    async def setUp(self) -> None:
        await super().setUp()
        await self.registry.close()
        self.registry = self.make()

    def overwrite(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    async def test_not_a_database(self) -> None:
        """A file of something else says so, and is left alone."""
        self.path.write_bytes(b"#!/bin/sh\n" * 1000)
        await self.assert_fails(DatabaseCorruptError, self.registry.open(), "not a database")
        await self.assert_fails(DatabaseCorruptError, self.registry.beat(self.record.id))
        self.assertEqual(self.path.read_bytes(), b"#!/bin/sh\n" * 1000)

    async def test_damaged_pages(self) -> None:
        """Pages that were overwritten are found when they are read."""
        self.overwrite(4096, b"\xff" * (self.path.stat().st_size - 4096))
        await self.assert_fails(DatabaseCorruptError, self.registry.list(None, None, None), "malformed")
        await self.assert_fails(DatabaseCorruptError, self.registry.beat(self.record.id), "malformed")

    async def test_truncated(self) -> None:
        """A file that was cut short is damaged; mended, it is used again without a restart."""
        whole = self.path.read_bytes()
        os.truncate(self.path, len(whole) // 2)
        await self.assert_fails(DatabaseCorruptError, self.registry.list(None, None, None), "malformed")
        copy = self.directory / "backup"
        copy.write_bytes(whole)
        copy.rename(self.path)
        await self.assert_beats()

    async def test_emptied(self) -> None:
        """A file that was emptied lacks its tables, says so, and has them again after the next start."""
        self.path.write_bytes(b"")
        await self.assert_fails(MigrationNeededError, self.registry.beat(self.record.id), "no such table")
        await self.registry.open()
        self.assertEqual(await self.registry.list(None, None, None), [])

    async def test_newer_file_format(self) -> None:
        """A file that only a newer SQLite can read is not called damaged: it is not."""
        self.overwrite(18, b"\x03\x03")
        await self.assert_fails(DatabaseRefusedError, self.registry.open(), "newer SQLite", sqlite3.sqlite_version)

    async def test_newer_schema_format(self) -> None:
        """The same goes for its tables' format."""
        self.overwrite(44, b"\x00\x00\x00\x05")
        await self.assert_fails(DatabaseRefusedError, self.registry.open(), "newer SQLite")

    async def test_newer_to_write(self) -> None:
        """A file that only a newer SQLite may write to can be read."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
        self.overwrite(18, b"\x03\x01")
        self.assertEqual(len(await self.registry.list(None, None, None)), 1)
        await self.assert_fails(DatabaseReadOnlyError, self.registry.beat(self.record.id))


class PathTests(FaultCase):
    """The path does not lead to the file, or no longer does."""

    async def test_nowhere(self) -> None:
        """A path that cannot be a file is refused, with the part that is wrong."""
        for path, words in (
            (self.directory / "no" / "such" / "file", (f"No such file or directory: {self.directory / 'no'}",)),
            (self.path / "file", (f"Not a directory: {self.path}",)),
            (self.directory, ("is a directory",)),
        ):
            self.url = f"sqlite:///{path}"
            registry = self.make()
            error = await self.assertFailure(registry.beat(1), DatabaseRefusedError)
            for word in words:
                self.assertIn(word, str(error))
            self.assertRaises(DatabaseError, migrate.upgrade, self.url)

    async def test_moved_away(self) -> None:
        """A file that is moved away under a running node is missed at the next beat, and none is made in its place."""
        await self.assert_beats()
        elsewhere = self.directory / "elsewhere"
        self.path.rename(elsewhere)
        await self.assert_fails(DatabaseRefusedError, self.registry.beat(self.record.id), "No such file")
        self.assertFalse(self.path.exists())
        elsewhere.rename(self.path)
        await self.assert_beats()

    async def test_replaced(self) -> None:
        """A file that is put in place of the old one, as from a backup, is used from the next beat on."""
        await self.registry.close()
        self.registry = self.make()
        await self.assert_beats()
        await self.registry.close()
        backup = self.path.read_bytes()
        self.registry = self.make()
        for _ in range(3):
            await self.assert_beats()
        copy = self.directory / "backup"
        copy.write_bytes(backup)
        copy.rename(self.path)
        for name in ("-wal", "-shm"):
            self.path.with_name(f"{self.path.name}{name}").unlink()
        await self.assert_beats()
        with closing(sqlite3.connect(self.path)) as connection:
            self.assertEqual(connection.execute("SELECT report_count FROM services").fetchall(), [(2,)])

    async def test_dropped_table(self) -> None:
        """Tables that somebody dropped are what a migration makes."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("DROP TABLE services")
        await self.assert_fails(MigrationNeededError, self.registry.beat(self.record.id), "novasvc db upgrade")


class ProcessesTests(TestCase):
    """Several nodes in processes of their own, on one file."""

    def start(self, path: Path) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(Path(novasvc.__file__).parents[1])}
        return subprocess.Popen(
            [sys.executable, "-c", REGISTER, f"sqlite:///{path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def test_start_at_once(self) -> None:
        """Nodes that start on no file at all, at the same time, make one schema and one row, and lose no beat."""
        path = Path(self.mktemp()).absolute()
        nodes = [self.start(path) for _ in range(3)]
        answers = []
        for node in nodes:
            assert node.stdin is not None
            node.stdin.write("\n")
            node.stdin.flush()
        for node in nodes:
            answers.append(node.communicate(timeout=50)[0])
            self.assertEqual(node.returncode, 0)
        self.assertEqual(len(set(answers)), 1, answers)
        with closing(sqlite3.connect(path)) as connection:
            self.assertEqual(connection.execute("SELECT id, report_count FROM services").fetchall(), [(1, 60)])
