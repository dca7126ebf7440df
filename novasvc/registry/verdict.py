"""Whether a service is alive, suspect or down, and why: one pure function for all readers of the registry.

:func:`novasvc.registry.liveness.is_up` is Nova's rule, which looks at one row. A verdict also knows what happens to the
others: see Note [Time in which heartbeats arrive] in :mod:`novasvc.registry.outage_search`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import attrs

from novasvc.registry.incarnation import ENDED
from novasvc.registry.outage_search import find_outages
from novasvc.registry.outages import (
    MassSilence,
    Outages,
    Silence,
    VerdictRule,
    group_stalls,
    last_sign,
    members_of,
    now_of,
    seconds_of,
    stalled,
)
from novasvc.registry.record import ServiceRecord

__all__ = [
    "CAUSE",
    "DELETED",
    "Judge",
    "OutageKey",
    "Status",
    "Verdict",
    "VerdictRule",
    "describe_outages",
    "judge",
    "needs_outages",
]

Status = Literal["alive", "suspect", "down"]

CAUSE = "the database, the broker, a conductor or a network"
"""What makes many services silent at once."""


@attrs.frozen
class Verdict:
    """What is known of a service.

    :param status: "alive"; "suspect": it may be down, but many others are silent, too, or it has just said that it
        cannot work, so nothing should be done to it yet; "down".
    :param reason: why, as the rest of a sentence; "" if it is alive.
    :param since: when the reason began, by the database's clock, UTC, naive; None if that is not known.
    """

    status: Status
    reason: str = ""
    since: datetime | None = None

    @property
    def is_down(self) -> bool:
        """Whether it is down."""
        return self.status == "down"


DELETED = Verdict("down", "its row was deleted")
"""The verdict on a service that is not registered any more."""


def judge(records: Sequence[ServiceRecord], rule: VerdictRule, silences: Iterable[Silence] = ()) -> list[Verdict]:
    """Judge all services of a fleet.

    :param records: all rows, read at one moment. A part of them would hide that many became silent at once: to judge
        some services, see :func:`novasvc.registry.verdicts.judge_some`.
    :param silences: those that the same registry has recorded.
    :return: a verdict for each, in the same order.
    """
    if not records:
        return []
    now = max(now_of(record) for record in records)
    judging = Judge(rule, find_outages([*members_of(records)], silences, now, rule))
    return [judging(record) for record in records]


def needs_outages(record: ServiceRecord, rule: VerdictRule) -> bool:
    """Return whether a verdict on a service depends on the others."""
    return (
        not record.forced_down
        and record.state not in ENDED
        and (now_of(record) - last_sign(record)).total_seconds() > rule.service_down_time
    )


class Judge:
    """Judges services, one row at a time.

    :param rule: the settings.
    :param outages: read after the rows that are to be judged, or at the same time, give or take a second. With outages
        from before a stall, a service that was silent because of the stall would be taken for one that is down.
    """

    def __init__(self, rule: VerdictRule, outages: Outages) -> None:
        self._rule = rule
        self._outages = outages
        self._stalls: Mapping[str, list[tuple[float, float | None]]] = group_stalls(outages)

    def __call__(self, record: ServiceRecord) -> Verdict:
        """Return the verdict on a service."""
        incarnation = record.incarnation
        if record.forced_down:
            return Verdict("down", "forced down by an operator", record.updated_at)
        if incarnation is not None and incarnation.state == "stopped":
            asked = f": {incarnation.reason}" if incarnation.reason else ""
            return Verdict("down", f"stopped cleanly at {_time(incarnation.since)}{asked}", incarnation.since)
        if incarnation is not None and incarnation.state == "failed":
            return Verdict("down", f"failed: {incarnation.reason or 'no reason is known'}", incarnation.since)
        sign = last_sign(record)
        silent = (now_of(record) - sign).total_seconds()
        if silent <= self._rule.service_down_time:
            return self._heard(record, sign, silent)
        return self._silent(record, sign, silent)

    def _heard(self, record: ServiceRecord, sign: datetime, silent: float) -> Verdict:
        incarnation = record.incarnation
        if silent < -self._rule.service_down_time:
            reason = f"its last heartbeat is in the future, at {_time(sign)}: the database's clock was set back"
            return Verdict("suspect", reason, sign)
        if incarnation is None:
            return Verdict("alive")
        # With workers, the others may still send heartbeats.
        if incarnation.state == "ready" and incarnation.reason and silent > self._rule.slack:
            return Verdict("suspect", f"it runs, but sends no heartbeats: {incarnation.reason}", sign)
        return Verdict("alive", since=incarnation.since)

    def _silent(self, record: ServiceRecord, sign: datetime, silent: float) -> Verdict:
        incarnation, rule = record.incarnation, self._rule
        reason = f"no heartbeat since {_time(sign)}" if record.report_count else "no heartbeat yet"
        if incarnation is not None and incarnation.state == "ready" and incarnation.reason:
            reason += f": {incarnation.reason}"
        elif incarnation is not None and incarnation.state == "starting" and sign == incarnation.said:
            silent_since = f", and silent since {_time(sign)}" if sign > incarnation.since else ""
            reason = f"starting since {_time(incarnation.since)}{silent_since}"
        end = seconds_of(sign) + silent
        silent -= stalled(end, self._stalls.get(record.binary, ()), since=seconds_of(sign))
        if silent <= rule.service_down_time:
            return Verdict("suspect", f"{reason}, as from others: {CAUSE}", sign)
        mass = next((mass for mass in self._outages.masses if mass.covers(record, sign)), None)
        if mass is not None and silent <= rule.longest:
            return Verdict("suspect", f"{reason}, as from {_count(mass)}: {CAUSE}", sign)
        return Verdict("down", reason, sign)


OutageKey = tuple[str, str | None]
"""The binary and the zone of a group that is silent; the begin of a stall, and None."""


def describe_outages(outages: Outages) -> dict[OutageKey, str]:
    """Return a sentence for each outage, for the log and the page. Its key stays while it makes services suspect.

    A stall that has ended is one as long as it keeps a service from being down that was not heard since.
    """
    stalls: dict[tuple[datetime, datetime | None], list[str]] = {}
    for stall in outages.stalls:
        if stall.excused:
            stalls.setdefault((stall.heard, stall.ended), []).append(stall.binary)
    found: dict[OutageKey, str] = {}
    for (heard, ended), binaries in stalls.items():
        names = " or ".join(sorted(binaries))
        when = (
            f"has arrived since {_time(heard)}" if ended is None else f"arrived from {_time(heard)} to {_time(ended)}"
        )
        found[f"stall since {heard}", None] = f"no heartbeat of {names} {when}: {CAUSE}"
    for mass in outages.masses:
        found[mass.binary, mass.zone] = f"{_count(mass)} became silent at the same time, {_time(mass.last)}: {CAUSE}"
    return found


def _count(mass: MassSilence) -> str:
    zone = "" if mass.zone is None else f" in zone {mass.zone}"
    return f"{mass.silent} of {mass.services} services of {mass.binary}{zone}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
