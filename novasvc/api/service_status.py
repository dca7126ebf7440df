"""The status of a service, as the page shows it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceRecord

UP, DOWN, FORCED = "up", "down", "forced down"
"""States of a service. Whether it is disabled is independent of its state: a disabled service still runs."""


@attrs.frozen
class ServiceStatus:
    """A service as of the last read of the registry.

    :param state: "up", "down" or "forced down".
    :param changed: the version of the watch in which a visible field changed last.
    """

    record: ServiceRecord
    state: str
    changed: int

    @property
    def name(self) -> str:
        """The display name, "binary@host"."""
        return self.record.name


@attrs.frozen
class Totals:
    """Numbers of services. A disabled service also counts as up, down or forced down."""

    services: int = 0
    hosts: int = 0
    up: int = 0
    down: int = 0
    forced: int = 0
    disabled: int = 0


def service_state(record: ServiceRecord, service_down_time: float) -> str:
    """Return "up", "down" or "forced down".

    :param service_down_time: seconds without a heartbeat after which a service is down.
    """
    if record.forced_down:
        return FORCED
    return UP if is_up(record, service_down_time) else DOWN


def visible_fields(record: ServiceRecord) -> tuple[Any, ...]:
    """Return the fields whose changes the page shows."""
    return (record.report_count, record.last_seen_up, record.disabled, record.disabled_reason, record.version)


def count_totals(services: Iterable[ServiceStatus]) -> Totals:
    """Count services and hosts."""
    states: Counter[str] = Counter()
    hosts, disabled = set(), 0
    for service in services:
        states[service.state] += 1
        hosts.add(service.record.host)
        disabled += service.record.disabled
    return Totals(states.total(), len(hosts), states[UP], states[DOWN], states[FORCED], disabled)
