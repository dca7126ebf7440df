"""What two processes of a supervisor say to each other: JSON objects, one a line, over a socket pair."""

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

LONGEST = 1 << 20
"""Octets in a line that is taken; a longer one is the end of the channel, so nobody may say such a one."""


class Pipe(LineOnlyReceiver):
    """One end of a socket pair, in a process with a reactor.

    :param receive: takes each message of the other end.
    :param lost: called once, when the other end is closed, which the end of its process does as well.
    """

    delimiter = b"\n"
    MAX_LENGTH = LONGEST

    def __init__(self, receive: Callable[[PipeMessage], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost

    def send(self, message: PipeMessage, descriptors: tuple[int, ...] = ()) -> None:
        """Say something; nothing happens if the other end is gone.

        :param descriptors: go with it; they are to stay open until there is an answer.
        """
        if self.transport is None or not self.connected:
            return
        for descriptor in descriptors:
            self.transport.sendFileDescriptor(descriptor)  # type: ignore[attr-defined]  # IUNIXTransport has it
        self.sendLine(json.dumps(message, default=str).encode())

    def close(self) -> None:
        """Close this end; what was said before still arrives."""
        if self.transport is not None:
            self.transport.loseConnection()

    def lineReceived(self, line: bytes) -> None:
        """Take a message; one that fails harms no other."""
        try:
            self._receive(json.loads(line))
        except Exception:  # noqa: BLE001 - the processes go on, whatever one of them says
            _log.failure("handling a message from a related process failed")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """See the other end go."""
        self._lost()


class _PipeFactory(Factory):
    """Makes no protocol, but has one."""

    noisy = False

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def buildProtocol(self, addr: object) -> Pipe:
        return self._pipe


def adopt(reactor: Any, end: socket.socket, pipe: Pipe) -> Pipe:
    """Connect a channel to one end of a socket pair; the socket itself is closed.

    :param reactor: provides IReactorSocket.
    :raises OSError: there is no descriptor left.
    """
    with end:
        end.setblocking(False)
        reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, _PipeFactory(pipe))
    return pipe
