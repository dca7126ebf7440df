"""The control socket: listens, checks the peer's uid, limits connections. The protocol is in docs/workers.md."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from novasvc.interfaces import ISupervisor
from novasvc.workers.control.connection import ControlConnection, error_line
from novasvc.workers.control.path_lock import PathLock, peer_credentials
from novasvc.workers.errors import ControlError

_log = Logger()

CONNECTIONS = 16
"""Concurrent connections; each has at most one command running."""

_PAUSE = 1.0
"""Seconds to stop accepting when out of file descriptors."""

_CLOSE_TIMEOUT = 1.0
"""Seconds for clients to read their last answer when the service stops."""


class ControlSocket(Service):
    """Runs commands for a supervisor, for clients of the same user and root.

    A command goes on when its client disconnects. A client that drains the whole supervisor waits for
    its connection to close: so stop this service only after the workers have exited.

    :param path: of the socket; a missing directory is created.
    :param supervisor: executes the commands.
    :param reactor: provides IReactorFDSet, IReactorSocket and IReactorTime.
    """

    def __init__(self, path: Path, supervisor: ISupervisor, reactor: Any) -> None:
        self._path = path
        self._supervisor = supervisor
        self._reactor = reactor
        self._path_lock: PathLock | None = None
        self._listener: _Listener | None = None
        self._connections: set[ControlConnection] = set()

    @property
    def lock(self) -> int | None:
        """The descriptor of the lock file; None while the lock is not held."""
        return None if self._path_lock is None else self._path_lock.descriptor

    def startService(self) -> None:
        """Acquire the path and listen.

        :raises OrphansError: workers of a killed supervisor are still draining.
        :raises ControlError: the path cannot be used, or another process uses it.
        """
        self._path_lock = PathLock.acquire(self._path)
        self._listener = _Listener(self._path_lock.socket, self._accept, self._reactor)
        self._listener.startReading()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop listening, and close all connections.

        :return: Deferred, fired when they are closed.
        """
        super().stopService()
        if self._path_lock is not None and self._listener is not None:
            self._listener.stop()
            self._path_lock.release()
            self._path_lock = self._listener = None
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        """Send pending clients their last answer, and abort those that do not read it in time."""
        connections = tuple(self._connections)

        def abort() -> None:
            for connection in connections:
                connection.abort()

        timer = self._reactor.callLater(_CLOSE_TIMEOUT, abort)
        for connection in connections:
            connection.finish()
        await DeferredList([connection.gone for connection in connections])
        if timer.active():
            timer.cancel()

    def _accept(self, accepted: socket.socket) -> None:
        """Serve a new connection, or reject it with the reason."""
        pid, uid = peer_credentials(accepted)
        own = os.geteuid()
        if uid not in {0, own}:
            _log.warn("control connection from uid {uid} (pid {pid}) rejected", uid=uid, pid=pid)
            problem, remedy = f"uid {uid} may not connect", f"connect as uid {own} or as root"
        elif len(self._connections) >= CONNECTIONS:
            problem, remedy = f"all {CONNECTIONS} connections are in use", "try again later"
        else:
            connection = ControlConnection(self._supervisor, f"uid {uid}, pid {pid}", self._connections, self._reactor)
            factory = Factory.forProtocol(lambda: connection)
            self._reactor.adoptStreamConnection(accepted.fileno(), socket.AF_UNIX, factory)
            return
        accepted.send(error_line(ControlError(str(self._path), problem, remedy)) + b"\n")


class _Listener(FileDescriptor):
    """Accepts connections on a unix socket that the caller owns.

    Not Twisted's port: it makes the socket file world-writable, and unlinks whatever is at the path
    when it closes.

    :param listening: non-blocking.
    :param accept: called with each connection, which is closed when it returns.
    """

    def __init__(self, listening: socket.socket, accept: Callable[[socket.socket], None], reactor: Any) -> None:
        super().__init__(reactor)
        self._listening = listening
        self._accept = accept
        self._clock = reactor
        self._timer: IDelayedCall | None = None

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return self._listening.fileno()

    def doRead(self) -> None:
        """Accept one connection; the reactor calls again while more wait."""
        try:
            accepted, _ = self._listening.accept()
            with accepted:
                accepted.setblocking(False)
                self._accept(accepted)
        except BlockingIOError:
            return
        except ConnectionError as error:
            _log.debug("a connection was lost before it was accepted: {error}", error=error.strerror)
        except OSError as error:
            # EMFILE, most likely. The socket stays readable, so the reactor would spin: pause instead.
            _log.warn("cannot accept connections: {error}; retrying in {s:g} s", error=error.strerror, s=_PAUSE)
            self.stopReading()
            self._timer = self._clock.callLater(_PAUSE, self._go_on)

    def stop(self) -> None:
        """Stop accepting; the caller closes the socket."""
        self.stopReading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        self._timer = None
        self.startReading()
