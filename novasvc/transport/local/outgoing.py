"""Connections to the other processes of this user: find them, send them requests, receive replies."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferTimeoutError
from twisted.internet.error import ConnectError, ConnectionRefusedError  # noqa: A004 - Twisted's
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ClientCreator, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.reactor.abandon import completion
from novasvc.reactor.coalesce import Waiters
from novasvc.rpc.errors import TransportFullError, UnconfirmedError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.local.frames import FrameProtocol

_log = Logger()

SUFFIX = ".sock"

_CONNECT = 1.0
"""Seconds for a process to accept a connection; one that takes longer hangs, and is left out until it does."""
_ANSWER = 5.0
"""Seconds for a process to take a request over; it only appends it to a queue."""
_UNANSWERED = 1000
"""Requests that one process has not taken over yet; a further one fails with TransportFullError."""

_BUSY = "a process on this host does not take them"


class OutgoingConnection(FrameProtocol):
    """A connection to another process.

    :param clock: measures how long the process takes to answer.
    :param receive: called with the address and the body of each reply.
    :ivar known: fires when the process has told for the first time what it consumes, or was lost.
    """

    def __init__(self, clock: IReactorTime, receive: Callable[[str, bytes], None]) -> None:
        super().__init__()
        self._clock = clock
        self._receive = receive
        self._next = 0
        self._sent: dict[int, tuple[Target, Deferred[None]]] = {}
        self._queues: frozenset[tuple[str, str, str | None]] = frozenset()
        self._fanouts: frozenset[str] = frozenset()
        self._bindings: Sequence[tuple[str, str, str]] = ()
        self.known: Deferred[None] = Deferred()

    def serves(self, target: Target, exchange: str) -> bool:
        """Return whether the process has a server for a target, as far as it has told."""
        if not self.usable:
            return False
        if target.fanout:
            return target.topic in self._fanouts
        return (target.exchange or exchange, target.topic, target.server) in self._queues

    def bound_queues(self, exchange: str, key: str) -> list[str]:
        """Return the queues of the process that a message published to a key goes to."""
        return [queue for known, bound, queue in self._bindings if self.usable and (known, bound) == (exchange, key)]

    def send(self, target: Target, exchange: str, body: bytes, ttl: float | None) -> Deferred[None]:
        """Send a request; see ITransport.send.

        :raises UndeliverableError: no server of the process listens for the target any more, or it has just ended.
        :raises TransportFullError: its queue is full, or it does not read.
        :raises UnconfirmedError: the process ended, or did not answer in time.
        """
        if not self.usable:
            return fail(UndeliverableError(str(target)))
        if self.congested or len(self._sent) >= _UNANSWERED:
            return fail(TransportFullError(str(target), len(self._sent), _BUSY))
        self._next += 1
        number = self._next

        def cancel(_: object) -> None:
            self._sent.pop(number, None)

        answered: Deferred[None] = Deferred(cancel)
        self._sent[number] = target, answered
        header = {
            "do": "send",
            "id": number,
            "topic": target.topic,
            "server": target.server,
            "fanout": target.fanout,
            "internal": target.internal,
            "exchange": target.exchange or exchange,
            "ttl": ttl,
        }
        self.send_frame(header, body)
        late = UnconfirmedError(str(target), f"a process on this host did not answer within {_ANSWER:g} s")

        def give_up(_result: object, _timeout: float) -> None:
            raise late

        return answered.addTimeout(_ANSWER, self._clock, onTimeoutCancel=give_up)

    def open_replies(self, address: str) -> None:
        """Have the process send the replies to an address over this connection."""
        self.send_frame({"do": "open", "address": address})

    def close_replies(self, address: str) -> None:
        """Have it drop them."""
        self.send_frame({"do": "close", "address": address})

    def frame_received(self, header: dict[str, Any], body: bytes) -> None:
        """Handle an answer or a reply."""
        if "address" in header:
            self._receive(header["address"], body)
            return
        if "queues" in header:
            self._queues = frozenset((exchange, topic, server) for exchange, topic, server in header["queues"])
            self._fanouts = frozenset(header["fanouts"])
            # A process of a release before events sends none.
            self._bindings = [(exchange, key, queue) for exchange, key, queue in header.get("bindings", ())]
            if not self.known.called:
                self.known.callback(None)
            return
        target, answered = self._sent.pop(header["id"], (None, None))
        if target is None or answered is None:
            return  # given up
        match header["result"]:
            case "taken":
                answered.callback(None)
            case "full":
                answered.errback(TransportFullError(str(target), int(header["bound"])))
            case _:
                answered.errback(UndeliverableError(str(target)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail what was not answered."""
        super().connectionLost(reason)
        if not self.known.called:
            self.known.callback(None)
        sent, self._sent = self._sent, {}
        for target, answered in sent.values():
            answered.errback(UnconfirmedError(str(target), "the process that it was sent to has ended"))


