"""The unix socket by which operators see and steer a supervisor. The protocol is in docs/workers.md."""

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
"""Those who may ask at a time; each has one request under way."""

_PAUSE = 1.0
"""Seconds without new connections when the system has no descriptor for one."""

_CLOSE_TIMEOUT = 1.0
"""Seconds that the last answers have to be taken, when the service stops."""


class ControlSocket(Service):
    """Answers operators' requests to a supervisor, from processes of the same user and of root.

    What was asked for goes on when who asked is gone. Who drains the whole supervisor waits until
    its connection is closed: so this is to be stopped when the workers have ended, not before.

    :param path: of the socket; its directory is made if it is missing.
    :param supervisor: does what is asked for.
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
        """The descriptor of the place's lock; None while it is not ours."""
        return None if self._path_lock is None else self._path_lock.descriptor

    def startService(self) -> None:
        """Listen.

        :raises OrphansError: workers of a supervisor that is gone are still there.
        :raises ControlError: the place cannot be had, or another process has it.
        """
        self._path_lock = PathLock.acquire(self._path)
        self._listener = _Listener(self._path_lock.socket, self._accept, self._reactor)
        self._listener.startReading()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop listening, and close all connections.

        :return: fired when they are closed.
        """
        super().stopService()
        if self._path_lock is not None and self._listener is not None:
            self._listener.stop()
            self._path_lock.release()
            self._path_lock = self._listener = None
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        """Let those who ask have their last answer, if they take it soon."""
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
        """Talk to who has connected, or say why not."""
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
    """Accepts connections.

    Not Twisted's port: that makes the file of its unix socket writable for everybody, and removes
    whatever is at its path when it closes.

    :param listening: does not block.
    :param accept: is called with each; the socket is closed afterwards.
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
        """Accept one who waits; the reactor comes again for the next."""
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
            # It would be readable again at once, and nothing else would be done any more.
            _log.warn("cannot accept connections: {error}; retrying in {s:g} s", error=error.strerror, s=_PAUSE)
            self.stopReading()
            self._timer = self._clock.callLater(_PAUSE, self._go_on)

    def stop(self) -> None:
        """Accept no more; the socket is closed by who made it."""
        self.stopReading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        self._timer = None
        self.startReading()
