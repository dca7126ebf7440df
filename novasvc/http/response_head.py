"""The head of a response that a WSGI application starts: validated and encoded."""

import re
from collections.abc import Sequence
from typing import Any

import attrs

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS = re.compile(r"[2-5]\d\d(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that only the server may set (PEP 3333, "Other HTTP Features"; RFC 9110, 7.6.1)."""
_known: dict[str, str] = {}
"""A cache of valid header names, each with its lower case. It is bounded, as applications may make names up."""
_MAX_KNOWN = 1000
BODILESS = frozenset({204, 205, 304})
"""Statuses without a body. They have no Content-Length either, except for 205, which has 0 (RFC 9110, 8.6, 15.3.6).

A 304 may have that of the representation, but caches would store a wrong one."""
RESET_CONTENT = 205
_EXTRA_HEADERS = {RESET_CONTENT: "Content-Length: 0\r\n"}


class ResponseError(Exception):
    """A response that the application must not make (PEP 3333)."""


@attrs.frozen
class ResponseHead:
    """The head of a response.

    :param code: the status.
    :param text: status line and headers, each with its CRLF.
    :param length: the application's Content-Length; None if it has none, or the status forbids a body.
    :param dated: whether it has a Date header.
    """

    code: int
    text: bytes
    length: int | None
    dated: bool

    @property
    def without_body(self) -> bool:
        """Whether the status forbids a body."""
        return self.code in BODILESS


def make_response_head(status: Any, headers: Sequence[tuple[str, str]]) -> ResponseHead:
    """Validate and encode the arguments of start_response.

    :param status: status and reason phrase, "200 OK".
    :param headers: a list of (name, value).
    :raises ResponseError: they violate PEP 3333, or would corrupt the connection.
    """
    if type(status) is not str or not _STATUS.fullmatch(status):
        raise ResponseError(f"the status {status!r} is not a str such as '200 OK'")
    lines = ["HTTP/1.1 ", status if len(status) > 3 else status + " ", "\r\n"]  # noqa: PLR2004 - the space is required (RFC 9112, 4)
    code = int(status[:3])
    length: int | None = None
    dated = False
    for pair in headers:
        try:
            name, value = pair
            lower = _known.get(name) or _check_name(name)
            bad = _CONTROL.search(value)
        except (TypeError, ValueError) as error:
            raise ResponseError(f"the header {pair!r} is not a pair of str") from error
        if bad:
            raise ResponseError(f"the value of the header {name} contains the control character {bad[0]!r}")
        if lower == "content-length":
            length = _read_length(value, length)
            if code in BODILESS:
                continue
        elif lower == "date":
            dated = True
        lines += (name, ": ", value, "\r\n")
    lines.append(_EXTRA_HEADERS.get(code, ""))
    try:
        text = "".join(lines).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ResponseError(f"status and headers must be Latin-1, but contain {error.object[error.start]!r}") from error
    return ResponseHead(code, text, None if code in BODILESS else length, dated)


def _read_length(value: str, before: int | None) -> int:
    if before is not None or not (value.isascii() and value.isdigit()):
        raise ResponseError(f"the Content-Length {value!r} is not a single number, given once")
    return int(value)


def _check_name(name: str) -> str:
    lower = name.lower()
    if not _NAME.fullmatch(name):
        raise ResponseError(f"{name!r} is not a valid header name")
    if lower in _HOP_BY_HOP:
        raise ResponseError(f"the header {name} is hop-by-hop, and only the server may set it")
    if len(_known) < _MAX_KNOWN:
        _known[name] = lower
    return lower
