"""Settings of one service and of one API, and their defaults."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from novasvc.config.masking import masked

AGENT = "novasvc.host_agent.HostAgent"
MANAGERS: Mapping[str, str] = MappingProxyType({"agent": AGENT, "conductor": "novasvc.registry.conductor.Conductor"})
"""Topic -> class of the managers that novasvc brings along; ``<topic>_manager`` overrides."""


def default_topic(binary: str) -> str:
    """Return the default topic of a binary: the name without its prefix "nova-" or "novasvc-"."""
    for prefix in ("nova-", "novasvc-"):
        if binary.startswith(prefix) and binary != prefix:
            return binary.removeprefix(prefix)
    return binary


@attrs.frozen(kw_only=True)
class ServiceSettings:
    """One service of the process: a ``[[service]]`` table, or the single service if there is no table.

    :param host: host name that it registers under.
    :param binary: binary name that it registers under.
    :param topic: RPC topic that it serves.
    :param manager: dotted name of the manager class: "package.module.Class" or "package.module:Class".
    :param report_interval: heartbeat interval in seconds; 0 disables heartbeats.
    :param periodic_enable: whether periodic tasks are scheduled.
    :param periodic_fuzzy_delay: maximum random delay before the first run of the periodic tasks, in seconds.
    :param periodic_interval_max: maximum seconds between two runs of the periodic tasks; None is no maximum.
    :param db_allowed: True to access the database directly, False to go through the conductor.
    :param workers: number of processes of its own; None to share those of the other services.
    :param options: keyword arguments for the manager's constructor, besides ``host``.
    """

    host: str
    binary: str
    topic: str
    manager: str
    report_interval: float = 10
    periodic_enable: bool = True
    periodic_fuzzy_delay: float = 60
    periodic_interval_max: float | None = None
    db_allowed: bool = True
    workers: int | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict, repr=lambda value: repr(masked(value)))


@attrs.frozen(kw_only=True)
class APISettings:
    """Where one of the enabled_apis listens.

    :param listen: IP address.
    :param listen_port: 0 picks a free port.
    :param workers: number of supervised processes of its own; None is one per CPU.
    """

    listen: str = "127.0.0.1"
    listen_port: int = 0
    workers: int | None = None


API_PORTS: Mapping[str, int] = MappingProxyType({"osapi_compute": 8774, "metadata": 8775})
"""API name -> default port, for Nova's own APIs; ``<api>_listen_port`` overrides."""

INHERITED = (
    "host",
    "report_interval",
    "periodic_enable",
    "periodic_fuzzy_delay",
    "periodic_interval_max",
    "db_allowed",
)
"""Settings that a ``[[service]]`` table inherits from the top level unless it overrides them."""
