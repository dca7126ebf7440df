"""Tests for supervisors and workers: reload, resize, several servers, composition."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.e2e.process import PATIENCE, ROOT, program
from tests.faults.fleet_rig import Fleet, FleetCase, until
from tests.servers.process import free_ports

MANAGER = """
from novasvc import Manager, rpc

class Told(Manager):
    def __init__(self, host, word="one"):
        super().__init__(host)
        print("the word is", word)
"""

APPLICATION = """
import sys
from pathlib import Path
from twisted.application.service import Application, Service
from twisted.internet import reactor
from twisted.internet.protocol import ProcessProtocol
from novasvc.service import ProcessLauncher
from tests.faults.fleet_parts import Obedient

class Child(ProcessProtocol):
    def processEnded(self, reason):
        print("child ended with", reason.value.exitCode, flush=True)

class Spawner(Service):
    def startService(self):
        for code in (7, 8, 9):
            script = f"import sys; sys.stdin.read(); sys.exit({code})"
            child = reactor.spawnProcess(Child(), sys.executable, [sys.executable, "-c", script], env=None)
            reactor.callLater(1.0, child.closeStdin)

application = Application("composed")
launcher = ProcessLauncher()
launcher.launch_server(Obedient("one"), workers=2)
launcher.setServiceParent(application)
Spawner().setServiceParent(application)
"""


class ReloadTests(FleetCase):
    """SIGHUP."""

    def setUp(self) -> None:
        super().setUp()
        self.code = self.folder / "told.py"
        self.code.write_text(MANAGER)
        self.settings = self.folder / "told.toml"
        self.configure("one")

    def configure(self, word: str, manager: str = "told.Told", workers: int = 2) -> None:
        table = (
            f'binary = "novasvc-told"\nmanager = "{manager}"\nworkers = {workers}\noptions = {{ word = "{word}" }}\n'
        )
        self.settings.write_text(f"[[service]]\n{table}")

    def start(self) -> Fleet:
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--config", str(self.settings)]
        return Fleet(self, command, self.folder, PYTHONPATH=f"{ROOT}:{self.folder}", PYTHONDONTWRITEBYTECODE="1")

    @pytest.mark.long
    def test_all_are_replaced(self) -> None:
        """All workers are replaced with the new configuration, keeping their numbers; the changes are logged."""
        fleet = self.start()
        before = fleet.ready(2)
        self.configure("two")
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.says("reloaded: all workers were replaced")
        after = fleet.ready(2, but=[*before.values()])
        self.assertEqual(after.keys(), before.keys())
        self.assertEqual((len(fleet.said("the word is one")), len(fleet.said("the word is two"))), (2, 2))
        fleet.says(r"reload: service\[0\].options changed from .*one.* to .*two")
        self.assertEqual(fleet.stop(), -signal.SIGTERM)

    def test_new_code(self) -> None:
        """New workers import the current code."""
        fleet = self.start()
        before = fleet.ready(2)
        self.code.write_text(MANAGER.replace("the word is", "the new word is"))
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.ready(2, but=[*before.values()])
        self.assertEqual(len(fleet.said("the new word is one")), 2)
        fleet.stop()

    def test_broken_configuration(self) -> None:
        """An invalid configuration is rejected with its error, and the workers are not touched."""
        fleet = self.start()
        before = fleet.ready(2)
        self.settings.write_text("report_interval = 0.5\n")
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.says("reload failed, previous configuration kept: .*report_interval = 0.5 .*told.toml.*too small")
        self.assertEqual(fleet.ready(2), before)
        fleet.stop()

    @pytest.mark.long
    def test_manager_that_fails(self) -> None:
        """If new workers do not become ready, the reload is rolled back."""
        fleet = self.start()
        before = fleet.ready(2)
        self.configure("two", manager="told.Nobody")
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.says("reload failed, previous configuration kept: .*did not become ready.*Nobody")
        self.assertEqual(fleet.ready(2), before)
        self.configure("three")
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.ready(2, but=[*before.values()])
        fleet.stop()

    @pytest.mark.long
    def test_twice(self) -> None:
        """A SIGHUP during a reload causes another reload, because the first may have read old files."""
        fleet = self.start()
        fleet.ready(2)
        self.configure("two")
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.says("reload: ")
        self.configure("three")
        os.kill(fleet.pid, signal.SIGHUP)
        until(lambda: len(fleet.said("reloaded: all workers were replaced")) == 2)
        fleet.ready(2)
        self.assertEqual(len(fleet.said("the word is three")), 2)
        fleet.stop()

    @pytest.mark.long
    def test_size(self) -> None:
        """A reload changes the number of workers."""
        fleet = self.start()
        fleet.ready(2)
        self.configure("one", workers=3)
        os.kill(fleet.pid, signal.SIGHUP)
        fleet.says("reloaded: ")
        fleet.ready(3)
        fleet.stop()

    def test_connections(self) -> None:
        """Connections are served throughout."""
        (port,) = free_ports(1)
        fleet = self.script(f"echo:tcp:{port}:interface=127.0.0.1=2")
        before = fleet.ready(2)
        served: set[int] = set()
        failures: list[OSError] = []
        over = threading.Event()

        def connect() -> None:
            while not over.is_set():
                try:
                    with (
                        socket.create_connection(("127.0.0.1", port), PATIENCE) as caller,
                        caller.makefile() as answers,
                    ):
                        caller.sendall(b"x\n")
                        served.add(int(answers.readline().split()[0]))
                except (OSError, IndexError) as error:
                    failures.append(OSError(str(error)))

        callers = [threading.Thread(target=connect) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            until(lambda: served >= {*before.values()})
            os.kill(fleet.pid, signal.SIGHUP)
            after = fleet.ready(2, but=[*before.values()])
            until(lambda: served >= {*after.values()})
        finally:
            over.set()
            for caller in callers:
                caller.join()
        self.assertEqual(failures, [])
        fleet.stop()


class SizeTests(FleetCase):
    """Tests for the number of workers."""

    def test_signals(self) -> None:
        """SIGTTIN adds a worker, SIGTTOU removes one, but never the last."""
        fleet = self.script("obedient:one=1")
        first = fleet.ready(1)
        os.kill(fleet.pid, signal.SIGTTIN)
        self.assertEqual(fleet.ready(2)[1], first[1])
        os.kill(fleet.pid, signal.SIGTTOU)
        self.assertEqual(fleet.ready(1), first)
        os.kill(fleet.pid, signal.SIGTTOU)
        fleet.says("one keeps 1 worker")
        self.assertEqual(fleet.stop(), 0)

    @pytest.mark.long
    def test_several_servers(self) -> None:
        """Each of several servers has its own number of workers, and can be resized by name."""
        fleet = self.script("obedient:one=1", "obedient:two=2")
        fleet.ready(3)
        self.assertEqual([row["server"] for row in fleet.workers()], ["one", "two", "two"])
        fleet.ask("resize", count=3, server="one")
        fleet.ready(5)
        self.assertEqual(sorted(row["number"] for row in fleet.workers() if row["server"] == "one"), [1, 4, 5])
        fleet.stop()

    @pytest.mark.long
    def test_numbers(self) -> None:
        """An impossible number of workers is rejected."""
        for workers in ("0", "-1", "1025"):
            self.assertNotEqual(self.script(f"obedient:one={workers}").wait(), 0)


WRAPPERS = """
import json
from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from novasvc.service import ProcessLauncher
from tests.faults.fleet_parts import Obedient

