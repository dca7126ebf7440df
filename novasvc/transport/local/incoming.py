"""Connections from other processes: their requests go to this process's queues, and replies to them back."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from novasvc.rpc.errors import InvalidTargetError, TransportClosedError, TransportFullError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.local.frames import FrameProtocol
from novasvc.transport.memory import MemoryBroker, MemoryTransport

CONNECTIONS = 256
"""Connections at a time; further ones are refused."""

_CLOSE = 1.0
"""Seconds for a peer to read its last replies."""

ADDRESSES = 1000
"""Reply addresses of one connection: a process has one for each of its nodes."""


class IncomingConnection(FrameProtocol):
    """A connection from another process of this user."""

    factory: Any

    def __init__(self, broker: MemoryBroker, memory: MemoryTransport, clock: IReactorTime) -> None:
        super().__init__()
        self._broker = broker
        self._memory = memory
        self._clock = clock
        self._receivers: dict[str, Callable[[bytes], None]] = {}

    def finish(self) -> None:
        """Close the connection when the peer has read what was sent, or soon."""
        self.transport.unregisterProducer()  # loseConnection would wait for it
        self.transport.loseConnection()
        aborting = self._clock.callLater(_CLOSE, self.transport.abortConnection)
        self.gone.addCallback(lambda _: aborting.cancel() if aborting.active() else None)

    def connectionMade(self) -> None:
        """Join the connections of the process, if there is room for one more, and tell what is consumed here."""
        super().connectionMade()
        if len(self.factory.connections) >= CONNECTIONS:
            self.abort()
            return
        self.factory.connections.add(self)
        self.tell_consumed()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Drop the reply addresses: their clients have gone."""
        super().connectionLost(reason)
        self.factory.connections.discard(self)
        for address in list(self._receivers):
            self._close_replies(address)

    def tell_consumed(self) -> None:
        """Tell the peer which targets have servers in this process."""
        queues, fanouts = self._broker.consumed()
        self.send_frame({"queues": queues, "fanouts": fanouts, "bindings": self._broker.bindings()})

    def frame_received(self, header: dict[str, Any], body: bytes) -> None:
        """Handle a frame of the process that connected."""
        match header["do"]:
            case "send":
                self._receive(header, body)
            case "open" if len(self._receivers) < ADDRESSES:
                self._open_replies(str(header["address"]))
            case "close":
                self._close_replies(str(header["address"]))
            case _:
                raise ValueError(header)

    def _open_replies(self, address: str) -> None:
        def receive(reply: bytes) -> None:
            self.send_frame({"address": address}, reply)

        self._receivers[address] = receive
        self._broker.add_reply_queue(receive, address)

    def _close_replies(self, address: str) -> None:
        # A client that has connected again may have opened the address on its new connection already.
        receive = self._receivers.pop(address, None)
        if receive is not None:
            self._broker.delete_reply_queue(address, receive)

    def _receive(self, header: dict[str, Any], body: bytes) -> None:
        number, ttl = int(header["id"]), header["ttl"]
        try:
            target = Target(
                header["topic"],
                header["server"],
                fanout=bool(header["fanout"]),
                exchange=header["exchange"],
                internal=bool(header.get("internal")),
            )
        except InvalidTargetError as error:
            raise ValueError(str(error)) from None
        # The transport in memory has decided when it returns.
        sending: Deferred[Any] = self._memory.send(target, body, None if ttl is None else float(ttl), mandatory=True)
        sending.addCallbacks(lambda _: {"result": "taken"}, _refusal)
        sending.addCallback(lambda result: self.send_frame({"id": number, **result}))
        sending.addErrback(self._closed)

    def _closed(self, failure: Failure) -> None:
        failure.trap(TransportClosedError)  # this process ends
        self.abort()


def _refusal(failure: Failure) -> dict[str, Any]:
    failure.trap(UndeliverableError, TransportFullError)
    if isinstance(failure.value, TransportFullError):
        return {"result": "full", "bound": failure.value.bound}
    return {"result": "unbound"}


class IncomingFactory(Factory):
    """Makes the connections from other processes.

    :param broker: the queues of this process.
    :ivar connections: those that are open.
    """

    noisy = False

    def __init__(self, broker: MemoryBroker, clock: IReactorTime) -> None:
        self._broker = broker
        self._memory = MemoryTransport(broker, clock=clock)
        self._clock = clock
        self.connections: set[IncomingConnection] = set()
        broker.watch_consumers(self._tell_consumed)

    def _tell_consumed(self) -> None:
        for connection in self.connections:
            connection.tell_consumed()

    def buildProtocol(self, addr: Any) -> Any:
        """Make the protocol of a connection."""
        connection = IncomingConnection(self._broker, self._memory, self._clock)
        connection.factory = self
        return connection
