"""Connections to the other processes of this user: find them, send them requests, receive replies."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError  # noqa: A004 - Twisted's
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ClientCreator, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.rpc.errors import TransportFullError, UnconfirmedError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.local.frames import FrameProtocol

_log = Logger()

SUFFIX = ".sock"

_CONNECT = 1.0
"""Seconds for a process to accept a connection; one that takes longer hangs, and is left out."""
_ANSWER = 5.0
"""Seconds for a process to take a request over; it only appends it to a queue."""
_UNANSWERED = 1000
"""Requests that one process has not taken over yet; a further one fails with TransportFullError."""


class OutgoingConnection(FrameProtocol):
    """A connection to another process.

    :param clock: measures how long the process takes to answer.
    :param receive: called with the address and the body of each reply.
    """

    def __init__(self, clock: IReactorTime, receive: Callable[[str, bytes], None]) -> None:
        super().__init__()
        self._clock = clock
        self._receive = receive
        self._next = 0
        self._sent: dict[int, tuple[Target, Deferred[None]]] = {}

    def send(self, target: Target, exchange: str, body: bytes, ttl: float | None) -> Deferred[None]:
        """Send a request; see ITransport.send.

        :raises UndeliverableError: no server of the process listens for the target.
        :raises UnconfirmedError: the process ended, or did not answer in time.
        """
        if len(self._sent) >= _UNANSWERED:
            return fail(TransportFullError(str(target), _UNANSWERED, "a process on this host does not take them"))
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

    async def connections(self) -> list[OutgoingConnection]:
        """Connect to the processes that are not connected yet; return the connections, longest unused first."""
        paths = self._paths()
        for path in paths:
            if path not in self._connected and path not in self._connecting:
                self._connect(path)
        if self._connecting:
            await DeferredList([_after(connecting) for connecting in self._connecting.values()])
        return [self._connected[path] for path in paths if path in self._connected]

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
        connections = list(self._connected.values())
        for connection in connections:
            connection.transport.abortConnection()
        await DeferredList([connection.gone for connection in connections])

    def _paths(self) -> list[Path]:
        try:
            found = [path for path in self.directory.iterdir() if path.suffix == SUFFIX and path != self.own]
        except OSError:
            found = []  # No process has made the directory yet.
        order = {path: place for place, path in enumerate(self._connected)}
        return sorted(found, key=lambda path: (order.get(path, -1), path.name))

    def _connect(self, path: Path) -> None:
        connection = OutgoingConnection(self._reactor, self._receive)

        def lost(_: object) -> None:
            del self._connected[path]

        def connected(_: object) -> None:
            self._connected[path] = connection
            connection.gone.addCallback(lost)
            for address in self.addresses:
                connection.open_replies(address)

        def refused(failure: Failure) -> None:
            failure.trap(ConnectError, TimeoutError, CancelledError)
            if failure.check(ConnectionRefusedError):
                # Its process was killed. A name is never used twice, so no other one can have it.
                with suppress(OSError):
                    path.unlink()
            else:
                _log.debug("the process that listens at {path} is left out: {error}", path=path, error=failure.value)

        # Not an endpoint: their module imports TLS.
        creator = ClientCreator(self._reactor, lambda: connection)
        connecting: Deferred[Any] = creator.connectUNIX(str(path), timeout=_CONNECT)
        self._connecting[path] = connecting
        connecting.addCallbacks(connected, refused)
        connecting.addErrback(lambda failure: _log.failure("connecting to {path} failed", failure, path=path))

        def finished(_: object) -> None:
            del self._connecting[path]

        connecting.addBoth(finished)


def _after(other: Deferred[Any]) -> Deferred[None]:
    """Return a Deferred that fires with another one; cancelling it leaves the other one alone."""
    waiter: Deferred[None] = Deferred()

    def fire(result: Any) -> Any:
        if not waiter.called:
            waiter.callback(None)
        return result

    other.addBoth(fire)
    return waiter


def any_process(directory: Path) -> bool:
    """Return whether a process has a socket in the directory; it may have been killed."""
    try:
        return any(path.suffix == SUFFIX for path in directory.iterdir())
    except OSError:
        return False
