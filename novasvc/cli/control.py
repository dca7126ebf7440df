"""A blocking client of the supervisor's control socket. docs/workers.md describes the protocol."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from novasvc.workers.control import protocol
from novasvc.workers.control.protocol import ANSWER_TIMEOUT, MAX_ANSWER_LENGTH


class ControlClient:
    """A connection to a supervisor; use it in a with statement.

    :param path: path of the control socket.
    :raises ControlError: no supervisor listens there, or this user has no permission.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = bytearray()
        # Non-blocking: connect() to a UNIX socket succeeds or fails at once, but would block while the backlog is full.
        self._socket.setblocking(False)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise protocol.unreachable(path, error) from error

    def ask(self, command: str, *, timeout: float | None = ANSWER_TIMEOUT, **arguments: Any) -> Any:
        """Send a command and wait for the reply.

        :param timeout: seconds, or None for no limit.
        :return: the result, decoded JSON.
        :raises CommandRejectedError: the supervisor rejected the command.
        :raises ControlError: no reply, or not one of a supervisor.
        """
        deadline = _deadline(timeout)
        request = protocol.request_line(command, arguments)
        # A supervisor that rejects the connection may have sent the reason before it closed: read that.
        with suppress(ConnectionError):
            self._socket.settimeout(_remaining(deadline))
            self._socket.sendall(request)
        while b"\n" not in self._received:
            if len(self._received) > MAX_ANSWER_LENGTH:
                raise protocol.not_a_supervisor(self._path)
            if not self._receive(deadline, f"{command} was not answered within {timeout:g} s" if timeout else ""):
                raise protocol.ended_early(self._path, command)
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        return protocol.result_of(self._path, bytes(line))

    def wait_for_end(self, timeout: float | None) -> None:
        """Wait until the supervisor closes the connection, which it does when it exits.

        :param timeout: seconds, or None for no limit.
        :raises ControlError: the timeout expired.
        """
        deadline = _deadline(timeout)
        while self._receive(deadline, f"the supervisor has not ended within {timeout:g} s" if timeout else ""):
            self._received.clear()

    def _receive(self, deadline: float | None, late: str) -> bool:
        """Receive some data; return False at end of file.

        :param late: text of the error if the deadline passes.
        """
        try:
            self._socket.settimeout(_remaining(deadline))
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            raise protocol.unanswered(self._path, late) from None
        except ConnectionError:
            return False
        self._received += data
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()


def ask(path: Path, command: str, *, timeout: float | None = ANSWER_TIMEOUT, **arguments: Any) -> Any:
    """Send one command over a connection of its own; see :meth:`ControlClient.ask`."""
    with ControlClient(path) as connection:
        return connection.ask(command, timeout=timeout, **arguments)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _remaining(deadline: float | None) -> float | None:
    # Not 0: settimeout(0) means non-blocking, which raises BlockingIOError in place of TimeoutError.
    return None if deadline is None else max(deadline - time.monotonic(), 0.001)
