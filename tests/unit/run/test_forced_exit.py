"""Tests for novasvc.run.forced_exit, in processes of their own; tests/e2e/test_launcher.py has nodes."""

import os
import signal
import subprocess
import sys
from unittest import TestCase

from tests.support.full_pipe import full_pipe

PATIENCE = 30.0

PRELUDE = """
import os, signal, sys, time
from novasvc.run.forced_exit import schedule_forced_exit
"""

AGAIN = """
if os.environ.pop("FIRST", None):
    schedule_forced_exit(signal.SIGTERM, 0.1, restarts=lambda: True)
    time.sleep(60)
os.write(int(sys.argv[1]), b"again")
"""


class ForcedExitTests(TestCase):
    def end(self, program: str, *arguments: str, stderr: int = subprocess.PIPE) -> tuple[int, str]:
        """Return the exit status of a program, negative for a signal, and what it has written to standard error."""
        command = [sys.executable, "-c", PRELUDE + program, *arguments]
        keep = [int(number) for number in arguments]
        environment = {**os.environ, "FIRST": "1"}
        ended = subprocess.run(
            command, stderr=stderr, pass_fds=keep, env=environment, text=True, timeout=PATIENCE, check=False
        )
        return ended.returncode, ended.stderr or ""

    def test_killed(self) -> None:
        """The process is killed by the signal, and its stacks are written."""
        status, text = self.end("schedule_forced_exit(signal.SIGTERM, 0.1); time.sleep(60)")
        self.assertEqual(status, -signal.SIGTERM)
        self.assertRegex(
            text, r"(?s)^novasvc: SIGTERM: did not exit in time; killing this process\. Stacks:\n.*in <mod"
        )

    def test_no_memory_file(self) -> None:
        """The process is killed, and its stacks are written, on a Python that cannot make files in memory."""
        program = "del os.memfd_create; schedule_forced_exit(signal.SIGTERM, 0.1); time.sleep(2)"
        status, text = self.end(program)
        self.assertEqual(status, -signal.SIGTERM)
        self.assertIn("in <module>", text)

    def test_unknown_stacks(self) -> None:
        """The process is killed whatever keeps it from collecting its stacks."""
        program = "import faulthandler; del faulthandler.dump_traceback; schedule_forced_exit(signal.SIGTERM, 0.1); "
        status, text = self.end(f"{program}time.sleep(2)")
        self.assertEqual(status, -signal.SIGTERM)
        self.assertEqual(text, "novasvc: SIGTERM: did not exit in time; killing this process. Stacks:\n")

    def test_status(self) -> None:
        """The process exits with the status that it was given."""
        self.assertEqual(self.end("schedule_forced_exit(signal.SIGTERM, 0.1, 3); time.sleep(60)")[0], 3)

    def test_not_killed(self) -> None:
        """A process that its signal does not kill, as that of a container's PID 1, exits with the shell's status."""
        blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); "
        status, _ = self.end(f"{blocked}schedule_forced_exit(signal.SIGTERM, 0.1); time.sleep(60)")
        self.assertEqual(status, 128 + signal.SIGTERM)

    def test_earlier_limit(self) -> None:
        """A later limit does not replace an earlier one."""
        both = "schedule_forced_exit(signal.SIGTERM, 0.1); schedule_forced_exit(signal.SIGINT, 50); time.sleep(60)"
        self.assertEqual(self.end(both)[0], -signal.SIGTERM)

    def test_other_thread(self) -> None:
        """In another thread, where no handler can be set, there is no limit, and no error."""
        other = (
            "import threading; thread = threading.Thread(target=schedule_forced_exit, args=(signal.SIGTERM, 0.1)); "
            "thread.start(); thread.join(); sys.exit(int(signal.getitimer(signal.ITIMER_REAL) != (0, 0)))"
        )
        self.assertEqual(self.end(other), (0, ""))

    def test_unread(self) -> None:
        """The process ends if nobody reads its output, even while a write to it blocks the process."""
        with full_pipe() as pipe:
            for action in ("time.sleep(60)", "os.write(2, b'x' * 10)", "sys.stderr.write('x' * 10)"):
                with self.subTest(action=action):
                    status, _ = self.end(f"schedule_forced_exit(signal.SIGTERM, 0.1); {action}", stderr=pipe)
                    self.assertEqual(status, -signal.SIGTERM)

    def test_restarts(self) -> None:
        """The program is run again, with a text that says so, or none if nobody reads it."""
        with full_pipe() as pipe:
            for stderr in (subprocess.PIPE, pipe):
                reading, writing = os.pipe()
                try:
                    status, text = self.end(AGAIN, str(writing), stderr=stderr)
                    self.assertEqual((status, os.read(reading, 10)), (0, b"again"), text)
                finally:
                    os.close(reading)
                    os.close(writing)
                if stderr == subprocess.PIPE:
                    self.assertIn("novasvc: restart: did not exit in time; running the program again. Stacks:", text)

    def test_restarts_with_systemd_sockets(self) -> None:
        """A process with sockets of systemd exits with the status at which systemd starts it again."""
        status, _ = self.end(
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
            "schedule_forced_exit(signal.SIGTERM, 0.1, restarts=lambda: True); time.sleep(60)"
        )
        self.assertEqual(status, os.EX_TEMPFAIL)
