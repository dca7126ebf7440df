"""The client's side of the control protocol, without a reactor. The protocol is in docs/workers.md."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from novasvc.workers.errors import CommandRejectedError, ControlError

ANSWER_TIMEOUT = 10.0
"""Seconds for a supervisor to answer a query."""

MAX_ANSWER_LENGTH = 64 * 1024 * 1024
"""Bytes per answer; the largest one has the stacks of all workers."""

_START_REMEDY = (
    "start a supervisor with `twistd -n novasvc --workers N`, or name its socket with --control-socket or --state-dir"
)

_LOG_REMEDY = "see the supervisor's log for the reason"


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
    return ControlError(str(path), "the process that listens there is not a novasvc supervisor", _START_REMEDY)


def ended_early(path: Path, command: str) -> ControlError:
    """Make the error for a connection closed without an answer."""
    return ControlError(str(path), f"the supervisor exited before it answered {command}", _LOG_REMEDY)


def unanswered(path: Path, late: str) -> ControlError:
    """Make the error for an answer that did not come in time."""
    remedy = "the supervisor is still working on it; `novasvc workers` shows the progress"
    return ControlError(str(path), late, remedy)


def unreachable(path: Path, error: OSError) -> ControlError:
    """Make the error for a failed connection attempt."""
    problem, remedy = f"cannot connect: {error.strerror or error}", _START_REMEDY
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
            problem, remedy = "the supervisor does not accept connections: its backlog is full", _LOG_REMEDY
    return ControlError(str(path), problem, remedy)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return True  # just unlinked: it was one
