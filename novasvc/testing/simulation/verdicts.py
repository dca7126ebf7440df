"""What the registry says of the nodes of a simulation while it runs: whether they are alive, suspect or down."""

from collections import Counter
from collections.abc import Container, Iterable
from math import inf
from typing import TYPE_CHECKING

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

_OF_SERVERS = {"broker stall", "database stall", "database refusal"}
"""Faults that keep the heartbeats of all services away."""
_OF_CONNECTIONS = {"cut", "broker partition", "broker refusal"}
"""Faults between hosts and the broker."""
_OF_PROCESSES = {*_OF_CONNECTIONS, "kill", "pause", "database partition", "forced down"}
"""Faults that keep a conductor from its work."""


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
        small_groups_may_be = self._silence({"broker stall"}, _OF_CONNECTIONS, conductors) > down_time
        small_fleets_may_be = self._silence(_OF_SERVERS, _OF_PROCESSES, conductors) > 1.5 * down_time
        # Between two faults some heartbeats may have arrived and others not: no silence is then one of the whole fleet.
        any_may_be = self._silence(_OF_SERVERS, _OF_PROCESSES, conductors, only_interrupted=True) > down_time
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

    def _silence(
        self,
        of_servers: Container[str],
        of_conductors: Container[str],
        conductors: set[str],
        *,
        only_interrupted: bool = False,
    ) -> float:
        """Return the longest time in seconds in which no heartbeat may have arrived; see :func:`longest_silence`.

        :param of_servers: kinds of faults that keep all heartbeats away.
        :param of_conductors: kinds of faults that do so when they happen to all conductors.
        """
        spans = [
            (begin, end - RECOVERY)
            for begin, end, fault in self._simulation.disturbances
            if fault.kind in of_servers
            or (fault.kind in of_conductors and conductors and conductors.issubset(fault.places))
        ]
        return longest_silence(spans, self._simulation.clock.seconds(), only_interrupted=only_interrupted)


def longest_silence(spans: Iterable[tuple[float, float]], now: float, *, only_interrupted: bool = False) -> float:
    """Return for how many seconds heartbeats may have been missing at a stretch; 0 if none has.

    Spans that are at most _MISSED apart count as one, because no heartbeat fits between them. A silence that ended more
    than RECOVERY + _MEMORY ago does not count.

    :param spans: begin and end of faults that keep heartbeats away.
    :param now: they count up to this moment.
    :param only_interrupted: count only silences of several faults with a time between them.
    """
    longest, since, until, interrupted = 0.0, 0.0, -inf, False
    for begin, end in sorted(spans):
        if begin > until + _MISSED:
            since, interrupted = begin, False
        elif begin > until:
            interrupted = True
        until = max(until, min(end, now))
        if until + RECOVERY + _MEMORY >= now and (interrupted or not only_interrupted):
            longest = max(longest, until - since + _MISSED)
    return longest
