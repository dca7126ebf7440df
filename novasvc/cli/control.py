"""Ask a supervisor, by its control socket. The protocol is in docs/workers.md."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from novasvc.cli.output import printable_lines
from novasvc.workers import errors
from novasvc.workers.control import client as inquiry
from novasvc.workers.control.client import ANSWER, LONGEST


class RefusedError(errors.CommandRejectedError):
    """The same, for a terminal."""

    def __str__(self) -> str:
        return printable_lines(self.problem)


class Connection:
    """A connection to a supervisor; to be used in a with statement.

    :param path: of its control socket.
    :raises ControlError: nobody is there, or it is not for this user.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = bytearray()
        # So that nothing waits for ever: a unix socket connects at once, or says why not.
        self._socket.setblocking(False)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise inquiry.unreachable(path, error) from error

    def ask(self, command: str, *, timeout: float | None = ANSWER, **arguments: Any) -> Any:
        """Ask, and wait for the answer.

        :param timeout: seconds, or None for no limit.
        :return: JSON.
        :raises RefusedError: the supervisor says why it does not.
        :raises ControlError: there is no answer, or none that a supervisor would give.
        """
        deadline = _deadline(timeout)
        request = inquiry.request_line(command, arguments)
        # One that refuses to listen may have said why.
        with suppress(ConnectionError):
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(request)
        while b"\n" not in self._received:
            if len(self._received) > LONGEST:
                raise inquiry.not_a_supervisor(self._path)
            if not self._receive(deadline, f"{command} was not answered within {timeout:g} s" if timeout else ""):
                raise inquiry.ended_early(self._path, command)
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        try:
            return inquiry.result_of(self._path, bytes(line))
        except errors.CommandRejectedError as error:
            raise RefusedError(error.kind, error.problem) from None

    def wait_for_end(self, timeout: float | None) -> None:
        """Wait until the supervisor closes its socket.

        :param timeout: seconds, or None for no limit.
        :raises ControlError: it did not.
        """
        deadline = _deadline(timeout)
        while self._receive(deadline, f"the supervisor has not ended within {timeout:g} s" if timeout else ""):
            self._received.clear()

    def _receive(self, deadline: float | None, late: str) -> bool:
        """Take what comes; False at the end.

        :param late: what is said when nothing comes in time.
        """
        try:
            self._socket.settimeout(_left(deadline))
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            raise inquiry.unanswered(self._path, late) from None
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


def ask(path: Path, command: str, *, timeout: float | None = ANSWER, **arguments: Any) -> Any:
    """Ask one thing; see :meth:`Connection.ask`."""
    with Connection(path) as connection:
        return connection.ask(command, timeout=timeout, **arguments)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    # 0 would mean not to wait at all, and to fail in another way.
    return None if deadline is None else max(deadline - time.monotonic(), 0.001)
