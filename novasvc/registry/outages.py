"""Outages of many services at once, as values; :mod:`novasvc.registry.outage_search` finds them.

:mod:`novasvc.registry.verdict` needs them to judge a service: one that is silent because the database did not take its
heartbeats, or together with a large part of its group, is not simply down.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Self

import attrs

from novasvc.config import Settings
from novasvc.registry.incarnation import ENDED, said_at
from novasvc.registry.record import ServiceRecord

CONDUCTOR_TOPIC = "conductor"
"""The topic of the services through which others write their heartbeats, ours and Nova's."""

SILENCES_KEPT = 3600.0
"""Seconds for which a registry keeps a silence after its end."""

Gap = tuple[float, float | None]
"""Begin and end of a stall in seconds since 1970; None if it has not ended."""

_NEVER = datetime(1970, 1, 1)  # noqa: DTZ001 - the table's form


@attrs.frozen(kw_only=True)
class VerdictRule:
    """When a service is down; the settings of the same names.

    Readers with other settings come to other verdicts.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    :param suspect_share: the services of a group that become silent at the same time are suspect, if they are more than
        this share of it; 0 to 1.
    :param suspect_group_size: services that a group must have for that.
    :param suspect_time: seconds after which they are down nevertheless; 0 waits until an operator forces them down.
    """

    service_down_time: float = 60.0
    suspect_share: float = 1 / 3
    suspect_group_size: int = 5
    suspect_time: float = 300.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rule that the settings of this process say."""
        return cls(**{field.name: getattr(settings, field.name) for field in attrs.fields(cls)})

    @property
    def slack(self) -> float:
        """Seconds within which silences begin at the same time; an interval between two heartbeats, generously."""
        return self.service_down_time / 4

    @property
    def late(self) -> float:
        """Seconds of a silence that counts as one.

        One that began ``slack`` later than another is as long when the other has lasted for ``service_down_time``.
        """
        return self.service_down_time - self.slack

    @property
    def longest(self) -> float:
        """Seconds of silence for which a service can be suspect, stalls left out; infinite with a suspect_time of 0."""
        return self.service_down_time + self.suspect_time if self.suspect_time else float("inf")


@attrs.frozen(kw_only=True)
class Silence:
    """A time without heartbeats that has ended. Times are by the database's clock, UTC, naive.

    :param service_id: id of the row.
    :param began: the last heartbeat before it.
    :param ended: the first heartbeat after it.
    """

    service_id: int
    began: datetime
    ended: datetime


@attrs.frozen(kw_only=True)
class Stall:
    """A time in which no heartbeats of a binary could have arrived, as far as is known.

    :param binary: the services concerned.
    :param heard: the last heartbeat before it.
    :param began: some slack after that.
    :param ended: the first heartbeat after it; None if it has not ended.
    :param excused: services of the binary that were silent during it, and are suspect instead of down because of this
        and other stalls.
    """

    binary: str
    heard: datetime
    began: datetime
    ended: datetime | None
    excused: int


@attrs.frozen(kw_only=True)
class MassSilence:
    """A large share of a group that became silent at the same time, and is suspect.

    :param binary: the binary of the group.
    :param zone: the zone of the group; None for all zones together.
    :param first: the earliest last heartbeat of the services that are still silent.
    :param last: the latest one.
    :param silent: services that became silent at the same time, those that have returned included.
    :param services: services of the group that were up then.
    """

    binary: str
    zone: str | None
    first: datetime
    last: datetime
    silent: int
    services: int

    def covers(self, record: ServiceRecord, sign: datetime) -> bool:
        """Return whether a silent service belongs to it.

        :param sign: the last sign of life of the service.
        """
        return record.binary == self.binary and self.zone in {None, record.zone} and self.first <= sign <= self.last


@attrs.frozen(kw_only=True)
class Outages:
    """The outages of a fleet at one moment.

    :param stalls: see :class:`Stall`, by binary, in order.
    :param masses: see :class:`MassSilence`.
    """

    stalls: tuple[Stall, ...] = ()
    masses: tuple[MassSilence, ...] = ()


@attrs.frozen(kw_only=True)
class Member:
    """What of a row matters to find outages. Times are seconds since 1970 by the database's clock.

    :param seen: the last sign of life.
    :param pauses: times between the last heartbeat and later signs of life that were none, from one to the next. A
        service that starts for long tells so now and then, but a row has only the last time, so the time before it is
        one pause: whether the database or a conductor stalled meanwhile is not known.
    :param started: when it was heard for the first time, as far as is known.
    :param counts: it has not stopped, so it is one of its group.
    :param runs: it should send heartbeats: it is not forced down, either.
    :param has_silences: its silences are recorded, because novasvc writes its heartbeats.
    """

    id: int
    binary: str
    topic: str | None
    zone: str | None
    seen: float
    pauses: tuple[tuple[float, float], ...]
    started: float
    counts: bool
    runs: bool
    has_silences: bool


def last_sign(record: ServiceRecord) -> datetime:
    """Return when a service was heard last: a heartbeat, a change of its state, or that it still starts."""
    sign = record.last_seen_up or record.created_at or _NEVER
    return sign if record.incarnation is None else max(sign, record.incarnation.said, record.incarnation.started_at)


def now_of(record: ServiceRecord) -> datetime:
    """Return the time of the database's clock at which a row was read."""
    return (record.last_seen_up or record.created_at or _NEVER) + timedelta(seconds=record.age)


