"""The head of a request: read at once, and refused where two readers could read it in two ways."""

# Note [Requests that are refused]
#
# A server behind a proxy reads what that has read before. Where the two disagree on where a request
# ends, a client can put a request of its own in front of another's (request smuggling). So whatever
# RFC 9112 leaves to a lenient reader is refused here: lines that end in a bare line feed, lines that
# are folded, blanks before a colon, two lengths, a length beside chunks, chunks in HTTP/1.0, codings
# that are not understood, two Hosts, a fragment in a target. Trailer fields follow the same rules.

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address

import attrs

from novasvc.http.limits import Limits
from novasvc.http.refusal import RefusedError

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""Pattern of a token (RFC 9110, 5.6.2)."""
# A target has no fragment (RFC 9112, 3.2). Other octets that RFC 3986 excludes, such as "|", browsers send as they are.
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)")
_HEADER = re.compile(rb"^(" + TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n", re.MULTILINE)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_ABSOLUTE = re.compile(rb"(https?)://([^/?]+)(.*)", re.IGNORECASE)
# uri-host [":" port] (RFC 9110, 7.2; RFC 3986, 3.2.2): a name or an IPv4 address, or an IPv6 address in brackets.
_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+"
_PORT = rb"(?::(?:[0-5]?\d{0,4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5]))?"
_HOST = re.compile(rb"(?:" + _NAME + rb"|\[([0-9A-Fa-f:.]+)\])" + _PORT)
_FRAMING = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"})
_LINE_REST = 64
"""Bytes of a request line beside its target: method, blanks and version."""
_LONGEST_NUMBER = 18
"""Digits of a Content-Length that is looked at."""


@attrs.define(eq=False)
class Head:
    """The head of a request.

    :param method: as sent; case matters.
    :param target: as sent.
    :param path: before the query, still percent-encoded; "*" for the server itself.
    :param query: after the first question mark.
    :param version: b"HTTP/1.0" or b"HTTP/1.1".
    :param headers: name in lower case and value, in the order in which they came.
    :param length: bytes of the body; None for one in chunks.
    :param scheme: of a target that is a whole URL, in lower case; else empty.
    :param last: the connection is to be closed after the answer.
    :param expects: the client waits for a "100 Continue" before it sends the body.
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
        """The request line, for the log."""
        return b"%b %b %b" % (self.method, self.target, self.version)


def read_head(text: bytes, limits: Limits) -> Head:
    """Read a head.

    :param text: from the request line on, with the line break that ends the last header.
    :raises RefusedError: it is malformed, or goes beyond a limit.
    """
    line_end = text.index(b"\r\n")
    found = _REQUEST_LINE.fullmatch(text, 0, line_end)
    if found is None:
        raise _why_no_request_line(text[:line_end], limits)
    method, target, major, minor = found.groups()
    if len(target) > limits.max_url_len:
        raise _too_long(limits)
    if major != b"1":
        raise RefusedError(505, "this server speaks HTTP/1.0 and HTTP/1.1")
    fields = _HEADER.findall(text, line_end + 2)
    if len(text) - line_end > limits.max_header_line or len(fields) > limits.max_headers:
        _see_limits(text[line_end + 2 :], limits)
    if len(fields) != text.count(b"\n") - 1:
        raise _why_no_header(text[line_end + 2 :])
    headers = [(name.lower(), value.strip(b" \t")) for name, value in fields]
    path, _, query = target.partition(b"?")
    head = Head(method, target, path, query, b"HTTP/1.1" if minor != b"0" else b"HTTP/1.0", headers)
    _see_headers(head, headers)
    if method == b"CONNECT":
        raise RefusedError(501, "this server is no proxy: it has no CONNECT")
    if not path.startswith(b"/"):
        _see_target(head)
    return head


def see_partial(text: bytes, limits: Limits) -> None:
    """See that what has come of a head can still become one.

    :param text: without the empty line that would end it.
    :raises RefusedError: it cannot.
    """
    if text.endswith(b"\r"):
        text = text[:-1]
    if _BARE.search(text):
        raise _why_bare(text)
    line_end = text.find(b"\r\n")
    if line_end == 0:
        raise _why_no_request_line(b"", limits)
    if line_end < 0:
        if len(text) > limits.max_url_len + _LINE_REST:
            raise _too_long(limits)
    else:
        _see_limits(text[line_end + 2 :], limits)


def request_line(text: bytes) -> bytes:
    """Return the request line of a head that is refused, for the log; empty if it cannot be read.

    :param text: what has come of the head.
    """
    line, end, _ = text.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line) if end else None
    # What is in front of an @ may be a password.
    return b"" if found is None or b"@" in found[2].partition(b"?")[0] else line


