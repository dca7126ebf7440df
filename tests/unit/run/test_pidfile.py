"""Tests for novasvc.run.pidfile."""

import os
import subprocess
import sys
from pathlib import Path

from twisted.application.app import ApplicationRunner
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import ProblemError
from novasvc.run.pidfile import check_pid_file, remove_pid_file


class PidFileTests(SynchronousTestCase):
    def test_running(self) -> None:
        """The file of a running process is an error that says how to run another one."""
        Path("twistd.pid").write_text(f"{os.getppid()}\n")
        error = self.assertRaises(ProblemError, check_pid_file, {"pidfile": "twistd.pid"})
        self.assertIn(f"{Path.cwd()}/twistd.pid': process {os.getppid()} is running with this pid file", str(error))
        self.assertIn("`twistd -n --pidfile= novasvc`", str(error))

    def test_left_to_twistd(self) -> None:
        """No file, one of a process that has ended, and one that is none, are left to twistd."""
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        for text in (f"{ended.pid}", "", "x", "9" * 40):
            Path("twistd.pid").write_text(text)
            check_pid_file({"pidfile": "twistd.pid"})
            self.assertTrue(Path("twistd.pid").exists())
        check_pid_file({"pidfile": "none.pid"})
        check_pid_file({"pidfile": ""})
        check_pid_file({})
        check_pid_file(None)

    def test_own_pid(self) -> None:
        """A file of a former process with the same pid, which twistd would take for a running one's, is removed."""
        Path("twistd.pid").write_text(f"{os.getpid()}")
        check_pid_file({"pidfile": "twistd.pid"})
        self.assertFalse(Path("twistd.pid").exists())

    def test_removed(self) -> None:
        """The pid file of the twistd that is running is removed; without one nothing happens."""

        class Runner(ApplicationRunner):
            def run(self) -> None:
                remove_pid_file()

        Path("twistd.pid").write_text("1")
        remove_pid_file()
        self.assertTrue(Path("twistd.pid").exists())
        for name in ("twistd.pid", "none.pid", ""):
            Runner({"pidfile": name, "profile": False, "debug": False, "nodaemon": True}).run()
        self.assertFalse(Path("twistd.pid").exists())
