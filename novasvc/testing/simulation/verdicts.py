"""What the registry says of the nodes of a simulation while it runs: whether they are alive, suspect or down."""

from collections import Counter
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

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

_OF_DATABASE = {"database stall", "database refusal"}
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
        simulation = self._simulation
        now = simulation.clock.seconds()
        sizes = Counter(record.binary for record, _ in fleet.services)
        enough = VerdictRule().suspect_group_size
        unprotected = len(fleet.services) < enough and self._was_without_database()
        for record, verdict in fleet.services:
            is_small = sizes[record.binary] < enough
            if verdict.is_down and not unprotected and not self._is_excused(record.host, now, is_small=is_small):
                text = f"{record.name} is said to be down ({verdict.reason}), and nothing was done to it"
                simulation.ledger.problem("no_false_down", text)

    def _is_excused(self, host: str, now: float, *, is_small: bool) -> bool:
        """Return whether a fault may be the reason.

        :param is_small: whether the service is of a group that is too small to be suspect.
        """
        return any(
            (host in fault.places or (is_small and self._stops_heartbeats(fault))) and begin <= now <= end + _MEMORY
            for begin, end, fault in self._simulation.disturbances
        )

    def _was_without_database(self) -> bool:
        """Return whether all heartbeats may have failed for longer than a small fleet is only suspect."""
        faults = [fault for _, _, fault in self._simulation.disturbances if fault.kind in _OF_DATABASE]
        return sum(fault.seconds for fault in faults) + _MISSED > 1.5 * self._simulation.service_down_time

    def _stops_heartbeats(self, fault: Fault) -> bool:
        """Return whether a fault of the broker keeps heartbeats away for service_down_time."""
        return fault.kind == "broker stall" and fault.seconds + _MISSED > self._simulation.service_down_time
