"""A service, as somebody who looks at a fleet sees it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceRecord

UP, DOWN, FORCED = "up", "down", "forced down"
"""States of a service. Disabled is another matter: a service that is disabled runs, too."""


@attrs.frozen
class Sight:
    """A service as it was last seen.

    :param state: "up", "down" or "forced down".
    :param changed: the version of the watch at which what is shown of it was another last.
    """

    record: ServiceRecord
    state: str
    changed: int

    @property
    def name(self) -> str:
        """Return what people call it."""
        return f"{self.record.binary}@{self.record.host}"


@attrs.frozen
class Totals:
    """How many services there are. One that is disabled is up or down besides."""

    services: int = 0
    hosts: int = 0
    up: int = 0
    down: int = 0
    forced: int = 0
    disabled: int = 0


def state_of(record: ServiceRecord, service_down_time: float) -> str:
    """Return "up", "down" or "forced down".

    :param service_down_time: seconds without a heartbeat after which a service is down.
    """
    if record.forced_down:
        return FORCED
    return UP if is_up(record, service_down_time) else DOWN


def what_shows(record: ServiceRecord) -> tuple[Any, ...]:
    """Return what a change of is to be told."""
    return (record.report_count, record.last_seen_up, record.disabled, record.disabled_reason, record.version)


def count(sights: Iterable[Sight]) -> Totals:
    """Count services and hosts."""
    states: Counter[str] = Counter()
    hosts, disabled = set(), 0
    for sight in sights:
        states[sight.state] += 1
        hosts.add(sight.record.host)
        disabled += sight.record.disabled
    return Totals(states.total(), len(hosts), states[UP], states[DOWN], states[FORCED], disabled)
