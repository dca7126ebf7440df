"""What the registry says of the nodes of a simulation while it runs: whether they are alive, suspect or down."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from novasvc.registry.outages import CONDUCTOR_TOPIC
from novasvc.registry.verdict import VerdictRule
from novasvc.registry.verdicts import FleetVerdicts, judge_all
from novasvc.testing.simulation.faults import RECOVERY

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

_EVERY = 10.0
"""Seconds between two looks."""
_MEMORY = 90.0
"""Seconds after a fault for which its host may be down: it was silent, and its next heartbeat may take a while."""

_MISSED = 20.0
"""Seconds from a last heartbeat to a fault, and from its end to the next heartbeat, together."""

_OF_DATABASE = {"database stall", "database refusal"}
"""Faults of the database."""
_OF_SERVERS = {"broker stall", *_OF_DATABASE}
"""Faults that keep the heartbeats of all services away."""
_OF_CONNECTIONS = {"cut", "broker partition", "broker refusal"}
"""Faults between hosts and the broker."""
_OF_PROCESSES = {*_OF_CONNECTIONS, "kill", "pause", "database partition", "forced down"}
"""Faults that keep a conductor from its work."""


class Span(NamedTuple):
    """A time in which a fault keeps all heartbeats away, in seconds, and the fault's kind."""

    begin: float
    end: float
    kind: str


@attrs.define(eq=False)
class VerdictWitness:
    """Judges all services every few seconds, as an observer with a connection of its own to the database does."""

    _simulation: "Simulation"
    _next: IDelayedCall | None = attrs.field(default=None, init=False)

    def look(self) -> None:
        """Judge now, and again after a while."""
        simulation = self._simulation
        rule = VerdictRule(service_down_time=simulation.service_down_time)
        judging = Deferred.fromCoroutine(judge_all(simulation.database.registry, rule))
        judging.addCallbacks(self._check, lambda failure: simulation.ledger.problem("verdicts", failure.getTraceback()))
        self._next = simulation.clock.callLater(_EVERY, self.look)

    def stop(self) -> None:
        """Look no more: the nodes are stopped now."""
        if self._next is not None:
            self._next.cancel()

    def _check(self, fleet: FleetVerdicts) -> None:
        simulation, down_time = self._simulation, self._simulation.service_down_time
        sizes = Counter(record.binary for record, _ in fleet.services)
        conductors = {record.host for record, _ in fleet.services if record.topic == CONDUCTOR_TOPIC}
        enough = VerdictRule().suspect_group_size
        # See "The verdict" and "What cannot be known" in the guide Liveness.
        spans, now = self._spans(conductors), simulation.clock.seconds()
        of_others = [span for span in spans if span.kind not in _OF_DATABASE]  # from its stalls all are protected
        small_groups_may_be = longest_silence(of_others, now, of_broker) > down_time
        small_fleets_may_be = longest_silence(spans, now) > 1.5 * down_time
        # Between two faults some heartbeats may have arrived and others not: no silence is then one of the whole fleet.
        any_may_be = longest_silence(spans, now, is_interrupted) > down_time
        for record, verdict in fleet.services:
            excused = (
                any_may_be
                or self._is_disturbed(record.host)
                or (small_groups_may_be and sizes[record.binary] < enough)
                or (small_fleets_may_be and len(fleet.services) < enough)
            )
            if verdict.is_down and not excused:
                text = f"{record.name} is said to be down ({verdict.reason}), and nothing was done to it"
                simulation.ledger.problem("no_false_down", text)

    def _is_disturbed(self, host: str) -> bool:
        """Return whether a fault of the host may be the reason."""
        now = self._simulation.clock.seconds()
        disturbances = self._simulation.disturbances
        return any(host in fault.places and begin <= now <= end + _MEMORY for begin, end, fault in disturbances)

    def _spans(self, conductors: set[str]) -> list[Span]:
        """Return the faults that keep all heartbeats away: of a server, or of all conductors."""
        return [
            Span(begin, end - RECOVERY, fault.kind)
            for begin, end, fault in self._simulation.disturbances
            if fault.kind in _OF_SERVERS
            or (fault.kind in _OF_PROCESSES and conductors and conductors.issubset(fault.places))
        ]


def longest_silence(
    spans: Iterable[Span], now: float, counts: Callable[[Sequence[Span]], bool] = lambda _: True
) -> float:
    """Return for how many seconds heartbeats may have been missing at a stretch; 0 if none has.

    Spans that are at most _MISSED apart count as one, because no heartbeat fits between them. A silence that ended more
    than RECOVERY + _MEMORY ago does not count.

    :param now: they count up to this moment.
    :param counts: whether a stretch of such spans counts.
    """
    longest, stretch, until = 0.0, list[Span](), -inf
    for span in sorted(spans):
        if span.begin > until + _MISSED:
            stretch = []
        stretch.append(span)
        until = max(until, min(span.end, now))
        if until + RECOVERY + _MEMORY >= now and counts(stretch):
            longest = max(longest, until - stretch[0].begin + _MISSED)
    return longest


def is_interrupted(stretch: Sequence[Span]) -> bool:
    """Return whether there was a time between two faults."""
    ends = accumulate((span.end for span in stretch), max)
    return any(span.begin > end for span, end in zip(stretch[1:], ends, strict=False))


def of_broker(stretch: Sequence[Span]) -> bool:
    """Return whether the broker was a part of it: it delivered nothing, or reached no conductor."""
    return any(span.kind in {"broker stall", *_OF_CONNECTIONS} for span in stretch)
