"""Requests for resources that are read often, answered without twisted.web's request object."""

# Note [Fast path]
#
# twisted.web's request supports forms, sessions, producers and streamed responses, and Klein adds per-request state of
# its own. For a response of a few kilobytes that costs twice as much as parsing the request and making the response.
# A resource that provides IFastPath may claim such requests before a twisted.web request is made. A claimed request has
# no other route: each pair of method and path is answered in one place only.

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface

from novasvc.http.channel import LimitedChannel
from novasvc.http.errors import FAILED, error_body
from novasvc.http.head import Head

_log = Logger()

Handler = Callable[["FastRequest"], Deferred[bytes]]
"""Returns a Deferred of the response body. A failure of it is a bug: the client gets a 500."""

_LINE_BREAKS = bytes.maketrans(b"\r\n\0", b"   ")
"""Header values must not contain these octets (RFC 9110, 5.5); a space takes their place."""


class IFastPath(Interface):
    """A resource that answers some requests without twisted.web. See Note [Fast path]."""

    def fast_handler(head: Head) -> Handler | None:  # noqa: N805 - a method of an interface has no self
        """Return the handler that answers a request, or None if it takes the ordinary route.

        Called when the head of a request is complete, before its body is read.
        """


class FastRequest:
    """A request and its response, which is sent as a whole. See Note [Fast path].

    :param site: a :class:`novasvc.http.site.Site`.
    :param handler: makes the response body.
    :ivar route: the label of this request in the metrics; a handler sets it.
    :ivar request_id: the id of this request in the access log; a handler may set it.
    :ivar began: seconds on the reactor's clock when the head was complete.
    """

    route = ""
    request_id = ""
    startedWriting = False  # noqa: N815 - twisted.web's name; nothing is written before the response is complete

    def __init__(self, site: Any, channel: LimitedChannel, head: Head, handler: Handler) -> None:
        self.head = head
        self.method, self.path, self.uri = head.method, head.path, head.target
        self.channel = channel
        self.code = 200
        received: dict[bytes, list[bytes]] = {}
        for name, value in head.headers:
            received.setdefault(name, []).append(value)
        self._received_headers = received
        self._headers: dict[bytes, Sequence[bytes]] = {}
        self.content: IO[bytes] = BytesIO()
        self._site = site
        self._handler = handler
        self.began = site.reactor.seconds()
        self._answering: Deferred[bytes] | None = None
        self._client_gone = False

    # -- for handlers: the same methods as novasvc.http.request.Request has -------------------------

    def getHeader(self, name: bytes) -> bytes | None:  # noqa: N802 - twisted.web's name
        """Return the last value of a request header, or None."""
        values = self._received_headers.get(name.lower())
        return values[-1] if values else None

    def header_values(self, name: bytes) -> Sequence[bytes]:
        """Return all values of a request header, in the order in which they came."""
        return self._received_headers.get(name.lower(), ())

    def getCookie(self, name: bytes) -> bytes | None:  # noqa: N802 - twisted.web's name
        """Return a cookie, or None; the last one if several have the name, as in twisted.web."""
        found = None
        for line in self._received_headers.get(b"cookie", ()):
            for pair in line.split(b";"):
                key, equals, value = pair.partition(b"=")
                if equals and key.strip() == name:
                    found = value.strip()
        return found

    def getClientAddress(self) -> Any:  # noqa: N802 - twisted.web's name
        """Return the client's address."""
        return self.channel.transport.getPeer()

    def getHost(self) -> Any:
        """Return the address that the client connected to."""
        return self.channel.transport.getHost()

    def isSecure(self) -> bool:  # noqa: N802 - twisted.web's name
        """Return whether the connection uses TLS."""
        return self.channel.secure

    def setHeader(self, name: bytes, value: bytes) -> None:  # noqa: N802 - twisted.web's name
        """Set a response header."""
        self._headers[name.lower()] = (value,)

    def set_headers(self, headers: Mapping[bytes, Sequence[bytes]]) -> None:
        """Set response headers.

        :param headers: values by name in lower case.
        """
        self._headers.update(headers)

    def setResponseCode(self, code: int) -> None:  # noqa: N802 - twisted.web's name
        """Set the status."""
        self.code = code

    # -- for the channel -------------------------------------------------------------------------

    def received(self, content: IO[bytes] | None) -> None:
        """Call the handler: the request is complete."""
        if content is not None:
            content.seek(0)
            self.content = content
        run: Any = copy_context().run
        try:
            answering = run(self._handler, self)
        except Exception:  # noqa: BLE001 - no request may end the server
            self._failed(Failure())
            return
        self._answering = answering
        # The Deferred may fire in another context, such as that of a request which shares the same read.
        answering.addCallbacks(partial(run, self._respond), partial(run, self._failed)).addErrback(self._write_failed)

    def connectionLost(self, reason: Failure) -> None:
        """Cancel the handler's work: the client has gone before the response."""
        self._client_gone = True
        if self._answering is not None:
            self._answering.cancel()
        self._site.request_ended(self, self.channel.transport.getPeer(), 0, 0)

    def _write_failed(self, failure: Failure) -> None:
        _log.failure("{method} {path}: writing the response failed", failure, method=self.method, path=self.path)
        self.channel.abortConnection()

    def _failed(self, failure: Failure) -> None:
        if self._client_gone:
            return
        _log.failure("{method} {path} failed", failure, method=self.method, path=self.path)
        self.code = 500
        self.setHeader(b"content-type", b"application/json")
        self._respond(error_body(500, FAILED))

    def _respond(self, body: bytes) -> None:
        if self._client_gone:
            return
        channel = self.channel
        lines = [b"HTTP/1.1 %d %b" % (self.code, HTTPStatus(self.code).phrase.encode()), b"date: " + self._site.date]
        for name, values in self._headers.items():
            for value in values:
                lines.append(b"%b: %b" % (name, value.translate(_LINE_BREAKS)))  # noqa: PERF401 - a frame each time
        lines.append(b"content-length: %d" % len(body))
        if not channel.persistent:
            lines.append(b"connection: close")
        sent = b"" if self.method == b"HEAD" else body
        lines += (b"", sent)
        channel.transport.write(b"\r\n".join(lines))
        self._site.request_ended(self, channel.transport.getPeer(), self.code, len(sent))
        channel.requestDone(self)
