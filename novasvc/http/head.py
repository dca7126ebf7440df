"""The head of a request: parsed at once, and rejected where two parsers might read it differently."""

# Note [Request smuggling]
#
# A server behind a proxy parses what the proxy has parsed before. Where the two disagree on where a request ends, a
# client can put a request of its own in front of another client's (request smuggling, RFC 9112, 11.2). So whatever RFC
# 9112 leaves to a lenient parser is rejected here: bare line feeds, folded lines (obs-fold), whitespace before a
# colon, two lengths, a length beside chunked, chunked in HTTP/1.0, unknown transfer codings, two Hosts, a fragment in
# the target. Trailer fields follow the same rules.

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address

import attrs

from novasvc.http.errors import HTTPError
from novasvc.http.limits import Limits

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""Pattern of a token (RFC 9110, 5.6.2)."""
# A target has no fragment (RFC 9112, 3.2). Other octets that RFC 3986 excludes, such as "|", are allowed: browsers send
# them unencoded.
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)")
# field-name ":" OWS field-value OWS (RFC 9112, 5): no whitespace before the colon, and no CR, LF or NUL in the value.
_HEADER = re.compile(rb"^(" + TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n", re.MULTILINE)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_ABSOLUTE = re.compile(rb"(https?)://([^/?]+)(.*)", re.IGNORECASE)
# uri-host [":" port] (RFC 9110, 7.2; RFC 3986, 3.2.2): a name or an IPv4 address, or an IPv6 address in brackets.
_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+"
_PORT = rb"(?::(?:[0-5]?\d{0,4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5]))?"
_HOST = re.compile(rb"(?:" + _NAME + rb"|\[([0-9A-Fa-f:.]+)\])" + _PORT)
_FRAMING = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"})
_LINE_REST = 64
"""Bytes of a request line besides its target: method, spaces and version."""
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
    found = _REQUEST_LINE.fullmatch(text, 0, line_end)
    if found is None:
        raise _request_line_error(text[:line_end], limits)
    method, target, major, minor = found.groups()
    if len(target) > limits.max_url_len:
        raise _url_too_long(limits)
    if major != b"1":
        raise HTTPError(505, "this server supports HTTP/1.0 and HTTP/1.1")
    fields = _HEADER.findall(text, line_end + 2)
    if len(text) - line_end > limits.max_header_line or len(fields) > limits.max_headers:
        _check_limits(text[line_end + 2 :], limits)
    # Each line has to match: one that does not would be skipped by findall(), and another parser might not skip it.
    if len(fields) != text.count(b"\n") - 1:
        raise _header_error(text[line_end + 2 :])
    path, _, query = target.partition(b"?")
    head = Head(method, target, path, query, b"HTTP/1.1" if minor != b"0" else b"HTTP/1.0", [])
    _read_headers(head, fields)
    if method == b"CONNECT":
        raise HTTPError(501, "this server is not a proxy: it does not support CONNECT")
    if not path.startswith(b"/"):
        _read_target(head)
    return head


def check_partial_head(text: bytes, limits: Limits) -> None:
    """Reject an incomplete head as soon as it cannot become a valid one.

    :param text: what has come of it, without the empty line that would end it.
    :raises HTTPError: it is malformed already, or exceeds a limit.
    """
    if text.endswith(b"\r"):
        text = text[:-1]
    if _BARE.search(text):
        raise _line_ending_error(text)
    line_end = text.find(b"\r\n")
    if line_end == 0:
        raise _request_line_error(b"", limits)
    if line_end < 0:
        if len(text) > limits.max_url_len + _LINE_REST:
            raise _url_too_long(limits)
    else:
        _check_limits(text[line_end + 2 :], limits)


def request_line(text: bytes) -> bytes:
    """Return the request line of a rejected head for the access log; empty if it is not safe to log.

    :param text: what has come of the head.
    """
    line, end, _ = text.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line) if end else None
    # User information in front of an "@" may hold a password.
    return b"" if found is None or b"@" in found[2].partition(b"?")[0] else line


def check_trailer_field(line: bytes) -> None:
    """Reject a trailer line that is no field, or a field that affects framing or routing.

    :param line: with its CRLF.
    :raises HTTPError: see RFC 9110, 6.5.1 and RFC 9112, 7.1.2.
    """
    found = _HEADER.fullmatch(line)
    if found is None:
        raise HTTPError(400, "a line of the trailer section is not of the form name: value")
    if found[1].lower() in _FRAMING:
        raise HTTPError(400, f"the field {found[1].decode('ascii')} is not allowed in a trailer section")


def _read_headers(head: Head, fields: Sequence[tuple[bytes, bytes]]) -> None:
    """Fill in the headers, and how they frame the message."""
    headers = head.headers
    found: dict[bytes, list[bytes]] = {}
    for field, raw in fields:
        name, value = field.lower(), raw.strip(b" \t")
        headers.append((name, value))
        if name in _FRAMING:
            found.setdefault(name, []).append(value)
    old = head.version == b"HTTP/1.0"
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or not (hosts or old):
        raise HTTPError(400, "a request must have exactly one Host header")
    # An empty Host is valid: the URL that the client was given has no authority (RFC 9110, 7.2).
    if hosts and hosts[0] and not _is_host(hosts[0]):
        raise HTTPError(400, "invalid Host header: expected host or host:port")
    head.last = old
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
        # RFC 9112, 6.1 lets a server process these, and closes the connection then; the risk is not worth it.
        if lengths or old:
            raise HTTPError(400, "a chunked body requires HTTP/1.1, and must not have a Content-Length")
        head.length = None
    elif lengths:
        # RFC 9112, 6.3 tolerates "5, 5"; a proxy that takes the one and a server that takes the other disagree on "5,
        # 6".
        if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _MAX_LENGTH_DIGITS:
            raise HTTPError(400, "the Content-Length header must be a single number, given once")
        head.length = int(lengths[0])
    for value in found.get(b"expect", ()):
        if value.lower() != b"100-continue":
            raise HTTPError(417, "the only expectation that this server supports is 100-continue")
        # HTTP/1.0 clients do not know interim responses (RFC 9110, 10.1.1).
        head.expects = not old and head.length != 0


def _read_target(head: Head) -> None:
    """Parse a target that is no path: asterisk form, or absolute form, which a server must accept (RFC 9112, 3.2)."""
    if head.target == b"*" and head.method == b"OPTIONS":
        return
    found = _ABSOLUTE.fullmatch(head.target)
    if found is None or not _is_host(found[2]):
        raise HTTPError(400, "the request target must be a path that begins with a slash")
    head.scheme = found[1].lower()
    head.path, _, head.query = found[3].partition(b"?")
    head.path = head.path or b"/"
    # The authority of the target replaces the Host header, which HTTP/1.0 may lack (RFC 9112, 3.2.2).
    head.headers = [(b"host", found[2]), *(field for field in head.headers if field[0] != b"host")]


def _is_host(text: bytes) -> bool:
    """Return whether a text is uri-host [":" port] (RFC 9110, 7.2)."""
    found = _HOST.fullmatch(text)
    if found is None or found[1] is None:
        return found is not None
    try:
        IPv6Address(found[1].decode("ascii"))
    except ValueError:
        return False
    return True


def _check_limits(text: bytes, limits: Limits) -> None:
    lines = text.split(b"\r\n")
    if len(lines) - 1 > limits.max_headers:
        raise HTTPError(431, f"the request has more than {limits.max_headers} header lines")
    if any(len(line) > limits.max_header_line for line in lines):
        raise HTTPError(431, f"a header line is longer than {limits.max_header_line} bytes")
    if len(text) > limits.max_head:
        raise HTTPError(431, f"the headers are longer than {limits.max_head} bytes in total")


def _url_too_long(limits: Limits) -> HTTPError:
    return HTTPError(414, f"the URL is longer than {limits.max_url_len} bytes")


def _request_line_error(line: bytes, limits: Limits) -> HTTPError:
    if len(line) > limits.max_url_len + _LINE_REST:
        return _url_too_long(limits)
    if line.startswith(b"\x16\x03"):
        return HTTPError(400, "this server does not use TLS; use http, not https")
    if not line:
        return HTTPError(400, "there is more than one empty line before the request")
    if b"#" in line.partition(b" ")[2]:  # "#" is allowed in a method
        return HTTPError(400, "the request target contains a fragment ('#'); clients must not send it")
    return HTTPError(400, "the request line is not of the form METHOD TARGET HTTP/1.1, with single spaces")


def _header_error(text: bytes) -> HTTPError:
    if _BARE.search(text):
        return _line_ending_error(text)
    number, line = 0, b""
    for number, line in enumerate(text.split(b"\r\n")[:-1], 1):  # noqa: B007 - the first malformed line is reported
        if not _HEADER.fullmatch(line + b"\r\n"):
            break
    if line[:1] in {b" ", b"\t"}:
        return HTTPError(400, f"header line {number} begins with whitespace: folded lines are not supported")
    return HTTPError(400, f"header line {number} is not of the form name: value")


def _line_ending_error(text: bytes) -> HTTPError:
    if text.startswith(b"\x16\x03"):
        return HTTPError(400, "this server does not use TLS; use http, not https")
    return HTTPError(400, "each line must end in CRLF, and contain no other CR, LF or NUL")
