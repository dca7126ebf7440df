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
        "WSGI applications to serve, by their names in api_paste_config. <api>_listen, <api>_listen_port and "
        "<api>_workers configure each one.",
        APIS,
        default=(),
        default_text="none",
    )
    enabled_ssl_apis: tuple[str, ...] = setting(
        "WSGI applications to serve over TLS; they need not be in enabled_apis.", APIS, default=(), default_text="none"
    )
    api_paste_config: Path = setting(  # noqa: RUF009
        "Paste Deploy configuration file that defines the WSGI applications.",
        PATH,
        default=attrs.Factory(lambda: Path("api-paste.ini").absolute()),
        default_text="api-paste.ini in the working directory",
        nova="wsgi/api_paste_config",
    )
    ssl_cert_file: Path | None = setting(  # noqa: RUF009
        "Server certificate (PEM); intermediate certificates may follow it.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_cert_file",
    )
    ssl_key_file: Path | None = setting(  # noqa: RUF009
        "Private key (PEM, without a passphrase) of ssl_cert_file.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_key_file",
    )
    ssl_ca_file: Path | None = setting(  # noqa: RUF009
        "CA bundle (PEM) used to verify client certificates. If set, the clients of enabled_ssl_apis must present a "
        "certificate.",
        PATH,
        default=None,
        optional=True,
        nova="wsgi/ssl_ca_file",
    )
    tcp_keepidle: int = setting(
        "Idle time after which TCP keepalive probes are sent on a client connection; 0 disables.",
        INTEGER,
        default=600,
        unit="seconds",
        minimum=0,
        nova="wsgi/tcp_keepidle",
    )
    max_header_line: int = setting(
        "Maximum length of a header line in bytes; a longer one gets status 431.",
        INTEGER,
        default=16384,
        minimum=256,
        nova="wsgi/max_header_line",
    )
    max_request_body_size: int = setting(
        "Maximum size of a request body in bytes; a larger one gets status 413; 0 is unlimited.",
        INTEGER,
        default=1048576,
        minimum=0,
        nova="oslo_middleware/max_request_body_size",
    )
    client_socket_timeout: float = setting(
        "Close a connection that is idle between requests, or whose client does not read the response, for this long; "
        "0 disables.",
        NUMBER,
        default=900.0,
        unit="seconds",
        minimum=0,
        nova="wsgi/client_socket_timeout",
    )
    keep_alive: bool = setting(
        "Allow several requests per connection (HTTP keep-alive).", BOOLEAN, default=True, nova="wsgi/keep_alive"
    )
    wsgi_default_pool_size: int = setting(
        "Maximum number of concurrent requests per WSGI application and process.",
        INTEGER,
        default=128,
        minimum=1,
        nova="wsgi/default_pool_size",
    )
    wsgi_log_format: str = setting(
        "Format of access log lines. Fields: client_ip, client_port, date_time, request_line, status_code, body_length "
        'and wall_seconds. "none" disables the access log.',
        LOG_FORMAT,
        default=NOVA_LOG_FORMAT,
        nova="wsgi/wsgi_log_format",
    )
