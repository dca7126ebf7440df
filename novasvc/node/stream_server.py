"""A stream server whose address can be shared among worker processes."""

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
from novasvc.interfaces import IInterruptible, IReplaceable, ISpecified
from novasvc.net.connections import Connections
from novasvc.net.sockets import address_of, keep_alive, parse_endpoint, port_of
from novasvc.net.unix import UNIXPort
from novasvc.node.runtime import drain_time
from novasvc.workers.errors import NotPreforkableError
from novasvc.workers.specification import ServiceSpecification, check_constructor

_log = Logger()

_BACKLOG = 4096
"""The largest backlog that a kernel allows: connections that wait to be accepted."""


@implementer(IReplaceable, IInterruptible, ISpecified)
class StreamServer(service.Service):
    """Listen on an endpoint, in one process, or in several workers that share its socket.

    Alone, the service binds its address when it is given privileges, or else when it starts;
    connections wait in the backlog until it has started. Preforked, the supervisor binds the address
    and each worker accepts. A stop accepts no more connections, and waits for the open ones;
    see :class:`~novasvc.net.connections.Connections`.

    A subclass with a constructor of its own overrides :meth:`specification`.

    :param endpoint: a string for :func:`twisted.internet.endpoints.serverFromString`. An endpoint that wraps
        connections, such as ssl, serves in one process only.
    :param factory: provides IProtocolFactory, or is called without arguments, in the serving process, and
        returns a provider. It must be picklable to be preforked.
    :param reactor: provides IReactorSocket, IReactorFDSet and IReactorTime; None is the global one.
    :param drain_timeout: seconds for which open connections may continue after a stop, 0 for no limit; None is
        graceful_shutdown_timeout, see :func:`novasvc.node.runtime.drain_time`.
    :param tcp_keepidle: seconds without a byte after which the kernel probes a connection; 0 for never.
    """

    host: str | None = None
    port: int | None = None
    """host and port of the bound address; None before, and for a UNIX socket."""

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

    # -- preforked -----------------------------------------------------------------------------

    def specification(self) -> ServiceSpecification:
        """Return what a worker makes the server of; see :class:`~novasvc.interfaces.ISpecified`."""
        check_constructor(self, StreamServer)
        options = {"drain_timeout": self.drain_timeout, "tcp_keepidle": self.tcp_keepidle}
        return ServiceSpecification(type(self), (self.endpoint, self.factory), options, self.name)

    def open_sockets(self, held: Sequence[socket.socket]) -> Sequence[socket.socket]:
        """Listen; see :class:`~novasvc.interfaces.IPreforkable`.

        :raises ListenError: the address cannot be bound.
        :raises NotPreforkableError: the endpoint does more than to listen.
        """
        nothing = Factory()
        description = parse_endpoint(self.endpoint, nothing)
        if description.factory is not nothing:
            problem = "its endpoint wraps connections, but a worker gets only the bare socket"
            remedy = "give a tcp, unix or systemd endpoint, and wrap the factory (TLSMemoryBIOFactory for TLS)"
            raise NotPreforkableError(f"the server on {self.endpoint}", problem, remedy)
        opened = description.open(held)
        self._note_address(opened)
        return [opened]

    def adopt_sockets(self, sockets: Sequence[socket.socket]) -> None:
        """Use the sockets of the supervisor; see :class:`~novasvc.interfaces.IPreforkable`."""
        self._sockets = [*sockets]
        self._shared = True
        for adopted in self._sockets:
            adopted.setblocking(False)
            self._note_address(adopted)

    def duplicate_sockets(self) -> Sequence[socket.socket]:
        """Return duplicates of its sockets; see :class:`~novasvc.interfaces.IReplaceable`."""
        return [listening.dup() for listening in self._sockets]

    def superseded(self) -> None:
        """Note that another server listens here; see :class:`~novasvc.interfaces.IReplaceable`."""
        self._superseded = True

    @property
    def replaceable(self) -> bool:
        """Whether its sockets can be shared: those of plain TCP endpoints can."""
        return self.endpoint.startswith("tcp:")

    # -- the service ---------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Bind the address. If that fails, the later start fails and says why."""
        super().privilegedStartService()
        try:
            self._bind()
        except NovasvcError as error:
            # Here, the caller could only log a traceback; a failed start is reported properly.
            self._refusal = error

    def startService(self) -> None:
        """Accept connections.

        :raises ListenError: the address cannot be bound.
        """
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor
        self._grace = drain_time(reactor) if self.drain_timeout is None else self.drain_timeout
        self._bind()
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
        """Accept no more connections, and wait for the open ones.

        :return: Deferred[None], fired when none is open, at the latest after drain_timeout.
        """
        super().stopService()
        ports, self._ports = self._ports, []
        sockets, self._sockets = self._sockets, []
        self._wrapped = self._refusal = None
        superseded, self._superseded = self._superseded, False
        for port in ports:
            # Accept what the backlog holds: those clients see an open connection, and close() would reset it.
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
        """Abort the connections that are still open. Called when it was told to stop."""
        if self._draining is not None:
            self._draining.abort()

    def _bind(self) -> None:
        if self._sockets:
            return
        nothing = Factory()
        description = parse_endpoint(self.endpoint, nothing)
        if description.factory is not nothing:
            # It wraps what is there now, and may read a key that only privileges can read.
            description = parse_endpoint(self.endpoint, self._make_factory())
            self._wrapped = description.factory
        self._sockets = [description.open(())]
        self._note_address(self._sockets[0])

    def _note_address(self, listening: socket.socket) -> None:
        self.port = port_of(listening)
        self.host = None if self.port is None else str(listening.getsockname()[0])

    def _take_turns(self, port: Any) -> None:
        """Make a port accept one connection per turn of the reactor, and leave the next to an idle worker.

        Twisted's port accepts all that wait: of connections that arrive together, one worker would get most, for
        their lifetime. While more wait, the number doubles with each turn: no worker is idle then, so turns may be
        long.
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
