"""Tests for a node under a real twistd; its database is read with the standard library's sqlite3."""

import json
import os
import re
import signal
import socket
import sqlite3
import stat
import tempfile
import time
from pathlib import Path
from unittest import TestCase
from urllib.request import urlopen

import pytest

from tests.e2e.process import ROOT, Process, program

RUNNING = "is running"

WATCH = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1])
while connection.execute("SELECT report_count FROM services").fetchone()[0] < 3:
    time.sleep(0.05)
print("beaten")
"""

MANAGERS = '''
import time
from novasvc import Manager, RequestContext, periodic_task, rpc

class Hooked(Manager):
    """A manager whose hook raises."""
    def pre_start_hook(self):
        raise LookupError("no such hypervisor")

class Broken(Manager):
    def __init__(self, host):
        raise ValueError("not today")

class Twice(Manager):
    @rpc.expose
    def same(self, context): pass
    @property
    def additional_endpoints(self):
        return [Twice.Other()]
    class Other:
        @rpc.expose
        def same(self, context): pass

class Hanging(Manager):
    """A manager with a task that raises and one that never ends."""
    @periodic_task(spacing=1, run_immediately=True)
    def raising(self, context):
        raise RuntimeError("task trouble")
    @periodic_task(spacing=1, run_immediately=True)
    def hanging(self, context):
        from twisted.internet.defer import Deferred
        return Deferred()

class Sleeping(Manager):
    """A manager with a thread that does not end in time."""
    @rpc.expose(blocking=True)
    def sleep(self, context):
        print("sleeping", flush=True)
        time.sleep(25)
    @periodic_task(spacing=60, run_immediately=True)
    async def calling(self, context):
        await self.attachments.rpc.prepare(topic="agent").call(context, "sleep")
'''


class TwistdTestCase(TestCase):
    """A test with twistd in a directory of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "managers.py").write_text(MANAGERS)

    def twistd(self, *options: str, host: str = "h1", **environment: str) -> Process:
        """Start `twistd -n novasvc`."""
        command = [
            program("twistd"),
            "-n",
            "--pidfile=",
            "novasvc",
            "--host",
            host,
            "--periodic-fuzzy-delay",
            "0",
            *options,
        ]
        return Process(
            self, command, self.folder, PYTHONPATH=str(self.folder), NOVASVC_STATE_DIR="state", **environment
        )

    def rows(self) -> list[sqlite3.Row]:
        connection = sqlite3.connect(f"file:{self.folder / 'state' / 'novasvc.sqlite'}?mode=ro", uri=True)
        try:
            connection.row_factory = sqlite3.Row
            return connection.execute("SELECT * FROM services WHERE deleted = 0").fetchall()
        finally:
            connection.close()


