"""A supervisor on a host that stands in, and servers for it."""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from novasvc.config import Configuration, Settings
from novasvc.errors import ListenError
from novasvc.interfaces import IPreforkable
from novasvc.workers.errors import WorkerFailedError
from novasvc.workers.servers import ServerWrapper, Sockets
from novasvc.workers.supervisor import Supervisor
from tests.support.supervision_rig import Host, StandInWorker


class Server(Service):
    """Does nothing."""

    def __init__(self, name: str) -> None:
        self.setName(name)


@implementer(IService, IPreforkable)
class Listening(Server):
    """Pretends to listen at an address, the same socket for each server that has it; "taken" cannot be had."""

    def __init__(self, name: str, address: str = "here") -> None:
        super().__init__(name)
        self.address = address

    def open_sockets(self, held: Sequence[socket.socket]) -> Sequence[socket.socket]:
        if self.address == "taken":
            raise ListenError(self.address, "another process listens there", "stop it")
        return [each for each in held if names[each.fileno()] == self.address] or [self._open()]

    def _open(self) -> socket.socket:
        made = socket.socket()
        names[made.fileno()] = self.address
        return made

    def adopt_sockets(self, sockets: Sequence[socket.socket]) -> None:
        raise NotImplementedError


names: dict[int, str] = {}
"""The addresses of the sockets, by descriptor."""


class Unpicklable(Server):
    """Holds what pickle cannot carry."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.file: Callable[[], None] = lambda: None


class Owner:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.errors: list[WorkerFailedError] = []
        self.drains = self.restarts = 0
        self.is_reloading: list[bool] = []

    def failed(self, error: WorkerFailedError) -> None:
        self.errors.append(error)

    def drain(self) -> None:
        self.drains += 1

    def restart(self) -> None:
        self.restarts += 1

    def reloading(self, *, under_way: bool) -> None:
        self.is_reloading.append(under_way)


def configuration(**settings: Any) -> Configuration:
    """Return settings as if they came from a file."""
    return Configuration(Settings(state_dir=Path("state"), **settings), {})


class SupervisorCase(SynchronousTestCase):
    """A supervisor without a server yet.

    :ivar next: what the next reload finds: a configuration, and servers or None; or an error.
    """

    settings: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.host = Host()
        self.patch(os, "kill", self.host.kill)
        self.addCleanup(self.host.tear_down)
        self.owner = Owner()
        self.configuration = configuration(**self.settings)
        self.next: Any = (self.configuration, None)
        self.supervisor = Supervisor(self.host, self.configuration, self.reread, "", self.owner)
        self.addCleanup(self.end)

    def reread(self) -> Any:
        if isinstance(self.next, BaseException):
            raise self.next
        return self.next

    def start(self, *servers: tuple[Any, int], sockets: Sockets | None = None) -> Deferred[None]:
        """Begin to start, and let the forks happen."""
        self.wrappers = [ServerWrapper(server, workers) for server, workers in servers]
        if sockets is None:
            sockets = {wrapper.name: [] for wrapper in self.wrappers}
        started = self.supervisor.start(self.wrappers, sockets)
        self.host.pass_time(0)
        return started

    def run_all(self, *servers: tuple[Any, int], sockets: Sockets | None = None) -> None:
        """Start, have all ready, and live on for a while."""
        self.start(*servers, sockets=sockets)
        self.host.ready_all()
        self.host.pass_time(60)

    def pass_reload(self, reload: Deferred[Any]) -> None:
        """Have all workers ready that come, until the reload is over."""
        for _ in range(100):
            if reload.called:
                return
            self.host.pass_time(1)
            self.host.ready_all()
        raise AssertionError("the reload is not over")

    def reload(self, next_: Any = None) -> Deferred[Any]:
        """Begin to reload."""
        if next_ is not None:
            self.next = next_
        reload = self.supervisor.reload()
        self.host.pass_time(0)
        return reload

    def end_told(self) -> None:
        """Let the workers end that were told to."""
        for worker in list(self.host.living):
            if worker.signals:
                worker.end()
        self.host.pass_time(0)

    def end(self) -> None:
        """Drain all and end."""
        self.supervisor.drain_all()
        self.host.obeys = True
        self.supervisor.interrupt()
        self.host.pass_time(3)

    def staying(self, server: str | None = None) -> list[StandInWorker]:
        """Return the workers that were not told to end."""
        return [
            worker for worker in self.host.living if not worker.signals and server in {None, worker.parameters["name"]}
        ]

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        return [tuple(row[column] for column in columns) for row in self.supervisor.workers()]