def members_of(records: Iterable[ServiceRecord]) -> Iterator[Member]:
    """Return what of rows matters."""
    for record in records:
        incarnation = record.incarnation
        yield make_member(
            service_id=record.id,
            binary=record.binary,
            topic=record.topic,
            forced_down=record.forced_down,
            last_seen_up=record.last_seen_up,
            created_at=record.created_at,
            state=record.state,
            since=None if incarnation is None else incarnation.since,
            until=None if incarnation is None else incarnation.until,
            started_at=None if incarnation is None else incarnation.started_at,
            zone=record.zone,
        )


def make_member(
    *,
    service_id: int,
    binary: str,
    topic: str | None,
    forced_down: bool,
    last_seen_up: datetime | None,
    created_at: datetime | None,
    state: str | None,
    since: datetime | None,
    until: datetime | None,
    started_at: datetime | None,
    zone: str | None,
) -> Member:
    """Return what of a row and its incarnation matters; without an incarnation the last five are None."""
    beat = seconds_of(last_seen_up or created_at or _NEVER)
    said = None if state is None or since is None else said_at(state, since, until)
    signs = sorted({beat, *(max(beat, seconds_of(sign)) for sign in (started_at, since, said) if sign is not None)})
    seen = signs[-1]
    return Member(
        id=service_id,
        binary=binary,
        topic=topic,
        zone=zone,
        seen=seen,
        pauses=tuple(pairwise(signs)),
        started=seen if created_at is None else min(seen, seconds_of(created_at)),
        counts=state not in ENDED,
        runs=not forced_down and state not in ENDED,
        has_silences=state is not None,
    )


def seconds_of(moment: datetime) -> float:
    """Return a time of the database as seconds since 1970."""
    return (moment - _NEVER).total_seconds()


def moment_of(seconds: float) -> datetime:
    """Return seconds since 1970 as a time of the database."""
    return _NEVER + timedelta(seconds=seconds)


def stalled(moment: float, stalls: Iterable[Gap], since: float = 0.0) -> float:
    """Return the seconds of stalls between two moments.

    :param stalls: the begin and the end of each, None if it has not ended; they do not overlap.
    """
    return sum(max(0.0, min(moment, moment if ended is None else ended) - max(since, began)) for began, ended in stalls)


def group_stalls(outages: Outages) -> Mapping[str, list[Gap]]:
    """Return the stalls of each binary, in seconds since 1970."""
    found: dict[str, list[Gap]] = {}
    for stall in outages.stalls:
        gap = seconds_of(stall.began), None if stall.ended is None else seconds_of(stall.ended)
        found.setdefault(stall.binary, []).append(gap)
    return found