class RunTests(TwistdTestCase):
    """Tests for a running node, and its shutdown."""

    def test_registers_and_beats(self) -> None:
        """With default settings a node registers in an SQLite file, sends heartbeats, and logs what to try."""
        node = self.twistd()
        node.wait_for(r"novasvc \S+ runs novasvc-agent@h1 \(topic agent\)")
        node.wait_for(r"state +/.*/state$")
        node.wait_for("novasvc service list")
        (row,) = self.rows()
        self.assertEqual(
            {name: row[name] for name in ("host", "binary", "topic", "report_count", "disabled", "deleted")},
            {"host": "h1", "binary": "novasvc-agent", "topic": "agent", "report_count": 1, "disabled": 0, "deleted": 0},
        )
        self.assertRegex(row["last_seen_up"], r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$")
        node.stop()

    def test_files_are_private(self) -> None:
        """A node's files can be read by its own user only, whatever the umask."""
        os.umask(0o022)
        node = self.twistd()
        node.wait_for(RUNNING)
        state = self.folder / "state"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (state, *state.rglob("*"))}
        node.stop()
        self.assertEqual({modes.pop(name) for name in ("state", "rpc", "services")}, {0o700})
        self.assertTrue(any(name.endswith(".sock") for name in modes))
        self.assertEqual(set(modes.values()), {0o600}, modes)

    def test_terminated(self) -> None:
        """SIGTERM and SIGINT shut the node down in order, and the row stays."""
        for number in (signal.SIGTERM, signal.SIGINT):
            node = self.twistd()
            node.wait_for(RUNNING)
            status = node.stop(number)
            self.assertEqual(status, -number)
            self.assertRegex(node.output, r"(?s)is draining.*is stopped")
            self.assertNotIn("Traceback", node.output)
        self.assertEqual(self.rows()[0]["report_count"], 2)

    def test_killed(self) -> None:
        """A restarted node continues with its old row and report_count."""
        node = self.twistd()
        node.wait_for(RUNNING)
        (before,) = self.rows()
        self.assertEqual(node.stop(signal.SIGKILL), -signal.SIGKILL)
        again = self.twistd()
        again.wait_for(RUNNING)
        (after,) = self.rows()
        self.assertEqual((after["id"], after["uuid"], after["report_count"]), (before["id"], before["uuid"], 2))
        again.stop()

    @pytest.mark.long
    def test_killed_at_any_time(self) -> None:
        """A node killed at any time in its first start leaves a usable database."""
        for sign in ("starting agent node", "is starting", "reactor class"):
            node = self.twistd()
            node.wait_for(sign)
            node.stop(signal.SIGKILL)
        node = self.twistd()
        node.wait_for(RUNNING)
        self.assertEqual(len(self.rows()), 1)
        node.stop()

    def test_terminated_while_starting(self) -> None:
        """SIGTERM during the start ends the node promptly and cleanly."""
        node = self.twistd()
        node.wait_for("is starting")
        self.assertEqual(node.stop(), -signal.SIGTERM)
        self.assertNotIn("Traceback", node.output)

    def test_beats_go_on(self) -> None:
        """A running node sends heartbeats."""
        node = self.twistd("--report-interval", "1", "--service-down-time", "5")
        node.wait_for(RUNNING)
        watcher = Process(self, [program("python"), "-c", WATCH, "state/novasvc.sqlite"], self.folder)
        watcher.wait_for("beaten")
        node.stop()

    def test_json_log(self) -> None:
        """With --log-json every line is a JSON object with host, binary, topic and request."""
        node = self.twistd("--log-json")
        node.wait_for(RUNNING)
        node.stop()
        events = [json.loads(line) for line in node.lines]
        self.assertTrue(events)
        for event in events:
            self.assertEqual((event["host"], event["binary"], event["topic"]), ("h1", "novasvc-agent", "agent"))
            self.assertIn("request_id", event)

    def test_log_level(self) -> None:
        """--log-level debug shows the traceback of a failed start; error shows errors only."""
        told = self.twistd("--manager", "managers.Hooked", "--log-level", "debug")
        self.assertEqual(told.wait(), 1)
        self.assertIn("Traceback", told.output)
        terse = self.twistd("--manager", "managers.Hooked", "--log-level", "error")
        self.assertEqual(terse.wait(), 1)
        self.assertEqual(re.findall(r"#(\w+)\]", terse.output), ["critical"])

    def test_hints(self) -> None:
        """The suggested commands name the state directory if options changed it."""
        node = self.twistd("--state-dir", "else where")
        node.wait_for(r"try .*novasvc --state-dir '.*else where' service list")
        node.stop()

    def test_twist(self) -> None:
        """`twist` runs a node, too."""
        command = [program("twist"), "novasvc", "--host", "h1"]
        node = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
        node.wait_for(r"runs novasvc-agent@h1")
        node.stop()

    def test_several_services(self) -> None:
        """Several [[service]] tables run several services in one process."""
        (self.folder / "two.toml").write_text(
            '[[service]]\nbinary = "novasvc-one"\nmanager = "novasvc.host_agent.HostAgent"\n'
            '[[service]]\nbinary = "novasvc-two"\nmanager = "managers.Hanging"\n'
        )
        node = self.twistd("--config", "two.toml", "--graceful-shutdown-timeout", "1")
        node.wait_for("novasvc-one@h1 is running")
        node.wait_for("novasvc-two@h1 is running")
        self.assertEqual({row["topic"] for row in self.rows()}, {"one", "two"})
        node.stop()
        # Whose task hangs is waited for until the deadline; then all are cut short at the same time.
        self.assertRegex(node.output, r"(?s)novasvc-two@h1 is draining.*novasvc-one@h1 is draining")
        for name in ("one", "two"):
            self.assertIn(f"novasvc-{name}@h1 is stopped", node.output)

    def test_tasks_that_raise_and_hang(self) -> None:
        """A task that raises is logged with its name; one that hangs affects no other, and is cancelled at stop."""
        node = self.twistd("--manager", "managers.Hanging", "--graceful-shutdown-timeout", "1")
        node.wait_for("task trouble")
        node.wait_for("task trouble")
        self.assertEqual(node.stop(), -signal.SIGTERM)
        # The process's deadline began at the signal, the node's when it drained: either may be over first.
        self.assertRegex(node.output, r"graceful_shutdown_timeout \(1 s\) expired: cancelling")
        why = "(expired|told to stop immediately): cancelling"
        self.assertRegex(node.output, rf"{why} 0 calls and 1 periodic task \(hanging\)")

    def test_thread_that_hangs(self) -> None:
        """A stuck thread does not delay the exit; one warning names its function."""
        node = self.twistd("--manager", "managers.Sleeping", "--graceful-shutdown-timeout", "1")
        node.wait_for("sleeping")
        began = time.monotonic()
        self.assertEqual(node.stop(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(
            len(re.findall(r"functions still running in threads.*: managers\.Sleeping\.sleep \(", node.output)), 1
        )
        self.assertNotIn("Traceback", node.output)

    def test_daemon(self) -> None:
        """A daemon logs to its file, starts a new one at SIGUSR1, and ends at SIGTERM."""
        command = [program("twistd"), "--pidfile", "node.pid", "--logfile", "node.log", "novasvc", "--host", "h1"]
        starter = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
        self.assertEqual(starter.wait(), 0, starter.output)
        log = Process(self, ["tail", "-n", "+1", "-F", "node.log"], self.folder)
        log.wait_for(RUNNING)
        pid = int((self.folder / "node.pid").read_text())
        os.kill(pid, signal.SIGUSR1)
        log.wait_for("following new file")
        os.kill(pid, signal.SIGTERM)
        log.wait_for("is stopped")
        log.wait_for("Server Shut Down")
        log.stop()


class FailedStartTests(TwistdTestCase):
    """Tests for failing starts: one line, no traceback, status 1."""

    def fails(self, *options: str, **environment: str) -> str:
        node = self.twistd(*options, **environment)
        self.assertEqual(node.wait(), 1, node.output)
        self.assertNotIn("Traceback", node.output)
        return node.output

    def test_unknown_option(self) -> None:
        """An unknown option is named."""
        self.assertIn("--report-intervall", self.fails("--report-intervall", "3").replace("option ", "--"))

    @pytest.mark.long
    def test_bad_values(self) -> None:
        """All invalid settings are reported together, each with value, source and remedy."""
        output = self.fails("--report-interval", "0.5", NOVASVC_RPC_CONCURRENCY="many")
        self.assertRegex(output, r"--report-interval = '0.5' \(from option --report-interval\): is too small")
        self.assertRegex(output, r"NOVASVC_RPC_CONCURRENCY = 'many' \(from variable .*\): is not a whole number")

    @pytest.mark.long
    def test_unknown_setting(self) -> None:
        """An unknown setting in a file is reported with the most similar name."""
        (self.folder / "bad.toml").write_text("report_intervall = 3\n")
        self.assertRegex(self.fails("--config", "bad.toml"), r"report_intervall.*report_interval")

    @pytest.mark.long
    def test_log_file(self) -> None:
        """An unwritable log file is named."""
        command = [program("twistd"), "-n", "--pidfile=", "--logfile", "/nonexistent/x.log", "novasvc"]
        node = Process(self, command, self.folder, NOVASVC_STATE_DIR="state")
        self.assertEqual(node.wait(), 1)
        self.assertRegex(node.output, "^novasvc: cannot log to '/nonexistent/x.log': No such file or directory; give")
        self.assertEqual(len(node.lines), 1)

    @pytest.mark.long
    def test_reserved_option(self) -> None:
        """A reserved option of a manager is named with its file and table."""
        (self.folder / "taken.toml").write_text('[[service]]\ntopic = "agent"\noptions = { host = "z" }\n')
        self.assertRegex(self.fails("--config", "taken.toml"), r"service\[0\].options.host \(from file .*taken.toml")

    def test_manager_not_there(self) -> None:
        """A manager that cannot be imported is named with the reason."""
        self.assertIn("there is no module 'nowhere'", self.fails("--manager", "nowhere.Manager"))

    def test_manager_that_raises(self) -> None:
        """A manager whose constructor raises is named with the error and the place."""
        self.assertRegex(self.fails("--manager", "managers.Broken"), r"ValueError: not today \(.*managers.py:\d+")

    def test_duplicate_method(self) -> None:
        """Two methods exposed under the same name are both named."""
        output = self.fails("--manager", "managers.Twice")
        self.assertIn("managers.Twice.same", output)
        self.assertIn("Other.same", output)

    def test_hook_that_raises(self) -> None:
        """A hook that raises is named with the error and the place, and the start is undone."""
        output = self.fails("--manager", "managers.Hooked")
        self.assertRegex(output, r"pre_start_hook failed: LookupError: no such hypervisor \(.*managers.py:\d+")
        self.assertIn("is failed", output)

    @pytest.mark.long
    def test_state_directory(self) -> None:
        """A state directory that cannot be created is named."""
        (self.folder / "file").write_text("")
        output = self.fails("--state-dir", "file/below")
        self.assertIn("file/below", output)

    @pytest.mark.long
    def test_temporary_directory(self) -> None:
        """A missing temporary directory is named."""
        self.assertIn("/no/such/place", self.fails("--tempdir", "/no/such/place"))

    def test_corrupt_database(self) -> None:
        """A file that is not a database is reported as such, and left as it is."""
        (self.folder / "state").mkdir()
        database = self.folder / "state" / "novasvc.sqlite"
        database.write_bytes(b"this is not a database, " * 100)
        self.assertIn("restore it from a backup", self.fails())
        self.assertTrue(database.read_bytes().startswith(b"this is not"))

    def test_newer_database(self) -> None:
        """A database of a newer version is refused with both revisions."""
        self.twistd_once()
        connection = sqlite3.connect(self.folder / "state" / "novasvc.sqlite")
        connection.execute("UPDATE novasvc_alembic_version SET version_num = '9999'")
        connection.commit()
        connection.close()
        output = self.fails()
        self.assertIn("9999", output)
        self.assertIn("install the newer novasvc", output)

    def test_no_migrate(self) -> None:
        """With --no-migrate an empty database is refused with the command that creates the schema."""
        self.assertIn("novasvc db upgrade", self.fails("--no-migrate"))

    @pytest.mark.long
    def test_locked_database(self) -> None:
        """A node waits for a locked database; with --fail-fast the start fails."""
        holder = self.locked_database()
        node = self.twistd(host="h2")
        node.wait_for("the database is unavailable; retrying")
        refused = self.twistd("--fail-fast", host="h3")
        self.assertEqual(refused.wait(), 1)
        self.assertIn("holds the lock", refused.output)
        holder.execute("ROLLBACK")
        node.wait_for(RUNNING)
        node.stop()

    @pytest.mark.long
    def test_locked_while_running(self) -> None:
        """While the database is locked a node that runs serves, logs one heartbeat error, and recovers."""
        node = self.twistd("--report-interval", "1")
        node.wait_for(RUNNING)
        holder = self.lock()
        node.wait_for("model server went away")
        holder.execute("ROLLBACK")
        node.wait_for("heartbeats resumed")
        node.stop()
        self.assertEqual(node.output.count("model server went away"), 2)  # once when it began, once when it ended

    @pytest.mark.long
    def test_terminated_while_waiting(self) -> None:
        """SIGTERM while the node waits for its database ends it promptly."""
        self.locked_database()
        node = self.twistd(host="h2")
        node.wait_for("the database is unavailable; retrying")
        self.assertEqual(node.stop(), -signal.SIGTERM)

    def locked_database(self) -> sqlite3.Connection:
        """Run a node once, then lock its database against writers."""
        self.twistd_once()
        return self.lock()

    def lock(self) -> sqlite3.Connection:
        """Lock the database against writers."""
        holder = sqlite3.connect(self.folder / "state" / "novasvc.sqlite", isolation_level=None)
        self.addCleanup(holder.close)
        holder.execute("BEGIN EXCLUSIVE")
        return holder

    def twistd_once(self) -> None:
        node = self.twistd()
        node.wait_for(RUNNING)
        node.stop()


class TacTests(TwistdTestCase):
    """Tests for the deployments in tap/."""

    def tac(self, name: str, **environment: str) -> Process:
        command = [program("twistd"), "--pidfile=", "-ny", str(ROOT / "tap" / name)]
        return Process(self, command, self.folder, NOVASVC_STATE_DIR="state", NOVASVC_HOST="h1", **environment)

    def test_allinone(self) -> None:
        """allinone.tac runs what `twistd novasvc` runs."""
        process = self.tac("allinone.tac")
        process.wait_for(r"runs novasvc-agent@h1")
        self.assertEqual(len(self.rows()), 1)
        self.assertEqual(process.stop(), -signal.SIGTERM)

    def test_agent(self) -> None:
        """agent.tac runs the agent, and its settings override the environment's."""
        process = self.tac("agent.tac", NOVASVC_TOPIC="other")
        process.wait_for(r"\(topic agent\)")
        process.stop()

    def test_conductor(self) -> None:
        """conductor.tac runs an agent that registers through a conductor, and stops before it."""
        process = self.tac("conductor.tac")
        process.wait_for(r"runs novasvc-conductor@h1 \(topic conductor\), novasvc-agent@h1 \(topic agent\)")
        rows = {row["topic"]: row["report_count"] for row in self.rows()}
        self.assertEqual(rows.keys(), {"conductor", "agent"})
        self.assertGreater(rows["agent"], 0)
        self.assertEqual(process.stop(), -signal.SIGTERM)
        self.assertNotIn("went away", process.output)
        self.assertRegex(process.output, "(?s)agent@h1 is stopped.*conductor@h1 is stopped")

    def test_api(self) -> None:
        """api.tac serves the API without a node."""
        process = self.tac("api.tac", NOVASVC_API_LISTEN_PORT="0")
        process.wait_for("runs no node")
        url = process.wait_for(r"page +(http://127.0.0.1:\d+/)")[1]
        with urlopen(f"{url}healthz", timeout=10) as answer:
            self.assertEqual(answer.status, 200)
        self.assertEqual(process.stop(), -signal.SIGTERM)

    def test_failing(self) -> None:
        """A .tac file with invalid settings ends with one line and status 1."""
        process = self.tac("allinone.tac", NOVASVC_WORKERS="none")
        self.assertEqual(process.wait(), 1, process.output)
        self.assertNotIn("Traceback", process.output)
        self.assertIn("NOVASVC_WORKERS", process.output)

    def test_composed_on_busy_port(self) -> None:
        """composed.tac ends with one line and status 1 if its port is in use."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            process = self.tac("composed.tac", PORT=str(taken.getsockname()[1]))
            self.assertEqual(process.wait(), 1, process.output)
        self.assertNotIn("Traceback", process.output)
        self.assertIn("give another port as PORT", process.output)

    def test_composed(self) -> None:
        """composed.tac runs a node and another service, which calls the node."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = self.tac("composed.tac", PORT=str(port))
        process.wait_for(RUNNING)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"load?\r\n")
            answer = connection.makefile().readline()
        self.assertEqual(len([float(number) for number in answer.split()]), 3, answer)
        self.assertEqual(process.stop(), -signal.SIGTERM)
        self.assertIn("is stopped", process.output)
