"""The built-in API."""

import ipaddress
from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import ADDRESS, BOOLEAN, INTEGER, PATH, PORT


@attrs.frozen(kw_only=True, slots=False)
class APISection:
    """The built-in API."""

    api: bool = setting(
        "Serve the API: the compute services API, health, metrics, the page, and RPC over HTTP.", BOOLEAN, default=False
    )
    api_listen: str = setting(
        "Address that the API listens on. One that others than this host reach takes api_token_file, and TLS.",
        ADDRESS,
        default="127.0.0.1",
    )
    api_listen_port: int = setting("Port that the API listens on; 0 takes a free one.", PORT, default=8774)
    api_workers: int | None = setting(
        "Supervised processes that serve the API. None is the process of the services, or one if those have workers.",
        INTEGER,
        default=None,
        minimum=1,
        optional=True,
    )
    api_use_ssl: bool = setting("Serve the API over TLS, with ssl_cert_file and ssl_key_file.", BOOLEAN, default=False)
    insecure_http: bool = setting(
        "Serve the API without TLS to other hosts: for a proxy in front of it that speaks TLS.", BOOLEAN, default=False
    )
    api_token_file: Path | None = setting(  # noqa: RUF009
        'File of tokens, mode 0600, a "name scope token" on each line, with scope read or admin. Without it everybody '
        "on this host may do everything.",
        PATH,
        default=None,
        optional=True,
    )

    @property
    def api_is_local(self) -> bool:
        """Whether nobody but this host reaches the API."""
        return self.api_listen == "localhost" or ipaddress.ip_address(self.api_listen).is_loopback
