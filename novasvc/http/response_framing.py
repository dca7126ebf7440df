"""How the body of a WSGI application's response is delimited (RFC 9112, 6.3; PEP 3333)."""

from typing import Any

from twisted.logger import Logger

from novasvc.http.access_log import loggable_target
from novasvc.http.channel import LimitedChannel
from novasvc.http.head import Head
from novasvc.http.response_head import ResponseHead

_log = Logger()


class ResponseFraming:
    """Frames one response: its head, and its body delimited by a length, by chunks, or by the end of the connection.

    The head is made with the first part of the body. If that is the last part as well, the length of the body is known.

    :param site: the :class:`novasvc.http.wsgi.WSGISite`; has the date, and the application's name for the log.
    :param channel: told if the response can only end with the connection.
    :param request: the head of the request.
    :param response: what the application has started.
    :ivar sent: bytes of the body so far, without the framing.
    """

    def __init__(self, site: Any, channel: LimitedChannel, request: Head, response: ResponseHead) -> None:
        self.sent = 0
        self._site = site
        self._channel = channel
        self._request = request
        self._response = response
        self._bodiless = request.method == b"HEAD" or response.without_body
        self._head_made = False
        self._chunked = False
        self._remaining: int | None = None
        self._overrun_logged = False

    @property
    def delimited(self) -> bool:
        """Whether a client can tell that the response is incomplete if the connection ends before it."""
        return self._chunked or self._bodiless or self._remaining is not None

    def frame(self, parts: list[bytes], *, last: bool) -> list[bytes]:
        """Return the octets to send.

        :param parts: of the body, not yet sent; none of them is empty if there are several.
        :param last: the body is complete with them.
        """
        count = sum(map(len, parts))
        out = []
        if not self._head_made:
            self._head_made = True
            out.append(self._head(count, last=last))
        if self._bodiless:
            return out
        if count and self._remaining is not None:
            parts, count = self._within_length(parts, count, self._remaining)
            self._remaining -= count
        self.sent += count
        if not self._chunked:
            return out + parts
        # A chunk of size 0 would end the body (RFC 9112, 7.1).
        if count:
            out += (b"%x\r\n" % count, *parts, b"\r\n")
        if last:
            out.append(b"0\r\n\r\n")
        return out

    def is_full_length(self) -> bool:
        """Return whether the body is as long as the application announced; log it if not."""
        if not self._remaining or self._bodiless:
            return True
        _log.error(
            "{app}: the response to {target} is {missing} bytes shorter than its Content-Length",
            app=self._site.name,
            target=loggable_target(self._request.target),
            missing=self._remaining,
        )
        return False

    def _head(self, count: int, *, last: bool) -> bytes:
        """Return the head of the response, and decide how its body is delimited."""
        response, channel = self._response, self._channel
        text = response.text if response.dated else b"%bDate: %b\r\n" % (response.text, self._site.date)
        if response.length is not None:
            self._remaining = response.length
        elif last and not response.without_body:
            # All of the body is here, so its length is known (PEP 3333, "Handling the Content-Length Header").
            self._remaining = count
            # An empty body for HEAD says nothing about the length of that for GET (RFC 9110, 8.6).
            if count or not self._bodiless:
                text += b"Content-Length: %d\r\n" % count
        elif self._bodiless:
            pass
        elif self._request.version == b"HTTP/1.1":
            self._chunked = True
            text += b"Transfer-Encoding: chunked\r\n"
        else:
            channel.persistent = False  # HTTP/1.0 has no chunks: the end of the connection ends the body
        if channel.persistent:
            return text + b"\r\n"
        return text + b"Connection: close\r\n\r\n"

    def _within_length(self, parts: list[bytes], count: int, remaining: int) -> tuple[list[bytes], int]:
        """Cut off what exceeds the Content-Length: a client would take it for the next response (RFC 9112, 6.3)."""
        if count <= remaining:
            return parts, count
        if not self._overrun_logged:
            self._overrun_logged = True
            _log.error(
                "{app}: the response to {target} is longer than its Content-Length; {count} bytes or more are cut off",
                app=self._site.name,
                target=loggable_target(self._request.target),
                count=count - remaining,
            )
        return [b"".join(parts)[:remaining]], remaining
