"""The incarnations of real processes: killed, restarted, started twice, reloaded."""

import os
import signal
import sqlite3
from typing import Any

import pytest

from tests.e2e.process import ROOT, Process, program
from tests.faults.fleet_rig import Fleet, FleetCase, until

MANAGER = """
from novasvc import Manager

class Shop(Manager):
    def post_start_hook(self):
        print("incarnation", self.attachments.incarnation, flush=True)
"""


class IncarnationTests(FleetCase):
    """Processes with one database in a file, and one directory of sockets instead of a broker."""

    def setUp(self) -> None:
        super().setUp()
        (self.folder / "shop.py").write_text(MANAGER)
        self.database = self.folder / "fleet.sqlite"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": f"{ROOT}:{self.folder}",
            "NOVASVC_HOST": "h1",
            "NOVASVC_STATE_DIR": str(self.folder),
            "NOVASVC_DATABASE_URL": f"sqlite:///{self.database}",
            "NOVASVC_REPORT_INTERVAL": "1",
        }

    def start(self) -> Process:
        return Process(self, [program("novasvc"), "run", "shop.Shop"], self.folder, **self.environment)

    def row(self) -> dict[str, Any]:
        connection = sqlite3.connect(self.database)
        connection.row_factory = sqlite3.Row
        try:
            return dict(connection.execute("SELECT * FROM novasvc_incarnations").fetchone())
        finally:
            connection.close()

    def test_killed(self) -> None:
        """A process that was killed is superseded at once on its machine; one that stops says so."""
        first = self.start()
        first.wait_for("incarnation 1")
        until(lambda: self.row()["state"] == "ready")
        first.stop(signal.SIGKILL)
        second = self.start()
        second.wait_for("incarnation 2", 15)
        until(lambda: self.row()["state"] == "ready")
        self.assertEqual((self.row()["number"], self.row()["pid"]), (2, second.popen.pid))
        second.stop()
        self.assertEqual(self.row()["state"], "stopped")

    def test_twin(self) -> None:
        """A second start ends with one line that names the first one, which says so, too."""
        first = self.start()
        first.wait_for("incarnation 1")
        second = self.start()
        self.assertEqual(second.wait(), 1)
        line = f"service novasvc-shop@h1 runs already: on machine .*, process {first.popen.pid}, since "
        self.assertRegex(second.output, line)
        first.wait_for("another start of novasvc-shop@h1 was refused on machine")
        self.assertEqual((self.row()["number"], self.row()["state"]), (1, "ready"))

    def test_twin_with_workers(self) -> None:
        """A supervisor gives up when its workers are refused: others would be, too."""
        first = self.start()
        first.wait_for("incarnation 1")
        settings = self.folder / "shop.toml"
        settings.write_text('[[service]]\nbinary = "novasvc-shop"\nmanager = "shop.Shop"\nworkers = 2\n')
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--config", str(settings)]
        state = self.folder / "twin"
        state.mkdir()
        twin = Process(self, command, self.folder, **{**self.environment, "NOVASVC_STATE_DIR": str(state)})
        self.assertEqual(twin.wait(), 1)
        self.assertNotIn("restarting it", twin.output)
        self.assertRegex(twin.output, f"novasvc-shop@h1 runs already: on machine .*, process {first.popen.pid}, since ")
        self.assertEqual((self.row()["number"], self.row()["state"]), (1, "ready"))
        first.stop()

    @pytest.mark.long
    def test_workers(self) -> None:
        """Workers are one start, across a worker's death and a reload; a new supervisor is the next one."""
        settings = self.folder / "shop.toml"
        settings.write_text('[[service]]\nbinary = "novasvc-shop"\nmanager = "shop.Shop"\nworkers = 2\n')
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--config", str(settings)]
        fleet = Fleet(self, command, self.folder, **self.environment)
        workers = fleet.ready(2)
        until(lambda: self.row()["state"] == "ready")
        self.assertEqual(self.row()["pid"], fleet.pid)
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        workers = fleet.ready(2, but=[next(iter(workers.values()))])
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.says("reloaded: all workers were replaced")
        workers = fleet.ready(2, but=[*workers.values()])
        self.assertEqual((self.row()["number"], self.row()["state"]), (1, "ready"))
        os.kill(fleet.pid, signal.SIGKILL)
        fleet.wait_for_exit()
        again = Fleet(self, command, self.folder, **self.environment)
        again.ready(2)
        self.assertEqual((self.row()["number"], self.row()["pid"]), (2, again.pid))
        self.assertEqual(again.stop(), -signal.SIGTERM)
        self.assertEqual(self.row()["state"], "stopped")
