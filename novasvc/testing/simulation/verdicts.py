"""What the registry says of the nodes of a simulation while it runs: whether they are alive, suspect or down."""

from collections import Counter
from collections.abc import Container
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from novasvc.registry.outages import CONDUCTOR_TOPIC
from novasvc.registry.verdict import VerdictRule
from novasvc.registry.verdicts import FleetVerdicts, judge_all
from novasvc.testing.simulation.plan import Fault

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

_EVERY = 10.0
"""Seconds between two looks."""
_MEMORY = 90.0
"""Seconds after a fault for which its host may be down: it was silent, and its next heartbeat may take a while."""

_MISSED = 20.0
"""Seconds from a last heartbeat to a fault, and from its end to the next heartbeat, together."""

_OF_ALL = {"broker stall", "database stall", "database refusal"}
"""Faults that all services have together."""


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
        now = simulation.clock.seconds()
        sizes = Counter(record.binary for record, _ in fleet.services)
        conductors = {record.host for record, _ in fleet.services if record.topic == CONDUCTOR_TOPIC}
        enough = VerdictRule().suspect_group_size
        # See "What cannot be known" in the guide Liveness.
        small_groups_may_be = self._silence({"broker stall"}, conductors, now) > down_time
        small_fleets_may_be = self._silence(_OF_ALL, conductors, now) > 1.5 * down_time
        for record, verdict in fleet.services:
            excused = (
                self._is_disturbed(record.host, now)
                or (small_groups_may_be and sizes[record.binary] < enough)
                or (small_fleets_may_be and len(fleet.services) < enough)
            )
            if verdict.is_down and not excused:
                text = f"{record.name} is said to be down ({verdict.reason}), and nothing was done to it"
                simulation.ledger.problem("no_false_down", text)

    def _is_disturbed(self, host: str, now: float) -> bool:
        """Return whether a fault of the host may be the reason."""
        return any(host in fault.places for fault in self._faults(now))

    def _silence(self, kinds: Container[str], conductors: set[str], now: float) -> float:
        """Return the seconds for which all services of a group may have been silent together.

        :param kinds: of faults that keep all heartbeats away. One of all conductors does, too.
        """
        faults = [
            fault
            for fault in self._faults(now)
            if fault.kind in kinds or (conductors and conductors.issubset(fault.places))
        ]
        return sum(fault.seconds for fault in faults) + _MISSED

    def _faults(self, now: float) -> list[Fault]:
        """Return the faults whose traces may be seen."""
        return [fault for begin, end, fault in self._simulation.disturbances if begin <= now <= end + _MEMORY]
