"""Tests for the table of exit statuses in docs/workers.md, row by row, with real processes."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.process import ROOT, program
from tests.faults.fleet_rig import Fleet, FleetCase

PAGE = ROOT / "docs" / "workers.md"
HEADING = "| what ends it | `ServiceLauncher` | `ProcessLauncher` | under twistd |"

TERM, INT, KILL = "by SIGTERM", "by SIGINT", "by SIGKILL"
TABLE = {
    "TERM, and all stops in time": ("1", "0", TERM),
    "TERM, and calls or tasks are cancelled at the deadline": ("1", "0", TERM),
    "TERM, and a server has not stopped after the deadline": ("1", "1", TERM),
    "TERM, and the reactor is blocked at the deadline": ("1", "1", TERM),
    "a second TERM": ("1", "1", TERM),
    "a second TERM, when all has stopped and the interpreter ends": ("1", "0", "does not apply"),
    "a second TERM, when the script goes on after `wait()`": (TERM, TERM, "does not apply"),
    "INT": ("1", "1", INT),
    "INT after TERM": ("1", "1", TERM),
    "a third TERM, while the reactor is blocked": (TERM, "1", TERM),
    "`stop()` of the launcher": ("0", "0", "goes on"),
    "the server does not start": ("1", "1", "1"),
    "the configuration has an error": ("1", "1", "1"),
    "the server ends by itself": ("0", "goes on", "goes on"),
    "the server ends by itself, with an error": ("1", "goes on", "1"),
    "the server ends by itself, with `SystemExit(3)`": ("3", "goes on", "3"),
    "`kill -9`": (KILL, KILL, KILL),
}
"""A row: without workers, with workers, and under twistd. There a worker that is replaced is "goes on", too."""

PARTS = """
import time
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from novasvc import service
from novasvc.manager import Manager
from novasvc.periodic import periodic_task

class Plain(Service):
    name = "plain"
    def startService(self):
        from twisted.internet import reactor
        super().startService()
        reactor.callLater(0, print, "the server is up", flush=True)

class Endless(Plain):
    def stopService(self):
        return Deferred()

class Blocking(Plain):
    def stopService(self):
        time.sleep(60)

class Failing(Plain):
    def startService(self):
        raise LookupError("no such hypervisor")

class Working(Manager):
    @periodic_task(spacing=0.1, run_immediately=True)
    def work(self, context):
        print("a task runs", flush=True)
        return Deferred()

def make_working():
    return service.Service("h1", "worker", "worker", Working)

class Ending(Plain):
    def __init__(self, error=None):
        self.error = error
    def wait(self):
        from twisted.internet import reactor
        def end():
            print("the server ends", flush=True)
            if self.error is not None:
                raise self.error
        return deferLater(reactor, 0.2, end)
"""

SCRIPT = """
{prelude}
import parts
from twisted.internet import reactor
from novasvc.service import ProcessLauncher, ServiceLauncher

if __name__ == "__main__":
    launcher = {launcher}()
    launcher.launch_server(parts.{server}{workers})
    {more}
    launcher.wait()
"""

TAC = """
from twisted.application.service import Application
from twisted.internet import reactor
from novasvc.service import ProcessLauncher, ServiceLauncher
import parts

application = Application("app")
launcher = {launcher}()
launcher.launch_server(parts.{server}{workers})
launcher.setServiceParent(application)
{more}
"""

WORKING = "make_working()"

LEAVING = """
import atexit, time
@atexit.register
def leave():  # the first that is registered is the last that is called
    print("the interpreter ends", flush=True)
    time.sleep(0.5)
"""

GOING_ON = """
    try:
        launcher.wait()
    finally:
        import time
        print("the script goes on", flush=True)
        time.sleep(60)
