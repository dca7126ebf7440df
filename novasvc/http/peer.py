"""The client's end of a connection: whether it reads, and whether it is still there."""

# Note [Half-closed clients]
#
# A client may close its sending side (TCP's FIN) when it has sent its request, and wait for the response. So a FIN ends
# the requests and not the connection: what came before it is answered. But a client that closes, or dies, sends the
# same FIN, and nobody needs its response. What tells the two apart is how the client's host reacts when something is
# sent to it: it acknowledges, or it resets the connection. So:
#
# - A response that has begun finds out by itself.
# - A client of HTTP/1.1 that has waited for a moment is sent an interim response, "100 Continue", which every client
#   has to accept (RFC 9110, 15.2).
# - In all cases the kernel sends keepalive probes. The host of a client that has closed acknowledges them until it has
#   forgotten the connection (tcp_fin_timeout, a minute on Linux), and resets it then.
#
# The reactor does not watch a socket that it neither reads nor writes, so the site polls for the reset once a second.
#
# Over TLS there is no half-closing: TLS 1.2 requires an immediate close_notify in return, and pending data to be
# discarded (RFC 5246, 7.2.1), and Twisted does the same for TLS 1.3. A FIN without close_notify may be an attacker's
# (RFC 9112, 9.8).

import select
import socket
from contextlib import suppress
from fcntl import ioctl
from struct import unpack
from termios import TIOCOUTQ
from typing import Any, cast

from twisted.internet.interfaces import ITCPTransport

from novasvc._compat import buffered_octets

PROBE_IDLE = 15
"""Seconds until the kernel sends a half-closed client a keepalive probe, and between two probes."""


def has_arrived(transport: Any) -> bool:
    """Return whether the client's host has acknowledged all that was written.

    Where the kernel does not tell, return whether all was handed to it.
    """
    if buffered_octets(transport):
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
    """Return whether the connection was reset or, for a unix socket, closed by the client.

    A reactor does not notice on a socket that it neither reads nor writes.
    """
    found = _descriptor(transport)
    if found is None:
        return False
    poll = select.poll()
    poll.register(found, 0)  # POLLERR and POLLHUP are reported whatever is asked for
    return bool(poll.poll(0))


def probe(transport: Any) -> None:
    """Have the kernel send keepalive probes every PROBE_IDLE seconds; a client that is gone answers with a reset.

    Does nothing unless the transport is TCP.
    """
    if not ITCPTransport.providedBy(transport):
        return
    handle = cast(Any, transport).getHandle()
    if not isinstance(handle, socket.socket):
        return
    with suppress(OSError):  # it has just been closed
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_IDLE)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_IDLE)


def _descriptor(transport: Any) -> int | None:
    """Return the file descriptor of the socket; None if there is none."""
    while not hasattr(transport, "fileno") and hasattr(transport, "transport"):
        transport = transport.transport
    number = transport.fileno() if hasattr(transport, "fileno") else -1
    return number if number >= 0 else None
