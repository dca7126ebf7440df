"""The access log: one line per request, in Nova's format."""

import re
from datetime import datetime
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.logger import Logger

from novasvc.config.log_format import NOVA_LOG_FORMAT
from novasvc.config.masking import MASK

_log = Logger()
_MAX_LINE = 2000
"""Bytes of a request line that are logged."""
_MAX_TARGET = 200
"""Bytes of a request target that are logged."""
_MAX_REASON = 500
"""Characters of the reason of a rejection that are logged."""
_UNSAFE = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")
_SECRET = re.compile(rb"passw|pwd|secret|token|key|code|auth|sig|session|credential", re.IGNORECASE)


class AccessLog:
    """Writes the lines through :mod:`twisted.logger`.

    Clients' text is escaped as in a Python string, so that no request can forge a line, and query values whose names
    look like secrets are masked.

    :param form: see :mod:`novasvc.config.log_format`.
    """

    def __init__(self, form: str = NOVA_LOG_FORMAT) -> None:
        self._form = form
        self._dated = "date_time" in form

    def write(self, client: Any, line: bytes, status: int, length: int, seconds: float, request_id: str = "") -> None:
        """Write the line of a request.

        :param client: the client's address.
        :param line: the request line, without its CRLF.
        :param status: 0 if the client disconnected before the response.
        :param length: bytes of the response body.
        :param seconds: from the end of the request's head to the end of the response.
        :param request_id: the id that the client was told; "" takes that of the current context, if there is one.
        """
        fields = {
            "client_ip": _ip(client),
            "client_port": getattr(client, "port", 0),
            "date_time": datetime.now().astimezone().strftime("%d/%b/%Y %H:%M:%S") if self._dated else "",
            "request_line": loggable(line),
            "status_code": status,
            "body_length": length,
            "wall_seconds": seconds,
        }
        known = {"request_id": request_id} if request_id else {}
        _log.info("{line}", line=self._form % fields, access=fields, **known)

    def write_reason(self, client: Any, status: int, reason: str) -> None:
        """Write why a request was rejected, after its line: Nova's format has no field for that.

        :param client: as in :meth:`write`.
        :param reason: the message that the client is sent.
        """
        shown = _UNSAFE.sub(_escaped, reason[:_MAX_REASON])
        _log.info("{client} rejected with {status}: {reason}", client=_ip(client), status=status, reason=shown)


def _ip(client: Any) -> str:
    return getattr(client, "host", None) or "unix:"


def loggable(line: bytes) -> str:
    """Return a request line as it may be logged: secrets masked, quotes and everything but printable ASCII escaped."""
    line = line[:_MAX_LINE]
    if b"?" in line:
        path, _, rest = line.partition(b"?")
        query, blank, version = rest.partition(b" ")
        line = path + b"?" + b"&".join(map(_masked, query.split(b"&"))) + blank + version
    return _UNSAFE.sub(_escaped, line.decode("latin-1"))


def loggable_target(target: bytes) -> str:
    """Return the start of a request target as it may be logged."""
    return loggable(target[:_MAX_TARGET])


def _masked(pair: bytes) -> bytes:
    name, equals, value = pair.partition(b"=")
    return name + equals + MASK.encode() if value and _SECRET.search(unquote_to_bytes(name)) else pair


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"
