"""Periodic tasks that run once in a node or once in a fleet, while their processes die, stop and reload."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, ROOT, Process, program
from tests.faults.fleet_rig import Fleet, FleetCase, Fleets, until
from tests.servers import MariaDB, PostgreSQL, database_url
from tests.servers.databases import DatabaseServer

MANAGER = """
import os
from twisted.internet import reactor
from twisted.internet.task import deferLater
from novasvc import Manager, periodic_task

class Scoped(Manager):
    @periodic_task(spacing=0.1, run_immediately=True)
    def once(self, context):
        print(f"(once {os.getpid()})", flush=True)

    @periodic_task(spacing=0.1, run_immediately=True, scope="worker")
    def each(self, context):
        print(f"(each {os.getpid()})", flush=True)

class Leading(Manager):
    @periodic_task(spacing=0.1, run_immediately=True, scope="fleet")
    async def lead(self, context):
        try:
            while True:
                print(f"({context.fencing} leads)", flush=True)
                await deferLater(reactor, 0.05)
        finally:
            print(f"({context.fencing} ends)", flush=True)

class Quiet(Manager):
    @periodic_task(spacing=3600, scope="fleet")
    def rare(self, context):
        print(f"({context.fencing} runs)", flush=True)
"""
ALMOST_AN_HOUR_AGO = "strftime('%Y-%m-%d %H:%M:%f', 'now', '-3598 seconds') || '000'"
LEASE = 2.0
"""Seconds of a lease."""


@pytest.mark.slow
class NodeScopeTests(FleetCase):
    """A supervisor with workers."""

    def start(self, workers: int = 3, **environment: str) -> Fleet:
        (self.folder / "scoped.py").write_text(MANAGER)
        options = ["--workers", str(workers), "--manager", "scoped.Scoped", "--topic", "scoped"]
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", *options]
        return Fleet(self, command, self.folder, PYTHONPATH=f"{ROOT}:{self.folder}", **environment)

    def runs(self, fleet: Fleet, task: str, since: int = 0) -> set[int]:
        """Return the processes that have run a task since a number of lines."""
        return {int(pid) for pid in re.findall(rf"\({task} (\d+)\)", "".join(fleet.lines[since:]))}

    def settle(self, fleet: Fleet) -> int:
        """Wait until each worker has run what each runs, and return the only one that runs what one runs."""
        pids = {*fleet.ready(3).values()}
        since = len(fleet.lines)
        until(lambda: self.runs(fleet, "each", since) == pids and self.runs(fleet, "once", since))
        (leader,) = self.runs(fleet, "once", since)
        self.assertIn(leader, pids)
        return leader

    def takes_over(self, fleet: Fleet, gone: int, patience: float = 5.0) -> None:
        since = len(fleet.lines)
        began = time.monotonic()
        until(lambda: self.runs(fleet, "once", since) - {gone}, PATIENCE)
        self.assertLess(time.monotonic() - began, patience)

    def test_killed(self) -> None:
        """When the worker that runs a node's tasks is killed, another one takes over within seconds."""
        fleet = self.start()
        leader = self.settle(fleet)
        os.kill(leader, signal.SIGKILL)
        self.takes_over(fleet, leader)
        self.assertNotEqual(self.settle(fleet), leader)
        fleet.stop()

    def test_reloaded(self) -> None:
        """After a reload one of the new workers runs the node's tasks."""
        fleet = self.start()
        before = fleet.ready(3)
        leader = self.settle(fleet)
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.says("reloaded: all workers were replaced")
        fleet.ready(3, but=[*before.values()])
        self.takes_over(fleet, leader)
        self.assertNotIn(self.settle(fleet), before.values())
        fleet.stop()

    @pytest.mark.long
    def test_without_state_directory(self) -> None:
        """Without a writable state directory the workers agree by a file in the temporary directory."""
        state = self.folder / "state"
        state.write_text("a file, not a directory")
        elsewhere = {
            "NOVASVC_STATE_DIR": str(state),
            "NOVASVC_CONTROL_SOCKET": str(self.folder / "novasvc.control"),
            "NOVASVC_DATABASE_URL": f"sqlite:///{self.folder}/x.sqlite",
            "NOVASVC_TEMPDIR": str(self.folder),
        }
        fleet = self.start(**elsewhere)
        leader = self.settle(fleet)
        os.kill(leader, signal.SIGKILL)
        self.takes_over(fleet, leader)
        fleet.stop()

    @pytest.mark.long
    def test_as_before(self) -> None:
        """With default_task_scope = "worker" each worker runs all tasks, as in Nova."""
        fleet = self.start(NOVASVC_DEFAULT_TASK_SCOPE="worker")
        pids = {*fleet.ready(3).values()}
        until(lambda: self.runs(fleet, "once") == pids)
        fleet.stop()


