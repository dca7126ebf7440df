"""The socket of this process and its connections to the other processes of the host."""

import os
import secrets
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from novasvc.net.unix import UNIXPort, open_unix
from novasvc.transport.local.incoming import IncomingFactory
from novasvc.transport.local.outgoing import SUFFIX, OtherProcesses, check_private
from novasvc.transport.memory import MemoryBroker

_log = Logger()

_BACKLOG = 128

_LAST_REPLIES = 1.0
"""Seconds in which replies are still passed to the connections before these are closed; usually one turn is enough."""


@attrs.define(eq=False)
class HostSockets:
    """The sockets by which the transports of one process reach the other processes of this user.

    :param broker: the queues of this process.
    :param reactor: provides IReactorUNIX, IReactorSocket, IReactorFDSet and IReactorTime.
    :param directory: has one socket for each process; made with mode 0700 if it does not exist. Whoever may connect to
        a socket may call every method.
    :ivar others: the connections to the other processes.
    """

    broker: MemoryBroker
    reactor: Any
    directory: Path
    others: OtherProcesses = attrs.field(init=False)
    incoming: IncomingFactory = attrs.field(init=False)
    _socket: Any = attrs.field(default=None, init=False)
    _port: UNIXPort | None = attrs.field(default=None, init=False)
    _unusable: bool = attrs.field(default=False, init=False)
    _users: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        # Replies go through the broker, which bounds them and guards against a receiver that raises.
        self.others = OtherProcesses(self.directory, self.reactor, self.broker.reply)
        self.incoming = IncomingFactory(self.broker, self.reactor)

    def acquire(self) -> None:
        """Count one more transport that uses the sockets."""
        self._users += 1

    def release(self) -> Deferred[None]:
        """Count one transport less; the last one closes the sockets, and waits until they are closed."""
        self._users -= 1
        return succeed(None) if self._users else Deferred.fromCoroutine(self._close())

    def listen(self) -> None:
        """Have other processes reach this one, from the first call on.

        If the directory cannot be used, the log says so once, and only this process reaches its servers.
        """
        if self._port is not None or self._unusable:
            return
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        path = self.directory / f"{name}{SUFFIX}"
        try:
            for missing in (self.directory.parent, self.directory):
                missing.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(self.directory)
            # Renamed when it listens: a socket of this suffix that refuses connections is taken for a dead one's.
            self._socket = open_unix(str(self.directory / name), 0o600, _BACKLOG, ())
            self._socket.rename(path)
        except OSError as error:
            self._unusable = True
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            _log.warn(
                "other processes of this host, such as `novasvc call`, cannot reach this one: no socket at {path}: "
                "{error}; set state_dir to a writable directory of this user with a short path",
                path=str(path),
                error=error.strerror or error,
            )
            return
        self.others.own = path
        self._port = UNIXPort(self.reactor, self._socket, self.incoming)
        self._port.startListening()

    async def _close(self) -> None:
        # The last replies of a server that has drained are on their way to the connections.
        until = self.reactor.seconds() + _LAST_REPLIES
        while self.broker.is_delivering and self.reactor.seconds() < until:
            await deferLater(self.reactor, 0)
        if self._users:
            return  # another transport of this process was opened meanwhile, and uses the sockets
        if self._port is not None and self._socket is not None:
            await self._port.stopListening()
            self._socket.close()  # removes its file, too
            self._port = self._socket = self.others.own = None
        connections = list(self.incoming.connections)
        for connection in connections:
            connection.finish()
        await self.others.close()
        await DeferredList([connection.gone for connection in connections])