def see_trailer(line: bytes) -> None:
    """See that a line of a trailer section is a field, and none that says where the request ends or goes.

    :param line: with its line break.
    :raises RefusedError: it is not (RFC 9110, 6.5.1; RFC 9112, 7.1.2).
    """
    found = _HEADER.fullmatch(line)
    if found is None:
        raise RefusedError(400, "a line of the trailer section is not: name, colon, value")
    if found[1].lower() in _FRAMING:
        raise RefusedError(400, f"the field {found[1].decode('ascii')} is not allowed in a trailer section")


def _see_headers(head: Head, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Find out where the request ends, and what is to become of its connection."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _FRAMING:
            found.setdefault(name, []).append(value)
    old = head.version == b"HTTP/1.0"
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or not (hosts or old):
        raise RefusedError(400, "a request has to have one Host header")
    # It is empty where the URL that the client was given has no host (RFC 9110, 7.2).
    if hosts and hosts[0] and not _is_host(hosts[0]):
        raise RefusedError(400, "invalid Host header: expected host or host:port")
    head.last = old
    if len(found) > len(hosts):
        _see_framing(head, found)


def _see_framing(head: Head, found: Mapping[bytes, Sequence[bytes]]) -> None:
    old = head.version == b"HTTP/1.0"
    for value in found.get(b"connection", ()):
        head.last = head.last or b"close" in [part.strip() for part in value.lower().split(b",")]
    lengths, codings = found.get(b"content-length", ()), found.get(b"transfer-encoding", ())
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise RefusedError(501, "the only Transfer-Encoding that this server knows is chunked, once")
        if lengths or old:
            raise RefusedError(400, "a body in chunks is for HTTP/1.1, and without a Content-Length")
        head.length = None
    elif lengths:
        if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _LONGEST_NUMBER:
            raise RefusedError(400, "the Content-Length header has to be one number, once")
        head.length = int(lengths[0])
    for value in found.get(b"expect", ()):
        if value.lower() != b"100-continue":
            raise RefusedError(417, "the only expectation that this server knows is 100-continue")
        head.expects = not old and head.length != 0


def _see_target(head: Head) -> None:
    """Read a target that is no path: of the server itself, or a whole URL, which is for proxies and allowed."""
    if head.target == b"*" and head.method == b"OPTIONS":
        return
    found = _ABSOLUTE.fullmatch(head.target)
    if found is None or not _is_host(found[2]):
        raise RefusedError(400, "the target of the request has to be a path that begins with a slash")
    head.scheme = found[1].lower()
    head.path, _, head.query = found[3].partition(b"?")
    head.path = head.path or b"/"
    # The host of the URL replaces that of the Host header, which HTTP/1.0 need not have (RFC 9112, 3.2.2).
    head.headers = [(b"host", found[2]), *(field for field in head.headers if field[0] != b"host")]


def _is_host(text: bytes) -> bool:
    found = _HOST.fullmatch(text)
    if found is None or found[1] is None:
        return found is not None
    try:
        IPv6Address(found[1].decode("ascii"))
    except ValueError:
        return False
    return True


def _see_limits(text: bytes, limits: Limits) -> None:
    lines = text.split(b"\r\n")
    if len(lines) - 1 > limits.max_headers:
        raise RefusedError(431, f"there are more than {limits.max_headers} header lines")
    if any(len(line) > limits.max_header_line for line in lines):
        raise RefusedError(431, f"a header line is longer than {limits.max_header_line} bytes")
    if len(text) > limits.max_head:
        raise RefusedError(431, f"the headers are longer than {limits.max_head} bytes together")


def _too_long(limits: Limits) -> RefusedError:
    return RefusedError(414, f"the URL is longer than {limits.max_url_len} bytes")


def _why_no_request_line(line: bytes, limits: Limits) -> RefusedError:
    if len(line) > limits.max_url_len + _LINE_REST:
        return _too_long(limits)
    if line.startswith(b"\x16\x03"):
        return RefusedError(400, "this is no TLS server; use http, not https")
    if not line:
        return RefusedError(400, "there is more than one empty line in front of the request")
    if b"#" in line.partition(b" ")[2]:  # a method may have one
        return RefusedError(400, "the request target contains a fragment ('#'); clients must not send it")
    return RefusedError(400, "the request line is not: method, blank, target, blank, HTTP/1.1")


def _why_no_header(text: bytes) -> RefusedError:
    if _BARE.search(text):
        return _why_bare(text)
    number, line = 0, b""
    for number, line in enumerate(text.split(b"\r\n")[:-1], 1):  # noqa: B007 - the first bad one
        if not _HEADER.fullmatch(line + b"\r\n"):
            break
    if line[:1] in {b" ", b"\t"}:
        return RefusedError(400, f"header line {number} begins with a blank: lines may not be folded")
    return RefusedError(400, f"header line {number} is not: name, colon, value")


def _why_bare(text: bytes) -> RefusedError:
    if text.startswith(b"\x16\x03"):
        return RefusedError(400, "this is no TLS server; use http, not https")
    return RefusedError(400, "lines have to end in carriage return and line feed, and hold neither of them, nor NUL")
