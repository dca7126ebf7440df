"""What a server takes from its clients, and how long it waits for them."""

from pathlib import Path

import attrs

from novasvc.config import Settings


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds of one server. What goes beyond them is refused, and the connection is closed.

    :param max_url_len: bytes of a request's target; more gets 414.
    :param max_header_line: bytes of a header line; more gets 431.
    :param max_head: bytes of all header lines; more gets 431.
    :param max_headers: header lines; more get 431.
    :param max_body: bytes of a request's body; more gets 413. 0 is without limit.
    :param spool: bytes of a body that are kept in memory; one that is larger goes to a temporary file.
    :param tempdir: where that file is; None is the system's choice.
    :param head_timeout: seconds from the first byte of a request, or from the connection, to the end of the head.
    :param body_timeout: seconds that a body may take, beside those that ``body_rate`` grants it.
    :param body_rate: bytes; for so many that have come, a body may take a second longer.
    :param idle_timeout: seconds between two requests, or without a byte of a body, or while a client does not read
        its answer. 0 is without limit.
    :param keep_alive: take more than one request on a connection.
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


def limits_of(settings: Settings, max_url_len: int | None = None) -> Limits:
    """Return what the settings say of the limits of a server.

    :param max_url_len: None is the default.
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
