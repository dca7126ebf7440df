"""A supervisor without processes, and its control socket on the test's own reactor."""

import json
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from novasvc.interfaces import ISupervisor, Rows
from novasvc.workers.control.listener import ControlSocket
from novasvc.workers.errors import NoSuchWorkerError
from tests.support.waiting import until

HOSTILE = "\x1b[2J\u202e"
"""What would clear a terminal, and turn its text around."""


def worker(number: int, **changed: Any) -> dict[str, Any]:
    """Return a row of ISupervisor.workers."""
    usual = {
        "number": number,
        "server": "agent",
        "pid": 4000 + number,
        "state": "ready",
        "since": "2026-01-02T03:04:05+00:00",
        "restarts": 0,
        "memory": 7 * 1024 * 1024 + 512 * 1024,
        "trouble": None,
    }
    return {**usual, **changed}


@implementer(ISupervisor)
class StandInSupervisor:
    """A supervisor with two workers: records commands, and fails if the test says how.

    :ivar failing: the error of the next request.
    :ivar pending: what a drain of all, or of a worker, and a reload wait for; None is nothing.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.failing: Exception | None = None
        self.pending: Deferred[Any] | None = None
        self.cancelled = False
        self.changed: list[dict[str, Any]] = []
        self.reloads: dict[str, Any] = {"ended": 2, "under_way": False, "problem": None}
        self.inspected: list[dict[str, Any]] = []
        self.rows = [
            worker(0),
            worker(1, pid=None, state="backing off", restarts=3, memory=None, trouble=f"killed {HOSTILE}"),
        ]
        self.dumped: list[dict[str, Any]] = [
            {
                **{name: self.rows[0][name] for name in ("number", "server", "pid", "state")},
                "stacks": f"Thread 1:\n  File {HOSTILE}\n",
                "calls": [{"method": "slow", "request_id": "req-1", "seconds": 1.25}],
                "events": [{"time": "2026-01-02T03:04:06+00:00", "kind": "call", "text": f"slow {HOSTILE}"}],
            },
            {
                **{name: self.rows[1][name] for name in ("number", "server", "pid", "state")},
                "stacks": "",
                "calls": None,
                "events": [],
            },
        ]

    def _took(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.failing is not None:
            raise self.failing

    def wait(self) -> Deferred[Any]:
        """Make the next command wait for the Deferred that this returns."""

        def cancelled(_: Deferred[Any]) -> None:
            self.cancelled = True

        self.pending = Deferred(cancelled)
        return self.pending

    def workers(self) -> Rows:
        self._took("workers")
        return self.rows

    def resize(self, count: int, server: str | None) -> None:
        self._took("resize", count, server)

    def drain(self, number: int | None) -> Deferred[None]:
        self._took("drain", number)
        if number is not None and number > 1:
            raise NoSuchWorkerError(f"worker {number}", "worker 0, worker 1")
        return self.pending or succeed(None)

    def reload(self) -> Deferred[Rows]:
        self._took("reload")
        return self.pending or succeed(self.changed)

    def begin_reload(self) -> None:
        self._took("begin_reload")

    def reload_report(self) -> dict[str, Any]:
        return self.reloads

    def restart(self) -> None:
        self._took("restart")

    def metrics(self) -> Deferred[Rows]:
        self._took("metrics")
        return self.pending or succeed([])

    def health(self) -> Deferred[Rows]:
        self._took("health")
        return self.pending or succeed([])

    def inspect(self, what: str) -> Deferred[Rows]:
        self._took("inspect", what)
        return self.pending or succeed(self.inspected)

    def dump(self) -> Deferred[Rows]:
        self._took("dump")
        return self.pending or succeed(self.dumped)


class Client:
    """A client in the reactor's thread: it sends at once, and reads what has arrived."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self.socket.connect(os.fspath(path))
        self.received = b""
        self.ended = False

    def send(self, *requests: Any) -> None:
        """Send bytes as they are, anything else as a line of JSON."""
        for request in requests:
            data = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
            self.socket.sendall(data)

    def take(self) -> None:
        """Read what has arrived."""
        try:
            while not self.ended:
                data = self.socket.recv(65536)
                self.received += data
                self.ended = not data
        except BlockingIOError:
            pass
        except ConnectionError:
            self.ended = True

    async def answer(self) -> Any:
        """Wait for the next answer; None at end of file."""

        def here() -> bool:
            self.take()
            return b"\n" in self.received or self.ended

        await until(here)
        if b"\n" not in self.received:
            return None
        line, _, self.received = self.received.partition(b"\n")
        return json.loads(line)

    async def ask(self, *requests: Any) -> Any:
        """Send a command, and wait for the next answer."""
        self.send(*requests)
        return await self.answer()

    async def end(self) -> None:
        """Wait until the supervisor closes the connection."""

        def here() -> bool:
            self.take()
            return self.ended

        await until(here)


class ControlCase(TestCase):
    """A test with a control socket and a stand-in for the supervisor."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "state" / "control"
        self.supervisor = StandInSupervisor()
        self.control = self.listen()

    def listen(self) -> ControlSocket:
        """Start another control socket."""
        control = ControlSocket(self.path, self.supervisor, reactor)
        control.startService()
        self.addCleanup(self.stop, control)
        return control

    def stop(self, control: ControlSocket) -> Deferred[None] | None:
        """Stop the control socket, if it runs."""
        return control.stopService() if control.running else None

    def connect(self) -> Client:
        """Connect a client, which is closed at the end of the test."""
        client = Client(self.path)
        self.addCleanup(client.socket.close)
        return client
