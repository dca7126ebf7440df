"""A client of the control socket, on a reactor."""

import errno
import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IConnector
from twisted.internet.protocol import ClientFactory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from novasvc.workers.control.path_lock import MAX_PATH_LENGTH
from novasvc.workers.control.protocol import (
    ANSWER_TIMEOUT,
    MAX_ANSWER_LENGTH,
    ended_early,
    not_a_supervisor,
    request_line,
    result_of,
    unanswered,
    unreachable,
)
from novasvc.workers.errors import CommandRejectedError, ControlError


def ask(reactor: Any, path: Path, command: str, *, timeout: float = ANSWER_TIMEOUT, **arguments: Any) -> Deferred[Any]:
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

    if len(os.fsencode(path)) > MAX_PATH_LENGTH:
        return fail(unreachable(path, OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))))
    factory = _CommandFactory(path, command, request_line(command, arguments))
    # Not an endpoint: importing twisted.internet.endpoints imports TLS, which costs each node 12 MiB.
    factory.connector = reactor.connectUNIX(os.fspath(path), factory, timeout)
    return factory.answer.addTimeout(timeout, reactor, onTimeoutCancel=late)


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
    MAX_LENGTH = MAX_ANSWER_LENGTH
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
