"""The factory of HTTP connections: makes channels and requests, enforces deadlines, counts and logs requests."""

from collections.abc import Iterable
from email.utils import formatdate
from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.web import server
from twisted.web.resource import IResource

from novasvc.http.access_log import AccessLog
from novasvc.http.around import AroundRequests
from novasvc.http.channel import LimitedChannel
from novasvc.http.errors import HTTPError
from novasvc.http.fast_path import FastRequest, IFastPath
from novasvc.http.head import Head
from novasvc.http.limits import Limits
from novasvc.http.request import Request
from novasvc.http.tls_failures import TLSFailureLog
from novasvc.telemetry import metrics

_DEADLINE_CHECK = 1.0
"""Seconds between two checks of all connections' deadlines. See Note [Slow clients] in deadlines.py."""


class Site(server.Site):
    """Makes channels, and a request for each head that they parse. Use :func:`make_site`.

    :param resource: provides IResource. If it provides :class:`~novasvc.http.fast_path.IFastPath`, it may answer
        requests without twisted.web.
    :param limits: of each connection.
    :param reactor: provides IReactorTime.
    :param log: None writes no access log.
    :param name: of the server, a label in the metrics.
    :ivar channels: the open ones.
    :ivar around: the middleware around requests; None without any.
    :ivar tls_failures: told by the channels about each failed handshake.
    """

    def __init__(
        self, resource: Any, *, limits: Limits, reactor: Any, log: AccessLog | None = None, name: str = "http"
    ) -> None:
        super().__init__(resource, reactor=reactor)
        self.noisy = False
        self.around: AroundRequests | None = None
        self.limits = limits
        self.name = name
        self.channels: set[LimitedChannel] = set()
        self.tls_failures = TLSFailureLog(name, reactor)
        self._access_log = log
        self._fast_path: Any = IFastPath(resource, None)
        self._deadline_check: IDelayedCall | None = None
        self._date = b""
        self._date_second = -1

    def make_request(self, channel: LimitedChannel, head: Head) -> Any:
        """Make the request of a head; see :class:`~novasvc.http.channel.LimitedChannel`."""
        metrics.request_begins(self.name)
        handler = None if self._fast_path is None else self._fast_path.fast_handler(head)
        return Request(channel, head) if handler is None else FastRequest(self, channel, head, handler)

    @property
    def date(self) -> bytes:
        """The current value of the Date header, formatted once a second."""
        now = int(self.reactor.seconds())
        if now != self._date_second:
            self._date_second = now
            self._date = formatdate(now, usegmt=True).encode()
        return self._date

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802 - IProtocolNegotiationFactory
        """Return the ALPN protocols: not h2, as twisted.web's HTTP/2 does not enforce our limits."""
        return [b"http/1.1"]

    # -- channels ------------------------------------------------------------------------------

    def buildProtocol(self, addr: IAddress | None) -> LimitedChannel:  # type: ignore[override]  # Twisted wraps it for h2
        """Make a channel."""
        return LimitedChannel(self)

    def add_channel(self, channel: LimitedChannel) -> None:
        """Enforce the deadlines of an open channel from now on."""
        self.channels.add(channel)
        if self._deadline_check is None:
            self._deadline_check = self.reactor.callLater(_DEADLINE_CHECK, self._check_deadlines)

    def remove_channel(self, channel: LimitedChannel) -> None:
        """Forget a closed channel."""
        self.channels.discard(channel)
        if not self.channels and self._deadline_check is not None:
            self._deadline_check.cancel()
            self._deadline_check = None

    def _check_deadlines(self) -> None:
        self._deadline_check = self.reactor.callLater(_DEADLINE_CHECK, self._check_deadlines)
        now = self.reactor.seconds()
        for channel in list(self.channels):  # a channel that is late removes itself
            channel.check_deadlines(now)

    def startFactory(self) -> None:
        """Do nothing: twisted.web would start its own access log, and a timer for it."""

    def stopFactory(self) -> None:
        """Do nothing: channels may outlive the port, and their deadlines are enforced until they close."""

    # -- ends of requests ----------------------------------------------------------------------

    def log(self, request: Any) -> None:
        """Count and log an answered request. Called by twisted.web's request."""
        self.request_ended(request, request.client, request.code, request.sentLength)

    def request_ended(self, request: Any, client: Any, status: int, length: int) -> None:
        """Count and log a request that has ended.

        :param request: has the attributes ``head``, ``route``, ``request_id`` and ``began``, see
            :class:`~novasvc.http.request.Request`.
        :param client: its address.
        :param status: 0 if the client disconnected before the response.
        :param length: bytes of the body that were sent.
        """
        if self.around is not None:
            self.around.ended(request, status)
        head = request.head
        seconds = self.reactor.seconds() - request.began
        metrics.request_ends(self.name, request.route, head.method.decode("ascii"), status, seconds)
        if self._access_log is not None:
            self._access_log.write(client, head.line, status, length, seconds, request.request_id)

    def request_rejected(
        self, channel: LimitedChannel, error: HTTPError, line: bytes, length: int, *, begun: bool
    ) -> None:
        """Count and log a request that the server itself rejects.

        :param line: the request line; empty if it cannot be read.
        :param length: bytes of the response body.
        :param begun: whether the head was valid, so that the request is counted as begun already.
        """
        if not begun:
            metrics.request_begins(self.name)
        metrics.request_ends(self.name, "", "", error.status, 0.0)
        if self._access_log is not None:
            client = channel.transport.getPeer()
            self._access_log.write(client, line or b"-", error.status, length, 0.0)
            self._access_log.write_reason(client, error.status, error.message)


def make_site(
    resource: IResource | Any,
    *,
    limits: Limits | None = None,
    reactor: Any,
    log: AccessLog | None = None,
    name: str = "http",
    middleware: Iterable[Any] = (),
) -> Site:
    """Make the factory of an HTTP/1.1 server.

    Its connections drain when a :class:`~novasvc.node.stream_server.StreamServer` stops. For TLS, wrap it in
    :class:`twisted.protocols.tls.TLSMemoryBIOFactory`.

    :param resource: a twisted.web resource.
    :param limits: None takes the defaults.
    :param reactor: provides IReactorTime.
    :param log: None writes no access log.
    :param name: of the server, a label in the metrics: one of a few.
    :param middleware: what :func:`novasvc.middleware.load_middleware` takes, outermost first, around requests.
    :raises MiddlewareError: a middleware cannot be used.
    """
    site = Site(resource, limits=limits or Limits(), reactor=reactor, log=log, name=name)
    site.around = AroundRequests.of(middleware, name)
    return site
