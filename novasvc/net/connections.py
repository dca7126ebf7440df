"""Track and drain the connections of a server."""

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

from novasvc._compat import http_channel
from novasvc.interfaces import IDrainable
from novasvc.telemetry.logs import pluralize

_log = Logger()

_LAST_REQUEST = 1.0
"""Seconds for a request on a connection that was idle when the server began to stop."""


class Connections(WrappingFactory):
    """Wraps a factory, and tracks its open connections.

    A stopping server accepts no new connections, and drains those it has:

    - a protocol that provides :class:`~novasvc.interfaces.IDrainable`, or has a method ``drain()``, is told so;
    - a twisted.web channel (HTTP/1) answers the request under way, or one that comes within a second, with
      ``Connection: close``;
    - any other protocol is waited for until the deadline.

    :param factory: the wrapped factory.
    :param reactor: for timeouts.
    """

    noisy = False

    def __init__(self, factory: Any, reactor: IReactorTime) -> None:
        super().__init__(factory)
        self._reactor = reactor
        self._drained: Deferred[None] | None = None
        self._web: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        """Wrap a protocol of the factory; None if the factory rejects the connection."""
        protocol = self.wrappedFactory.buildProtocol(addr)
        if protocol is None:
            return None
        kind: Any = _HalfCloseable if IHalfCloseableProtocol.providedBy(protocol) else ProtocolWrapper
        return kind(self, protocol)

    def unregisterProtocol(self, p: Any) -> None:
        """Handle the end of a connection."""
        super().unregisterProtocol(p)
        drained = self._drained
        if drained is not None and not self.protocols:
            self._drained = None
            drained.callback(None)

    def drain(self, seconds: float) -> Deferred[None]:
        """Drain all connections. Called once, after the last accept.

        :param seconds: until connections that remain are aborted; 0 is no limit.
        :return: Deferred[None], fired when all are closed.
        """
        for wrapper in list(self.protocols):
            try:
                self._finish(wrapper)
            except Exception:  # noqa: BLE001 - a user's drain() raised; the other connections still drain
                _log.failure("drain() of a connection failed; the connection is aborted")
                wrapper.transport.abortConnection()
        if not self.protocols:
            return succeed(None)
        drained: Deferred[None] = Deferred()
        self._drained = drained
        timers = [self._reactor.callLater(_LAST_REQUEST, self._close_idle)]
        if seconds:
            timers.append(self._reactor.callLater(seconds, self._late, seconds))

        def cancel(_: None) -> None:
            for timer in timers:
                if timer.active():
                    timer.cancel()

        return drained.addCallback(cancel)

    def abort(self) -> None:
        """Abort all connections."""
        for wrapper in list(self.protocols):
            wrapper.transport.abortConnection()

    def _late(self, seconds: float) -> None:
        _log.warn(
            "aborting {connections} still open after {s:g} s",
            connections=pluralize(len(self.protocols), "connection"),
            s=seconds,
        )
        self.abort()

    def _close_idle(self) -> None:
        """Close idle web connections; one with a request closes after its response."""
        for channel in self._web:
            if not channel.requests and channel.transport is not None:
                channel.loseConnection()

    def _finish(self, wrapper: ProtocolWrapper) -> None:
        protocol: Any = wrapper.wrappedProtocol
        while isinstance(protocol, ProtocolWrapper):  # TLS is one
            protocol = protocol.wrappedProtocol
        # A user's protocol need not know the interface: docs/workers.md promises that the method is enough.
        if IDrainable.providedBy(protocol) or callable(getattr(protocol, "drain", None)):
            protocol.drain()
            return
        channel = http_channel(protocol)
        if channel is not None:
            channel.checkPersistence = _close_after_response
            for request in channel.requests:
                if not request.startedWriting:
                    _close_after_response(request, b"")
            if channel.requests:  # an idle channel that is not persistent would drop its next request
                channel.persistent = False
            self._web.append(channel)


@implementer(IHalfCloseableProtocol)
class _HalfCloseable(ProtocolWrapper):
    """Forwards half-close events, which Twisted's ProtocolWrapper does not."""

    wrappedProtocol: Any  # noqa: N815 - ProtocolWrapper has it

    def readConnectionLost(self) -> None:
        """Pass it on."""
        self.wrappedProtocol.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Pass it on."""
        self.wrappedProtocol.writeConnectionLost()


def _close_after_response(request: Any, _version: bytes) -> bool:
    """Replace HTTPChannel.checkPersistence: send Connection: close, and end after this request."""
    request.responseHeaders.setRawHeaders(b"connection", [b"close"])
    return False
