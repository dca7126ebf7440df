"""A real process under test; tests wait for its output, and never sleep."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import TestCase

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds that a test waits for anything; a healthy machine needs one or two."""


def program(name: str) -> str:
    """Return the path of a program in the environment of the tests."""
    return str(Path(sys.executable).with_name(name))


def unmeasured(*left_out: str) -> dict[str, str]:
    """Return the environment of the tests for a program that they start, which then runs without coverage.

    A start under coverage takes almost twice as long; one without byte code is mostly compiling.

    :param left_out: further beginnings of names.
    """
    strange = ("COVERAGE_PROCESS_", "PYTHONDONTWRITEBYTECODE", *left_out)
    return {name: value for name, value in os.environ.items() if not name.startswith(strange)}


class Process:
    """A started process whose output is kept.

    :param test: at its end the process is killed, if it still runs.
    :param command: the program and its arguments.
    :param directory: where it runs.
    :param environment: beside what the tests have, less every NOVASVC_ variable.
    """

    def __init__(self, test: TestCase, command: Sequence[str], directory: Path, **environment: str) -> None:
        self.popen = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**unmeasured("NOVASVC_"), "HOME": str(directory), "XDG_STATE_HOME": str(directory), **environment},
            start_new_session=True,
        )
        test.addCleanup(self._end)
        self.lines: list[str] = []
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """The output so far."""
        return "".join(self.lines)

    def wait_for(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """Wait for a line that matches; the next wait begins after it."""
        deadline = time.monotonic() + patience
        while True:
            try:
                line = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line has {pattern!r} after {patience} s:\n{self.output}") from None
            if line is None:
                raise AssertionError(f"it ended before a line had {pattern!r}:\n{self.output}")
            found = re.search(pattern, line)
            if found is not None:
                return found

    def wait(self) -> int:
        """Wait for the exit and the end of the output; return the exit status, negative for a signal.

        :raises AssertionError: it did not end, or left processes that may still print.
        """
        status = self.wait_for_exit()
        self._reader.join(PATIENCE)
        if self._reader.is_alive():
            raise AssertionError(f"what it left has its output open {PATIENCE} s after its end:\n{self.output}")
        return status

    def wait_for_exit(self) -> int:
        """Wait for the exit of the process only, not of its children; return the exit status, negative for a signal."""
        try:
            return self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {PATIENCE} s:\n{self.output}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit."""
        self.popen.send_signal(number)
        return self.wait()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line)
            self._fresh.put(line)
        self._fresh.put(None)

    def _end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self._reader.join(PATIENCE)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
