"""The control socket: listens, checks the peer's uid, limits connections. The protocol is in docs/workers.md."""

import os
import socket
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from novasvc.interfaces import ISupervisor
from novasvc.net.unix import UNIXAcceptor
from novasvc.workers.control.connection import ControlConnection, error_line
from novasvc.workers.control.path_lock import PathLock, peer_credentials
from novasvc.workers.errors import ControlError

_log = Logger()

MAX_CONNECTIONS = 16
"""Concurrent connections; each has at most one command running."""

_CLOSE_TIMEOUT = 1.0
"""Seconds for clients to read their last answer when the service stops."""


class ControlSocket(Service):
    """Accept supervisor commands from clients with our uid or root. Owned by ProcessLauncher.

    A command continues after its client disconnects. Stop this service only after the workers exit: the close tells a
    draining client that it is done.

    :param path: of the socket; a missing directory is created.
    :param supervisor: executes the commands.
    :param reactor: provides IReactorFDSet, IReactorSocket and IReactorTime.
    """

    def __init__(self, path: Path, supervisor: ISupervisor, reactor: Any) -> None:
        self._path = path
        self._supervisor = supervisor
        self._reactor = reactor
        self._path_lock: PathLock | None = None
        self._acceptor: UNIXAcceptor | None = None
        # A connection adds itself when it is made, and removes itself when it is lost.
        self._connections: set[ControlConnection] = set()

    @property
    def lock_fd(self) -> int | None:
        """The descriptor of the lock file; None while the lock is not held."""
        return None if self._path_lock is None else self._path_lock.descriptor

    def startService(self) -> None:
        """Acquire the path and listen.

        :raises OrphansError: another process has locked the path, but nobody listens.
        :raises ControlError: the path cannot be used, or another process uses it.
        """
        self._path_lock = PathLock.acquire(self._path)
        self._acceptor = UNIXAcceptor(self._reactor, self._path_lock.socket, self._accept)
        self._acceptor.start()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop listening, and close all connections.

        :return: Deferred, fired when they are closed.
        """
        super().stopService()
        if self._path_lock is not None and self._acceptor is not None:
            self._acceptor.stop()
            self._path_lock.release()
            self._path_lock = self._acceptor = None
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
        await DeferredList([connection.closed for connection in connections])
        if timer.active():
            timer.cancel()

    def _accept(self, accepted: socket.socket) -> None:
        """Serve a new connection, or reject it with the reason."""
        pid, uid = peer_credentials(accepted)
        own = os.geteuid()
        if uid not in {0, own}:
            _log.warn("control connection from uid {uid} (pid {pid}) rejected", uid=uid, pid=pid)
            problem, remedy = f"uid {uid} may not connect", f"connect as uid {own} or as root"
        elif len(self._connections) >= MAX_CONNECTIONS:
            problem, remedy = f"all {MAX_CONNECTIONS} connections are in use", "try again later"
        else:
            connection = ControlConnection(self._supervisor, f"uid {uid}, pid {pid}", self._connections, self._reactor)
            factory = Factory.forProtocol(lambda: connection)
            # The reactor duplicates the descriptor; the acceptor closes ours.
            self._reactor.adoptStreamConnection(accepted.fileno(), socket.AF_UNIX, factory)
            return
        accepted.send(error_line(ControlError(str(self._path), problem, remedy)) + b"\n")
