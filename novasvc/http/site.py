"""A site: what makes the channels of a server, watches them, and counts their requests."""

from email.utils import formatdate
from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import parse_qs
from twisted.web.resource import IResource, _IEncodingResource

from novasvc.http.access_log import AccessLog
from novasvc.http.answer import RESET_CONTENT, WITHOUT_BODY
from novasvc.http.channel import Channel
from novasvc.http.head import Head
from novasvc.http.light import LightRequest
from novasvc.http.limits import Limits
from novasvc.http.refusal import RefusedError, error_body
from novasvc.telemetry import metrics

_log = Logger()

_FORM = b"application/x-www-form-urlencoded"
_LARGEST_FORM = 16384
"""Bytes of a form that is read; a larger one has no fields."""


class Request(server.Request):
    """A request as twisted.web's resources, and Klein's routes, take it.

    What such a resource raises is answered with a JSON error, and only the log has the traceback.

    :ivar head: as it was read.
    :ivar route: what the figures of HTTP call it; a resource sets it: a template, or "".
    :ivar request_id: what the access log calls it; a resource may set it.
    """

    channel: Any
    head: Head
    route = ""
    request_id = ""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._began = channel.site.reactor.seconds()

    def begin(self, head: Head) -> None:
        """Take the head. Called by the site."""
        self.head = head
        for name, value in head.headers:
            self.requestHeaders.addRawHeader(name, value)
        self.parseCookies()

    def received(self, content: IO[bytes] | None) -> None:
        """Take the body, and answer. Called by the channel."""
        self.content = BytesIO() if content is None else content
        head, content = self.head, self.content
        size = content.tell()
        content.seek(0)
        self.method, self.path, self.clientproto = head.method, head.path, head.version
        self.uri = head.path + b"?" + head.query if head.query else head.path
        self.args = parse_qs(head.query, True) if head.query else {}
        # twisted.web reads forms of any size, for any path, before anybody knows who sent them: a second's work. Ours
        # are small, and no room takes files.
        kind = (self.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind == _FORM and size <= _LARGEST_FORM and head.method == b"POST":
            self.args.update(parse_qs(content.read(), True))
            content.seek(0)
        self.process()

    def process(self) -> None:
        """Find the resource, and have it answer. As in twisted.web, but nobody is told the server's version."""
        site = self.site = self.channel.site
        self.responseHeaders.setRawHeaders(b"date", [site.date])
        self.prepath: list[bytes] = []
        self.postpath = [unquote_to_bytes(part) for part in self.path[1:].split(b"/")]
        if self.path == b"*":
            self._handleStar()
            return
        try:
            resource = site.getResourceFor(self)
            if _IEncodingResource.providedBy(resource):
                self._encoder = resource.getEncoder(self)
            self.render(resource)
        except BaseException:  # noqa: BLE001 - as in twisted.web: no request ends the server
            self.processingFailed(Failure())

    def write(self, data: bytes) -> None:
        """Send a part of the body; as in twisted.web, but fields of a body are left out where there is none."""
        if self.startedWriting:
            super().write(data)
            return
        if not self.channel.persistent:
            self.responseHeaders.setRawHeaders(b"connection", [b"close"])
        if self.code not in WITHOUT_BODY:
            super().write(data)
            return
        self.responseHeaders.removeHeader(b"content-length")
        if self.code == RESET_CONTENT:
            self.responseHeaders.setRawHeaders(b"content-length", [b"0"])
        super().write(b"")
        self.write = _write_nothing  # type: ignore[method-assign, assignment]  # as twisted.web does for 204 and 304

    def processingFailed(self, reason: Failure) -> object:  # noqa: N802 - twisted.web's name
        """Answer that it failed, with nothing of why; the log has that."""
        _log.failure("{method} {path} failed", reason, method=self.method, path=self.path)
        if self._disconnected or self.finished:
            return reason
        if self.startedWriting:
            # The client is not to take what it has for all of it.
            no_body = self.method == b"HEAD" or self.code in WITHOUT_BODY
            self.channel.break_off(
                delimited=no_body or bool(self.chunked) or self.responseHeaders.hasHeader(b"content-length")
            )
            return reason
        self.setResponseCode(500)
        body = error_body(500, "the request failed on this server, and its log says why")
        self.setHeader(b"content-type", b"application/json")
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()
        return reason

    def connectionLost(self, reason: Failure) -> None:
        """See the client go before it had its answer."""
        site, peer = self.channel.site, self.client
        super().connectionLost(reason)
        code = self.code if self.startedWriting else 0
        site.note_end(peer, self.head, self.route, code, self.sentLength, self._began, self.request_id)


def _write_nothing(_: bytes) -> None:
    pass


class Site(server.Site):
    """Makes channels, and requests of what they read; :func:`make_site` makes one.

    :param resource: provides IResource. If it has ``shortcut(head)``, and that returns a handler, the request is a
        :class:`~novasvc.http.light.LightRequest`, and the resource does not see it.
    :param limits: of each connection.
    :param reactor: provides IReactorTime.
    :param log: None writes no access log.
    :param name: of the server, in the figures.
    :ivar channels: those that are open.
    """

    def __init__(
        self, resource: Any, *, limits: Limits, reactor: Any, log: AccessLog | None = None, name: str = "http"
    ) -> None:
        super().__init__(resource, reactor=reactor)
        self.noisy = False
        self.limits = limits
        self.name = name
        self.channels: set[Channel] = set()
        self._access_log = log
        self._shortcut = getattr(resource, "shortcut", None)
        self._watch: IDelayedCall | None = None
        self._date = b""
        self._date_of = -1
        self._broken = 0
        self._told_at = float("-inf")

    def make_request(self, channel: Channel, head: Head) -> Any:
        """Make a request of a head; see :class:`~novasvc.http.channel.Channel`."""
        metrics.request_begins(self.name)
        handler = None if self._shortcut is None else self._shortcut(head)
        if handler is not None:
            return LightRequest(self, channel, head, handler)
        request = Request(channel)
        request.begin(head)
        return request

    @property
    def date(self) -> bytes:
        """Now, as the Date header has it."""
        now = int(self.reactor.seconds())
        if now != self._date_of:
            self._date_of = now
            self._date = formatdate(now, usegmt=True).encode()
        return self._date

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802 - IProtocolNegotiationFactory
        """Return what TLS may agree on: twisted.web's HTTP/2 knows nothing of our limits."""
        return [b"http/1.1"]

    # -- channels ------------------------------------------------------------------------------

    def buildProtocol(self, addr: IAddress | None) -> Channel:  # type: ignore[override]  # Twisted wraps it for HTTP/2
        """Make a channel."""
        return Channel(self)

    def watch(self, channel: Channel) -> None:
        """See to the deadlines of a channel, from now on."""
        self.channels.add(channel)
        if self._watch is None:
            self._watch = self.reactor.callLater(1.0, self._see_time)

    def forget(self, channel: Channel) -> None:
        """Forget a channel that is closed."""
        self.channels.discard(channel)
        if not self.channels and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def note_broken_tls(self, peer: Any, reason: Failure) -> None:
        """Log that TLS with a client has failed: a certificate that is missing or a stranger's, an old version."""
        self._broken += 1
        now = self.reactor.seconds()
        if now >= self._told_at + 1.0:
            more = f"; so it did with {self._broken - 1} before" if self._broken > 1 else ""
            error: Any = reason.value
            # OpenSSL's have a list of what went wrong, each with the words last.
            listed = error.args[0] if error.args and isinstance(error.args[0], list) else []
            why = "; ".join(entry[-1] for entry in listed) or reason.getErrorMessage()
            _log.info(
                "{site}: TLS with {peer} failed: {why}{more}",
                site=self.name,
                peer=getattr(peer, "host", peer),
                why=why,
                more=more,
            )
            self._told_at, self._broken = now, 0

    def _see_time(self) -> None:
        self._watch = self.reactor.callLater(1.0, self._see_time)
        now = self.reactor.seconds()
        for channel in list(self.channels):
            channel.see_time(now)

    def startFactory(self) -> None:
        """Begin nothing: the access log is not twisted.web's, which would keep a timer."""

    def stopFactory(self) -> None:
        """Let go of nothing: channels may still be open, and are watched until they are closed."""

    # -- ends of requests ----------------------------------------------------------------------

    def log(self, request: Any) -> None:
        """Note the end of an answer. Called by twisted.web's request."""
        length = request.sentLength
        began = request._began  # noqa: SLF001 - ours
        self.note_end(request.client, request.head, request.route, request.code, length, began, request.request_id)

    def note_end(
        self, client: Any, head: Head, route: str, status: int, length: int, began: float, request_id: str = ""
    ) -> None:
        """Count and log a request that came to its end.

        :param client: its address.
        :param status: 0 if the client was gone before there was an answer.
        :param length: bytes of the body that was sent.
        :param began: seconds on the reactor's clock, when its head was complete.
        """
        seconds = self.reactor.seconds() - began
        metrics.request_ends(self.name, route, head.method.decode("ascii"), status, seconds)
        if self._access_log is not None:
            self._access_log.write(client, head.line, status, length, seconds, request_id)

    def note_refused(self, channel: Channel, refused: RefusedError, line: bytes, length: int, *, begun: bool) -> None:
        """Count and log what was refused.

        :param line: the request line; empty if it could not be read.
        :param length: bytes of the answer's body.
        :param begun: whether a request was made of its head; else that was what is wrong.
        """
        if not begun:
            metrics.request_begins(self.name)
        metrics.request_ends(self.name, "", "", refused.status, 0.0)
        if self._access_log is not None:
            client = channel.transport.getPeer()
            self._access_log.write(client, line or b"-", refused.status, length, 0.0)
            self._access_log.write_reason(client, refused.status, refused.message)


def make_site(
    resource: IResource | Any,
    *,
    limits: Limits | None = None,
    reactor: Any,
    log: AccessLog | None = None,
    name: str = "http",
) -> Site:
    """Make the factory of a server of HTTP/1.1.

    Its connections drain when a :class:`~novasvc.node.stream_server.StreamServer` stops. For TLS it is
    wrapped in :class:`twisted.protocols.tls.TLSMemoryBIOFactory`.

    :param resource: of twisted.web: answers all requests, or has children that do.
    :param limits: None takes the defaults.
    :param reactor: provides IReactorTime.
    :param log: None writes no access log.
    :param name: of the server, in the figures: one of a few.
    """
    return Site(resource, limits=limits or Limits(), reactor=reactor, log=log, name=name)
