"""Unix sockets of servers: bind without breaking a live listener, accept without touching the file."""

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.net.errors import ListenError

_log = Logger()

_ACCEPTS = 32
"""Connections that a server accepts per reactor iteration at first, so that other work is not starved."""
_MORE = 20
"""Increment of that number while its backlog is not empty."""

_PAUSE = 0.5
"""Seconds to stop accepting when out of file descriptors; other processes may go on."""


class UNIXListener(socket.socket):
    """A listening unix socket that unlinks its file when closed by the process that bound it."""

    _bound: tuple[int, Path, tuple[int, int]] | None = None

    def bind(self, address: Any) -> None:
        """Bind, and own the socket file from now on."""
        super().bind(address)
        if not address.startswith("\0"):
            path = Path(address).absolute()
            self._bound = (os.getpid(), path, _identity(path))

    def rename(self, path: Path) -> None:
        """Give the socket file another name in its directory."""
        if self._bound is not None:
            process, old, identity = self._bound
            old.rename(path)
            self._bound = process, path, identity

    def close(self) -> None:
        """Unlink the file if it is still ours, and close."""
        if self._bound is not None:
            process, path, identity = self._bound
            self._bound = None
            # Unlink before closing: while it listens, no other process takes the file for stale and replaces it.
            if process == os.getpid() and _identity(path) == identity:
                with suppress(OSError):  # privileges were dropped since bind(); the file is stale then, see open_unix
                    path.unlink()
        super().close()


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.lstat()
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def open_unix(path: str, mode: int, backlog: int, held: Sequence[socket.socket]) -> socket.socket:
    """Return a socket that listens on a path.

    :param path: with a leading NUL it is an abstract name, without file and mode.
    :param mode: of the socket file.
    :param held: sockets of a predecessor; one that is bound to the path is reused if its file still exists.
    :raises OSError: EADDRINUSE if another process listens there.
    :raises ListenError: the path is a file that is not a socket.
    """
    has_file = not path.startswith("\0")
    for one in held:
        # A deleted socket file cannot be restored: bind a new socket.
        if _is_bound(one, path) and (not has_file or Path(path).is_socket()):
            # Without CAP_FOWNER chmod() fails on a file of another user, also if it would change nothing.
            if has_file and stat.S_IMODE(Path(path).stat().st_mode) != mode:
                Path(path).chmod(mode)
            one.listen(backlog)
            return one
    listening = UNIXListener(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    try:
        if has_file:
            with _exclusively(Path(path)):
                _remove_stale(Path(path))
                listening.bind(path)
                # chmod before listen(): nobody can connect with the wrong mode in between.
                Path(path).chmod(mode)
                listening.listen(backlog)
        else:
            listening.bind(path)
            listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening


def _is_bound(one: socket.socket, path: str) -> bool:
    return one.family == socket.AF_UNIX and os.fsdecode(one.getsockname()) == path


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    """Lock a path against concurrent binders: one could unlink the socket that another has just bound.

    The lock is an abstract socket name, which the kernel releases when the process exits.
    """
    directory = path.parent.stat()
    key = f"{directory.st_dev}:{directory.st_ino}:{path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        lock.bind("\0novasvc/" + hashlib.sha256(os.fsencode(key)).hexdigest())
        yield


def _remove_stale(path: Path) -> None:
    """Unlink a stale socket file; a live one is left, and makes bind() fail."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        problem, remedy = "the file there is not a socket", "remove it, or give another path"
        raise ListenError(f"unix socket {path}", problem, remedy)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
            path.unlink()


@implementer(IReadDescriptor)
class UNIXAcceptor:
    """Accepts from a listening unix socket that its owner opens and closes.

    Not Twisted's port, which makes the socket file world-writable, and unlinks whatever is at the path when it closes.

    :param reactor: provides IReactorFDSet and IReactorTime.
    :param listening: non-blocking; stays open when this stops.
    :param accept: called with each connection, which is closed when it returns.
    :param most: connections accepted per reactor iteration. One leaves the reactor time to notice which of them are
        closed before the next is accepted.
    :param more: increment of that number while the backlog is not empty.
    :ivar numberAccepts: the number now, as Twisted's ports have it.
    """

    def __init__(
        self,
        reactor: Any,
        listening: socket.socket,
        accept: Callable[[socket.socket], None],
        most: int = 1,
        more: int = 0,
    ) -> None:
        self.numberAccepts = most
        self._more = more
        self._reactor = reactor
        self._listening = listening
        self._accept = accept
        self._accepting = False
        self._pause: IDelayedCall | None = None

    def start(self) -> None:
        """Start accepting."""
        self._accepting = True
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Stop accepting."""
        self._accepting = False
        self._reactor.removeReader(self)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    @property
    def pausing(self) -> bool:
        """Whether it waits until there are file descriptors again."""
        return self._pause is not None

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._listening.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log lines."""
        return type(self).__name__

    def doRead(self) -> None:
        """Accept pending connections; another process may have taken them."""
        if self.pausing:
            return
        for accepted in range(self.numberAccepts):
            if not self._accepting:  # stopped by the previous connection
                return
            try:
                connection, _address = self._listening.accept()
                with connection:
                    connection.setblocking(False)
                    self._accept(connection)
            except (BlockingIOError, ConnectionAbortedError):
                self.numberAccepts = max(1, accepted)
                return
            except ConnectionError as error:
                _log.debug("a connection was lost when it was accepted: {error}", error=error.strerror)
            except OSError as error:
                # EMFILE, most likely. The socket stays readable, so the reactor would spin: pause instead.
                _log.warn("cannot accept connections: {why}; retrying in {s:g} s", s=_PAUSE, why=error.strerror)
                self._reactor.removeReader(self)
                self._pause = self._reactor.callLater(_PAUSE, self._resume)
                return
            except Exception:  # noqa: BLE001 - one bad connection must not stop the others
                _log.failure("serving a connection on a unix socket failed")
        self.numberAccepts += self._more

    def connectionLost(self, reason: Failure) -> None:
        """Ignore the reactor's shutdown; the owner closes the socket."""

    def _resume(self) -> None:
        self._pause = None
        self._reactor.addReader(self)


class UNIXPort(UNIXAcceptor):
    """Serves a unix socket that other processes may share; see Note [Shared sockets].

    :param reactor: provides IReactorFDSet, IReactorSocket and IReactorTime.
    :param factory: provides IProtocolFactory.
    """

    def __init__(self, reactor: Any, listening: socket.socket, factory: Any) -> None:
        super().__init__(reactor, listening, self._serve, _ACCEPTS, _MORE)
        self._factory = factory

    def startListening(self) -> None:  # noqa: N802 - as a port of Twisted
        """Start accepting."""
        self._factory.doStart()
        self.start()

    def stopListening(self) -> Deferred[None]:  # noqa: N802 - as a port of Twisted
        """Stop accepting.

        :return: Deferred[None], already fired.
        """
        self.stop()
        self._factory.doStop()
        return succeed(None)

    def logPrefix(self) -> str:
        """Return the prefix of log lines."""
        return type(self._factory).__name__

    def _serve(self, connection: socket.socket) -> None:
        self._reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, self._factory)
