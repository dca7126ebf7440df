"""The head of a request: parsed at once, and rejected where two parsers might read it differently."""

# Note [Request smuggling]
#
# A server behind a proxy parses what the proxy has parsed before. Where the two disagree on where a request ends, a
# client can put a request of its own in front of another client's (request smuggling, RFC 9112, 11.2). So whatever RFC
# 9112 leaves to a lenient parser is rejected here: bare line feeds, folded lines (obs-fold), whitespace before a
# colon, two lengths, a length beside chunked, chunked in HTTP/1.0, unknown transfer codings, two Hosts, a fragment in
# the target. Trailer fields follow the same rules.

from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address

import attrs

from novasvc.http.errors import HTTPError
from novasvc.http.grammar import ABSOLUTE_FORM, FIELD_LINE, HOST, INVALID_LINE_ENDING, REQUEST_LINE
from novasvc.http.head_errors import (
    LINE_REST,
    check_field_limits,
    field_line_error,
    line_ending_error,
    request_line_error,
    url_too_long,
)
from novasvc.http.limits import Limits

_FRAMING = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"})
"""Fields that decide where a request goes, where it ends, and whether another may follow it."""
_MAX_LENGTH_DIGITS = 18
"""Digits of a Content-Length: it fits into 64 bits, and int() is never given a long text."""


@attrs.define(eq=False)
class Head:
    """The head of a request.

    :param method: as sent; it is case-sensitive.
    :param target: as sent.
    :param path: before the query, still percent-encoded; "*" for the server as a whole.
    :param query: after the first question mark.
    :param version: b"HTTP/1.0" or b"HTTP/1.1".
    :param headers: pairs of the name, in lower case, and the value, in the order in which they came.
    :param length: bytes of the body; None if it is chunked.
    :param scheme: of a target in absolute form, in lower case; otherwise empty.
    :param last: the connection is to be closed after the response.
    :param expects: the client waits for "100 Continue" before it sends the body.
    """

    method: bytes
    target: bytes
    path: bytes
    query: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None = 0
    scheme: bytes = b""
    last: bool = False
    expects: bool = False

    @property
    def line(self) -> bytes:
        """The request line, as the access log has it."""
        return b"%b %b %b" % (self.method, self.target, self.version)


def read_head(text: bytes, limits: Limits) -> Head:
    """Parse a head.

    :param text: from the request line to the CRLF of the last header line.
    :raises HTTPError: it is malformed, or exceeds a limit.
    """
    line_end = text.index(b"\r\n")
    found = REQUEST_LINE.fullmatch(text, 0, line_end)
    if found is None:
        raise request_line_error(text[:line_end], limits)
    method, target, major, minor = found.groups()
    if len(target) > limits.max_url_len:
        raise url_too_long(limits)
    if major != b"1":
        raise HTTPError(505, "this server supports HTTP/1.0 and HTTP/1.1")
    fields = FIELD_LINE.findall(text, line_end + 2)
    if len(text) - line_end > limits.max_header_line or len(fields) > limits.max_headers:
        lines = text[line_end + 2 :].split(b"\r\n")
        check_field_limits(lines, len(lines) - 1, len(text) - line_end - 2, limits)
    # Each line must match: findall() skips one that does not, and another parser might take it for a field.
    if len(fields) != text.count(b"\n") - 1:
        raise field_line_error(text[line_end + 2 :])
    path, _, query = target.partition(b"?")
    head = Head(method, target, path, query, b"HTTP/1.1" if minor != b"0" else b"HTTP/1.0", [])
    _read_headers(head, fields)
    if method == b"CONNECT":
        raise HTTPError(501, "this server is not a proxy: it does not support CONNECT")
    if not path.startswith(b"/"):
        _read_target(head)
    return head


@attrs.define(eq=False)
class PartialHead:
    """The checks of an incomplete head.

    Input is checked once, so that a client that sends a byte at a time costs little more than others.

    :ivar checked: bytes of the head that were checked.
    """

    _limits: Limits
    checked: int = attrs.field(default=0, init=False)
    _fields_begin: int = attrs.field(default=0, init=False)  # 0 until the request line is complete
    _line_begin: int = attrs.field(default=0, init=False)  # of the incomplete line
    _complete: int = attrs.field(default=0, init=False)  # header lines

    def check(self, text: bytes) -> None:
        """Reject an incomplete head as soon as it cannot become a valid one.

        :param text: all that has arrived, without the empty line that would end the head. It begins with what was
            checked before.
        :raises HTTPError: it is malformed already, or exceeds a limit.
        """
        if text.endswith(b"\r"):
            text = text[:-1]  # its LF may be on the way
        if INVALID_LINE_ENDING.search(text, self.checked):
            raise line_ending_error(text)
        self.checked = len(text)
        lines = text[self._line_begin :].split(b"\r\n")
        self._line_begin = len(text) - len(lines[-1])
        if not self._fields_begin:
            line = lines.pop(0)
            if not lines:
                if len(line) > self._limits.max_url_len + LINE_REST:
                    raise url_too_long(self._limits)
                return
            if not line:
                raise request_line_error(line, self._limits)
            self._fields_begin = len(line) + 2
        self._complete += len(lines) - 1
        check_field_limits(lines, self._complete, len(text) - self._fields_begin, self._limits)


