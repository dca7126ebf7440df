"""Find the outages of a fleet in its rows and silences."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from novasvc.registry.outages import (
    CONDUCTOR_TOPIC,
    SILENCES_KEPT,
    Gap,
    MassSilence,
    Member,
    Outages,
    Silence,
    Stall,
    VerdictRule,
    moment_of,
    seconds_of,
    stalled,
)

# Note [Time in which heartbeats arrive]
#
# A stall of the database makes all services silent at once, whatever their number; when it ends, their heartbeats come
# back within an interval, and for that interval the rest look dead. So silence is not measured in seconds, but in
# seconds in which some service was heard. Rows alone do not tell: a row has only its latest heartbeat. Therefore a
# registry that writes a heartbeat to a row that was silent for long records that silence. From the rows and these
# silences follows when each service was heard, from its start to its latest heartbeat; a time in which none was heard,
# less some slack, is a stall. It holds for the conductors, too: where there are some, only their heartbeats, or those
# of a service's own group, prove that the heartbeats of the group would have arrived.
#
# The silences serve a second purpose. When a part of a network is cut off and comes back, its services return one
# after the other. The last of them are no longer a large share of their group, but they became silent together with
# those that have returned.


def find_outages(members: Sequence[Member], silences: Iterable[Silence], now: datetime, rule: VerdictRule) -> Outages:
    """Find the outages that concern services which are silent now.

    :param members: all services, those that have stopped included.
    :param silences: recorded in the last SILENCES_KEPT seconds.
    :param now: the database's clock.
    """
    finder = _Finder(members, silences, seconds_of(now), rule)
    stalls: list[Stall] = []
    masses: list[MassSilence] = []
    for binary in finder.silent_binaries():
        found = finder.stalls(binary)
        stalls += (
            Stall(
                binary=binary,
                heard=moment_of(began - rule.slack),
                began=moment_of(began),
                ended=None if ended is None else moment_of(ended),
                excused=excused,
            )
            for (began, ended), excused in zip(found, finder.excused(binary, found), strict=True)
        )
        masses += finder.masses(binary, found)
    return Outages(stalls=tuple(stalls), masses=tuple(masses))


_Span = tuple[float, float]


class _Finder:
    def __init__(self, members: Sequence[Member], silences: Iterable[Silence], now: float, rule: VerdictRule) -> None:
        self._members, self._now, self._rule = members, now, rule
        self._silences: dict[int, list[_Span]] = {}
        for silence in silences:
            span = seconds_of(silence.began), seconds_of(silence.ended)
            self._silences.setdefault(silence.service_id, []).append(span)
        oldest = now - SILENCES_KEPT
        for member in members:
            # A change of state ends a silence as well, and only the next heartbeat records it.
            pauses = [(began, ended) for began, ended in member.pauses if ended - began > rule.late and ended > oldest]
            if pauses:
                self._silences.setdefault(member.id, []).extend(pauses)
        # A service whose silences nobody records may have been silent at any time before its latest heartbeat. It
        # proves nothing, unless most are of this kind.
        recorded = [member for member in members if member.has_silences]
        self._heard = recorded if 2 * len(recorded) >= len(members) else list(members)
        self._conductors = [member for member in self._heard if member.topic == CONDUCTOR_TOPIC]

    def silent_binaries(self) -> list[str]:
        rule, stalls = self._rule, [began for spans in self._silences.values() for began, _ in spans]
        stalls += (
            max((member.seen for member in group), default=self._now) for group in (self._members, self._conductors)
        )
        # No outage excuses a service that was silent for so long before the earliest stall that is possible.
        oldest = min(stalls) - rule.longest - rule.slack
        return sorted({member.binary for member in self._members if self._is_late(member) and member.seen >= oldest})

    # -- stalls ----------------------------------------------------------------------------------

    def stalls(self, binary: str) -> list[Gap]:
        own = [member for member in self._heard if member.binary == binary]
        heard = self._heard
        if own and self._conductors and not any(member.topic == CONDUCTOR_TOPIC for member in own):
            latest = max(member.seen for member in self._conductors)
            # If its heartbeats came long after the last one of a conductor, it does not need any.
            if max(member.seen for member in own) - latest <= self._rule.service_down_time:
                heard = [*own, *self._conductors]
        spans = _union(self._all_spans(heard))
        ends = [*spans[1:], (None, None)]
        return [gap for (_, heard), (begin, _) in zip(spans, ends, strict=True) for gap in self._gap(heard, begin)]

    def _gap(self, heard: float, begin: float | None) -> list[Gap]:
        """Return the stall between two times in which services were heard, if it is one.

        In a small fleet all may well have died. Then the database is not to blame for longer than a short stall, unless
        one of them came back.

        :param heard: the end of the earlier time.
        :param begin: the begin of the later one; None if there is none yet.
        """
        rule, began = self._rule, heard + self._rule.slack
        if began >= (self._now if begin is None else begin):
            return []
        then = [
            member
            for member in self._members
            if member.runs and member.started <= heard and member.seen >= heard - rule.service_down_time
        ]
        if len(then) <= 1:
            return []
        if len(then) >= rule.suspect_group_size or any(begin is not None and member.seen >= begin for member in then):
            return [(began, begin)]
        end = began + rule.service_down_time / 2
        return [(began, end if end < (self._now if begin is None else begin) else begin)]

    def _all_spans(self, members: Iterable[Member]) -> Iterator[_Span]:
        began, latest = self._now, None
        for member in members:
            if member.id in self._silences or self._now - member.seen > self._rule.slack:
                yield from self._spans(member)
            else:  # All these spans overlap, or are within slack of each other, so they are one.
                began, latest = min(began, member.started), max(latest or 0.0, member.seen)
        if latest is not None:
            yield began, max(began, min(latest, self._now))

    def _spans(self, member: Member) -> Iterator[_Span]:
        """Return the times in which a service was heard."""
        begin = member.started
        for began, ended in sorted(self._silences.get(member.id, ())):
            if began >= begin:
                yield begin, began
            begin = max(begin, ended)
        # On MySQL the column of the heartbeat has whole seconds, so it may be before the end of the silence.
        yield begin, max(begin, min(member.seen, self._now))

    def excused(self, binary: str, stalls: Sequence[Gap]) -> list[int]:
        """Return for each stall how many of the services that would be down but for stalls were silent during it."""
        limit = self._rule.service_down_time
        since = [
            member.seen
            for member in self._members
            if stalls and member.binary == binary and self._is_late(member)
            if (silent := self._now - member.seen) > limit >= silent - stalled(self._now, stalls, since=member.seen)
        ]
        return [sum(ended is None or seen < ended for seen in since) for _, ended in stalls]

    # -- many at once ----------------------------------------------------------------------------

    def masses(self, binary: str, stalls: Sequence[Gap]) -> Iterator[MassSilence]:
        # Those that an operator has forced down meanwhile still became silent with the others.
        group = [member for member in self._members if member.counts and member.binary == binary]
        yield from self._masses_of(binary, None, group, stalls)
        zones: dict[str, list[Member]] = {}
        for member in group:
            if member.zone is not None:
                zones.setdefault(member.zone, []).append(member)
        for zone, members in sorted(zones.items()):
            if len(members) < len(group) and any(self._is_late(member) for member in members):
                yield from self._masses_of(binary, zone, members, stalls)

    def _is_late(self, member: Member) -> bool:
        return member.runs and self._now - member.seen > self._rule.late

    def _masses_of(
        self, binary: str, zone: str | None, group: Sequence[Member], stalls: Sequence[Gap]
    ) -> Iterator[MassSilence]:
        rule, now = self._rule, self._now - stalled(self._now, stalls)
        seen = sorted(
            (member.seen - (stalled(member.seen, stalls) if stalls else 0.0), member.seen, member.runs)
            for member in group
        )
        signs = [sign for sign, _, _ in seen]
        begun = sorted([*(sign for sign in signs if now - sign >= rule.late), *self._ended(group, stalls)])
        run: list[tuple[float, int, int]] = []
        for sign, at, runs in seen:
            if not runs or now - sign < rule.late:
                continue
            near = bisect_right(begun, sign + rule.slack) - bisect_left(begun, sign - rule.slack)
            services = len(signs) - bisect_left(signs, sign - rule.slack)
            if (
                services >= rule.suspect_group_size
                and near > rule.suspect_share * services
                and now - sign <= rule.longest
            ):
                run.append((at, near, services))
            elif run:
                yield _mass(binary, zone, run)
                run = []
        if run:
            yield _mass(binary, zone, run)

    def _ended(self, group: Sequence[Member], stalls: Sequence[Gap]) -> Iterator[float]:
        """Return when the silences of a group began that have ended, and were not only a stall."""
        for member in group:
            for began, ended in self._silences.get(member.id, ()):
                begin = began - stalled(began, stalls)
                if ended - stalled(ended, stalls) - begin >= self._rule.late:
                    yield begin


def _mass(binary: str, zone: str | None, run: Sequence[tuple[float, int, int]]) -> MassSilence:
    return MassSilence(
        binary=binary,
        zone=zone,
        first=moment_of(run[0][0]),
        last=moment_of(run[-1][0]),
        silent=max(near for _, near, _ in run),
        services=max(services for _, _, services in run),
    )


def _union(spans: Iterable[_Span]) -> list[_Span]:
    """Merge spans that overlap."""
    merged: list[_Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged
