"""Peers as those see them who measure: which there are, and their processes."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import attrs
import psutil

from tests.benchmarks.peers.command import PAYLOAD

PATIENCE = 60.0
SOURCE = Path(__file__).with_name("librabbitmq.c")

PACKAGES = {
    "novasvc": "novasvc",
    "oslo_messaging": "oslo.messaging",
    "pika": "pika",
    "aio_pika": "aio-pika",
}
"""Module, and what ``pip install`` calls it."""


class PeerError(Exception):
    """A peer ended, or said something else than it should; the text has what it wrote to stderr."""


class LeftOutError(Exception):
    """A peer is not here; the text says why and what to do."""


class Running:
    """A process of a peer."""

    def __init__(self, command: list[str], complaints: IO[str]) -> None:
        self._command = command
        self._complaints = complaints
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
        )
        self._watched = psutil.Process(self._process.pid)

    def wait_ready(self) -> None:
        """Wait until it says so."""
        line = self._line()
        if line != "READY\n":
            raise self._error(f"said {line!r}")

    def result(self) -> dict[str, float]:
        """Wait for its result."""
        line = self._line()
        try:
            figures: dict[str, float] = json.loads(line)
        except ValueError:
            raise self._error(f"said {line!r}") from None
        return figures

    def go_on(self) -> None:
        """Tell a process that waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def has_ended(self) -> bool:
        """Tell whether it has ended by itself."""
        return self._process.poll() is not None

    def complaints(self) -> str:
        """Return what it wrote to stderr."""
        self._complaints.seek(0)
        return self._complaints.read()

    def cpu_seconds(self) -> float:
        """Return the processor time that it has taken."""
        times = self._watched.cpu_times()
        return times.user + times.system

    def resident_mib(self) -> float:
        """Return its resident memory."""
        resident: int = self._watched.memory_info().rss
        return resident / 2**20

    def end(self) -> None:
        """Terminate it, and wait."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._error(f"ended with status {self._process.wait(PATIENCE)}")
        return line

    def _error(self, what: str) -> PeerError:
        return PeerError(f"{' '.join(self._command)} {what}\n{self.complaints()}")


@attrs.frozen
class Peer:
    """A library that calls and is called.

    :param name: as it is in the figures.
    :param command: runs it, followed by a role and its words; see :mod:`tests.benchmarks.peers.command`.
    """

    name: str
    command: tuple[str, ...]

    @contextmanager
    def running(self, role: str, *words: object) -> Iterator[Running]:
        """Have it run in a role; it is terminated at the end."""
        with tempfile.TemporaryFile("w+") as complaints:
            process = Running([*self.command, role, *map(str, words)], complaints)
            try:
                yield process
            finally:
                process.end()


def find_peer(name: str, folder: Path) -> Peer:
    """Find a peer, or build it.

    :param name: a module of this package, or "librabbitmq".
    :param folder: for what is compiled.
    :raises LeftOutError: it is not installed.
    """
    if name == "librabbitmq":
        return Peer(name, (_compiled(folder),))
    if find_spec(name) is None:
        raise LeftOutError(f"{name} is left out: pip install {PACKAGES[name]}, or the extra benchmark")
    return Peer(name, (sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.peers.{name}"))


def _compiled(folder: Path) -> str:
    if shutil.which("gcc") is None:
        raise LeftOutError("librabbitmq is left out: apt-get install gcc librabbitmq-dev")
    program = str(folder / "librabbitmq")
    # The JSON of a JSON text that is ASCII is a string literal of C, too.
    payload = json.dumps(json.dumps(PAYLOAD))
    command = ["gcc", "-O2", f"-DPAYLOAD={payload}", "-o", program, str(SOURCE), "-lrabbitmq"]
    built: Any = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise LeftOutError(f"librabbitmq is left out: apt-get install librabbitmq-dev\n{built.stderr}")
    return program
