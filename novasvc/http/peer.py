"""What this host knows of the other end of a connection without hearing from it."""

import select
import socket
from contextlib import suppress
from fcntl import ioctl
from struct import unpack
from termios import TIOCOUTQ
from typing import Any

from twisted.internet.interfaces import ITCPTransport

PROBE_IDLE = 15
"""Seconds until the kernel probes a client that has ended its sending side, and between two probes."""


def unsent(transport: Any) -> int | None:
    """Return the octets that wait in this process to be sent; None if the transport does not tell."""
    # A wrapper, as that of TLS, passes on what it is given.
    while not hasattr(transport, "dataBuffer") and hasattr(transport, "transport"):
        transport = transport.transport
    if not hasattr(transport, "_tempDataLen"):
        return None
    return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)  # noqa: SLF001 - no other way


def has_arrived(transport: Any) -> bool:
    """Return whether the other host has acknowledged all that was written.

    True where the kernel does not tell, as soon as nothing waits in this process.
    """
    if unsent(transport):
        return False
    found = _descriptor(transport)
    if found is None:
        return True
    try:
        (waiting,) = unpack("i", ioctl(found, TIOCOUTQ, bytes(4)))
    except OSError:
        return True
    return bool(waiting == 0)


def is_gone(transport: Any) -> bool:
    """Return whether the connection was reset, or (a unix socket) closed on the other side.

    A reactor does not tell that of a socket that it neither reads nor writes.
    """
    found = _descriptor(transport)
    if found is None:
        return False
    poll = select.poll()
    poll.register(found, 0)  # errors and hang-ups are told without being asked for
    return bool(poll.poll(0))


def probe(transport: Any) -> None:
    """Have the kernel ask every PROBE_IDLE seconds whether the connection is still there; a reset is the answer if not.

    Does nothing but on TCP.
    """
    if not ITCPTransport.providedBy(transport):
        return
    handle = transport.getHandle()
    if not isinstance(handle, socket.socket):
        return
    with suppress(OSError):  # that has just been closed
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_IDLE)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_IDLE)


def _descriptor(transport: Any) -> int | None:
    """Return the number of the socket; None if there is none."""
    while not hasattr(transport, "fileno") and hasattr(transport, "transport"):
        transport = transport.transport
    number = transport.fileno() if hasattr(transport, "fileno") else -1
    return number if number >= 0 else None
