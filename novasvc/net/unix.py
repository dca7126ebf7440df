"""Unix sockets of servers: bound without harm to one that lives, accepted from without harm to the file."""

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.errors import ListenError

_log = Logger()

_ACCEPTS = 32
"""Connections that are accepted in one turn of the reactor at first; it has other things to do."""
_MORE = 20
"""Connections that are added to that as long as more wait."""

_PAUSE = 0.5
"""Seconds in which nothing is accepted when there is no descriptor left for it. Other processes may go on."""


class UNIXListener(socket.socket):
    """A listening unix socket that takes its file along when it is closed by the process that bound it."""

    _bound: tuple[int, Path, tuple[int, int]] | None = None

    def bind(self, address: Any) -> None:
        """Bind it; the file is this object's from now on."""
        super().bind(address)
        if not address.startswith("\0"):
            path = Path(address).absolute()
            self._bound = (os.getpid(), path, _identity(path))

    def close(self) -> None:
        """Close it, and unlink its file if that is still its own."""
        if self._bound is not None:
            process, path, identity = self._bound
            self._bound = None
            # It still listens, so nobody has taken it for stale and bound another in its place meanwhile.
            if process == os.getpid() and _identity(path) == identity:
                path.unlink()
        super().close()


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.lstat()
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def open_unix(path: str, mode: int, backlog: int, held: Sequence[socket.socket]) -> socket.socket:
    """Return a socket that listens there.

    :param path: a NUL in front makes it a name in the kernel, which has no file and no mode.
    :param mode: of the file.
    :param held: one of them that is bound to the path is returned, if its file is still there.
    :raises OSError: EADDRINUSE if another process listens there.
    :raises ListenError: a file that is no socket is there.
    """
    has_file = not path.startswith("\0")
    for one in held:
        # A file that somebody has removed cannot be given back: that needs another socket.
        if _is_bound(one, path) and (not has_file or Path(path).is_socket()):
            if has_file:
                Path(path).chmod(mode)
            one.listen(backlog)
            return one
    listening = UNIXListener(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    try:
        if has_file:
            with _only_one(Path(path)):
                _make_room(Path(path))
                listening.bind(path)
                # Nobody can connect before it listens, so there is no moment with another mode.
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
def _only_one(path: Path) -> Iterator[None]:
    """Keep out others who bind the same path: what was seen to be stale could be theirs when it is unlinked.

    A name in the kernel is the lock: it goes with its process, however that ends.
    """
    directory = path.parent.stat()
    key = f"{directory.st_dev}:{directory.st_ino}:{path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        lock.bind("\0novasvc/" + hashlib.sha256(os.fsencode(key)).hexdigest())
        yield


def _make_room(path: Path) -> None:
    """Remove the file of a socket on which nobody listens any more; any other is left to fail the bind."""
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
class UNIXPort:
    """Accepts from a listening unix socket, as other processes may do as well; see Note [Shared sockets].

    :param reactor: provides IReactorFDSet, IReactorSocket and IReactorTime.
    :param listening: does not block. It stays open when this stops.
    :param factory: provides IProtocolFactory.
    :ivar numberAccepts: connections that are accepted in one turn of the reactor, at the most.
    """

    def __init__(self, reactor: Any, listening: socket.socket, factory: Any) -> None:
        self.numberAccepts = _ACCEPTS  # as a port of Twisted
        self._reactor = reactor
        self._listening = listening
        self._factory = factory
        self._accepting = False
        self._pause: IDelayedCall | None = None

    def startListening(self) -> None:  # noqa: N802 - as a port of Twisted
        """Accept connections."""
        self._factory.doStart()
        self._accepting = True
        self._reactor.addReader(self)

    def stopListening(self) -> Deferred[None]:  # noqa: N802 - as a port of Twisted
        """Accept no more.

        :return: Deferred[None], fired.
        """
        self._accepting = False
        self._reactor.removeReader(self)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._factory.doStop()
        return succeed(None)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._listening.fileno()

    def logPrefix(self) -> str:
        """Return what is put before lines of the log."""
        return type(self._factory).__name__

    def doRead(self) -> None:
        """Accept those who wait. Another process may have been faster."""
        for accepted in range(self.numberAccepts):
            if not self._accepting:  # the last one has had it stopped
                return
            try:
                connection, _address = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                self.numberAccepts = max(1, accepted)
                return
            except OSError as error:
                _log.warn("cannot accept connections for {s:g} s: {why}", s=_PAUSE, why=error.strerror)
                self._reactor.removeReader(self)
                self._pause = self._reactor.callLater(_PAUSE, self._go_on)
                return
            with connection:
                connection.setblocking(False)
                try:
                    self._reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, self._factory)
                except Exception:  # noqa: BLE001 - the others are accepted whatever this one does
                    _log.failure("serving a connection on a unix socket failed")
        self.numberAccepts += _MORE

    def connectionLost(self, reason: Failure) -> None:
        """See the reactor end; the socket is its owner's to close."""

    def _go_on(self) -> None:
        self._pause = None
        self._reactor.addReader(self)
