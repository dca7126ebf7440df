"""The access log: a line for each request, in Nova's form."""

import re
from datetime import datetime
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.logger import Logger

from novasvc.config.log_format import NOVA_LOG_FORMAT
from novasvc.config.masking import MASK

_log = Logger()
_LONGEST = 2000
"""Characters of a request line that are logged."""
_LONGEST_REASON = 500
_UNSAFE = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")
_SECRET = re.compile(rb"passw|pwd|secret|token|key|code|auth|sig|session|credential", re.IGNORECASE)


class AccessLog:
    """Writes the lines, through :mod:`twisted.logger`.

    What clients sent is escaped as in a Python string, so that no request can forge a line, and values in a query
    whose names look like those of secrets are masked.

    :param form: see :mod:`novasvc.config.log_format`.
    """

    def __init__(self, form: str = NOVA_LOG_FORMAT) -> None:
        self._form = form
        self._dated = "date_time" in form

    def write(self, client: Any, line: bytes, status: int, length: int, seconds: float, request_id: str = "") -> None:
        """Write a line.

        :param client: address of the client, as a transport gives it.
        :param line: the request line, without its line break.
        :param status: 0 if the client was gone before there was an answer.
        :param length: bytes of the answer's body.
        :param seconds: from the end of the request's head to the end of the answer.
        :param request_id: what the client knows the request by; "" is that of the context, if there is one.
        """
        fields = {
            "client_ip": _ip(client),
            "client_port": getattr(client, "port", 0),
            "date_time": datetime.now().astimezone().strftime("%d/%b/%Y %H:%M:%S") if self._dated else "",
            "request_line": shown(line),
            "status_code": status,
            "body_length": length,
            "wall_seconds": seconds,
        }
        known = {"request_id": request_id} if request_id else {}
        _log.info("{line}", line=self._form % fields, access=fields, **known)

    def write_reason(self, client: Any, status: int, reason: str) -> None:
        """Write why a request was refused, after its line: the form of that is Nova's, and has no place for it.

        :param client: as for :meth:`write`.
        :param reason: what the client is told.
        """
        told = _UNSAFE.sub(_escaped, reason[:_LONGEST_REASON])
        _log.info("{client} refused with {status}: {reason}", client=_ip(client), status=status, reason=told)


def _ip(client: Any) -> str:
    return getattr(client, "host", None) or "unix:"


def shown(line: bytes) -> str:
    """Return a request line for the log: its secrets masked, quotes and what is not ASCII escaped."""
    line = line[:_LONGEST]
    if b"?" in line:
        path, _, rest = line.partition(b"?")
        query, blank, version = rest.partition(b" ")
        line = path + b"?" + b"&".join(map(_masked, query.split(b"&"))) + blank + version
    return _UNSAFE.sub(_escaped, line.decode("latin-1"))


def _masked(pair: bytes) -> bytes:
    name, equals, value = pair.partition(b"=")
    return name + equals + MASK.encode() if value and _SECRET.search(unquote_to_bytes(name)) else pair


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"
