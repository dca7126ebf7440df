"""Supervisors with real workers, under real faults."""

import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import TestCase

import psutil

from tests.e2e.process import PATIENCE, ROOT, Process, program

T = TypeVar("T")

ORPHANED = 2.0
"""Seconds after the end of a supervisor in which nothing of it may be left."""

_LOOK_INTERVAL = 0.01
_SLACK = 5.0


def until(condition: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """Wait for what can only be looked at, and return it; the test fails when that is never true."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > deadline:
            line = f"{condition.__code__.co_filename}:{condition.__code__.co_firstlineno}"
            raise AssertionError(f"{line}: not within {patience:g} s")
        time.sleep(_LOOK_INTERVAL)
    return found


def alive(pid: int) -> bool:
    """Return whether a process is there and can still do something: a zombie cannot."""
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def session(leader: int) -> list[int]:
    """Return the processes of a session: a supervisor, and all that came of it."""

    def is_of(pid: int) -> bool:
        try:
            return os.getsid(pid) == leader and alive(pid)
        except ProcessLookupError:
            return False

    return [pid for pid in psutil.pids() if is_of(pid)]


class Fleet(Process):
    """A supervisor and its workers: what it prints, what it says at its control socket.

    When the test has ended it is killed, and nothing of it may be left.

    :param command: of the supervisor.
    :param folder: its state, and the workers' sockets; a short path.
    """

    def __init__(self, test: TestCase, command: Sequence[str], folder: Path, **environment: str) -> None:
        test.addCleanup(self._see_nobody)
        self.folder = folder
        self._killed: set[int] = set()
        settings = {"NOVASVC_STATE_DIR": str(folder), "NOVASVC_HOST": "h1", "NOVASVC_PERIODIC_FUZZY_DELAY": "0"}
        if shutil.which("setpriv") is not None:
            # Nothing stays behind a run of tests that is killed.
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        super().__init__(test, command, folder, **{"PYTHONPATH": str(ROOT), **settings, **environment})

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def forkserver(self) -> int:
        """The process that workers come from; there is one, but while the configuration is reloaded."""
        return until(lambda: self._child(self.pid))

    def _child(self, pid: int) -> int | None:
        children = [child for child in psutil.Process(pid).children() if alive(child.pid)]
        return children[0].pid if len(children) == 1 else None

    @property
    def family(self) -> list[int]:
        """All its processes, itself too."""
        return session(self.pid)

    # -- what it says ----------------------------------------------------------------------------

    def ask(self, command: str, **arguments: Any) -> Any:
        """Ask at the control socket."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(str(self.folder / "novasvc.control"))
            asking.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with asking.makefile() as answers:
                answer = json.loads(answers.readline())
        if "error" in answer:
            raise AssertionError(answer)
        return answer["result"]

    def workers(self) -> list[dict[str, Any]]:
        """Return the rows of the workers; none while the supervisor does not listen."""
        try:
            rows: list[dict[str, Any]] = self.ask("workers")
        except (FileNotFoundError, ConnectionRefusedError):
            if self.popen.poll() is not None:
                raise AssertionError(f"it has ended:\n{self.output}") from None
            return []
        return rows

    def worker(self, number: int) -> dict[str, Any]:
        """Return the row of one worker."""
        return next(row for row in self.workers() if row["number"] == number)

    def ready(self, count: int, but: Sequence[int] = (), patience: float = PATIENCE) -> dict[int, int]:
        """Wait until that many workers, and no others, are there and ready.

        :param but: pids that are not there any more.
        :return: number -> pid.
        """

        def look() -> dict[int, int] | None:
            rows = self.workers()
            ready = {row["number"]: row["pid"] for row in rows if row["state"] == "ready"}
            return ready if len(ready) == len(rows) == count and not {*but} & {*ready.values()} else None

        try:
            return until(look, patience)
        except AssertionError as error:
            raise AssertionError(f"{error}: {count} workers are ready\n{self.output}") from None

    def replaced(self, number: int, pid: int, patience: float = PATIENCE) -> int:
        """Wait until a worker is ready that has the number of another.

        :param pid: of that one.
        :return: of the new one.
        """

        def look() -> int | None:
            rows = [row for row in self.workers() if row["number"] == number]
            return next((row["pid"] for row in rows if row["state"] == "ready" and row["pid"] != pid), None)

        try:
            return until(look, patience)
        except AssertionError as error:
            raise AssertionError(f"{error}: worker {number} is replaced\n{self.output}") from None

    def said(self, pattern: str) -> list[str]:
        """Return what was printed so far and has a pattern, which may go over several lines."""
        return [found[0] for found in re.finditer(pattern, self.output)]

    def says(self, pattern: str, patience: float = PATIENCE) -> str:
        """Wait until it has printed something that has a pattern, now or before."""
        try:
            return until(lambda: self.said(pattern), patience)[0]
        except AssertionError:
            raise AssertionError(f"nothing has {pattern!r} after {patience:g} s:\n{self.output}") from None

    @property
    def journal(self) -> list[str]:
        """What its nodes have noted: see :class:`tests.faults.fleet_parts.Node`."""
        journal = self.folder / "journal"
        return journal.read_text().splitlines() if journal.exists() else []

    # -- what is done to it ----------------------------------------------------------------------

    def tell(self, worker: str, words: str) -> str:
        """Tell a worker what to do; see :mod:`tests.faults.fleet_parts`.

        :param worker: name of its server and its number: "one-2".
        :return: its answer; "" if it has ended of it.
        """

        def connect() -> socket.socket | None:
            telling = socket.socket(socket.AF_UNIX)
            telling.settimeout(PATIENCE)
            try:
                telling.connect(str(self.folder / worker))
            except OSError:
                telling.close()
                return None
            return telling

        with until(connect) as telling:
            telling.sendall(words.encode() + b"\n")
            try:
                with telling.makefile() as answers:
                    return answers.readline().strip()
            except ConnectionResetError:
                return ""

    def kill(self, number: int, sign: int = signal.SIGKILL) -> int:
        """Send a signal to a worker that is ready, and was not sent one before.

        :param number: of the worker.
        :return: its pid.
        """
        pid: int = until(lambda: next(self._pids(number), 0))
        os.kill(pid, sign)
        self._killed.add(pid)
        return pid

    def _pids(self, number: int) -> Iterator[int]:
        rows = [row for row in self.workers() if row["number"] == number and row["state"] == "ready"]
        return (row["pid"] for row in rows if row["pid"] not in self._killed)

    def _see_nobody(self) -> None:
        try:
            until(lambda: not self.family, ORPHANED + _SLACK)
        except AssertionError:
            left = [f"{pid} {' '.join(psutil.Process(pid).cmdline())}" for pid in self.family]
            for pid in self.family:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"of the supervisor {self.pid} are left: {left}\n{self.output}") from None


