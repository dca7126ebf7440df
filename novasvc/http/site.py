"""The factory of HTTP connections: makes channels and requests, enforces deadlines, counts and logs requests."""

from collections.abc import Mapping, Sequence
from email.utils import formatdate
from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import parse_qs
from twisted.web.resource import IResource

from novasvc._compat import apply_content_encoding
from novasvc.http.access_log import AccessLog
from novasvc.http.channel import LimitedChannel
from novasvc.http.errors import FAILED, HTTPError, error_body
from novasvc.http.fast_path import FastRequest, IFastPath
from novasvc.http.head import Head
from novasvc.http.limits import Limits
from novasvc.http.response_head import BODILESS, RESET_CONTENT
from novasvc.telemetry import metrics

_log = Logger()

_FORM = b"application/x-www-form-urlencoded"
_MAX_FORM = 16384
"""Bytes of a form that is parsed; a larger one has no fields."""
_DEADLINE_CHECK = 1.0
"""Seconds between two checks of all connections' deadlines. See Note [Slow clients] in channel.py."""
_TLS_LOG_INTERVAL = 1.0
"""Seconds between two log lines about failed TLS handshakes; those in between are counted."""


class Request(server.Request):
    """A request for a twisted.web resource or a Klein route.

    An exception in the resource becomes a JSON error without details; the traceback is only logged.

    :ivar head: the parsed head.
    :ivar route: the label of this request in the metrics: a path template, or "". A resource sets it.
    :ivar request_id: the id of this request in the access log. A resource may set it.
    :ivar began: seconds on the reactor's clock when the head was complete.
    """

    channel: Any
    head: Head
    route = ""
    request_id = ""

    def __init__(self, channel: LimitedChannel, head: Head) -> None:
        super().__init__(channel)
        self.began = channel.site.reactor.seconds()
        self.head = head
        for name, value in head.headers:
            self.requestHeaders.addRawHeader(name, value)
        self.parseCookies()

    def header_values(self, name: bytes) -> Sequence[bytes]:
        """Return all values of a request header, in the order in which they came."""
        values: Sequence[bytes] = self.requestHeaders.getRawHeaders(name, ())
        return values

    def set_headers(self, headers: Mapping[bytes, Sequence[bytes]]) -> None:
        """Set response headers.

        :param headers: values by name in lower case.
        """
        for name, values in headers.items():
            self.responseHeaders.setRawHeaders(name, values)

    def received(self, content: IO[bytes] | None) -> None:
        """Render the resource: the request is complete. Called by the channel."""
        self.content = BytesIO() if content is None else content
        head, content = self.head, self.content
        size = content.tell()
        content.seek(0)
        self.method, self.path, self.clientproto = head.method, head.path, head.version
        self.uri = head.path + b"?" + head.query if head.query else head.path
        self.args = parse_qs(head.query, True) if head.query else {}
        # twisted.web parses forms of any size, for any path, before authentication: up to a second of CPU time. Forms
        # of ours are small, and no resource accepts multipart uploads.
        media_type = (self.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()
        if media_type == _FORM and size <= _MAX_FORM and head.method == b"POST":
            self.args.update(parse_qs(content.read(), True))
            content.seek(0)
        self.process()

    def process(self) -> None:
        """Find the resource and render it, as twisted.web does, but without a Server header."""
        site = self.site = self.channel.site
        self.responseHeaders.setRawHeaders(b"date", [site.date])
        self.prepath: list[bytes] = []
        self.postpath = [unquote_to_bytes(part) for part in self.path[1:].split(b"/")]
        if self.path == b"*":
            # OPTIONS * asks about the server as a whole (RFC 9110, 9.3.7); the parser takes no other method with it.
            self.setHeader(b"content-length", b"0")
            self.finish()
            return
        try:
            resource = site.getResourceFor(self)
            apply_content_encoding(self, resource)
            self.render(resource)
        except BaseException:  # noqa: BLE001 - as in twisted.web: no request may end the server
            self.processingFailed(Failure())

    def write(self, data: bytes) -> None:
        """Write a part of the body, as twisted.web does, without body headers where the status forbids a body."""
        if self.startedWriting:
            super().write(data)
            return
        if not self.channel.persistent:
            self.responseHeaders.setRawHeaders(b"connection", [b"close"])
        if self.code not in BODILESS:
            super().write(data)
            return
        self.responseHeaders.removeHeader(b"content-length")
        if self.code == RESET_CONTENT:
            self.responseHeaders.setRawHeaders(b"content-length", [b"0"])
        super().write(b"")
        self.write = _discard  # type: ignore[method-assign, assignment]  # as twisted.web does for 204 and 304

    def processingFailed(self, reason: Failure) -> object:  # noqa: N802 - twisted.web's name
        """Respond with a 500 that has no details, and log the reason."""
        _log.failure("{method} {path} failed", reason, method=self.method, path=self.path)
        if self.finished or self.channel is None:
            return reason
        if self.startedWriting:
            # The status is sent already. Close so that the client sees that the response is incomplete.
            no_body = self.method == b"HEAD" or self.code in BODILESS
            self.channel.close_incomplete(
                delimited=no_body or bool(self.chunked) or self.responseHeaders.hasHeader(b"content-length")
            )
            return reason
        self.setResponseCode(500)
        body = error_body(500, FAILED)
        self.setHeader(b"content-type", b"application/json")
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()
        return reason

    def connectionLost(self, reason: Failure) -> None:
        """Log and count the request: the client has gone before the end of the response."""
        site, peer = self.channel.site, self.client
        super().connectionLost(reason)
        code = self.code if self.startedWriting else 0
        site.request_ended(peer, self.head, self.route, code, self.sentLength, self.began, self.request_id)


def _discard(_: bytes) -> None:
    pass


class Site(server.Site):
    """Makes channels, and a request for each head that they parse. Use :func:`make_site`.

    :param resource: provides IResource. If it provides :class:`~novasvc.http.fast_path.IFastPath`, it may answer
        requests without twisted.web.
    :param limits: of each connection.
    :param reactor: provides IReactorTime.
    :param log: None writes no access log.
    :param name: of the server, a label in the metrics.
    :ivar channels: the open ones.
    """

    def __init__(
        self, resource: Any, *, limits: Limits, reactor: Any, log: AccessLog | None = None, name: str = "http"
    ) -> None:
        super().__init__(resource, reactor=reactor)
        self.noisy = False
        self.limits = limits
        self.name = name
        self.channels: set[LimitedChannel] = set()
        self._access_log = log
        self._fast_path: Any = IFastPath(resource, None)
        self._deadline_check: IDelayedCall | None = None
        self._date = b""
        self._date_second = -1
        self._tls_failures = 0
        self._tls_logged_at = float("-inf")

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

    def tls_failed(self, peer: Any, reason: Failure) -> None:
        """Log a failed TLS connection: no client certificate, one of an unknown CA, an old version of TLS."""
        self._tls_failures += 1
        now = self.reactor.seconds()
        if now >= self._tls_logged_at + _TLS_LOG_INTERVAL:
            more = f" ({self._tls_failures - 1} more failed before)" if self._tls_failures > 1 else ""
            error: Any = reason.value
            # An OpenSSL error has a list of entries, the last field of each being the text.
            listed = error.args[0] if error.args and isinstance(error.args[0], list) else []
            why = "; ".join(entry[-1] for entry in listed) or reason.getErrorMessage()
            _log.info(
                "{site}: TLS with {peer} failed: {why}{more}",
                site=self.name,
                peer=getattr(peer, "host", peer),
                why=why,
                more=more,
            )
            self._tls_logged_at, self._tls_failures = now, 0

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
        self.request_ended(
            request.client,
            request.head,
            request.route,
            request.code,
            request.sentLength,
            request.began,
            request.request_id,
        )

    def request_ended(
        self, client: Any, head: Head, route: str, status: int, length: int, began: float, request_id: str = ""
    ) -> None:
        """Count and log a request that has ended.

        :param client: its address.
        :param status: 0 if the client disconnected before the response.
        :param length: bytes of the body that were sent.
        :param began: seconds on the reactor's clock when its head was complete.
        """
        seconds = self.reactor.seconds() - began
        metrics.request_ends(self.name, route, head.method.decode("ascii"), status, seconds)
        if self._access_log is not None:
            self._access_log.write(client, head.line, status, length, seconds, request_id)

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
) -> Site:
    """Make the factory of an HTTP/1.1 server.

    Its connections drain when a :class:`~novasvc.node.stream_server.StreamServer` stops. For TLS, wrap it in
    :class:`twisted.protocols.tls.TLSMemoryBIOFactory`.

    :param resource: a twisted.web resource.
    :param limits: None takes the defaults.
    :param reactor: provides IReactorTime.
    :param log: None writes no access log.
    :param name: of the server, a label in the metrics: one of a few.
    """
    return Site(resource, limits=limits or Limits(), reactor=reactor, log=log, name=name)
