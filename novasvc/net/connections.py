"""The connections of a server, seen to their end."""

import sys
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

from novasvc.telemetry.logs import pluralize

_log = Logger()

_LAST_REQUEST = 1.0
"""Seconds that a client has to send its request, on a connection that was open when the server was told to stop."""


class Connections(WrappingFactory):
    """Wraps a factory, and knows what is open.

    A server that stops accepts nothing more, but whoever is connected has been accepted. So each
    connection is asked to end when it has done what it is there for:

    - a protocol that has a method ``drain()`` is told by that;
    - one of twisted.web's (HTTP/1) answers the request that is under way, and one that comes within
      a second, and closes then;
    - of others nobody knows, and they are waited for.

    :param factory: what is wrapped.
    :param reactor: measures the time.
    """

    noisy = False

    def __init__(self, factory: Any, reactor: IReactorTime) -> None:
        super().__init__(factory)
        self._reactor = reactor
        self._drained: Deferred[None] | None = None
        self._web: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        """Wrap a protocol of the factory; None where that wants no connection."""
        protocol = self.wrappedFactory.buildProtocol(addr)
        if protocol is None:
            return None
        kind: Any = _HalfCloseable if IHalfCloseableProtocol.providedBy(protocol) else ProtocolWrapper
        return kind(self, protocol)

    def unregisterProtocol(self, p: Any) -> None:
        """See a connection end."""
        super().unregisterProtocol(p)
        drained = self._drained
        if drained is not None and not self.protocols:
            self._drained = None
            drained.callback(None)

    def drain(self, seconds: float) -> Deferred[None]:
        """Have all connections end. Called once, when no more are accepted.

        :param seconds: that they may take; then they are cut. 0 is without limit.
        :return: Deferred[None], fired when none is open.
        """
        for wrapper in list(self.protocols):
            self._finish(wrapper)
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
        """Cut all connections."""
        for wrapper in list(self.protocols):
            wrapper.transport.abortConnection()

    def _late(self, seconds: float) -> None:
        _log.warn(
            "{connections} not ended after {s:g} s: cut",
            connections=pluralize(len(self.protocols), "connection"),
            s=seconds,
        )
        self.abort()

    def _close_idle(self) -> None:
        """Close connections without a request; one with a request closes when that is answered."""
        for channel in self._web:
            if not channel.requests and channel.transport is not None:
                channel.loseConnection()

    def _finish(self, wrapper: ProtocolWrapper) -> None:
        protocol: Any = wrapper.wrappedProtocol
        while isinstance(protocol, ProtocolWrapper):  # TLS is one
            protocol = protocol.wrappedProtocol
        if callable(drain := getattr(protocol, "drain", None)):
            drain()
            return
        web = sys.modules.get("twisted.web.http")  # who speaks it has imported it
        # What Site builds finds out which version is spoken, and has the channel of that one.
        channel = getattr(protocol, "_channel", protocol)
        if web is not None and isinstance(channel, web.HTTPChannel):
            channel.checkPersistence = _for_the_last_time
            for request in channel.requests:
                if not request.startedWriting:
                    _for_the_last_time(request, b"")
            if channel.requests:  # otherwise it would take no request at all
                channel.persistent = False
            self._web.append(channel)


@implementer(IHalfCloseableProtocol)
class _HalfCloseable(ProtocolWrapper):
    """Wraps a protocol that may hear of the end of one direction, which Twisted's wrapper does not pass on."""

    wrappedProtocol: Any  # noqa: N815 - ProtocolWrapper has it

    def readConnectionLost(self) -> None:
        """Pass it on."""
        self.wrappedProtocol.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Pass it on."""
        self.wrappedProtocol.writeConnectionLost()


def _for_the_last_time(request: Any, _version: bytes) -> bool:
    """Take no further request after this one, and tell the client so; in place of HTTPChannel.checkPersistence."""
    request.responseHeaders.setRawHeaders(b"connection", [b"close"])
    return False
