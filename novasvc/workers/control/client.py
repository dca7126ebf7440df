"""Client of the control socket.

:func:`ask` needs a reactor; the functions after it are shared with clients without one. The protocol is in
docs/workers.md.
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
"""Seconds for a supervisor to answer a query."""

LONGEST = 64 * 1024 * 1024
"""Bytes per answer; the largest one has the stacks of all workers."""

START = (
    "start a supervisor with `twistd -n novasvc --workers N`, or name its socket with --control-socket or --state-dir"
)

LOG = "see the supervisor's log for the reason"


def ask(reactor: Any, path: Path, command: str, *, timeout: float = ANSWER, **arguments: Any) -> Deferred[Any]:
    """Send one command to a supervisor.

    :param reactor: provides IReactorUNIX and IReactorTime.
    :param path: of its control socket.
    :param command: see docs/workers.md, also for the arguments.
    :param timeout: seconds until the answer must be here.
    :return: Deferred of the result, JSON types; cancelling it does not cancel the command.
    :raises CommandRejectedError: the supervisor rejected the command.
    :raises ControlError: no supervisor listens, or it did not answer, or the answer is invalid.
    """

    def late(_: object, seconds: float) -> Any:
        raise unanswered(path, f"{command} was not answered within {seconds:g} s")

    if len(os.fsencode(path)) > _LONGEST_PATH:
        return fail(unreachable(path, OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))))
    factory = _CommandFactory(path, command, request_line(command, arguments))
    # Not an endpoint: importing twisted.internet.endpoints imports TLS, which costs each node 12 MiB.
    factory.connector = reactor.connectUNIX(os.fspath(path), factory, timeout)
    return factory.answer.addTimeout(timeout, reactor, onTimeoutCancel=late)


_LONGEST_PATH = 107
"""Bytes in the path of a unix socket."""


class _CommandFactory(ClientFactory):
    """Sends one command over one connection."""

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
        """Handle the answer line."""
        try:
            self.settle(result_of(self._path, line))
        except (ControlError, CommandRejectedError):
            self.settle(Failure())

    def too_long(self) -> None:
        """Handle a line that is too long to be an answer."""
        self.settle(Failure(not_a_supervisor(self._path)))

    def settle(self, outcome: Any) -> None:
        """Fire the Deferred, unless it has fired."""
        if not self._settled:
            self._settled = True
            self.answer.callback(outcome)

    def _give_up(self) -> None:
        self._settled = True
        self.connector.disconnect()


class _CommandProtocol(LineOnlyReceiver):
    """Sends the request line, and reads the answer line."""

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


# -- shared by all clients ----------------------------------------------------------------------------


def request_line(command: str, arguments: dict[str, Any]) -> bytes:
    """Return the request line."""
    return json.dumps({"command": command, **arguments}).encode() + b"\n"


def result_of(path: Path, line: bytes) -> Any:
    """Parse an answer line.

    :return: the result, JSON types.
    :raises CommandRejectedError: the answer is an error.
    :raises ControlError: the line is not an answer of the protocol.
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
    """Make the error for an answer that is not from a supervisor."""
    return ControlError(str(path), "the process that listens there is not a novasvc supervisor", START)


def ended_early(path: Path, command: str) -> ControlError:
    """Make the error for a connection closed without an answer."""
    return ControlError(str(path), f"the supervisor exited before it answered {command}", LOG)


def unanswered(path: Path, late: str) -> ControlError:
    """Make the error for an answer that did not come in time."""
    remedy = "the supervisor is still working on it; `novasvc workers` shows the progress"
    return ControlError(str(path), late, remedy)


def unreachable(path: Path, error: OSError) -> ControlError:
    """Make the error for a failed connection attempt."""
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
        return True  # just unlinked: it was one
