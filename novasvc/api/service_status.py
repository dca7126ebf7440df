"""The status of a service, as the page shows it."""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import attrs

from novasvc.registry.incarnation import Incarnation
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Verdict

UP, DOWN, FORCED = "up", "down", "forced down"
FAILED, SUSPECT, STOPPED, LATE, DRAINING, STARTING = (
    "failed", "suspect", "stopped", "draining too long", "draining", "starting"
)  # fmt: skip
"""States of a service. Whether it is disabled is independent of its state: a disabled service still runs."""
_FINE = {UP, DRAINING, STARTING}
"""States of services that do what they should."""

_TIME = re.compile(r" (?:since|at) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
"""A time in the reason of a verdict; see :mod:`novasvc.registry.verdict`."""

_SAME = 2.0
"""Seconds by which two readings of one time may differ."""

SEVERITY = {
    look: place
    for place, look in enumerate((FAILED, DOWN, SUSPECT, LATE, FORCED, STOPPED, "disabled", DRAINING, STARTING, UP))
}
"""The looks of a service (:attr:`ServiceStatus.look`) -> how soon an operator wants to see it, the soonest first."""


@attrs.frozen
class ServiceStatus:
    """A service as of the last read of the registry.

    :param state: "up", "starting", "draining", "draining too long", "suspect", "stopped", "down", "forced down" or
        "failed".
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
        return self.record.zone or ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of its node."""
        return self.record.tags

    @property
    def is_trouble(self) -> bool:
        """Whether it does not work as it should. A disabled service that is up does."""
        return self.state not in _FINE

    @property
    def look(self) -> str:
        """The state, or "disabled" for a disabled service that is up."""
        return "disabled" if self.record.disabled and self.state == UP else self.state


@attrs.frozen
class Totals:
    """Numbers of services. A disabled service also counts by its state.

    :param up: those that do what they should: also those that start, or drain within their time.
    """

    services: int = 0
    hosts: int = 0
    up: int = 0
    failed: int = 0
    down: int = 0
    suspect: int = 0
    late: int = 0
    forced: int = 0
    stopped: int = 0
    disabled: int = 0


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


def assess(record: ServiceRecord, verdict: Verdict) -> Assessment:
    """Assess one service.

    :param verdict: on this row.
    """
    incarnation = record.incarnation
    age = None if verdict.since is None else _age_of(record, verdict.since)
    if record.forced_down:
        # Nova's own services write their heartbeats nevertheless, and the row does not tell when it was forced.
        return Assessment(FORCED, "by an operator", None if incarnation is None else age)
    if verdict.status == "suspect":
        return Assessment(SUSPECT, _without_times(verdict.reason), age)
    if verdict.status == "down":
        if incarnation is not None and incarnation.has_ended:
            state, usual = (STOPPED, "cleanly") if incarnation.state == "stopped" else (FAILED, "")
            # Without its name, so that the page groups services that failed for the same reason.
            return Assessment(state, (incarnation.reason or usual).removeprefix(f"{record.name} "), age)
        return Assessment(DOWN, _without_times(verdict.reason), age)
    return Assessment(UP) if incarnation is None else _assess_running(record, incarnation)


def _without_times(reason: str) -> str:
    """Return the reason of a verdict without times: the page shows for how long, and groups services by reason."""
    return _TIME.sub("", reason)


def _assess_running(record: ServiceRecord, incarnation: Incarnation) -> Assessment:
    """Assess a service that sends heartbeats, by what it says of itself."""
    age = _age_of(record, incarnation.since)
    if incarnation.state != "draining":
        return Assessment(STARTING if incarnation.state == "starting" else UP, "", age)
    calls = f"{incarnation.calls:,} {'call' if incarnation.calls == 1 else 'calls'} in flight"
    late = incarnation.until is not None and (_age_of(record, incarnation.until) or 0.0) > 0
    return Assessment(LATE if late else DRAINING, "; ".join(filter(None, [incarnation.reason, calls])), age)


def _age_of(record: ServiceRecord, moment: datetime) -> float | None:
    """Return the seconds since a time of the database's clock; None if the row does not tell the time there."""
    heard = record.last_seen_up or record.created_at
    return None if heard is None else (heard - moment).total_seconds() + record.age


def status_of(
    record: ServiceRecord,
    assessment: Assessment,
    before: ServiceStatus | None,
    now: float,
    version: int,
    *,
    is_baseline: bool,
) -> ServiceStatus:
    """Return the status of a service, which is ``before`` if nothing visible has changed.

    :param before: its status at the previous read; None if it is new.
    :param now: when the registry was read, in seconds since 1970.
    :param version: the version of this read.
    :param is_baseline: nobody knows what changed before this read: what is so now has begun at an unknown time.
    """
    state, reason = assessment.state, assessment.reason
    if before is None:
        since = disabled_since = turned = None
        if not is_baseline:
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
        since = now - assessment.age
        if before is not None and before.since is not None and abs(before.since - since) < _SAME:
            since = before.since  # the ages of two reads differ by the time that reading takes
    return ServiceStatus(record, state, reason, since, disabled_since, version, turned)


def _fields(record: ServiceRecord) -> tuple[Any, ...]:
    """Return the fields that the page shows, without those of a heartbeat."""
    return (
        record.disabled,
        record.disabled_reason,
        record.version,
        record.incarnation_number,
        record.zone,
        record.tags,
    )


def count_totals(services: Iterable[ServiceStatus]) -> Totals:
    """Count services and hosts."""
    states: Counter[str] = Counter()
    hosts, disabled = set(), 0
    for service in services:
        states[service.state] += 1
        hosts.add(service.record.host)
        disabled += service.record.disabled
    return Totals(
        services=states.total(),
        hosts=len(hosts),
        up=sum(states[state] for state in _FINE),
        failed=states[FAILED],
        down=states[DOWN],
        suspect=states[SUSPECT],
        late=states[LATE],
        forced=states[FORCED],
        stopped=states[STOPPED],
        disabled=disabled,
    )
