"""What the registry says of the nodes of a simulation while it runs: whether they are alive, suspect or down."""

from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from novasvc.registry.verdict import VerdictRule
from novasvc.registry.verdicts import FleetVerdicts, judge_all

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

_EVERY = 10.0
"""Seconds between two looks."""
_MEMORY = 90.0
"""Seconds after a fault for which its host may be down: it was silent, and its next heartbeat may take a while."""


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
        for record, verdict in fleet.services:
            if verdict.is_down and not self._is_excused(record.host, now):
                text = f"{record.name} is said to be down ({verdict.reason}), and nothing was done to it"
                simulation.ledger.problem("no_false_down", text)

    def _is_excused(self, host: str, now: float) -> bool:
        """Return whether a fault of the host may be the reason."""
        return any(
            host in fault.places and begin <= now <= end + _MEMORY
            for begin, end, fault in self._simulation.disturbances
        )
