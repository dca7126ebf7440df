"""A host on which nothing takes time: its processes are born, speak and end when a test says so.

What runs in a supervisor is the real thing, up to its reactor and os.kill: it speaks to the processes
over real socket pairs, and gives them its real descriptors.
"""

import gc
import json
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.error import ConnectionDone, ProcessTerminated
from twisted.internet.interfaces import IProtocol, IReactorProcess, IReactorSocket
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.workers.diagnostics import DiagnosticsFile
from novasvc.workers.forkserver import CONTROL

_FIRST_PID = 1 << 23
"""Greater than any that Linux gives, so that a test that goes astray harms nobody."""


def exited(code: int) -> int:
    """Return the wait status of a process that exited."""
    return code << 8


def descriptors() -> set[str]:
    """Return what is open in this process, and is not garbage: "7: socket:[123]"."""
    gc.collect()  # what an earlier test has left is not closed between two looks of this one
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the directory itself
            found.add(f"{path.name}: {path.readlink()}")
    return found


class Log(list[LogEvent]):
    """What was logged, as it was at that moment: what is logged may change."""

    text = ""

    def __call__(self, event: LogEvent) -> None:
        self.append(event)
        self.text += formatEvent(event) + "\n"


@contextmanager
def logged() -> Iterator[Log]:
    """Collect what is logged."""
    log = Log()
    globalLogPublisher.addObserver(log)
    try:
        yield log
    finally:
        globalLogPublisher.removeObserver(log)


class _Transport:
    """One end of a socket pair, on a :class:`Host`."""

    def __init__(self, end: socket.socket, protocol: IProtocol) -> None:
        self.end = end
        self.protocol = protocol
        self.disconnecting = False
        self.descriptors: list[int] = []

    def sendFileDescriptor(self, descriptor: int) -> None:
        self.descriptors.append(descriptor)

    def write(self, data: bytes) -> None:
        if not self.disconnecting:
            with suppress(OSError):
                socket.send_fds(self.end, [data], self.descriptors)
            self.descriptors.clear()

    def writeSequence(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def loseConnection(self) -> None:
        self.disconnecting = True

    def turn(self) -> bool:
        """Take what has come; False if nothing has."""
        try:
            data = b"" if self.disconnecting else self.end.recv(65536)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if data:
            self.protocol.dataReceived(data)
        else:
            self.disconnecting = True
            self.end.close()
            self.protocol.connectionLost(Failure(ConnectionDone()))
        return True


class StandInWorker:
    """A worker: the other end of its channel, and of its record.

    :ivar asked: the keys of questions that it has not answered.
    """

    def __init__(
        self, host: "Host", server: "StandInForkserver", message: dict[str, Any], descriptors: list[int]
    ) -> None:
        self.host = host
        self.server = server
        self.key = message["fork"]
        self.parameters = message["parameters"]
        self.pid = next(host.pids)
        self.pipe = socket.socket(fileno=descriptors[0])
        self.pipe.setblocking(False)
        self.diagnostics = DiagnosticsFile(descriptors[1])
        self.sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors[2:]]
        self.signals: list[int] = []
        self.alive = False
        self.closed = False

    @property
    def number(self) -> int:
        return self.parameters["number"]

    def be_forked(self) -> None:
        """Be forked."""
        self.alive = True
        self.diagnostics.recorder.beat(time.monotonic())
        self.server.say({"forked": self.key, "pid": self.pid})

    def fail_fork(self, problem: str) -> None:
        """Be forked not."""
        self.let_go()
        self.server.say({"failed": self.key, "problem": problem})

    def say(self, what: str, **more: Any) -> None:
        self.pipe.send(json.dumps({"is": what, **more}).encode() + b"\n")
        self.host.settle()

    def hear(self) -> list[dict[str, Any]]:
        """Return what was asked."""
        try:
            return [json.loads(line) for line in self.pipe.recv(65536).splitlines()]
        except BlockingIOError:
            return []

    @property
    def orphaned(self) -> bool:
        """Whether the other end of its channel is closed."""
        try:
            return self.pipe.recv(65536, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False

    def be_ready(self) -> None:
        self.say("ready")

    def let_go(self) -> None:
        """Close whatever a process that ends would close."""
        if not self.closed:
            self.closed = True
            self.pipe.close()
            self.diagnostics.close()
            for shared in self.sockets:
                shared.close()

    def end(self, status: int = 0) -> None:
        """End, and be reaped by the forkserver, if there is one."""
        self.alive = False
        self.let_go()
        self.server.say({"ended": self.pid, "status": status})
        self.host.settle()


class StandInForkserver:
    """What speaks at the other end of a :class:`~novasvc.workers.forkserver_client.ForkserverClient`."""

    def __init__(self, host: "Host", protocol: Any, arguments: list[str], environment: Any, control: int) -> None:
        self.host = host
        self.protocol = protocol
        self.arguments = arguments
        self.environment = environment
        self.control = socket.socket(fileno=os.dup(control))
        self.control.setblocking(False)
        self.pid: int | None = next(host.pids)
        self.started: dict[str, Any] | None = None
        self.received = b""
        self.descriptors: deque[int] = deque()
        self.alive = True
        self.stopped = False

    def say(self, message: dict[str, Any]) -> None:
        if self.alive:
            with suppress(OSError):
                self.control.send(json.dumps(message).encode() + b"\n")

    def turn(self) -> bool:
        if not self.alive or self.stopped:
            return False
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, 65536, 64)
        except BlockingIOError:
            return False
        except ConnectionError:
            data, descriptors = b"", []
        if not data:
            self.end(0)
            return True
        self.descriptors.extend(descriptors)
        *whole, self.received = (self.received + data).split(b"\n")
        for line in whole:
            message = json.loads(line)
            if "fork" not in message:
                self.started = message
                continue
            theirs = [self.descriptors.popleft() for _ in range(message["descriptors"])]
            worker = StandInWorker(self.host, self, message, theirs)
            self.host.workers.append(worker)
            self.host.answer(worker)
        return True

    def end(self, status: int = signal.SIGKILL) -> None:
        """End; its workers live on."""
        if self.alive:
            self.alive = False
            self.control.close()
            while self.descriptors:
                os.close(self.descriptors.popleft())
            self.host.ended.append(self)

    def signalProcess(self, name: str) -> None:
        self.host.kill(self.pid, signal.Signals["SIG" + name])

    def reaped(self) -> None:
        self.pid = None
        self.protocol.processEnded(Failure(ProcessTerminated()))


