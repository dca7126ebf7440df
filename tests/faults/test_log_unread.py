"""Processes whose log nobody reads any more: a log driver that hangs, a pipe into a program that is stopped."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from unittest import TestCase

from tests.e2e.process import PATIENCE, program, unmeasured
from tests.faults.fleet_rig import session, until
from tests.support.full_pipe import fill


class UnreadTests(TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="novasvc-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start ``twistd -n novasvc``; when it is running, nobody reads its output any more."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        environment = {
            **unmeasured("NOVASVC_"),
            "HOME": str(self.folder),
            "NOVASVC_STATE_DIR": str(self.folder),
            "NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT": "0.5",
            "NOVASVC_WORKER_WATCHDOG": "2",
        }
        process = subprocess.Popen(
            [program("twistd"), "-n", "--pidfile=", "novasvc", *options],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
        )
        self.addCleanup(self.end, process)
        os.set_blocking(reading, False)
        output: list[bytes] = []

        def is_running() -> bool:
            try:
                output.append(os.read(reading, 65536))
            except BlockingIOError:
                return b"novasvc service list" in b"".join(output)  # the greeting, which is written last
            return False

        until(is_running)
        fill(writing)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of a process."""
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(PATIENCE)

    def test_without_workers(self) -> None:
        """SIGTERM ends a process at its drain deadline."""
        process = self.start()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, 5)

    def test_supervisor(self) -> None:
        """SIGTERM ends a supervisor some seconds after its drain deadline, and its workers end without it."""
        process = self.start("--workers", "2")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE), -signal.SIGTERM)
        until(lambda: not session(process.pid))
