"""Ask a supervisor, by its control socket. The protocol is in docs/workers.md."""

import json
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from novasvc.cli.output import printable_lines
from novasvc.errors import NovasvcError
from novasvc.supervision.errors import ControlError

ANSWER = 10.0
"""Seconds that a supervisor has to answer what it knows."""

_LONGEST = 64 * 1024 * 1024
"""Octets in an answer: the stacks of all workers."""

_START = (
    "start one with `twistd -n novasvc --workers N`, or say where its socket is with --control-socket or --state-dir"
)
_LOG = "the log of the supervisor may say why"


@attrs.define
class RefusedError(NovasvcError):
    """A supervisor did not do what was asked for.

    :param kind: name of the error's class over there.
    :param problem: its text, which says what to do.
    """

    kind: str
    problem: str

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
            raise self._unreachable(error) from error

    def ask(self, command: str, *, timeout: float | None = ANSWER, **arguments: Any) -> Any:
        """Ask, and wait for the answer.

        :param timeout: seconds, or None for no limit.
        :return: JSON.
        :raises RefusedError: the supervisor says why it does not.
        :raises ControlError: there is no answer, or none that a supervisor would give.
        """
        deadline = _deadline(timeout)
        request = json.dumps({"command": command, **arguments}).encode() + b"\n"
        # One that refuses to listen may have said why.
        with suppress(ConnectionError):
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(request)
        while b"\n" not in self._received:
            if len(self._received) > _LONGEST:
                raise self._strange()
            if not self._receive(deadline, f"{command} was not answered within {timeout:g} s" if timeout else ""):
                raise ControlError(str(self._path), f"the supervisor ended before it answered {command}", _LOG)
        line, _, rest = self._received.partition(b"\n")
        self._received = rest
        return self._result(bytes(line))

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
            remedy = "it goes on with it; `novasvc workers` shows how far it is, unless it hangs"
            raise ControlError(str(self._path), late, remedy) from None
        except ConnectionError:
            return False
        self._received += data
        return bool(data)

    def _result(self, line: bytes) -> Any:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise self._strange() from None
        match answer:
            case {"result": result}:
                return result
            case {"error": {"type": str(kind), "message": str(problem)}}:
                raise RefusedError(kind, problem)
        raise self._strange()

    def _strange(self) -> ControlError:
        return ControlError(str(self._path), "what answers there is no supervisor", _START)

    def _unreachable(self, error: OSError) -> ControlError:
        path, problem, remedy = str(self._path), f"it cannot be reached: {error.strerror or error}", _START
        match error:
            case FileNotFoundError() | NotADirectoryError():
                problem = "no supervisor listens there"
            case ConnectionRefusedError():
                problem = "no supervisor listens there any more: the last one did not end by itself"
                if not self._is_socket():
                    problem = "something is there that is not a socket"
            case PermissionError():
                problem = f"uid {os.geteuid()} may not use it"
                remedy = "ask as the user that the supervisor runs as, or as root"
            case BlockingIOError():
                problem, remedy = "its supervisor does not answer, and others wait, too", _LOG
        return ControlError(path, problem, remedy)

    def _is_socket(self) -> bool:
        try:
            return stat.S_ISSOCK(self._path.stat().st_mode)
        except OSError:
            return True  # it has just gone

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
