"""WSGI applications, and the HTTP server of every API."""

from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.log_format import LOG_FORMAT, NOVA_LOG_FORMAT
from novasvc.config.types import APIS, BOOLEAN, INTEGER, NUMBER, PATH


@attrs.frozen(kw_only=True, slots=False)
class WSGISection:
    """WSGI applications, and the HTTP server of every API."""

    enabled_apis: tuple[str, ...] = setting(
        "Applications of api_paste_config that are served: each on its <api>_listen and <api>_listen_port, by its "
        "<api>_workers processes.",
        APIS,
        default=(),
        shown="none",
    )
    enabled_ssl_apis: tuple[str, ...] = setting(
        "Those that are served over TLS; they need not be in enabled_apis as well.", APIS, default=(), shown="none"
    )
    api_paste_config: Path = setting(  # noqa: RUF009
        "Paste configuration with the applications of enabled_apis.",
        PATH,
        default=attrs.Factory(lambda: Path("api-paste.ini").absolute()),
        shown="api-paste.ini in the working directory",
        nova="wsgi/api_paste_config",
    )
    ssl_cert_file: Path | None = setting(  # noqa: RUF009
        "Certificate of our servers, in PEM; those that lead to its authority may follow it.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_cert_file",
    )
    ssl_key_file: Path | None = setting(  # noqa: RUF009
        "The key of ssl_cert_file, in PEM, without a passphrase.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_key_file",
    )
    ssl_ca_file: Path | None = setting(  # noqa: RUF009
        "Certificates of those who vouch for clients, in PEM. With it, a client of enabled_ssl_apis has to have a "
        "certificate of theirs.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_ca_file",
    )
    tcp_keepidle: int = setting(
        "Time without a byte after which a connection of a client is probed, whether the client is still there; "
        "0 is never.",
        INTEGER,
        default=600,
        unit="seconds",
        minimum=0,
        nova="wsgi/tcp_keepidle",
    )
    max_header_line: int = setting(
        "Bytes that a header line may have; more gets 431.",
        INTEGER,
        default=16384,
        minimum=256,
        nova="wsgi/max_header_line",
    )
    max_request_body_size: int = setting(
        "Bytes that the body of a request may have; more gets 413. 0 is without limit.",
        INTEGER,
        default=1048576,
        minimum=0,
        nova="oslo_middleware/max_request_body_size",
    )
    client_socket_timeout: float = setting(
        "How long a connection may be idle between two requests, or its client not read an answer; 0 is without limit.",
        NUMBER,
        default=900.0,
        unit="seconds",
        minimum=0,
        nova="wsgi/client_socket_timeout",
    )
    keep_alive: bool = setting(
        "Take more than one request on a connection.", BOOLEAN, default=True, nova="wsgi/keep_alive"
    )
    wsgi_default_pool_size: int = setting(
        "Requests that one of the enabled_apis works on at a time, in each of its processes.",
        INTEGER,
        default=128,
        minimum=1,
        nova="wsgi/default_pool_size",
    )
    wsgi_log_format: str = setting(
        "A line of the access log, with the fields client_ip, client_port, date_time, request_line, status_code, "
        'body_length and wall_seconds; "none" writes none.',
        LOG_FORMAT,
        default=NOVA_LOG_FORMAT,
        nova="wsgi/wsgi_log_format",
    )
