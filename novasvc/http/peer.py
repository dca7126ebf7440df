"""The other end of a connection: whether it reads, and whether it is still there."""

# Note [Half-closed clients]
#
# A client may shut down its sending side (TCP's FIN) when it has sent its request, and wait for the answer. So a FIN
# ends the requests and not the connection: what came before it is answered. But a client that closes, or dies, sends
# the same FIN, and nobody needs its answer. What tells the two apart is what the client's host does when something is
# sent to it: it acknowledges, or it resets the connection. So:
#
# - A begun answer finds out by itself.
# - A client of HTTP/1.1 that still waits after a moment is sent an interim response, "100 Continue", which every client
#   has to pass over (RFC 9110, 15.2).
# - For all of TCP the kernel probes. The host of a client that has closed acknowledges probes until it has forgotten
#   the connection (tcp_fin_timeout, a minute on Linux), and resets it then.
#
# The reactor does not watch a socket that it neither reads nor writes, so the site looks for the reset once a second.
#
# Over TLS the end of one direction is the end of both: TLS 1.2 has a close_notify answered at once, and pending answers
# discarded (RFC 5246, 7.2.1), and Twisted does the same for TLS 1.3. A FIN without close_notify may be an attacker's
# (RFC 9112, 9.8).

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from struct import unpack
from termios import TIOCOUTQ
from typing import Any, cast

from twisted.internet.interfaces import ITCPTransport

from novasvc.http.limits import Limits

PROBE_IDLE = 15
"""Seconds until the kernel probes a client that has ended its sending side, and between two probes."""


class Backlog:
    """What a client has not read yet of what it was sent; see the note Late clients in channel.py.

    :param clock: returns seconds.
    """

    def __init__(self, transport: Any, limits: Limits, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._limits = limits
        self._clock = clock
        self._octets: int | None = None

    def due(self, otherwise: float) -> float:
        """Return when the client is to have read some of it.

        :param otherwise: seconds, where nobody knows how much there is.
        """
        self._octets = unsent(self._transport)
        limits = self._limits
        seconds = otherwise if self._octets is None else limits.body_timeout
        return self._clock() + (min(seconds, limits.idle_timeout) if limits.idle_timeout else seconds)

    def is_read(self) -> bool:
        """Return whether the client reads at the rate at which it would have to send."""
        before, now = self._octets, unsent(self._transport)
        if before is None or now is None:
            return False
        limits = self._limits
        seconds = min(limits.body_timeout, limits.idle_timeout) if limits.idle_timeout else limits.body_timeout
        return bool(before - now >= seconds * limits.body_rate)


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
    handle = cast(Any, transport).getHandle()
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
