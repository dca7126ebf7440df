"""Programs that run workers, as those see them who measure."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import psutil

from tests.benchmarks.peers.process import LeftOutError, PeerError
from tests.benchmarks.peers.telling import VARIABLE
from tests.servers.process import end, spawn

PATIENCE = 60.0
ROOT = Path(__file__).parents[3]

LOOK_INTERVAL = 0.1
"""Seconds between two questions to a supervisor. To answer costs it something, and its answer says since when."""


class Launched:
    """A program with workers that tell when they are up.

    :param module: of this package.
    :param words: its arguments.
    :param folder: a short path: its FIFO, log, state and control socket are in it.
    :param python: interpreter.
    :param environment: beside that of this process.
    :ivar began: monotonic seconds of its start.
    :ivar up: pids of the workers that told that they are up, and were not killed by us -> monotonic seconds;
        in this order.
    """

    def __init__(
        self, module: str, *words: object, folder: Path, python: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.up: dict[int, float] = {}
        self._folder = folder
        self._control = folder / "control"
        fifo = folder / "up"
        os.mkfifo(fifo)
        # For writing, too: so it never ends.
        self._told = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        surroundings = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NOVASVC_STATE_DIR": str(folder),
            "NOVASVC_CONTROL_SOCKET": str(self._control),
            VARIABLE: str(fifo),
            **(environment or {}),
        }
        # An installed program finds its byte code; where it may not be kept, a start is mostly compiling.
        surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [python, "-W", "ignore", "-m", f"tests.benchmarks.peers.{module}", *map(str, words)]
        self.began, self._offset = time.monotonic(), time.time() - time.monotonic()
        self._process = spawn(command, folder, surroundings)

    @property
    def pid(self) -> int:
        """The supervisor."""
        return self._process.pid

    # -- what it says --------------------------------------------------------------------------

    def wait_up(self, count: int) -> None:
        """Wait until that many workers are up."""
        deadline = time.monotonic() + PATIENCE
        rest = ""
        while len(self.up) < count:
            if not select.select([self._told], [], [], 1.0)[0]:
                self._see_alive(deadline, f"{len(self.up)} of {count} workers are up")
                continue
            *lines, rest = (rest + os.read(self._told, 65536).decode()).split("\n")
            for pid, seconds in map(str.split, lines):
                self.up[int(pid)] = float(seconds)

    def wait_ready(self, count: int, other_than: frozenset[int] = frozenset()) -> dict[int, float]:
        """Wait until there are that many workers, and all of them are ready; ask at the control socket.

        :param other_than: pids that have to be gone.
        :return: pid -> monotonic seconds since when it is ready, as the supervisor says.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            time.sleep(LOOK_INTERVAL)
            rows = self.workers()
            pids = {row["pid"] for row in rows}
            if len(rows) == count and {row["state"] for row in rows} == {"ready"} and not pids & other_than:
                return {row["pid"]: datetime.fromisoformat(row["since"]).timestamp() - self._offset for row in rows}
            self._see_alive(deadline, f"of {count} workers there are {rows}")

    def workers(self) -> list[dict[str, Any]]:
        """Ask novasvc's supervisor for its workers; none if it does not answer yet."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE)
            try:
                asking.connect(str(self._control))
            except (FileNotFoundError, ConnectionRefusedError):
                return []
            asking.sendall(b'{"command": "workers"}\n')
            with asking.makefile() as answers:
                rows: list[dict[str, Any]] = json.loads(answers.readline())["result"]
        return rows

    def _see_alive(self, deadline: float, what: str) -> None:
        status = self._process.poll()
        if status is not None or time.monotonic() > deadline:
            how = "after a minute" if status is None else f"and it ended with status {status}"
            log = (self._folder / "stdout").read_text(errors="replace")
            raise PeerError(f"{self._process.args!r}: {what}, {how}\n{log[-4000:]}")

    # -- what is done to it --------------------------------------------------------------------

    def kill_one(self, source: Random) -> tuple[int, float]:
        """Kill any of the workers but the youngest, which may not be ready yet.

        :param source: chooses it.
        :return: its pid, and monotonic seconds of just before.
        """
        pid = source.choice(list(self.up)[:-1])
        del self.up[pid]
        when = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return pid, when

    def reload(self) -> None:
        """Tell the supervisor to reload."""
        self._process.send_signal(signal.SIGHUP)

    def end(self) -> None:
        """Terminate it, wait, and kill whatever of it is still there."""
        os.close(self._told)
        family = self.family()
        end(self._process, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=3)
        for process in alive:
            print(f"{process} has outlived its supervisor, and is killed", file=sys.stderr)
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=3)

    # -- what it costs -------------------------------------------------------------------------

    def family(self) -> list[psutil.Process]:
        """Return all its processes, the supervisor first."""
        try:
            supervisor = psutil.Process(self.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def cpu_seconds(pid: int) -> float:
    """Return the processor time that the threads of a process have taken, more precisely than in clock ticks."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def launched(
    module: str, *words: object, python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> Iterator[Launched]:
    """Have a program run; nothing of it is left at the end."""
    with tempfile.TemporaryDirectory(prefix="workers-", ignore_cleanup_errors=True) as folder:
        program = Launched(module, *words, folder=Path(folder), python=python, environment=environment)
        try:
            yield program
        finally:
            program.end()


def see_installed(python: str, modules: tuple[str, ...], packages: str) -> None:
    """See that an interpreter has what a program needs.

    :raises LeftOutError: it has not.
    """
    done = subprocess.run(
        [python, "-W", "ignore", "-c", f"import {', '.join(modules)}"],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    if done.returncode:
        raise LeftOutError(f"{modules[0]} is left out: {python} -m pip install {packages}, or the extra benchmark")
