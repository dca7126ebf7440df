"""What is wrong with a head that head.py rejects: the status, and a message that tells the client what to change."""

from collections.abc import Sequence

from novasvc.http.errors import HTTPError
from novasvc.http.grammar import FIELD_LINE, INVALID_LINE_ENDING
from novasvc.http.limits import Limits

LINE_REST = 64
"""Bytes of a request line besides its target: method, spaces and version."""
_TLS_HANDSHAKE = b"\x16\x03"
"""The first bytes of a TLS ClientHello (RFC 8446, 5.1): the client speaks https to a port of http."""


def check_field_limits(lines: Sequence[bytes], count: int, size: int, limits: Limits) -> None:
    """Reject header lines that exceed a limit.

    :param lines: those whose lengths were not checked yet, without their CRLF.
    :param count: of all complete header lines.
    :param size: bytes of all header lines.
    :raises HTTPError: 431 (RFC 6585, 5), naming the limit.
    """
    if count > limits.max_headers:
        raise HTTPError(431, f"the request has more than {limits.max_headers} header lines")
    if any(len(line) > limits.max_header_line for line in lines):
        raise HTTPError(431, f"a header line is longer than {limits.max_header_line} bytes")
    if size > limits.max_head:
        raise HTTPError(431, f"the headers are longer than {limits.max_head} bytes in total")


def url_too_long(limits: Limits) -> HTTPError:
    """Return the error for a request target over the limit."""
    return HTTPError(414, f"the URL is longer than {limits.max_url_len} bytes")


def request_line_error(line: bytes, limits: Limits) -> HTTPError:
    """Return the error for a request line that does not match the grammar.

    :param line: without its CRLF.
    """
    if len(line) > limits.max_url_len + LINE_REST:
        return url_too_long(limits)
    if line.startswith(_TLS_HANDSHAKE):
        return _tls_error()
    if not line:
        return HTTPError(400, "there is more than one empty line before the request")
    if b"#" in line.partition(b" ")[2]:  # "#" is allowed in a method
        return HTTPError(400, "the request target contains a fragment ('#'); clients must not send it")
    return HTTPError(400, "the request line is not of the form METHOD TARGET HTTP/1.1, with single spaces")


def field_line_error(text: bytes) -> HTTPError:
    """Return the error for the first header line that does not match the grammar.

    :param text: the header lines, without the request line.
    """
    if INVALID_LINE_ENDING.search(text):
        return line_ending_error(text)
    number, line = 0, b""
    for number, line in enumerate(text.split(b"\r\n")[:-1], 1):  # noqa: B007 - used after the loop
        if not FIELD_LINE.fullmatch(line + b"\r\n"):
            break
    if line[:1] in {b" ", b"\t"}:
        # obs-fold (RFC 9112, 5.2)
        return HTTPError(400, f"header line {number} begins with whitespace: folded lines are not supported")
    return HTTPError(400, f"header line {number} is not of the form name: value")


def line_ending_error(text: bytes) -> HTTPError:
    """Return the error for a head that contains a bare CR or LF, or a NUL.

    :param text: the head from its first byte on, or only its header lines.
    """
    if text.startswith(_TLS_HANDSHAKE):
        return _tls_error()
    return HTTPError(400, "each line must end in CRLF, and contain no other CR, LF or NUL")


def _tls_error() -> HTTPError:
    return HTTPError(400, "this server does not use TLS; use http, not https")