"""

KINDS = ((0, 0), (1, 1), (2, 0))
"""Columns, and the number of workers in them."""

STOP = "launcher.when_started().addCallback(lambda _: reactor.callLater(0, launcher.stop))"


@pytest.mark.timeout(300)
class EndingTests(FleetCase):
    """One test for each row."""

    def begin(
        self,
        column: int,
        workers: int,
        server: str = "Plain()",
        more: str = "",
        prelude: str = "",
        **environment: str,
    ) -> Fleet:
        """Start a process.

        :param column: 0 and 1 are scripts, 2 is twistd.
        :param workers: 0 is a ServiceLauncher.
        :param more: runs before the launcher is waited for.
        :param prelude: of a script: runs before anything is imported.
        """
        (self.folder / "parts.py").write_text(PARTS)
        program_text = (TAC if column == 2 else SCRIPT).format(
            launcher="ProcessLauncher" if workers else "ServiceLauncher",
            server=server,
            workers=f", workers={workers}" if workers else "",
            more=more,
            prelude=prelude,
        )
        file = self.folder / f"program{column}{workers}.py"
        file.write_text(program_text)
        command = (
            [program("twistd"), "-n", "--pidfile=", "-y", file.name] if column == 2 else [sys.executable, file.name]
        )
        path = f"{ROOT}:{self.folder}"
        return Fleet(self, command, self.folder, **{"PYTHONPATH": path, "PYTHONSAFEPATH": "", **environment})

    def ends(self, row: str, *numbers: int, server: str = "Plain()", more: str = "", **environment: str) -> None:
        """Assert that each kind of process ends after these signals as the row says."""
        for column, workers in KINDS:
            with self.subTest(column=column, workers=workers):
                fleet = self.begin(column, workers, server, more, **environment)
                if numbers:
                    fleet.wait_for("the supervisor is running" if workers else "the server is up")
                for place, number in enumerate(numbers, start=1):
                    os.kill(fleet.pid, number)
                    if place < len(numbers):
                        fleet.wait_for("draining all workers" if workers else "SIGTERM: draining")
                self.assert_ended(fleet, TABLE[row][column], workers)

    def assert_ended(self, fleet: Fleet, expected: str, workers: int) -> None:
        if expected == "goes on":
            if workers:
                fleet.says("restarting it|the supervisor is stopped")
            else:
                fleet.says("launcher: stopped")
            self.assertIsNone(fleet.popen.poll(), fleet.output)
            fleet.popen.kill()
            fleet.wait()
            return
        by = expected.removeprefix("by ")
        status = -signal.Signals[by] if by != expected else int(expected)
        self.assertEqual(fleet.wait(), status, fleet.output)

    def test_drained(self) -> None:
        self.ends("TERM, and all stops in time", signal.SIGTERM)

    @pytest.mark.long
    def test_workers_under_twistd(self) -> None:
        """Under twistd a launcher with workers exits as one without."""
        for row, number, server in (
            ("TERM, and all stops in time", signal.SIGTERM, "Plain()"),
            ("TERM, and calls or tasks are cancelled at the deadline", signal.SIGTERM, WORKING),
            ("TERM, and a server has not stopped after the deadline", signal.SIGTERM, "Endless()"),
            ("INT", signal.SIGINT, "Endless()"),
        ):
            fleet = self.begin(2, 2, server, NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0.5")
            fleet.wait_for("the supervisor is running")
            os.kill(fleet.pid, number)
            self.assert_ended(fleet, TABLE[row][2], 2)

    @pytest.mark.long
    def test_cancelled_at_the_deadline(self) -> None:
        row = "TERM, and calls or tasks are cancelled at the deadline"
        for column, workers in KINDS:
            with self.subTest(column=column, workers=workers):
                fleet = self.begin(column, workers, WORKING, NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0.5")
                fleet.says("a task runs")
                if workers:  # one that the supervisor does not know to be ready has no grace
                    fleet.says("the supervisor is running")
                os.kill(fleet.pid, signal.SIGTERM)
                self.assert_ended(fleet, TABLE[row][column], workers)
                # Either deadline may be over first: the process's, or that of the node.
                fleet.says(r"graceful_shutdown_timeout \(0.5 s\) expired: cancelling")
                fleet.says(r"(expired|told to stop immediately): cancelling 0 calls and 1 periodic task \(work\)")

    def test_deadline(self) -> None:
        row = "TERM, and a server has not stopped after the deadline"
        self.ends(row, signal.SIGTERM, server="Endless()", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0.5")

    @pytest.mark.long
    def test_blocked_at_the_deadline(self) -> None:
        row = "TERM, and the reactor is blocked at the deadline"
        self.ends(row, signal.SIGTERM, server="Blocking()", NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0.5")

    def test_second_term(self) -> None:
        self.ends("a second TERM", signal.SIGTERM, signal.SIGTERM, server="Endless()")

    @pytest.mark.long
    def test_second_term_at_the_end(self) -> None:
        row = "a second TERM, when all has stopped and the interpreter ends"
        for column, workers in KINDS[:2]:
            with self.subTest(column=column, workers=workers):
                fleet = self.begin(column, workers, prelude=LEAVING)
                fleet.wait_for("the supervisor is running" if workers else "the server is up")
                os.kill(fleet.pid, signal.SIGTERM)
                fleet.wait_for("the interpreter ends")
                os.kill(fleet.pid, signal.SIGTERM)
                self.assert_ended(fleet, TABLE[row][column], workers)

    @pytest.mark.long
    def test_second_term_to_the_script(self) -> None:
        row = "a second TERM, when the script goes on after `wait()`"
        for column, workers in KINDS[:2]:
            with self.subTest(column=column, workers=workers):
                fleet = self.begin(column, workers, more=GOING_ON)
                fleet.wait_for("the supervisor is running" if workers else "the server is up")
                os.kill(fleet.pid, signal.SIGTERM)
                fleet.wait_for("the script goes on")
                os.kill(fleet.pid, signal.SIGTERM)
                self.assert_ended(fleet, TABLE[row][column], workers)

    @pytest.mark.long
    def test_interrupted(self) -> None:
        self.ends("INT", signal.SIGINT, server="Endless()")

    @pytest.mark.long
    def test_interrupted_while_draining(self) -> None:
        self.ends("INT after TERM", signal.SIGTERM, signal.SIGINT, server="Endless()")

    @pytest.mark.long
    def test_third_term(self) -> None:
        row = "a third TERM, while the reactor is blocked"
        for column, workers in KINDS:
            with self.subTest(column=column, workers=workers):
                fleet = self.begin(column, workers, "Blocking()")
                fleet.wait_for("the supervisor is running" if workers else "the server is up")
                os.kill(fleet.pid, signal.SIGTERM)
                fleet.wait_for("draining all workers" if workers else "SIGTERM: draining")
                began = time.monotonic()
                while fleet.popen.poll() is None and time.monotonic() < began + 1.5:
                    os.kill(fleet.pid, signal.SIGTERM)
                    time.sleep(0.02)
                self.assert_ended(fleet, TABLE[row][column], workers)

    @pytest.mark.long
    def test_stop(self) -> None:
        self.ends("`stop()` of the launcher", more=STOP)

    @pytest.mark.long
    def test_terminated_after_stop(self) -> None:
        """The first SIGTERM after `stop()` cuts the drain short, with the status for that."""
        stop = "launcher.when_started().addCallback(lambda _: (launcher.stop(), None)[1])"
        fleet = self.begin(1, 1, "Endless()", stop)
        fleet.wait_for(r"draining: 1 worker left, at most 60 s left: 1 \(ready\)")
        os.kill(fleet.pid, signal.SIGTERM)
        fleet.wait_for("SIGTERM while draining: stopping all workers now")
        self.assert_ended(fleet, "1", 1)

    @pytest.mark.long
    def test_failed_start(self) -> None:
        self.ends("the server does not start", server="Failing()", NOVASVC_WORKER_RESTART_BUDGET="2")

    @pytest.mark.long
    def test_wrong_configuration(self) -> None:
        self.ends("the configuration has an error", NOVASVC_WORKERS="many")

    def test_end(self) -> None:
        self.ends("the server ends by itself", server="Ending()")

    @pytest.mark.long
    def test_bad_end(self) -> None:
        self.ends("the server ends by itself, with an error", server="Ending(LookupError('no such disk'))")

    def test_exit(self) -> None:
        self.ends("the server ends by itself, with `SystemExit(3)`", server="Ending(SystemExit(3))")

    def test_killed(self) -> None:
        self.ends("`kill -9`", signal.SIGKILL)


class TableTests(FleetCase):
    """docs/workers.md."""

    def test_rows(self) -> None:
        """The documentation has exactly these rows."""
        _, found, rest = PAGE.read_text(encoding="utf-8").partition(HEADING)
        self.assertTrue(found)
        table, _, _ = rest.partition("\n\n")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[1:]]
        self.assertEqual({what: tuple(statuses) for what, *statuses in rows}, TABLE)

    def test_each_is_tested(self) -> None:
        """Every row has a test."""
        source = Path(__file__).read_text(encoding="utf-8").partition("class EndingTests")[2]
        self.assertEqual({row for row in TABLE if re.search(f'"{re.escape(row)}"', source)}, {*TABLE})
