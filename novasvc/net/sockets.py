"""Listening sockets from endpoint descriptions, which other processes may share."""

# Note [Shared sockets]
#
# The ports that Twisted's endpoints make cannot be shared between processes. A TCP port calls shutdown() when it
# closes, after which no other process can accept from the socket. A unix port unlinks the file when it closes, even
# if it was adopted, and sets an adopted one to mode 666. Its lock file names a pid, which may be reused by now, or be
# that of a dead supervisor whose workers still listen. So endpoints are only asked what they would listen on
# (see _RecordingReactor), and the sockets are made here. TCP sockets are accepted from by Twisted's adopted port,
# which does not call shutdown(); unix sockets by :class:`~novasvc.net.unix.UNIXPort`.
#
# A unix socket's file is unlinked when the object that bound it is closed in the process that bound it. Duplicates in
# other processes never unlink it.

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.python.failure import Failure

from novasvc.net.errors import ListenError
from novasvc.net.unix import open_unix

_REMEDIES = {
    errno.EADDRINUSE: "end the process that listens there (`ss -lptn` and `ss -lpx` name it), or give another address",
    errno.EACCES: "run as a user with permission, pass the socket from systemd, or give another address",
    errno.EADDRNOTAVAIL: "give an address of this host",
    errno.ENOENT: "create the directory, or give another path",
}


@attrs.define
class ParsedEndpoint:
    """A parsed endpoint description.

    :param open: returns a non-blocking listening socket. It takes the sockets of a predecessor, and returns the one
        that is bound to the same address, if any.
    :param factory: the given factory, or the wrapper that the endpoint adds, as for TLS.
    """

    open: Callable[[Sequence[socket.socket]], socket.socket]
    factory: Any


def parse_endpoint(description: str, factory: Any) -> ParsedEndpoint:
    """Parse the description of a server endpoint; nothing is opened yet.

    :param description: as :func:`twisted.internet.endpoints.serverFromString` takes it.
    :param factory: provides IProtocolFactory.
    :raises ListenError: the description is invalid, or does not listen on exactly one socket.
    """
    asked = _RecordingReactor()
    try:
        endpoint = serverFromString(asked, description)
    except Exception as error:
        if description.startswith("systemd:") and isinstance(error, LookupError):
            problem = "systemd passed no socket of that name to this process"
            remedy = "start the process through its .socket unit, and use the name from its FileDescriptorName="
        else:
            problem = f"invalid endpoint description ({_line(error)})"
            remedy = 'give one such as "tcp:8000:interface=127.0.0.1" or "unix:/run/novasvc/api.socket:mode=660"'
        raise ListenError(description, problem, remedy) from error
    if isinstance(endpoint, AdoptedStreamServerEndpoint):
        # Its listen() would close the inherited descriptor, which the next reload needs.
        return ParsedEndpoint(partial(_open_inherited, description, endpoint.fileno), factory)
    outcome: list[object] = []
    listening = maybeDeferred(endpoint.listen, factory).addBoth(outcome.append)
    listening.cancel()
    if asked.answer is None:
        failed = outcome[0].value if outcome and isinstance(outcome[0], Failure) else None
        why = "" if failed is None else f" ({_line(failed)})"
        remedy = "give a tcp, unix or systemd endpoint, or use Twisted's StreamServerEndpointService"
        raise ListenError(description, f"the endpoint does not listen on exactly one socket{why}", remedy)
    return asked.answer


class _RecordingReactor:
    """A stand-in for a reactor that records what an endpoint would listen on."""

    answer: ParsedEndpoint | None = None

    def listenTCP(  # noqa: N802 - IReactorTCP
        self, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> None:
        self.answer = ParsedEndpoint(partial(_open_tcp, interface, port, backlog), factory)

    def listenSSL(  # noqa: N802 - IReactorSSL
        self,
        port: int,
        factory: Any,
        contextFactory: Any,  # noqa: N803
        backlog: int = 50,
        interface: str = "",
    ) -> None:
        from twisted.protocols.tls import TLSMemoryBIOFactory  # noqa: PLC0415 - TLS is imported only if used

        self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)

    def listenUNIX(  # noqa: N802 - IReactorUNIX
        self,
        address: str,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: object = None,  # noqa: N803 - ignored: see Note [Shared sockets]
    ) -> None:
        def opened(held: Sequence[socket.socket]) -> socket.socket:
            with _listen_errors(f"unix socket {address}"):
                return open_unix(address, mode, backlog, held)

        self.answer = ParsedEndpoint(opened, factory)


def port_of(listening: socket.socket) -> int | None:
    """Return the port number; None for a unix socket."""
    return None if listening.family == socket.AF_UNIX else int(listening.getsockname()[1])


def keep_alive(listening: socket.socket, seconds: int) -> None:
    """Enable TCP keepalive on a listening socket; accepted connections inherit it.

    :param seconds: idle seconds before the first probe (TCP_KEEPIDLE); 0 disables keepalive.
    """
    if seconds:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)


def address_of(listening: socket.socket) -> str:
    """Return the address of a listening socket, for messages."""
    name = listening.getsockname()
    return f"unix socket {os.fsdecode(name)}" if listening.family == socket.AF_UNIX else _format_address(*name[:2])


def _format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _open_tcp(interface: str, port: int, backlog: int, held: Sequence[socket.socket]) -> socket.socket:
    family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
    with _listen_errors(_format_address(interface or "0.0.0.0", port)):  # noqa: S104 - only shown
        found = socket.getaddrinfo(interface or None, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        address = found[0][4]
        for one in held:
            # Port 0 matches whatever port the predecessor got, since clients know that one.
            if one.family == family and one.getsockname()[0] == address[0] and port in {0, one.getsockname()[1]}:
                one.listen(backlog)
                return one
        listening = _bind(family, address)
        try:
            listening.listen(backlog)
            listening.setblocking(False)
        except BaseException:
            listening.close()
            raise
        return listening


def bind_tcp(interface: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, but does not listen.

    :param interface: an address of this host, or "localhost".
    :raises ListenError: the address cannot be bound, most likely because another process listens there.
    """
    family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
    with _listen_errors(_format_address(interface, port)):
        return _bind(family, socket.getaddrinfo(interface, port, family, socket.SOCK_STREAM)[0][4])


def _bind(family: socket.AddressFamily, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def _open_inherited(description: str, descriptor: int, _: Sequence[socket.socket]) -> socket.socket:
    """Duplicate a socket passed by systemd; the original stays open for the next reload."""
    with _listen_errors(description):
        original = socket.socket(fileno=descriptor)
        try:
            original.set_inheritable(False)
            listening = original.dup()
        finally:
            original.detach()
    if listening.type != socket.SOCK_STREAM or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listening.close()
        problem, remedy = (
            "the socket from systemd is not listening",
            "use ListenStream= without Accept= in the .socket unit",
        )
        raise ListenError(description, problem, remedy)
    listening.setblocking(False)
    return listening


@contextmanager
def _listen_errors(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "give another address")
        raise ListenError(address, error.strerror or str(error), remedy) from error


def _line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