@attrs.define(eq=False)
class OtherProcesses:
    """The other processes of this user on this host, found by their sockets.

    :param directory: has one socket for each process.
    :param own: this process's socket, which is left out; None if it has none.
    :param reactor: provides IReactorUNIX and IReactorTime.
    :param receive: called with the address and the body of each reply.
    """

    directory: Path
    _reactor: Any
    _receive: Callable[[str, bytes], None]
    own: Path | None = None
    addresses: set[str] = attrs.field(factory=set, init=False)
    _connected: dict[Path, OutgoingConnection] = attrs.field(factory=dict, init=False)
    _connecting: dict[Path, Deferred[Any]] = attrs.field(factory=dict, init=False)
    _hanging: dict[Path, OutgoingConnection] = attrs.field(factory=dict, init=False)  # not accepted in time
    _recovered: Waiters[None] = attrs.field(factory=Waiters, init=False)

    async def serving(self, target: Target, exchange: str) -> list[OutgoingConnection]:
        """Return the connections to the processes that have a server for a target, longest unused first.

        If there are any already, no others are waited for, unless the target is a fanout.
        """
        paths = self._dial()
        serving = [] if target.fanout else self._serving(paths, target, exchange)
        if not serving:
            await self._dialled(hanging=not target.fanout)
            serving = self._serving(paths, target, exchange)
        return serving

    async def all(self) -> list[OutgoingConnection]:
        """Return the connections to all processes, longest unused first; connect to those that are not connected.

        A process that has not accepted its connection in time is not waited for.
        """
        paths = self._dial()
        await self._dialled(hanging=False)
        return self._known(paths)

    def _serving(self, paths: Sequence[Path], target: Target, exchange: str) -> list[OutgoingConnection]:
        return [connection for connection in self._known(paths) if connection.serves(target, exchange)]

    def _known(self, paths: Sequence[Path]) -> list[OutgoingConnection]:
        return [self._connected[path] for path in paths if path in self._connected]

    def _dial(self) -> list[Path]:
        """Begin to connect to the processes that are not connected; return the paths of all."""
        paths = self._paths()
        for path in paths:
            if path not in self._connected and path not in self._connecting and path not in self._hanging:
                self._connect(path)
        return paths

    def _dialled(self, *, hanging: bool) -> Deferred[None]:
        """Wait until the connections under way are made, or refused.

        :param hanging: give the processes that hang as long again for one of them to go on.
        :return: Deferred[None]. Cancelling it leaves the connections alone.
        """
        waiting = list(self._connecting.values())
        if hanging and self._hanging:
            waiting.append(self._recovered.wait().addTimeout(_CONNECT, self._reactor, lambda *_: None))
        return completion(DeferredList(waiting))

    def used(self, connection: OutgoingConnection) -> None:
        """Put a connection last, so that the processes of a topic have its messages in turn."""
        path = next((path for path, known in self._connected.items() if known is connection), None)
        if path is not None:
            self._connected[path] = self._connected.pop(path)

    def open_replies(self, address: str) -> None:
        """Receive replies to an address from all processes, also from those that are connected later."""
        self.addresses.add(address)
        for connection in self._connected.values():
            connection.open_replies(address)

    def close_replies(self, address: str) -> None:
        """Stop receiving replies to an address."""
        self.addresses.discard(address)
        for connection in self._connected.values():
            connection.close_replies(address)

    async def close(self) -> None:
        """Disconnect."""
        for connecting in list(self._connecting.values()):
            connecting.cancel()
        connections = [*self._connected.values(), *self._hanging.values()]
        for connection in connections:
            connection.abort()
        await DeferredList([connection.gone for connection in connections])

    def _paths(self) -> list[Path]:
        try:
            check_private(self.directory)
            found = [path for path in self.directory.iterdir() if path.suffix == SUFFIX and path != self.own]
        except OSError:
            found = []  # No process has made the directory yet, or it is not to be trusted.
        order = {path: place for place, path in enumerate(self._connected)}
        return sorted(found, key=lambda path: (order.get(path, -1), path.name))

    def _connect(self, path: Path) -> None:
        connection = OutgoingConnection(self._reactor, self._receive)

        def lost(_: object) -> None:
            self._connected.pop(path, None)

        def connected(_: object) -> Deferred[None]:
            # Only a process that tells at once what it consumes is of use; one that hangs does not.
            return completion(connection.known).addTimeout(_CONNECT, self._reactor)

        def known(_: object) -> None:
            if connection.usable:
                self._connected[path] = connection
                connection.gone.addCallback(lost)
                for address in self.addresses:
                    connection.open_replies(address)

        def refused(failure: Failure) -> None:
            failure.trap(ConnectError, CancelledError, DeferTimeoutError, OSError)
            if failure.check(ConnectionRefusedError):
                # Its process was killed. A name is never used twice, so no other one can have it.
                with suppress(OSError):
                    path.unlink()
                return
            _log.debug("the process that listens at {path} is left out: {error}", path=path, error=failure.value)
            if failure.check(DeferTimeoutError):
                # Keep the connection: a fanout does not wait for another one, and would miss the process that goes on.
                self._hanging[path] = connection
                connection.known.addCallback(known).addBoth(self._goes_on, path).addErrback(_log_failure, path)
            else:
                connection.abort()

        def finished(_: object) -> None:
            del self._connecting[path]

        # Not an endpoint: their module imports TLS.
        creator = ClientCreator(self._reactor, lambda: connection)
        # connectUNIX raises OSError if the process is out of descriptors.
        connecting: Deferred[Any] = maybeDeferred(creator.connectUNIX, str(path), timeout=_CONNECT)
        self._connecting[path] = connecting
        connecting.addCallback(connected).addCallbacks(known, refused)
        connecting.addErrback(_log_failure, path).addBoth(finished)

    def _goes_on(self, result: object, path: Path) -> object:
        del self._hanging[path]
        self._recovered.fire(None)
        return result


def _log_failure(failure: Failure, path: Path) -> None:
    _log.failure("connecting to {path} failed", failure, path=path)


def check_private(directory: Path) -> None:
    """Check that a directory of sockets belongs to this user, and that no other user may write there.

    :raises OSError: it does not, it does not exist, or it is a link or a file.
    """
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is not a directory", str(directory))
    # Root may use the sockets of a service that runs under another user.
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise PermissionError(errno.EPERM, f"it belongs to another user (uid {found.st_uid})", str(directory))
    if found.st_mode & 0o077:
        problem = f"other users may access it (mode {stat.S_IMODE(found.st_mode):o}); it needs mode 700"
        raise PermissionError(errno.EPERM, problem, str(directory))


def any_process(directory: Path) -> bool:
    """Return whether a process has a socket in the directory; it may have been killed."""
    try:
        check_private(directory)
        return any(path.suffix == SUFFIX for path in directory.iterdir())
    except OSError:
        return False
