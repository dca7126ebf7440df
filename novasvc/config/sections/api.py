"""The built-in API."""

import ipaddress
from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import ADDRESS, BOOLEAN, INTEGER, NUMBER, PATH, PORT


@attrs.frozen(kw_only=True, slots=False)
class APISection:
    """The built-in API."""

    api: bool = setting(
        "Serve the built-in API: compute services API, health, metrics, web page, and RPC over HTTP.",
        BOOLEAN,
        default=False,
    )
    api_listen: str = setting(
        "Address that the API listens on. An address other than loopback requires api_token_file and TLS.",
        ADDRESS,
        default="127.0.0.1",
    )
    api_listen_port: int = setting("Port that the API listens on; 0 picks a free one.", PORT, default=8774)
    api_workers: int | None = setting(
        "Number of supervised processes that serve the API. By default it runs in the process of the services, or in "
        "one process of its own if the services run in workers.",
        INTEGER,
        default=None,
        minimum=1,
        optional=True,
    )
    api_use_ssl: bool = setting("Serve the API over TLS, with ssl_cert_file and ssl_key_file.", BOOLEAN, default=False)
    insecure_http: bool = setting(
        "Allow the API to serve other hosts without TLS, behind a proxy that terminates TLS.", BOOLEAN, default=False
    )
    api_token_file: Path | None = setting(  # noqa: RUF009
        'Token file, mode 0600, with one "name scope token" per line; scope is read or admin. Without a token file '
        "every user of this host has full access.",
        PATH,
        default=None,
        optional=True,
    )
    api_watch_interval: float = setting(
        "Interval of the reads of all services while nobody looks at the page, for its history and the metrics of the "
        "fleet; 0 reads only while somebody does. In a large fleet, let two or three hosts read.",
        NUMBER,
        default=10.0,
        unit="seconds",
        minimum=1,
        zero=True,
    )

    @property
    def api_is_local(self) -> bool:
        """Whether the API listens on a loopback address, so that only this host reaches it."""
        return self.api_listen == "localhost" or ipaddress.ip_address(self.api_listen).is_loopback