class FleetScope(Fleets):
    """Nodes of several hosts with one database, in processes of their own."""

    database: type[DatabaseServer] | None = None

    def setUp(self) -> None:
        super().setUp()
        (self.folder / "scoped.py").write_text(MANAGER)
        self.url = (
            f"sqlite:///{self.folder}/fleet.sqlite" if self.database is None else database_url(self, self.database)
        )

    def node(self, host: str, manager: str = "Leading", *options: str) -> Process:
        state = self.folder / host
        state.mkdir(exist_ok=True)
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--manager", f"scoped.{manager}", *options]
        environment = {
            "PYTHONPATH": f"{ROOT}:{self.folder}",
            "NOVASVC_HOST": host,
            "NOVASVC_STATE_DIR": str(state),
            "NOVASVC_DATABASE_URL": self.url,
            "NOVASVC_TASK_LEASE_TIME": str(LEASE),
            "NOVASVC_PERIODIC_FUZZY_DELAY": "0",
            "NOVASVC_TOPIC": "scoped",
            "NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT": "1",  # the task has no end
        }
        return Process(self, command, state, **environment)

    def pair(self) -> tuple[Process, Process]:
        """Start two nodes; the first one leads."""
        first = self.node("h1")
        first.wait_for(r"\(1 leads\)")
        second = self.node("h2")
        second.wait_for("is running")
        return first, second

    def takes_over(self, process: Process, fencing: int) -> None:
        began = time.monotonic()
        process.wait_for(rf"\({fencing} leads\)")
        self.assertLess(time.monotonic() - began, 2 * LEASE)

    def listed(self) -> dict[str, object]:
        """Return the lease as `novasvc lease list` has it."""
        command = [program("novasvc"), "--database-url", self.url, "lease", "list", "-f", "json"]
        (row,) = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE).stdout)
        found: dict[str, object] = row
        return found

    def test_killed(self) -> None:
        """When the leader is killed, another host takes over within two lease times, under the next number."""
        first, second = self.pair()
        self.assertNotIn("leads)", second.output)
        first.popen.kill()
        self.takes_over(second, 2)
        self.assertEqual([self.listed()[name] for name in ("Task", "Holder", "Fencing")], ["lead", "h2", 2])
        second.stop()

    def test_stopped(self) -> None:
        """A leader that was stopped ends its run when it continues, and begins no other one."""
        first, second = self.pair()
        first.popen.send_signal(signal.SIGSTOP)
        self.takes_over(second, 2)
        first.popen.send_signal(signal.SIGCONT)
        first.wait_for("lost the lease of scoped/lead")
        first.wait_for(r"\(1 ends\)")
        tail = first.output.rpartition("(1 ends)")[2]
        second.wait_for(r"\(2 leads\)")
        self.assertNotIn("leads)", tail)
        self.assertNotIn("ends)", second.output)
        for process in (second, first):
            process.stop()

    def test_drained(self) -> None:
        """A leader that stops releases its lease, and another takes it over within half a lease time."""
        first, second = self.pair()
        first.popen.send_signal(signal.SIGTERM)
        first.wait_for(r"\(1 ends\)")
        self.takes_over(second, 2)
        first.wait()
        second.stop()

    def test_workers(self) -> None:
        """Among all workers of all hosts one runs the task."""
        first = self.node("h1", "Leading", "--workers", "2")
        second = self.node("h2", "Leading", "--workers", "2")
        for process in (first, second):
            process.wait_for("worker .* is ready|ready")
        until(lambda: "leads)" in first.output + second.output)
        fencing = {*re.findall(r"\((\d+) leads\)", first.output + second.output)}
        self.assertEqual(fencing, {"1"})
        self.assertRegex(str(self.listed()["Holder"]), r"\Ah[12] worker [12]\Z")
        for process in (first, second):
            process.stop()


@pytest.mark.slow
class SQLiteFleetScopeTests(FleetScope, TestCase):
    """The same with a file, whose rows a test may change."""

    def test_rare(self) -> None:
        """A task whose spacing is longer than any of its leaders lives runs when its spacing is over, not later."""
        first = self.node("h1", "Quiet")
        first.wait_for("has the lease of scoped/rare")
        first.stop()
        holder = self.listed()["Holder"]
        self.assertIsNone(holder)
        with closing(sqlite3.connect(self.folder / "fleet.sqlite")) as connection, connection:
            connection.execute(f"UPDATE novasvc_leases SET last_run_at = {ALMOST_AN_HOUR_AGO}")  # noqa: S608
        second = self.node("h2", "Quiet")
        second.wait_for("fencing number 2")
        second.wait_for(r"\(2 runs\)")
        second.stop()


@pytest.mark.long
@pytest.mark.slow
class PostgreSQLFleetScopeTests(FleetScope, TestCase):
    """The same with PostgreSQL."""

    database = PostgreSQL


@pytest.mark.long
@pytest.mark.slow
class MariaDBFleetScopeTests(FleetScope, TestCase):
    """The same with MariaDB."""

    database = MariaDB
