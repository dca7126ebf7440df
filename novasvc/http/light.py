"""Light requests: for what is asked for often and answered at once as a whole."""

# Note [Light requests]
#
# A request of twisted.web's knows of forms, sessions, producers and parts of answers, and a route of Klein's adds what
# it needs for its own. For an answer of a few kilobytes that costs twice as much as reading the request and making the
# answer do. A resource may name the few paths that are worth a shortcut; its handlers get a request with the methods
# that they use and no others, and return the body. All other requests, and other methods of those paths, go the
# ordinary way, where the same handlers answer them.

from collections.abc import Callable, Sequence
from contextvars import copy_context
from http import HTTPStatus
from io import BytesIO
from typing import IO, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.http.channel import Channel
from novasvc.http.head import Head
from novasvc.http.refusal import error_body

_log = Logger()

Handler = Callable[["LightRequest"], Deferred[bytes]]
"""Answers a light request with its body; that it fails is a bug."""

_BREAKS = bytes.maketrans(b"\r\n\0", b"   ")


class LightHeaders:
    """The headers of a request, or of its answer; what twisted.web's have, as far as handlers use it.

    :param headers: name in lower case, and values.
    """

    __slots__ = ("named",)

    def __init__(self, headers: dict[bytes, list[bytes]]) -> None:
        self.named = headers

    def getRawHeaders(self, name: bytes, default: Any = None) -> Any:  # noqa: N802 - twisted.web's name
        """Return all values of a header, or the default."""
        return self.named.get(name.lower(), default)

    def setRawHeaders(self, name: bytes, values: Sequence[bytes]) -> None:  # noqa: N802 - twisted.web's name
        """Set all values of a header."""
        self.named[name.lower()] = [*values]

    def addRawHeader(self, name: bytes, value: bytes) -> None:  # noqa: N802 - twisted.web's name
        """Add a value."""
        self.named.setdefault(name.lower(), []).append(value)


class LightRequest:
    """A request and its answer. See Note [Light requests].

    :param site: a :class:`novasvc.http.site.Site`.
    :param handler: has the answer.
    :ivar route: as :class:`novasvc.http.site.Request` has it, as it has request_id.
    """

    route = ""
    request_id = ""
    startedWriting = False  # noqa: N815 - twisted.web's name; the answer is sent as a whole

    def __init__(self, site: Any, channel: Channel, head: Head, handler: Handler) -> None:
        self.head = head
        self.method, self.path, self.uri = head.method, head.path, head.target
        self.channel = channel
        self.code = 200
        received: dict[bytes, list[bytes]] = {}
        for name, value in head.headers:
            received.setdefault(name, []).append(value)
        self.requestHeaders = LightHeaders(received)
        self.responseHeaders = LightHeaders({})
        self.content: IO[bytes] = BytesIO()
        self._site = site
        self._handler = handler
        self._began = site.reactor.seconds()
        self._context = copy_context()
        self._answering: Deferred[bytes] | None = None
        self._gone = False

    # -- what handlers use -----------------------------------------------------------------------

    def getHeader(self, name: bytes) -> bytes | None:  # noqa: N802 - twisted.web's name
        """Return the last value of a header."""
        values = self.requestHeaders.named.get(name.lower())
        return values[-1] if values else None

    def getCookie(self, name: bytes) -> bytes | None:  # noqa: N802 - twisted.web's name
        """Return a cookie; of several of a name, the last one, as twisted.web does."""
        found = None
        for line in self.requestHeaders.named.get(b"cookie", ()):
            for pair in line.split(b";"):
                key, equals, value = pair.partition(b"=")
                if equals and key.strip() == name:
                    found = value.strip()
        return found

    def getClientAddress(self) -> Any:  # noqa: N802 - twisted.web's name
        """Return where it comes from."""
        return self.channel.transport.getPeer()

    def getHost(self) -> Any:
        """Return the address of this server at which it came."""
        return self.channel.transport.getHost()

    def isSecure(self) -> bool:  # noqa: N802 - twisted.web's name
        """Whether it came over TLS."""
        return self.channel.isSecure()

    def setHeader(self, name: bytes, value: bytes) -> None:  # noqa: N802 - twisted.web's name
        """Set a header of the answer."""
        self.responseHeaders.named[name.lower()] = [value]

    def setResponseCode(self, code: int) -> None:  # noqa: N802 - twisted.web's name
        """Set the status of the answer."""
        self.code = code

    # -- what the channel calls ------------------------------------------------------------------

    def received(self, content: IO[bytes] | None) -> None:
        """Take the body, and answer."""
        if content is not None:
            content.seek(0)
            self.content = content
        try:
            answering = self._context.run(self._handler, self)
        except Exception:  # noqa: BLE001 - no request ends the server
            self._failed(Failure())
            return
        self._answering = answering
        # Whoever has the answer is in a context of their own, and what is logged here is of this request.
        answering.addCallbacks(
            lambda body: self._context.run(self._answer, body), lambda failure: self._context.run(self._failed, failure)
        ).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        """Give up a connection whose answer could not be written."""
        _log.failure("{method} {path} could not be answered", failure, method=self.method, path=self.path)
        self.channel.abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        """See the client go before it had its answer."""
        self._gone = True
        if self._answering is not None:
            self._answering.cancel()
        self._end(0, 0)

    def _failed(self, failure: Failure) -> None:
        if self._gone:
            return
        _log.failure("{method} {path} failed", failure, method=self.method, path=self.path)
        self.code = 500
        self.setHeader(b"content-type", b"application/json")
        self._answer(error_body(500, "the request failed on this server, and its log says why"))

    def _answer(self, body: bytes) -> None:
        if self._gone:
            return
        channel = self.channel
        self.setHeader(b"content-length", b"%d" % len(body))
        lines = [b"HTTP/1.1 %d %b" % (self.code, HTTPStatus(self.code).phrase.encode()), b"date: " + self._site.date]
        for name, values in self.responseHeaders.named.items():
            lines += [b"%b: %b" % (name, value.translate(_BREAKS)) for value in values]
        if not channel.persistent:
            lines.append(b"connection: close")
        lines += (b"", body)
        channel.transport.write(b"\r\n".join(lines))
        self._end(self.code, len(body))
        channel.requestDone(self)

    def _end(self, status: int, length: int) -> None:
        peer = self.channel.transport.getPeer()
        self._site.note_end(peer, self.head, self.route, status, length, self._began, self.request_id)
