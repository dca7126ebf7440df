"""`novasvc fleet` on real processes: a restart whose command is killed, resumed, and halted by a broken node."""

import json
import signal
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest

from tests.e2e.process import Process, program

MANAGER = """
from pathlib import Path

from novasvc import rpc
from novasvc.manager import Manager


class Shelf(Manager):
    def init_host(self):
        if Path(f"{self.host} is broken").exists():
            raise FileNotFoundError("/srv/shelf is not mounted")

    @rpc.expose
    def pid(self, context):
        import os

        return os.getpid()
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class FleetTests(TestCase):
    """Three nodes without a broker, each a process of its own."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "shelf.py").write_text(MANAGER)

    def start(self, host: str) -> Process:
        named = ("--manager", "shelf.Shelf", "--topic", "shelf", "--binary", "shelf", "--host", host)
        state = ("--state-dir", str(self.folder / "state"))
        command = (program("twistd"), "-n", "--pidfile=", "novasvc", *named, *state)
        return Process(self, command, self.folder, PYTHONPATH=".")

    def command(self, *arguments: str) -> Process:
        state = ("--state-dir", str(self.folder / "state"))
        return Process(self, (program("novasvc"), *state, *arguments), self.folder)

    def run_command(self, *arguments: str, status: int = 0) -> str:
        process = self.command(*arguments)
        self.assertEqual(process.wait(), status, process.output)
        return process.output

    def events(self, output: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in output.splitlines()]

    def test_rolling_restart(self) -> None:
        """A killed command is resumed elsewhere; no node restarts twice; a node that does not start halts the rest."""
        nodes = [self.start(f"h{number}") for number in (1, 2, 3)]
        for node in nodes:
            node.wait_for("is running")
        pids = [node.popen.pid for node in nodes]
        self.assertIn("3 of 3 services responded", self.run_command("fleet", "ping"))
        (self.folder / "h2 is broken").touch()

        rolling = self.command("fleet", "restart", "--batch", "1", "--timeout", "60", "--yes", "--json")
        rolling.wait_for('"state": "running"')
        nodes[0].wait_for("restarting this process")
        rolling.stop(signal.SIGKILL)
        self.assertIn("its command runs", self.run_command("fleet", "resume", "1", status=1))
        self.assertIn("it has shelf@h1", self.run_command("fleet", "drain", "--host", "h1", "--yes", status=1))
        self._let_the_command_be_forgotten()
        self.assertIn("unattended", self.run_command("fleet", "list"))

        events = self.events(self.run_command("fleet", "resume", "1", "--json", status=3))
        nodes_seen = [(event["service"], event["state"]) for event in events if event["event"] == "node"]
        ended = [each for each in nodes_seen if each[1] != "running"]
        self.assertEqual(ended, [("shelf@h1", "done"), ("shelf@h2", "failed")])
        self.assertEqual((events[-1]["state"], events[-1]["counts"]["pending"]), ("halted", 1))
        self.assertEqual(nodes[1].wait(), 1)
        self.assertIn("/srv/shelf is not mounted", nodes[1].output)
        told = [node.output.count("was asked to restart") for node in nodes]
        self.assertEqual(told, [1, 1, 0])
        self.assertEqual(nodes[0].popen.pid, pids[0])
        self.assertEqual(self.run_command("call", "shelf.h1", "pid").strip(), str(pids[0]))
        self.assertIn("aborted: 1 done, 1 failed, 1 left", self.run_command("fleet", "abort", "1"))
        for node in (nodes[0], nodes[2]):
            self.assertIn(node.stop(), {0, -signal.SIGTERM})

    def _let_the_command_be_forgotten(self) -> None:
        """Let the last word of the command be a minute ago; a test does not wait for it."""
        long_ago = "strftime('%Y-%m-%d %H:%M:%f', 'now', '-60 seconds')"
        with sqlite3.connect(self.folder / "state" / "novasvc.sqlite") as database:
            database.execute(f"UPDATE novasvc_operations SET heard_at = {long_ago}")  # noqa: S608 - a constant
        database.close()
