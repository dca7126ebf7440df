"""What the workers of the tests for forks run, and a supervisor that can be killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults

from novasvc.errors import StateError
from novasvc.telemetry import flight
from novasvc.workers.exit_status import Exit
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.pipe import PipeMessage
from novasvc.workers.process import WorkerProcess
from novasvc.workers.specification import pickle_server


class Sleeper(Service):
    """Does nothing, well."""

    name = "sleeper"


@attrs.define
class Exits:
    """Ends its process with a status."""

    status: int

    def __call__(self, reactor: Any) -> Service:
        os._exit(self.status)


@attrs.define
class DiesOf:
    """Ends its process by a signal."""

    number: int

    def __call__(self, reactor: Any) -> Service:
        os.kill(os.getpid(), self.number)
        raise AssertionError


@attrs.define
class Raises:
    """Cannot be made."""

    error: str

    def __call__(self, reactor: Any) -> Service:
        raise {
            "of ours": StateError("the manager", "broken", "start"),
            "a mistake": ZeroDivisionError("a mistake"),
            "SystemExit(3)": SystemExit(3),
            "SystemExit()": SystemExit(),
            "SystemExit('text')": SystemExit("text"),
            "KeyboardInterrupt": KeyboardInterrupt(),
        }[self.error]


@attrs.define
class Touches:
    """Leaves a file behind when its service is made."""

    path: str

    def __call__(self, reactor: Any) -> Service:
        Path(self.path).touch()
        return Service()


class Hangs(Sleeper):
    """Lets its reactor turn no more, once it is ready."""

    def startService(self) -> None:
        from twisted.internet import reactor as own  # noqa: PLC0415 - of the worker

        super().startService()
        own.callLater(0.05, time.sleep, 3600)


class BlocksInHurry(Sleeper):
    """Never ends when it is told to, and lets its reactor turn no more when it is to hurry."""

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred()

    def hurry(self) -> None:
        time.sleep(3600)


_LIST = """
import os

found = []
for name in os.listdir("/proc/self/fd"):
    try:
        if int(name) > 2:
            found.append(os.readlink(f"/proc/self/fd/{name}").split("[")[0])
    except FileNotFoundError:  # that of the directory itself
        pass
opened = " ".join(sorted(found))
"""


class TellsDescriptors(Sleeper):
    """Notes what it has open, and what a program has open that it runs, beside their standard streams."""

    def startService(self) -> None:
        super().startService()
        program = [sys.executable, "-c", _LIST + "print(opened)"]
        listed = subprocess.run(program, close_fds=False, capture_output=True, check=True)
        flight.note("inherited", listed.stdout.decode().strip())
        own: dict[str, str] = {}
        exec(_LIST, own)  # noqa: S102 - the same as in the program
        flight.note("own", own["opened"])


GRACE = 1.0


def worker_parameters(server: Any, number: int = 1) -> dict[str, Any]:
    """Return what a worker is told."""
    pickled = pickle_server(server)
    return {
        "number": number,
        "name": pickled.name,
        "server": pickled.data,
        "reactor": "twisted.internet.epollreactor",
        "grace": GRACE,
        "watchdog": 30.0,
        "start": {"owner": "owner", "pid": os.getpid(), "lock": None},
        "log": {"file": "", "json": False, "level": "critical"},
    }


class Witness:
    """Sees what becomes of a worker.

    :ivar ready: fires when it is, with its process.
    :ivar over: fires with how it ended, or that it was refused.
    """

    def __init__(self, forkserver: ForkserverClient, reactor: Any, server: Any, number: int = 1) -> None:
        self.heard: list[PipeMessage] = []
        self.existing: Deferred[WorkerProcess] = Deferred()
        self.ready: Deferred[WorkerProcess] = Deferred()
        self.over: Deferred[str] = Deferred()
        self.events: list[flight.Event] = []
        self.process = WorkerProcess(forkserver, reactor, worker_parameters(server, number), (), self)

    def forked(self) -> None:
        self.existing.callback(self.process)

    def fork_failed(self, problem: str) -> None:
        self.over.callback(f"refused: {problem}")

    def received(self, message: PipeMessage) -> None:
        self.heard.append(message)
        if message["is"] == "ready":
            self.ready.callback(self.process)

    def ended(self, how: Exit) -> None:
        self.events = self.process.events
        self.over.callback(str(how))


def main() -> None:
    """Be a supervisor of two workers, one of which hangs; tell the processes, and wait to be killed."""
    from twisted.internet import reactor  # noqa: PLC0415 - not in a forkserver, which imports this

    forkserver = ForkserverClient(reactor, [__name__], None, dict(os.environ))
    forkserver.start()
    witnesses = [Witness(forkserver, reactor, server) for server in (Sleeper(), Hangs())]

    def tell() -> None:
        pids = [forkserver.pid, *(witness.process.pid for witness in witnesses)]
        print(json.dumps(pids), flush=True)  # noqa: T201 - that is what it is for

    gatherResults([witness.ready for witness in witnesses]).addCallback(lambda _: reactor.callLater(0.2, tell))
    reactor.run()