def request_line(text: bytes) -> bytes:
    """Return the request line of a rejected head for the access log; empty if it is not safe to log.

    :param text: the part of the head that has arrived.
    """
    line, end, _ = text.partition(b"\r\n")
    found = REQUEST_LINE.fullmatch(line) if end else None
    # User information in front of an "@" may hold a password.
    return b"" if found is None or b"@" in found[2].partition(b"?")[0] else line


def check_trailer_field(line: bytes) -> None:
    """Reject a trailer line that is no field, or a field that affects framing or routing.

    :param line: with its CRLF.
    :raises HTTPError: see RFC 9110, 6.5.1 and RFC 9112, 7.1.2.
    """
    found = FIELD_LINE.fullmatch(line)
    if found is None:
        raise HTTPError(400, "a line of the trailer section is not of the form name: value")
    if found[1].lower() in _FRAMING:
        raise HTTPError(400, f"the field {found[1].decode('ascii')} is not allowed in a trailer section")


def _read_headers(head: Head, fields: Sequence[tuple[bytes, bytes]]) -> None:
    """Set the headers, and what they say about the length of the body and the end of the connection."""
    headers = head.headers
    found: dict[bytes, list[bytes]] = {}
    for field, raw in fields:
        name, value = field.lower(), raw.strip(b" \t")
        headers.append((name, value))
        if name in _FRAMING:
            found.setdefault(name, []).append(value)
    old = head.version == b"HTTP/1.0"
    # RFC 9112, 3.2: a proxy and a server that take different ones of two Hosts serve different sites.
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or not (hosts or old):
        raise HTTPError(400, "a request must have exactly one Host header")
    # An empty Host is valid: the URL that the client was given has no authority (RFC 9110, 7.2).
    if hosts and hosts[0] and not _is_host(hosts[0]):
        raise HTTPError(400, "invalid Host header: expected host or host:port")
    head.last = old  # HTTP/1.0 has no persistent connections of its own (RFC 9112, 9.3)
    if len(found) > len(hosts):
        _read_framing(head, found)


def _read_framing(head: Head, found: Mapping[bytes, Sequence[bytes]]) -> None:
    """Determine the length of the body, and whether the connection persists (RFC 9112, 6.3 and 9.3)."""
    old = head.version == b"HTTP/1.0"
    for value in found.get(b"connection", ()):
        head.last = head.last or b"close" in [part.strip() for part in value.lower().split(b",")]
    lengths, codings = found.get(b"content-length", ()), found.get(b"transfer-encoding", ())
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise HTTPError(501, "the only Transfer-Encoding that this server supports is chunked, once")
        # RFC 9112, 6.1 lets a server process these if it closes the connection; a proxy in front may not know that.
        if lengths or old:
            raise HTTPError(400, "a chunked body requires HTTP/1.1, and must not have a Content-Length")
        head.length = None
    elif lengths:
        # RFC 9112, 6.3 lets a recipient accept "5, 5". Of "5, 6" a proxy might take one value and a server the other.
        if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _MAX_LENGTH_DIGITS:
            raise HTTPError(400, "the Content-Length header must be a single number, given once")
        head.length = int(lengths[0])
    for value in found.get(b"expect", ()):
        if value.lower() != b"100-continue":
            raise HTTPError(417, "the only expectation that this server supports is 100-continue")
        # HTTP/1.0 clients do not know interim responses (RFC 9110, 10.1.1).
        head.expects = not old and head.length != 0


def _read_target(head: Head) -> None:
    """Parse a target in asterisk form or in absolute form, which a server must accept (RFC 9112, 3.2)."""
    if head.target == b"*" and head.method == b"OPTIONS":
        return
    found = ABSOLUTE_FORM.fullmatch(head.target)
    if found is None or not _is_host(found[2]):
        raise HTTPError(400, "the request target must be a path that begins with a slash")
    head.scheme = found[1].lower()
    head.path, _, head.query = found[3].partition(b"?")
    head.path = head.path or b"/"
    # The authority of the target replaces the Host header, which HTTP/1.0 may lack (RFC 9112, 3.2.2).
    head.headers = [(b"host", found[2]), *(field for field in head.headers if field[0] != b"host")]


def _is_host(text: bytes) -> bool:
    """Return whether a text is uri-host [":" port] (RFC 9110, 7.2)."""
    found = HOST.fullmatch(text)
    if found is None or found[1] is None:
        return found is not None
    try:
        IPv6Address(found[1].decode("ascii"))
    except ValueError:
        return False
    return True
