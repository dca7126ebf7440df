"""The status of a service, as the page shows it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceRecord

UP, DOWN, FORCED = "up", "down", "forced down"
"""States of a service. Whether it is disabled is independent of its state: a disabled service still runs."""

SEVERITY = {
    look: place
    for place, look in enumerate(
        ("failed", "down", "suspect", "forced down", "stopped", "disabled", "draining", "starting", "up")
    )
}
"""The looks of a service (:attr:`ServiceStatus.look`) -> how soon an operator wants to see it, the soonest first."""


@attrs.frozen
class ServiceStatus:
    """A service as of the last read of the registry.

    :param state: "up", "down" or "forced down".
    :param reason: why it is in this state, without times; "" if there is nothing to say.
    :param since: when it entered the state, in seconds since 1970; None if that was before this process looked.
    :param disabled_since: when it was disabled; None if it is not, or if that was before this process looked.
    :param changed: the version of the watch in which a visible field changed last, the age of the heartbeat included.
    :param turned: the version of the watch in which anything but the heartbeat changed last.
    """

    record: ServiceRecord
    state: str
    reason: str
    since: float | None
    disabled_since: float | None
    changed: int
    turned: int

    @property
    def name(self) -> str:
        """The display name, "binary@host"."""
        return self.record.name

    @property
    def zone(self) -> str:
        """The zone of its node; "" if it has none."""
        return ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of its node."""
        return ()

    @property
    def is_trouble(self) -> bool:
        """Whether it does not work as it should. A disabled service that is up does."""
        return self.state != UP

    @property
    def look(self) -> str:
        """The state, or "disabled" for a disabled service that is up."""
        return "disabled" if self.record.disabled and self.state == UP else self.state


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


@attrs.frozen
class Assessment:
    """What a row says about its service.

    :param state: see ServiceStatus.
    :param reason: see ServiceStatus.
    :param age: seconds since it entered the state; None if the row does not say.
    """

    state: str
    reason: str = ""
    age: float | None = None


def assess(records: Iterable[ServiceRecord], service_down_time: float) -> Iterable[tuple[ServiceRecord, Assessment]]:
    """Judge all services of a fleet.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    """
    for record in records:
        state = service_state(record, service_down_time)
        if state == DOWN:
            reason = "no heartbeat" if record.last_seen_up else "registered, but never sent a heartbeat"
            yield record, Assessment(state, reason, record.age)
        else:
            yield record, Assessment(state, "by an operator" if state == FORCED else "")


def status_of(
    record: ServiceRecord, assessment: Assessment, before: ServiceStatus | None, now: float, version: int
) -> ServiceStatus:
    """Return the status of a service, which is ``before`` if nothing visible has changed.

    :param before: its status at the previous read; None if it is new.
    :param now: when the registry was read, in seconds since 1970.
    :param version: the version of this read.
    """
    first = version == 1  # what was so at the first read has begun at an unknown time
    state, reason = assessment.state, assessment.reason
    if before is None:
        since = disabled_since = turned = None
        if not first:
            since, disabled_since = now, now if record.disabled else None
        turned = version
    else:
        since, disabled_since, turned = before.since, before.disabled_since, before.turned
        if before.state != state:
            since = now
        if not record.disabled:
            disabled_since = None
        elif not before.record.disabled:
            disabled_since = now
        if (before.state, before.reason, _fields(before.record)) != (state, reason, _fields(record)):
            turned = version
        elif before.record.report_count == record.report_count and before.record.last_seen_up == record.last_seen_up:
            return attrs.evolve(before, record=record)
    if assessment.age is not None:
        # Kept while the state lasts: the ages of two reads differ by the time that reading takes.
        since = before.since if before is not None and before.state == state else now - assessment.age
    return ServiceStatus(record, state, reason, since, disabled_since, version, turned)


def _fields(record: ServiceRecord) -> tuple[Any, ...]:
    """Return the fields that the page shows, without those of a heartbeat."""
    return (record.disabled, record.disabled_reason, record.version)


def count_totals(services: Iterable[ServiceStatus]) -> Totals:
    """Count services and hosts."""
    states: Counter[str] = Counter()
    hosts, disabled = set(), 0
    for service in services:
        states[service.state] += 1
        hosts.add(service.record.host)
        disabled += service.record.disabled
    return Totals(states.total(), len(hosts), states[UP], states[DOWN], states[FORCED], disabled)
