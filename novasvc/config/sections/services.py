"""One service of a process, and one API: what a table or a family of settings gives."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from novasvc.config.masking import masked

AGENT = "novasvc.host_agent.HostAgent"
MANAGERS: Mapping[str, str] = MappingProxyType({"agent": AGENT, "conductor": "novasvc.registry.conductor.Conductor"})
"""The topics that have a manager of their own, unless ``<topic>_manager`` names another."""


def default_topic(binary: str) -> str:
    """Return the topic of a binary: what follows "nova-" or "novasvc-", or the whole name."""
    for prefix in ("nova-", "novasvc-"):
        if binary.startswith(prefix) and binary != prefix:
            return binary.removeprefix(prefix)
    return binary


@attrs.frozen(kw_only=True)
class ServiceSettings:
    """One node that a process runs: a ``[[service]]`` table, or the only one without tables.

    :param host: what it registers as.
    :param binary: the name of the service on this host.
    :param topic: what it serves.
    :param manager: dotted name of its class: "package.module.Class" or "package.module:Class".
    :param report_interval: seconds from heartbeat to heartbeat; 0 is no heartbeats.
    :param periodic_enable: whether periodic tasks run by themselves.
    :param periodic_fuzzy_delay: seconds; the first pass comes after a random part of it.
    :param periodic_interval_max: seconds between two passes at the most, or None.
    :param db_allowed: whether it reaches the database itself, or through the conductor.
    :param workers: processes of its own; None is to share those of the other services.
    :param options: keyword arguments of the manager's constructor, beside ``host``.
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

    :param listen: its address.
    :param listen_port: 0 takes a free one.
    :param workers: supervised processes of its own; None is one for each processor.
    """

    listen: str = "127.0.0.1"
    listen_port: int = 0
    workers: int | None = None


API_PORTS: Mapping[str, int] = MappingProxyType({"osapi_compute": 8774, "metadata": 8775})
"""The ports of Nova's own APIs, unless ``<api>_listen_port`` gives another."""

INHERITED = (
    "host",
    "report_interval",
    "periodic_enable",
    "periodic_fuzzy_delay",
    "periodic_interval_max",
    "db_allowed",
)
"""What a ``[[service]]`` table takes from the settings around it, unless it says otherwise."""