class Fleets:
    """For a TestCase: each test has a folder of its own, where supervisors are started."""

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]  # of the TestCase
        folder = tempfile.TemporaryDirectory(prefix="novasvc-")
        self.addCleanup(folder.cleanup)  # type: ignore[attr-defined]
        self.folder = Path(folder.name)

    def script(self, *servers: str, prefix: Sequence[str] = (), **environment: str) -> Fleet:
        """Run a plain script with a launcher.

        :param servers: kind:name=workers, see :mod:`tests.faults.fleet_script`.
        :param prefix: a command that runs this one.
        """
        command = [*prefix, sys.executable, "-m", "tests.faults.fleet_script", *servers]
        return Fleet(cast(TestCase, self), command, self.folder, **environment)

    def twistd(
        self,
        *options: str,
        manager: str | None = "Node",
        host: str = "h1",
        prefix: Sequence[str] = (),
        **environment: str,
    ) -> Fleet:
        """Start ``twistd -n novasvc``.

        :param manager: a class of :mod:`tests.faults.fleet_parts`, or the path of another; None leaves it
            to the configuration.
        :param host: has a state directory of its own.
        :param prefix: a command that runs this one.
        """
        folder = self.folder / host
        folder.mkdir(exist_ok=True)
        if manager is not None:
            path = manager if "." in manager else f"tests.faults.fleet_parts.{manager}"
            options = ("--manager", path, *options)
        command = [*prefix, program("twistd"), "-n", "--pidfile=", "novasvc", *options]
        return Fleet(cast(TestCase, self), command, folder, **{"NOVASVC_HOST": host, **environment})


class FleetCase(Fleets, TestCase):
    """Tests that wait by standing still."""
