"""Tests for log files rotated by the real logrotate, with the configuration in docs."""

import gzip
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import PATIENCE, ROOT, Process, program

MANAGER = """
from itertools import count

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from novasvc import Manager

class Talking(Manager):
    def init_host(self):
        numbers = count()
        worker = self.attachments.worker
        say = lambda: Logger().info("tick {worker} {number}", worker=worker, number=next(numbers))
        LoopingCall(say).start(0.01)
"""

APPLICATION = """
from twisted.application.service import Application
from novasvc.run.plugin import makeService

application = Application("novasvc")
makeService({"workers": 2, "manager": "talking.Talking", "logfile": "log/node.log"}).setServiceParent(application)
"""

LAUNCHER = """
import sys
from novasvc.service import ProcessLauncher, Service

launcher = ProcessLauncher(log_file="log/node.log")
launcher.launch_server(Service.create(binary="novasvc-talking", manager="talking.Talking"), workers=2)
print("pid", flush=True)
launcher.wait()
"""


class LogrotateTests(TestCase):
    """For each kind of process: no line is lost, modes are kept, and no process keeps an old file open."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.folder.chmod(0o755)
        (self.folder / "log").mkdir(mode=0o755)
        (self.folder / "run").mkdir(mode=0o755)
        (self.folder / "talking.py").write_text(MANAGER)
        self.log = self.folder / "log" / "node.log"
        text = (ROOT / "docs" / "novasvc.logrotate").read_text()
        for before, after in (("/var/log/novasvc", "log"), ("/run/novasvc", "run")):
            self.assertIn(before, text)
            text = text.replace(before, str(self.folder / after))
        self.rules = self.folder / "rules"
        self.rules.write_text(text.replace("rotate 14", "rotate 3"))
        self.rules.chmod(0o644)

    def rotate(self) -> None:
        """Rotate the logs, and wait until every process writes to the new file."""
        before = self.log.stat()
        # Debian's cron.daily gives the path to root alone.
        logrotate = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
        assert logrotate is not None, "logrotate is not installed (Debian: apt-get install logrotate)"
        command = [logrotate, "--force", "--state", str(self.folder / "rotated"), str(self.rules)]
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.until(lambda: not self.holders(before), f"a process has the old file: {self.holders(before)}")

    def holders(self, file: os.stat_result) -> list[str]:
        """Return the descriptors of the node's processes that refer to a file."""
        found = []
        for pid in self.processes():
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if os.path.samestat(entry.stat(), file):
                        found.append(str(entry))
                except FileNotFoundError:
                    pass
        return found

    def processes(self) -> Iterator[int]:
        """Return the node's process and all its descendants."""
        pids = [int((self.folder / "run" / "node.pid").read_text())]
        for pid in pids:
            yield pid
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())

    def until(self, condition: Callable[[], bool], problem: str = "it did not happen") -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, problem)
            time.sleep(0.01)  # between two looks at what other processes do

    def texts(self) -> list[str]:
        """Return the contents of the files, the oldest first."""
        others = [path for path in self.log.parent.iterdir() if path != self.log]
        others.sort(key=lambda path: -int(path.name.split(".")[2]))
        read = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in others]
        return [*(data.decode() for data in read), self.log.read_text()]

    def see_rotated(self, workers: int) -> None:
        """Let logrotate rotate some times, and see that all is as it should be.

        :param workers: lines of so many processes are expected.
        """
        self.until(lambda: self.log.exists() and len(set(re.findall(r"tick (\S+)", self.log.read_text()))) == workers)
        for _ in range(3):
            self.rotate()
            self.assertEqual(stat.S_IMODE(self.log.stat().st_mode), 0o640)
            self.until(lambda: self.log.read_text().count("tick") > 20)
        names = {str(number + 1) for number in range(workers)} if workers > 1 else {"None"}
        ticks = re.findall(r"tick (\S+) (\d+)\n", "".join(self.texts()))
        self.assertEqual({worker for worker, _ in ticks}, names)
        for worker in {worker for worker, _ in ticks}:
            numbers = [int(number) for name, number in ticks if name == worker]
            self.assertEqual(numbers, list(range(len(numbers))), f"lines of worker {worker} are lost or doubled")
        for _ in range(2):
            self.until(lambda: self.log.stat().st_size > 0)  # an empty log is not rotated
            self.rotate()
        kept = {"node.log", "node.log.1", "node.log.2.gz", "node.log.3.gz"}
        self.assertEqual({path.name for path in self.log.parent.iterdir()}, kept)

    def start(self, *command: str) -> Process:
        node = Process(
            self, command, self.folder, NOVASVC_STATE_DIR="state", PYTHONPATH=f"{ROOT}:{self.folder}", NOVASVC_HOST="h1"
        )
        self.addCleanup(self.end)
        return node

    def end(self) -> None:
        pids = list(self.processes())
        os.kill(pids[0], signal.SIGTERM)
        self.until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in pids), "it did not end")

    def twistd(self, *options: str) -> Process:
        place = ("--pidfile", "run/node.pid", "--logfile", "log/node.log")
        return self.start(program("twistd"), *place, *options)

    def test_daemon(self) -> None:
        """A daemon of one process."""
        self.assertEqual(self.twistd("novasvc", "--manager", "talking.Talking").wait(), 0)
        self.see_rotated(1)

    def test_workers(self) -> None:
        """A daemon with workers: the supervisor, its forkserver and the workers all follow."""
        self.assertEqual(self.twistd("novasvc", "--manager", "talking.Talking", "--workers", "2").wait(), 0)
        self.see_rotated(2)

    @pytest.mark.long
    def test_tac(self) -> None:
        """A daemon from a .tac file that names its log to the plugin."""
        (self.folder / "node.tac").write_text(APPLICATION)
        self.assertEqual(self.twistd("-y", "node.tac").wait(), 0)
        self.see_rotated(2)

    def test_redirected(self) -> None:
        """A foreground process with standard output and error redirected to its log."""
        line = f'exec {program("twistd")} -n --pidfile run/node.pid --logfile log/node.log "$@" >>log/node.log 2>&1'
        self.start("/bin/sh", "-c", line, "sh", "novasvc", "--manager", "talking.Talking")
        self.until((self.folder / "run" / "node.pid").exists)
        self.see_rotated(1)

    def test_launcher(self) -> None:
        """A plain script with a launcher that names its workers' log."""
        (self.folder / "node.py").write_text(LAUNCHER)
        node = self.start(sys.executable, "node.py")
        (self.folder / "run" / "node.pid").write_text(str(node.popen.pid))
        self.see_rotated(2)
