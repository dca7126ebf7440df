"""Ask the processes of this user on this host what they serve, without a reactor."""

import json
import socket
import time
from contextlib import suppress
from pathlib import Path

from novasvc.transport.local.frames import LENGTH, LONGEST
from novasvc.transport.local.outgoing import SUFFIX, check_private


def served_topics(directory: Path, timeout: float) -> dict[str, set[str]]:
    """Return the topics that processes of this host serve, each with the hosts that it is served on.

    The queues of their events are none.

    Processes that do not answer in time, and a directory that does not exist, are left out silently.

    :param directory: of the sockets.
    :param timeout: seconds for all processes together.
    """
    deadline = time.monotonic() + timeout
    try:
        check_private(directory)
        paths = sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
    except OSError:
        return {}
    topics: dict[str, set[str]] = {}
    for path in paths:
        # A process that was killed refuses the connection; its socket is removed by the next node.
        # One that hangs leaves half of the time to the others.
        now = time.monotonic()
        with suppress(OSError, ValueError, KeyError, TypeError):
            for _exchange, topic, host in _consumed(path, now + (deadline - now) / 2):
                topics.setdefault(str(topic), set()).update({str(host)} if host else ())
    return topics


def _consumed(path: Path, deadline: float) -> list[list[str | None]]:
    """Read what a process consumes, which it says first; see :mod:`novasvc.transport.local.frames`."""
    with socket.socket(socket.AF_UNIX) as connection:
        # connect() blocks while the backlog is full.
        connection.settimeout(_remaining(deadline))
        connection.connect(str(path))
        (length,) = LENGTH.unpack(_receive(connection, LENGTH.size, deadline))
        if length > LONGEST:
            raise ValueError(length)
        header, _, _ = _receive(connection, length, deadline).partition(b"\n")
        told = json.loads(header)
        queues: list[list[str | None]] = told["queues"]
        # A process of a release before events tells no bindings.
        subscribed = {queue for _exchange, _key, queue in told.get("bindings", ())}
        return [[exchange, topic, host] for exchange, topic, host in queues if topic not in subscribed]


def _receive(connection: socket.socket, length: int, deadline: float) -> bytes:
    received = b""
    while len(received) < length:
        connection.settimeout(_remaining(deadline))
        data = connection.recv(length - len(received))
        if not data:
            raise ConnectionError("end of file")
        received += data
    return received


def _remaining(deadline: float) -> float:
    # Not 0: settimeout(0) means non-blocking.
    return max(deadline - time.monotonic(), 0.001)
