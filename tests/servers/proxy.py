"""A TCP proxy on the test's own reactor, whose network does what a test wants it to."""

from collections import deque
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IConnector, IListeningPort
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.python.failure import Failure

BUFFER = 1_048_576
"""Bytes that a way holds before it reads no more, as the buffers of a socket do."""

END = None
"""Stands among the bytes where the sender has closed the connection."""


@attrs.define
class Way:
    """What happens to what goes in one direction. May be changed at any time; see :meth:`Proxy.change`.

    :param delay: seconds that it takes.
    :param hangs: it is held, ends of connections too, until this is false again.
    :param piece: bytes that are written at a time, one in three turns of the reactor; 0: as they come.
    """

    delay: float = 0.0
    hangs: bool = False
    piece: int = 0


class Proxy:
    """Passes connections on to a server.

    :param reactor: the test's.
    :param port: of the server, on 127.0.0.1.

    ``there`` is the way from clients to the server, ``back`` the way from it.
    """

    def __init__(self, reactor: Any, port: int) -> None:
        self.there = Way()
        self.back = Way()
        self.refuses = False
        self.accepted = 0
        self._reactor = reactor
        self._target = port
        self._ends: set[_End] = set()
        self._connecting: set[IConnector] = set()
        self._port: IListeningPort | None = None

    def listen(self) -> int:
        """Begin; return the port."""
        self._port = self._reactor.listenTCP(0, _Fronts(self), interface="127.0.0.1")
        assert self._port is not None
        return self.port

    @property
    def port(self) -> int:
        """Where clients connect to."""
        assert self._port is not None
        return int(self._port.getHost().port)

    @property
    def live(self) -> int:
        """Connections that are passed on now."""
        return sum(1 for end in self._ends if isinstance(end, _Front))

    def change(self, *ways: Way, **changes: Any) -> None:
        """Change both ways, or those given; for what is on its way, too."""
        for way in ways or (self.there, self.back):
            for name, value in changes.items():
                setattr(way, name, value)
        for end in list(self._ends):
            end.pump()

    def heal(self) -> None:
        """Pass on, from now on, all that comes."""
        self.refuses = False
        self.change(delay=0.0, hangs=False, piece=0)

    def inject(self, data: bytes) -> None:
        """Send to all clients what the server did not say."""
        for end in list(self._ends):
            if isinstance(end, _Front):
                end.transport.write(data)

    def reset(self) -> None:
        """Cut all connections by a reset."""
        for end in list(self._ends):
            end.abort()

    def close(self) -> None:
        """End all connections in order, towards both sides, once what is on its way has arrived."""
        for end in list(self._ends):
            end.finish()

    def stop(self) -> Deferred[None]:
        """Listen no more, and cut all connections.

        :return: Deferred[None], fired when none is left.
        """
        stopped: Deferred[None] = succeed(None)
        if self._port is not None:
            port, self._port = self._port, None
            stopped = Deferred.fromCoroutine(self._stop(port))
        return stopped

    async def _stop(self, port: IListeningPort) -> None:
        await port.stopListening()
        for connector in list(self._connecting):
            connector.disconnect()
        while self._ends:
            end = next(iter(self._ends))
            gone = end.when_gone()
            end.abort()
            await gone


class _End(Protocol):
    """One of the two sockets of a connection that is passed on."""

    def __init__(self, proxy: Proxy, way: Way) -> None:
        self.peer: _End | None = None
        self.gone = False
        self._proxy = proxy
        self._way = way
        self._held: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._timer: Any = None
        self._waiters: list[Deferred[None]] = []

    def connectionMade(self) -> None:
        self._proxy._ends.add(self)
        self.transport.setTcpNoDelay(True)
        if self.peer is not None:
            self.peer.pump()

    def dataReceived(self, data: bytes) -> None:
        self._hold(data)

    def connectionLost(self, reason: Failure) -> None:
        self._proxy._ends.discard(self)
        self.gone = True
        if self.peer is not None:
            self.peer.forget()
            if self.peer.gone:
                self.forget()
            else:
                self._hold(END)
        while self._waiters:
            self._waiters.pop().callback(None)

    def finish(self) -> None:
        self.transport.loseConnection()

    def abort(self) -> None:
        self.forget()
        self.transport.abortConnection()

    def forget(self) -> None:
        """Pass on nothing more."""
        self._cancel()
        self._held.clear()

    def when_gone(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def _hold(self, data: bytes | None) -> None:
        self._held.append((self._proxy._reactor.seconds() + self._way.delay, data))
        self._size += len(data or b"")
        if self._size > BUFFER and data is not END:
            self.transport.pauseProducing()
        self.pump()

    def pump(self) -> None:
        """Pass on what is due; come again for the rest."""
        self._cancel()
        now = self._proxy._reactor.seconds()
        while self._held and self.peer is not None and not self._way.hangs:
            due, data = self._held[0]
            if due > now:
                self._timer = self._proxy._reactor.callLater(due - now, self.pump)
                return
            self._held.popleft()
            if data is END:
                self.peer.transport.loseConnection()
                return
            if 0 < self._way.piece < len(data):
                data, rest = data[: self._way.piece], data[self._way.piece :]
                self._held.appendleft((due, rest))
            self.peer.transport.write(data)
            self._size -= len(data)
            if self._size <= BUFFER:
                self.transport.resumeProducing()
            if self._way.piece:
                self._rest(2)
                return

    def _rest(self, turns: int) -> None:
        """Come again after some turns: one to write the piece, and one for the other side to read it."""
        self._timer = self._proxy._reactor.callLater(0, *((self._rest, turns - 1) if turns else (self.pump,)))

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class _Fronts(Factory):
    """Makes the ends towards clients."""

    noisy = False

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def buildProtocol(self, addr: IAddress) -> Protocol | None:
        if self._proxy.refuses:
            return None
        self._proxy.accepted += 1
        front = _Front(self._proxy, self._proxy.there)
        front.factory = self
        return front


class _Front(_End):
    def connectionMade(self) -> None:
        super().connectionMade()
        proxy = self._proxy
        connector = proxy._reactor.connectTCP("127.0.0.1", proxy._target, _Backs(proxy, self), timeout=5)
        proxy._connecting.add(connector)


class _Backs(ClientFactory):
    """Makes the end towards the server, for one client."""

    noisy = False

    def __init__(self, proxy: Proxy, front: _End) -> None:
        self._proxy = proxy
        self._front = front

    def buildProtocol(self, addr: IAddress) -> Protocol | None:
        if self._front.gone:
            return None
        back = _End(self._proxy, self._proxy.back)
        back.factory = self
        back.peer, self._front.peer = self._front, back
        return back

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self._proxy._connecting.discard(connector)
        self._front.abort()

    def clientConnectionLost(self, connector: IConnector, reason: Failure) -> None:
        self._proxy._connecting.discard(connector)