@implementer(IReactorProcess, IReactorSocket)
class Host(Clock):
    """A reactor on which nothing takes time, and the processes around it.

    :ivar answer: what becomes of a worker that is asked for; it is born unless a test says otherwise.
    :ivar obeys: workers end at once by the signals that they are sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pids = count(_FIRST_PID)
        self.transports: list[_Transport] = []
        self.forkservers: list[StandInForkserver] = []
        self.workers: list[StandInWorker] = []
        self.ended: list[StandInForkserver] = []
        self.answer: Callable[[StandInWorker], None] = StandInWorker.be_forked
        self.spawning: OSError | None = None
        self.obeys = False

    # -- the reactor ---------------------------------------------------------------------------

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        protocol = factory.buildProtocol(None)
        transport = _Transport(socket.socket(fileno=os.dup(descriptor)), protocol)
        transport.end.setblocking(False)
        self.transports.append(transport)
        protocol.makeConnection(transport)

    def spawnProcess(
        self,
        protocol: Any,
        executable: str,
        args: list[str],
        env: Any,
        childFDs: dict[int, int],  # noqa: N803 - IReactorProcess has it
    ) -> StandInForkserver:
        if self.spawning is not None:
            raise self.spawning
        server = StandInForkserver(self, protocol, args, env, childFDs[CONTROL])
        self.forkservers.append(server)
        return server

    # -- the host ------------------------------------------------------------------------------

    def kill(self, pid: int, number: int) -> None:
        """Stand in for os.kill."""
        for server in self.forkservers:
            if server.alive and server.pid == pid:
                assert number == signal.SIGKILL
                server.end()
                return
        for worker in self.living:
            if worker.pid == pid:
                worker.signals.append(number)
                if self.obeys or number == signal.SIGKILL:
                    worker.alive = False
                    worker.let_go()
                    worker.server.say({"ended": pid, "status": number if number != signal.SIGTERM else 0})
                return
        raise ProcessLookupError(pid)

    @property
    def living(self) -> list[StandInWorker]:
        """The workers that are there, oldest first."""
        return [worker for worker in self.workers if worker.alive]

    def numbers(self) -> list[int]:
        """Return the numbers of the workers that are there."""
        return sorted(worker.number for worker in self.living)

    def settle(self) -> None:
        """Let all that was written arrive."""
        busy = True
        while busy:
            busy = False
            for server in self.forkservers:
                busy = server.turn() or busy
            for transport in list(self.transports):
                while transport in self.transports and transport.turn():
                    busy = True
                    if transport.disconnecting and transport.end.fileno() == -1:
                        self.transports.remove(transport)
            while self.ended:
                self.ended.pop().reaped()
                busy = True

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, and whatever happens in it."""
        self.settle()
        end = self.seconds() + seconds
        while (left := end - self.seconds()) > 0:
            self.advance(min(step, left))
            self.settle()
        self.advance(0)
        self.settle()

    def be_suspended(self, seconds: float) -> None:
        """Let time pass in which the supervisor is suspended: as in a reactor, calls that are due come before input."""
        self.rightNow += seconds
        for call in [each for each in self.calls if each.getTime() <= self.rightNow]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        self.pass_time(0)

    def ready_all(self) -> None:
        """Let all workers be ready that are not told to end."""
        self.settle()
        for worker in self.living:
            if not worker.signals:
                worker.be_ready()

    def tear_down(self) -> None:
        """Close whatever is open."""
        for worker in self.workers:
            worker.let_go()
        for server in self.forkservers:
            server.end()
        self.settle()
        for transport in self.transports:
            transport.end.close()

    def each(self, number: int) -> Iterator[StandInWorker]:
        """Return the workers of a number that are there."""
        return (worker for worker in self.living if worker.number == number)