if __name__ == "__main__":
    launcher = ProcessLauncher()
    launcher.launch_server(Obedient("one"), workers=2)
    launcher.launch_server(Obedient("two"))
    def tell():
        children = {pid: wrapper.server.name for pid, wrapper in launcher.children.items()}
        wrappers = {wrapper.server.name: wrapper for wrapper in launcher.children.values()}
        rows = {name: [sorted(wrapper.children), wrapper.forktimes] for name, wrapper in wrappers.items()}
        print("told", json.dumps([children, rows]), flush=True)
    LoopingCall(tell).start(0.2)
    launcher.wait()
"""


class WrapperTests(FleetCase):
    """Tests for ServerWrapper."""

    def test_children(self) -> None:
        """children has the wrappers by pid, and forktimes the times of all forks."""
        (self.folder / "wrappers.py").write_text(WRAPPERS)
        began = time.time()
        fleet = Fleet(self, [sys.executable, "wrappers.py"], self.folder)
        before = fleet.ready(3)

        def told() -> tuple[dict[str, str], dict[str, list[Any]]]:
            fleet.wait_for("^told ")  # what was printed before this moment may be old
            children, rows = json.loads(fleet.wait_for("^told (.*)")[1])
            return children, rows

        def is_told(pids: dict[int, int], forks: int) -> bool:
            children, rows = told()
            if children.keys() != {str(pid) for pid in pids.values()}:
                return False
            self.assertEqual(rows["one"][0], sorted([pids[1], pids[2]]))
            self.assertEqual({children[str(pids[number])] for number in (1, 2)}, {"one"})
            self.assertEqual((rows["two"][0], len(rows["two"][1])), ([pids[3]], 1))
            self.assertEqual(len(rows["one"][1]), forks)
            return all(began < each < time.time() for each in rows["one"][1])

        until(lambda: is_told(before, 2))
        fleet.kill(1)
        after = fleet.ready(3, but=[before[1]])
        until(lambda: is_told(after, 3))
        self.assertEqual(fleet.stop(), 0)


class OutsideTests(FleetCase):
    """Tests for signals to workers, and other children."""

    def test_terminated(self) -> None:
        """A worker that gets SIGTERM drains, and is replaced."""
        fleet = self.script("obedient:one=2")
        pid = fleet.kill(1, signal.SIGTERM)
        fleet.replaced(1, pid)
        fleet.says(rf"worker 1 \(pid {pid}\) of one exited with status 0; restarting it now")
        fleet.stop()

    @pytest.mark.long
    def test_dump(self) -> None:
        """SIGUSR2 to the supervisor logs stacks and recent events of each worker."""
        fleet = self.twistd("--workers", "2")
        fleet.ready(2)
        os.kill(fleet.pid, signal.SIGUSR2)
        for number in (1, 2):
            fleet.says(
                rf"(?s)worker {number} \(pid \d+\) of .* is ready\n.*stacks:\n.*doPoll.*last events:\n.*h1 is running"
            )
        fleet.stop()


class CompositionTests(FleetCase):
    """Tests for a supervisor in another application."""

    def test_other_children(self) -> None:
        """The exit of another child process is reported to the code that started it."""
        (self.folder / "app.tac").write_text(APPLICATION)
        fleet = Fleet(self, [program("twistd"), "-n", "--pidfile=", "-y", "app.tac"], self.folder)
        fleet.ready(2)
        fleet.kill(1)
        for code in (7, 8, 9):
            fleet.says(f"child ended with {code}")
        fleet.ready(2)
        self.assertEqual(fleet.stop(), -signal.SIGTERM)


class LogFileTests(FleetCase):
    """Tests for a daemon's log."""

    @pytest.mark.long
    def test_shared(self) -> None:
        """Supervisor and workers share a log file, and all follow SIGUSR1 to the next."""
        log = self.folder / "node.log"
        command = [program("twistd"), "-n", "--pidfile=", "--logfile", str(log), "novasvc", "--workers", "2"]
        fleet = Fleet(self, command, self.folder)
        before = fleet.ready(2)
        text = log.read_text()
        self.assertRegex(text, r"worker 1 -\] novasvc-agent@h1 is running")
        self.assertIn("the supervisor is running", text)
        os.kill(fleet.pid, signal.SIGUSR1)
        until(lambda: Path(f"{log}.1").exists())
        fleet.kill(1)
        fleet.replaced(1, before[1])
        self.assertRegex(log.read_text(), r"(?s)was killed by SIGKILL.*worker 1 -\] novasvc-agent@h1 is running")
        fleet.stop()


