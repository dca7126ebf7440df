"""Messages between supervisor, forkserver and workers: JSON objects, one per line, over a socket pair."""

import json
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

_log = Logger()

PipeMessage = dict[str, Any]

MAX_MESSAGE_LENGTH = 2 << 20
"""Bytes per line; a longer line closes the pipe, so senders must bound their messages."""


class Pipe(LineOnlyReceiver):
    """One end of a socket pair, in a process with a reactor.

    :param receive: called with each message from the other end.
    :param lost: called once, when the other end is closed, also by the exit of its process.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_MESSAGE_LENGTH

    def __init__(self, receive: Callable[[PipeMessage], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost

    def send(self, message: PipeMessage, descriptors: tuple[int, ...] = ()) -> None:
        """Send a message; does nothing if the other end is gone.

        :param descriptors: file descriptors to pass along; keep them open until the peer has answered.
        """
        if self.transport is None or not self.connected:
            return
        for descriptor in descriptors:
            self.transport.sendFileDescriptor(descriptor)  # type: ignore[attr-defined]  # IUNIXTransport has it
        self.sendLine(json.dumps(message, default=str).encode())

    def close(self) -> None:
        """Close this end after pending messages are written."""
        if self.transport is not None:
            self.transport.loseConnection()

    def lineReceived(self, line: bytes) -> None:
        """Handle a message; an error is logged, and the pipe stays open."""
        try:
            self._receive(json.loads(line))
        except Exception:  # noqa: BLE001 - a bad message must not end this process
            _log.failure("handling a message from a related process failed")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Handle the close of the other end."""
        self._lost()


class _PipeFactory(Factory):
    """Returns the protocol that it was given."""

    noisy = False

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def buildProtocol(self, addr: object) -> Pipe:
        return self._pipe


def adopt(reactor: Any, end: socket.socket, pipe: Pipe) -> Pipe:
    """Attach a pipe to one end of a socket pair; the reactor gets a duplicate, and the socket is closed.

    :param reactor: provides IReactorSocket.
    :raises OSError: out of file descriptors.
    """
    with end:
        end.setblocking(False)
        reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, _PipeFactory(pipe))
    return pipe
