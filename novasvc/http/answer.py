"""The head of an application's answer: checked, and made what goes over the wire."""

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
"""Headers that are the server's business."""
_known: dict[str, str] = {}
"""Names that were found good, with what they are in lower case."""
_MOST_KNOWN = 1000
WITHOUT_BODY = frozenset({204, 205, 304})
"""Statuses whose answers have no body. They have no Content-Length either (RFC 9110, 8.6; for 304, which may have that
of the body that it stands for, one that is wrong would be kept by caches), except 205, whose is 0 (15.3.6)."""
RESET_CONTENT = 205
_INSTEAD = {RESET_CONTENT: "Content-Length: 0\r\n"}


class AnswerError(Exception):
    """An answer that an application may not give."""


@attrs.frozen
class Answer:
    """The head of an answer.

    :param code: its status.
    :param text: status line and headers, each with its line break.
    :param length: what the application says in Content-Length; None if it does not, or there is no body.
    :param dated: it has a Date header.
    """

    code: int
    text: bytes
    length: int | None
    dated: bool

    @property
    def without_body(self) -> bool:
        """Whether its status forbids a body."""
        return self.code in WITHOUT_BODY


def make_answer(status: Any, headers: Sequence[tuple[str, str]]) -> Answer:
    """Make the head of an answer of what start_response was given.

    :param status: "200 OK".
    :param headers: a list of pairs of texts.
    :raises AnswerError: it is not what PEP 3333 says, or would break the connection.
    """
    if type(status) is not str or not _STATUS.fullmatch(status):
        raise AnswerError(f"the status {status!r} is not a text such as '200 OK'")
    lines = ["HTTP/1.1 ", status if len(status) > 3 else status + " ", "\r\n"]  # noqa: PLR2004 - the blank is needed
    code = int(status[:3])
    length: int | None = None
    dated = False
    for pair in headers:
        try:
            name, value = pair
            lower = _known.get(name) or _see_name(name)
            bad = _CONTROL.search(value)
        except (TypeError, ValueError) as error:
            raise AnswerError(f"the header {pair!r} is not a pair of texts") from error
        if bad:
            raise AnswerError(f"the value of the header {name} holds the control character {bad[0]!r}")
        if lower == "content-length":
            length = _read_length(value, length)
            if code in WITHOUT_BODY:
                continue
        elif lower == "date":
            dated = True
        lines += (name, ": ", value, "\r\n")
    lines.append(_INSTEAD.get(code, ""))
    try:
        text = "".join(lines).encode("latin-1")
    except UnicodeEncodeError as error:
        raise AnswerError(f"status and headers have to be latin-1, and hold {error.object[error.start]!r}") from error
    return Answer(code, text, None if code in WITHOUT_BODY else length, dated)


def _read_length(value: str, before: int | None) -> int:
    if before is not None or not (value.isascii() and value.isdigit()):
        raise AnswerError(f"the Content-Length {value!r} is not one number, once")
    return int(value)


def _see_name(name: str) -> str:
    lower = name.lower()
    if not _NAME.fullmatch(name):
        raise AnswerError(f"{name!r} is no name of a header")
    if lower in _HOP_BY_HOP:
        raise AnswerError(f"the header {name} is for the server to set: it is about the connection")
    if len(_known) < _MOST_KNOWN:
        _known[name] = lower
    return lower
