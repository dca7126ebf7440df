"""Tests for the installed command, with a real SQLite file."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from novasvc.registry.sql.services import connect_registry
from tests.e2e.process import Process, unmeasured

_INSTALLED = Path(sys.executable).with_name("novasvc")
COMMAND = [str(_INSTALLED)] if _INSTALLED.exists() else [sys.executable, "-c", "from novasvc.cli import main; main()"]
DEADLINE = 60.0
"""Seconds for a command, on a machine that has other things to do."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class CommandCase(SynchronousTestCase):
    """A test with a state directory of its own."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.file = self.directory / "state" / "novasvc.sqlite"
        self.environ = {**unmeasured("NOVASVC_"), "NOVASVC_STATE_DIR": str(self.file.parent)}

    def run_command(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run the command; it must never print a traceback."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environ, **options}
        ran = subprocess.run([*COMMAND, *arguments], text=True, check=False, timeout=DEADLINE, **given)
        self.assertNotIn("Traceback", ran.stderr or "")
        return ran

    def output(self, *arguments: str) -> str:
        """Run a command that succeeds with nothing on standard error; return its output."""
        ran = self.run_command(*arguments)
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        return ran.stdout

    def failure(self, *arguments: str, **options: Any) -> str:
        """Run a command that fails with one line and status 1; return the line."""
        ran = self.run_command(*arguments, **options)
        self.assertEqual(ran.returncode, 1)
        self.assertRegex(ran.stderr, "^novasvc: [^\n]+\n$")
        return ran.stderr


class SchemaTests(CommandCase):
    """Tests for `novasvc db`, and for commands on a database without a schema."""

    @pytest.mark.long
    def test_missing(self) -> None:
        """Before the first start of a node, the error names the missing database, and none is created."""
        for arguments in (["service", "list"], ["service", "enable", "1"], ["db", "current"], ["db", "check"]):
            self.assertIn(f"no node has run here yet: {self.file} does not exist", self.failure(*arguments))
        self.assertFalse(self.file.parent.exists())

    def test_upgrade(self) -> None:
        """upgrade creates the schema with mode 0600; current and check report it."""
        self.file.parent.mkdir()
        sqlite3.connect(self.file).close()
        self.assertTrue(self.output("db", "current").startswith("none"))
        self.assertIn("novasvc db upgrade", self.failure("db", "check"))
        self.assertIn("novasvc db upgrade", self.failure("service", "list"))
        shutil.rmtree(self.file.parent)
        revision = self.output("db", "upgrade").split()[-1]
        self.assertEqual(self.output("db", "current"), f"{revision}\n")
        self.assertEqual(self.output("db", "check"), "the schema is up to date\n")
        self.assertEqual(self.output("service", "list", "-f", "json"), "[]\n")
        self.assertEqual((self.file.parent.stat().st_mode & 0o777, self.file.stat().st_mode & 0o777), (0o700, 0o600))

    @pytest.mark.long
    def test_newer(self) -> None:
        """A schema of a newer version is left alone."""
        self.output("db", "upgrade")
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute("UPDATE novasvc_alembic_version SET version_num = '9999'")
        for arguments in (["service", "list"], ["db", "check"], ["db", "upgrade"]):
            self.assertIn("newer novasvc", self.failure(*arguments))

    def test_no_database(self) -> None:
        """A file that is not a database is reported as such."""
        self.file.parent.mkdir()
        self.file.write_text("no database" * 100)
        for arguments in (["service", "list"], ["db", "current"], ["db", "upgrade"]):
            self.assertIn("not a database", self.failure(*arguments))


class ServicesTests(TestCase, CommandCase):
    """Tests for `novasvc service`, with two registered services."""

    def setUp(self) -> "Deferred[None]":
        CommandCase.setUp(self)
        self.file.parent.mkdir()
        return Deferred.fromCoroutine(self.register())

    async def register(self) -> None:
        """Register services as nodes do at start."""
        registry = connect_registry(f"sqlite:///{self.file}", reactor=reactor)
        await registry.open()
        for host in ("h1", "h2"):
            record = await registry.register(host, "novasvc-agent", "agent", 0)
            await registry.beat(record.id)
        await registry.close()

    def test_a_day(self) -> None:
        """An operator lists the services, disables, enables, forces down and deletes one."""
        hosts = ["list", "-f", "value", "-c", "Host", "-c", "Status", "-c", "State"]
        self.assertEqual(self.output("service", *hosts), "h1 enabled up\nh2 enabled up\n")
        self.output("service", "disable", "h2", "--reason", "new disk")
        self.output("service", "force-down", "--host", "h2", "--binary", "novasvc-agent")
        self.assertEqual(self.output("service", *hosts), "h1 enabled up\nh2 disabled down\n")
        self.assertEqual(self.run_command("service", "list", "--check").returncode, 1)
        self.assertEqual(self.run_command("service", "list", "--check", "--host", "h1").returncode, 0)
        row = json.loads(self.output("service", "show", "h2", "-f", "json"))
        self.assertEqual((row["Disabled Reason"], row["Forced Down"], row["Report Count"]), ("new disk", True, 1))
        self.output("service", "enable", row["UUID"])
        self.output("service", "force-down", "--unset", str(row["ID"]))
        self.assertEqual(self.output("service", *hosts), "h1 enabled up\nh2 enabled up\n")
        self.run_command("service", "delete", "h2")
        self.assertEqual(self.output("service", *hosts), "h1 enabled up\n")
        self.assertIn("could not be found", self.failure("service", "show", "h2"))

    def test_down(self) -> None:
        """A service is down when its last heartbeat is older than service_down_time."""
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute("UPDATE services SET last_seen_up = datetime('now', '-61 seconds') WHERE host = 'h1'")
        state = ["service", "list", "-f", "value", "-c", "State"]
        self.assertEqual(self.output(*state), "down\nup\n")
        self.environ["NOVASVC_SERVICE_DOWN_TIME"] = "120"
        self.assertEqual(self.output(*state), "up\nup\n")

    def test_watch(self) -> None:
        """--watch prints the list again and again, with what has changed, until it is interrupted."""
        environ = {"NOVASVC_STATE_DIR": str(self.file.parent)}
        watching = Process(self, [*COMMAND, "service", "list", "--watch", "0.5"], self.directory, **environ)
        watching.wait_for(r"every 0\.5 s; 2 services")
        watching.wait_for(r"\| h2 +\| internal \| enabled ")
        self.output("service", "disable", "h2")
        watching.wait_for(r"\| h2 +\| internal \| disabled ")
        values = Process(
            self, [*COMMAND, "service", "list", "--watch", "0.5", "-f", "value"], self.directory, **environ
        )
        for _ in range(2):
            values.wait_for(r"^2 ")
        values.popen.send_signal(signal.SIGINT)
        self.assertEqual(values.wait(), 130)
        self.assertNotIn("UTC", values.output)
        watching.popen.send_signal(signal.SIGINT)
        self.assertEqual(watching.wait(), 130)
        self.assertNotIn("Traceback", watching.output)

    @pytest.mark.long
    def test_piped(self) -> None:
        """Piped output is never truncated or wrapped, however small the terminal."""
        self.output("service", "disable", "h2", "--reason", "x" * 255)
        self.environ["COLUMNS"] = "20"
        self.assertIn("x" * 255, self.output("service", "list", "--long"))

    @pytest.mark.long
    def test_terminal(self) -> None:
        """On a terminal the table has colours, and fits its width."""
        leader, follower = pty.openpty()
        self.addCleanup(os.close, leader)
        with open(follower, "w", encoding="utf-8") as terminal:  # noqa: PTH123 - a descriptor
            environ = {**self.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "20"}
            self.run_command("service", "list", stdout=terminal, env=environ)
            shown = os.read(leader, 100_000).decode()
        self.assertIn("\x1b[32mup", shown)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
        self.assertLessEqual(max(map(len, lines)), 60)

    @pytest.mark.long
    def test_reader_leaves(self) -> None:
        """A reader that closes the pipe early, such as `head`, causes no error message."""
        reader, writer = os.pipe()
        os.close(reader)
        for arguments in (["service", "list"], ["service", "list", "-f", "csv"], ["config", "show", "-f", "json"]):
            ran = self.run_command(*arguments, stdout=writer)
            self.assertEqual((ran.returncode, ran.stderr), (1, ""))
        os.close(writer)

    def test_full_disk(self) -> None:
        """A failed write of the output is an error with its reason."""
        with Path("/dev/full").open("w") as full:
            for output_format in ("table", "csv"):
                said = self.failure("service", "list", "-f", output_format, stdout=full)
                self.assertIn("No space left", said)

    @pytest.mark.long
    def test_locked(self) -> None:
        """A lock of another process is reported; an interrupt ends the wait."""
        with closing(sqlite3.connect(self.file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            self.assertIn("locked", self.failure("service", "disable", "h1"))
            with subprocess.Popen(
                [*COMMAND, "service", "disable", "h1"], env=self.environ, stderr=subprocess.PIPE
            ) as waiting:
                self.wait_for_open(waiting.pid)
                waiting.send_signal(signal.SIGINT)
                _, said = waiting.communicate(timeout=DEADLINE)
        self.assertEqual((waiting.returncode, said.strip()), (130, b""))

    def wait_for_open(self, process: int) -> None:
        """Wait until a process has the database open; from then on it can be interrupted cleanly."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            # One that is closed while we look is not the one. (trial takes a module's "suppress" for its own.)
            with contextlib.suppress(FileNotFoundError):
                if any(link.readlink() == self.file for link in Path(f"/proc/{process}/fd").iterdir()):
                    return
        self.fail("it did not open the database")