class SystemdTests(FleetCase):
    """Tests for notifications to systemd."""

    def test_notifications(self) -> None:
        """The supervisor sends READY, RELOADING and STOPPING; workers send nothing."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            path = self.folder / "notify"
            systemd.bind(str(path))
            systemd.settimeout(PATIENCE)
            fleet = self.twistd("--workers", "2", NOTIFY_SOCKET=str(path))
            heard = ""

            def hear(word: str) -> None:
                nonlocal heard
                while word not in heard:
                    heard += systemd.recv(4096).decode() + "\n"

            hear("READY=1\nSTATUS=2 of 2 workers are ready")
            os.kill(fleet.pid, signal.SIGHUP)
            hear("RELOADING=1\nMONOTONIC_USEC=")
            heard = ""
            hear("READY=1")
            fleet.stop()
            hear("STOPPING=1")


def is_free(port: int) -> bool:
    """Return whether a port is free."""
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class RightsTests(FleetCase):
    """Tests for --uid and --gid."""

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up rights")
    def test_users_code_without_rights(self) -> None:
        """With --uid no code of users runs as root, with or without workers; the API may have a privileged port."""
        try:
            subprocess.run([sys.executable, "-c", ""], check=True, user=65534, group=65534, extra_groups=[])
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("another user cannot run this Python")
        self.folder.chmod(0o777)
        (self.folder / "whose.py").write_text(
            "import os\nfrom novasvc import Manager\nprint('imported by', os.geteuid())\n"
            "class Whose(Manager):\n    pass\n"
        )
        for workers in ("0", "1"):
            state = self.folder / workers
            command = [program("twistd"), "-n", "--pidfile=", "--uid=65534", "--gid=65534"]
            port = next(number for number in range(1023, 512, -1) if is_free(number))
            options = ["novasvc", "--workers", workers, "--manager", "whose.Whose", "--state-dir", str(state)]
            options += ["--api", "--api-listen-port", str(port)]
            fleet = Fleet(self, [*command, *options], self.folder, PYTHONPATH=f"{ROOT}:{self.folder}")
            fleet.says("novasvc-agent@h1 is running")
            self.assertEqual({*fleet.said(r"imported by \d+")}, {"imported by 65534"})
            for _ in range(2):
                fleet.says("the API is running")
                with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
                    self.assertEqual(answer.status, 200)
                os.kill(fleet.pid, signal.SIGHUP)
            fleet.stop()
