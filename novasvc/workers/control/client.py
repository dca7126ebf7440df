"""Questions to a supervisor, by its control socket: how they are put, and how answers are understood.

:func:`ask` is for processes with a reactor. The protocol is in docs/workers.md.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IConnector
from twisted.internet.protocol import ClientFactory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from novasvc.workers.errors import CommandRejectedError, ControlError

ANSWER = 10.0
"""Seconds that a supervisor has to answer what it knows."""

LONGEST = 64 * 1024 * 1024
"""Octets in an answer: the stacks of all workers."""

START = (
    "start a supervisor with `twistd -n novasvc --workers N`, or name its socket with --control-socket or --state-dir"
)

LOG = "see the supervisor's log for the reason"


def ask(reactor: Any, path: Path, command: str, *, timeout: float = ANSWER, **arguments: Any) -> Deferred[Any]:
    """Ask a supervisor one thing.

    :param reactor: provides IReactorUNIX and IReactorTime.
    :param path: of its control socket.
    :param command: see docs/workers.md, as for the arguments.
    :param timeout: seconds from now to the answer.
    :return: Deferred of the result, JSON; cancelling it ends only the waiting.
    :raises CommandRejectedError: the supervisor says why it does not.
    :raises ControlError: nobody is there, or there is no answer, or none that a supervisor would give.
    """

    def late(_: object, seconds: float) -> Any:
        raise unanswered(path, f"{command} was not answered within {seconds:g} s")

    if len(os.fsencode(path)) > _LONGEST_PATH:
        return fail(unreachable(path, OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))))
    factory = _CommandFactory(path, command, request_line(command, arguments))
    # Not an endpoint: to import those is to import TLS, 12 MiB in each node.
    factory.connector = reactor.connectUNIX(os.fspath(path), factory, timeout)
    return factory.answer.addTimeout(timeout, reactor, onTimeoutCancel=late)


_LONGEST_PATH = 107
"""Octets in the path of a unix socket."""


class _CommandFactory(ClientFactory):
    """One request, and its answer; makes its one connection."""

    noisy = False
    connector: IConnector

    def __init__(self, path: Path, command: str, request: bytes) -> None:
        self.request = request
        self.answer: Deferred[Any] = Deferred(lambda _: self._give_up())
        self._path = path
        self._command = command
        self._settled = False

    def buildProtocol(self, addr: object) -> "_CommandProtocol":
        return _CommandProtocol(self)

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        number = getattr(reason.value, "osError", None)
        number = number if isinstance(number, int) else errno.ECONNREFUSED
        self.settle(Failure(unreachable(self._path, OSError(number, os.strerror(number)))))

    def clientConnectionLost(self, connector: IConnector, reason: Failure) -> None:
        self.settle(Failure(ended_early(self._path, self._command)))

    def take(self, line: bytes) -> None:
        """Understand the answer."""
        try:
            self.settle(result_of(self._path, line))
        except (ControlError, CommandRejectedError):
            self.settle(Failure())

    def too_long(self) -> None:
        """See an answer that is too long to be one."""
        self.settle(Failure(not_a_supervisor(self._path)))

    def settle(self, outcome: Any) -> None:
        """Answer, if nobody has."""
        if not self._settled:
            self._settled = True
            self.answer.callback(outcome)

    def _give_up(self) -> None:
        self._settled = True
        self.connector.disconnect()


class _CommandProtocol(LineOnlyReceiver):
    """Sends a request, and takes a line."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST
    transport: Any

    def __init__(self, factory: _CommandFactory) -> None:
        self._factory = factory

    def connectionMade(self) -> None:
        self.transport.write(self._factory.request)

    def lineReceived(self, line: bytes) -> None:
        self._factory.take(line)
        self.transport.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._factory.too_long()
        self.transport.abortConnection()


# -- what all who ask have in common -----------------------------------------------------------------


def request_line(command: str, arguments: dict[str, Any]) -> bytes:
    """Return what is sent."""
    return json.dumps({"command": command, **arguments}).encode() + b"\n"


def result_of(path: Path, line: bytes) -> Any:
    """Understand what came back.

    :return: JSON.
    :raises CommandRejectedError: the supervisor says why it does not.
    :raises ControlError: no supervisor would answer so.
    """
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise not_a_supervisor(path) from None
    match answer:
        case {"result": result}:
            return result
        case {"error": {"type": str(kind), "message": str(problem)}}:
            raise CommandRejectedError(kind, problem)
    raise not_a_supervisor(path)


def not_a_supervisor(path: Path) -> ControlError:
    """Say that this is no supervisor."""
    return ControlError(str(path), "the process that listens there is not a novasvc supervisor", START)


def ended_early(path: Path, command: str) -> ControlError:
    """Say that the connection was closed without an answer."""
    return ControlError(str(path), f"the supervisor exited before it answered {command}", LOG)


def unanswered(path: Path, late: str) -> ControlError:
    """Say that nothing came in time."""
    remedy = "the supervisor is still working on it; `novasvc workers` shows the progress"
    return ControlError(str(path), late, remedy)


def unreachable(path: Path, error: OSError) -> ControlError:
    """Say why nobody could be reached."""
    problem, remedy = f"cannot connect: {error.strerror or error}", START
    match error:
        case FileNotFoundError() | NotADirectoryError():
            problem = "no supervisor listens there"
        case ConnectionRefusedError():
            problem = "no supervisor listens there any more: the last one was killed"
            if not _is_socket(path):
                problem = "the file there is not a socket"
        case PermissionError():
            problem = f"uid {os.geteuid()} may not connect to it"
            remedy = "run this as the supervisor's user or as root"
        case BlockingIOError():
            problem, remedy = "the supervisor does not accept connections: its backlog is full", LOG
    return ControlError(str(path), problem, remedy)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return True  # it has just gone
