"""A server of streams that can share its address among worker processes."""

import socket
from collections.abc import Sequence
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.errors import NovasvcError
from novasvc.interfaces import IReplaceable
from novasvc.net.connections import Connections
from novasvc.net.sockets import address_of, described, keep_alive, port_of
from novasvc.net.unix import UNIXPort
from novasvc.node.runtime import drain_time
from novasvc.workers.errors import NotPreforkableError

_log = Logger()

_BACKLOG = 4096
"""Connections that a kernel lets wait to be accepted, at the most."""
_CARRIED = ("endpoint", "factory", "drain_timeout", "tcp_keepidle", "name", "host", "port")
"""What a copy in another process is made from."""


@implementer(IReplaceable)
class StreamServer(service.Service):
    """Listens on an endpoint, in one process, or in as many workers as share it.

    Alone, the address is bound when the service is given privileges, or else when it starts;
    connections wait in the kernel until it has started. Preforked, the supervisor binds it and
    each worker accepts. When it stops, it accepts no more, and waits for those that are connected;
    see :class:`~novasvc.net.connections.Connections`.

    :param endpoint: as :func:`twisted.internet.endpoints.serverFromString` takes it. One that wraps
        connections, as ssl does, serves in one process only.
    :param factory: provides IProtocolFactory, or is called without arguments for what does, in the
        process that serves. To be preforked, pickle has to carry it.
    :param reactor: provides IReactorSocket, IReactorFDSet and IReactorTime; None is the global one.
    :param drain_timeout: seconds that connections may go on when it stops, 0 without limit; None is
        graceful_shutdown_timeout, see :func:`novasvc.node.runtime.drain_time`.
    :param tcp_keepidle: seconds without a byte after which the kernel probes a connection; 0 is never.
    """

    host: str | None = None
    port: int | None = None
    """Of the address, as soon as it is bound; None for a unix socket."""

    def __init__(
        self,
        endpoint: str,
        factory: Any,
        reactor: Any = None,
        drain_timeout: float | None = None,
        tcp_keepidle: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self.tcp_keepidle = tcp_keepidle
        self.drain_timeout = drain_timeout
        self.factory = factory
        self._begin(reactor)

    def _begin(self, reactor: Any) -> None:
        self._reactor = reactor
        self._sockets: list[socket.socket] = []
        self._ports: list[Any] = []
        self._wrapped: Any = None
        self._connections: Connections | None = None
        self._draining: Connections | None = None
        self._refusal: NovasvcError | None = None
        self._grace = 0.0
        self._shared = False
        self._superseded = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process is made from: neither sockets nor the reactor."""
        return {name: getattr(self, name) for name in _CARRIED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin(None)

    # -- preforked -----------------------------------------------------------------------------

    def open_sockets(self, held: Sequence[socket.socket]) -> Sequence[socket.socket]:
        """Listen; see :class:`~novasvc.interfaces.IPreforkable`.

        :raises ListenError: the address cannot be bound.
        :raises NotPreforkableError: the endpoint does more than to listen.
        """
        nothing = Factory()
        description = described(self.endpoint, nothing)
        if description.factory is not nothing:
            problem = "its endpoint wraps connections, and what a worker gets is the bare socket"
            remedy = "give a tcp, unix or systemd endpoint, and wrap the factory (TLSMemoryBIOFactory for TLS)"
            raise NotPreforkableError(f"the server on {self.endpoint}", problem, remedy)
        opened = description.open(held)
        self._note_address(opened)
        return [opened]

    def adopt_sockets(self, sockets: Sequence[socket.socket]) -> None:
        """Take the sockets of the supervisor; see :class:`~novasvc.interfaces.IPreforkable`."""
        self._sockets = [*sockets]
        self._shared = True
        for adopted in self._sockets:
            adopted.setblocking(False)
            self._note_address(adopted)

    def duplicate_sockets(self) -> Sequence[socket.socket]:
        """Return copies of its sockets; see :class:`~novasvc.interfaces.IReplaceable`."""
        return [listening.dup() for listening in self._sockets]

    def superseded(self) -> None:
        """See that another listens here; see :class:`~novasvc.interfaces.IReplaceable`."""
        self._superseded = True

    @property
    def replaceable(self) -> bool:
        """Whether its sockets can be handed on: those of TCP, if the endpoint does no more than to listen."""
        return self.endpoint.startswith("tcp:")

    # -- the service ---------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Bind the address. If it cannot be, the start fails, and says why."""
        super().privilegedStartService()
        try:
            self._bind()
        except NovasvcError as error:
            # Whoever drives us has no answer here but a traceback. It has one for a start.
            self._refusal = error

    def startService(self) -> None:
        """Accept connections.

        :raises ListenError: the address cannot be bound.
        """
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal
        self._grace = drain_time() if self.drain_timeout is None else self.drain_timeout
        self._bind()
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor
        factory = self._connections = Connections(self._wrapped or self._make_factory(), reactor)
        for listening in self._sockets:
            if listening.family == socket.AF_UNIX:
                port = UNIXPort(reactor, listening, factory)
                port.startListening()
            else:
                keep_alive(listening, self.tcp_keepidle)
                port = reactor.adoptStreamPort(listening.fileno(), listening.family, factory)
            if self._shared:
                self._take_turns(port)
            self._ports.append(port)
            _log.info("listening on {address}", address=address_of(listening))
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Accept no more connections, and see those that are open to their end.

        :return: Deferred[None], fired when there are none, after drain_timeout at the latest.
        """
        super().stopService()
        ports, self._ports = self._ports, []
        sockets, self._sockets = self._sockets, []
        self._wrapped = self._refusal = None
        superseded, self._superseded = self._superseded, False
        for port in ports:
            # Who has connected has been accepted, as far as they know: the kernel would reset them.
            if not superseded:
                port.numberAccepts = _BACKLOG
                port.doRead()
        waiting = [port.stopListening() for port in ports]
        for listening in sockets:
            listening.close()
        self._draining, self._connections = self._connections, None
        if self._draining is not None:
            waiting.append(self._draining.drain(self._grace))
        return gatherResults(waiting).addCallback(lambda _: None)

    def hurry(self) -> None:
        """Cut the connections that are left. Called when it was told to stop."""
        if self._draining is not None:
            self._draining.abort()

    def _bind(self) -> None:
        if self._sockets:
            return
        nothing = Factory()
        description = described(self.endpoint, nothing)
        if description.factory is not nothing:
            # It wraps what is there now, and may read a key that only privileges can read.
            description = described(self.endpoint, self._make_factory())
            self._wrapped = description.factory
        self._sockets = [description.open(())]
        self._note_address(self._sockets[0])

    def _note_address(self, listening: socket.socket) -> None:
        self.port = port_of(listening)
        self.host = None if self.port is None else str(listening.getsockname()[0])

    def _take_turns(self, port: Any) -> None:
        """Have a port accept one connection in a turn of the reactor, and leave the next to a worker that is idle.

        Twisted's takes all that wait: of connections that come together one worker would have most, for their lifetime.
        As long as more wait, it takes twice as many in each turn: then no worker is idle, and turns may be long.
        """
        accept = port.doRead
        most = 1

        def accept_some() -> None:
            nonlocal most
            if self.running:
                port.numberAccepts = most
            accept()
            most = 2 * most if port.numberAccepts > most else 1  # a port that has taken all it may, allows itself more

        port.doRead = accept_some

    def _make_factory(self) -> Any:
        return self.factory if IProtocolFactory.providedBy(self.factory) else self.factory()
