"""Limits and timeouts of an HTTP server."""

from pathlib import Path

import attrs

from novasvc.config import Settings


@attrs.frozen(kw_only=True)
class Limits:
    """Limits and timeouts of one server. A request that exceeds one gets an error, and its connection is closed.

    :param max_url_len: bytes of a request target; a longer one gets 414.
    :param max_header_line: bytes of a header line; a longer one gets 431.
    :param max_head: bytes of all header lines; more get 431.
    :param max_headers: header lines; more get 431.
    :param max_body: bytes of a request body; a longer one gets 413. 0 disables the limit.
    :param spool: bytes of a body that are kept in memory; a longer one goes to a temporary file.
    :param tempdir: directory of that file; None takes the system's default.
    :param head_timeout: seconds from the connection, or from the first byte of a later request, to the end of the head.
    :param body_timeout: seconds that a body may take, in addition to those for ``body_rate``.
    :param body_rate: bytes per second: each ``body_rate`` bytes received extend the time for a body by one second.
    :param idle_timeout: seconds between two requests, or without a byte of a body, or while the client does not read
        its response. 0 disables it.
    :param keep_alive: whether a connection takes more than one request.
    """

    max_url_len: int = 8192
    max_header_line: int = 16384
    max_head: int = 65536
    max_headers: int = 100
    max_body: int = 1048576
    spool: int = 262144
    tempdir: Path | None = None
    head_timeout: float = 30.0
    body_timeout: float = 30.0
    body_rate: int = 1024
    idle_timeout: float = 900.0
    keep_alive: bool = True


def limits_from_settings(settings: Settings, max_url_len: int | None = None) -> Limits:
    """Return the limits that the settings give a server.

    :param max_url_len: None takes the default.
    """
    return Limits(
        max_url_len=Limits().max_url_len if max_url_len is None else max_url_len,
        max_header_line=settings.max_header_line,
        max_head=max(Limits().max_head, 4 * settings.max_header_line),
        max_body=settings.max_request_body_size,
        tempdir=settings.tempdir,
        idle_timeout=settings.client_socket_timeout,
        keep_alive=settings.keep_alive,
    )
