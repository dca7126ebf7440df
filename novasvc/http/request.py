"""A request for a twisted.web resource or a Klein route."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import parse_qs

from novasvc._compat import apply_content_encoding
from novasvc.http.channel import LimitedChannel
from novasvc.http.errors import FAILED, error_body
from novasvc.http.head import Head
from novasvc.http.response_head import BODILESS, RESET_CONTENT

_log = Logger()

_FORM = b"application/x-www-form-urlencoded"
_MAX_FORM = 16384
"""Bytes of a form that is parsed; a larger one has no fields."""


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
        site.request_ended(self, peer, code, self.sentLength)


def _discard(_: bytes) -> None:
    pass
