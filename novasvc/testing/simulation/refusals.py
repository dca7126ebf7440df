"""What the registry of a simulation refuses: processes whose place another one has taken, or that are forced down."""

from typing import TYPE_CHECKING

import attrs

from novasvc.registry.liveness import is_up
from novasvc.registry.outages import CONDUCTOR_TOPIC
from novasvc.registry.record import ServiceRecord
from novasvc.testing.simulation.process import SimulatedProcess

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

_SLACK = 5.0
"""Seconds for a heartbeat to be answered, and for clocks that drift."""
_OTHERS_DO = {"forced down", "twin", "kill", "restart"}
"""Faults of a host that keep no heartbeat away while its process lives."""


@attrs.define(eq=False)
class Refusals:
    """Notes from when on a process is refused, and checks that this is right, and that the process obeys."""

    _simulation: "Simulation"
    _superseded: dict[str, float] = attrs.field(factory=dict, init=False)
    _forced_down: dict[int, float] = attrs.field(factory=dict, init=False)

    def begun(self, before: ServiceRecord | None, record: ServiceRecord) -> None:
        """Check a start that the registry has just taken.

        :param before: the row of the service until then; None if it had none.
        :param record: the row with the new start.
        """
        if before is None or before.incarnation is None or record.incarnation is None:
            return
        name, successor = before.incarnation.machine, record.incarnation.machine
        if name == successor:
            return
        simulation = self._simulation
        self._superseded[name] = simulation.clock.rightNow
        if is_up(before, simulation.service_down_time) and not simulation.process(name).ended:
            text = f"{successor} has taken the place of {name}, whose last heartbeat was {before.age:.1f} s ago"
            simulation.ledger.problem("no_living_start_is_superseded", text)

    def force_down(self, service_id: int, *, forced_down: bool) -> None:
        """Note that an operator has declared a service down, or has let it up."""
        if forced_down:
            self._forced_down.setdefault(service_id, self._simulation.clock.rightNow)
        else:
            self._forced_down.pop(service_id, None)

    def check(self, process: SimulatedProcess) -> str | None:
        """Return why a process must begin no run now; None if it may."""
        if process.is_refused:
            return "is fenced"
        service, now = process.service, self._simulation.clock.rightNow
        if service is None or service.node.record is None:
            return None
        since = self._superseded.get(process.name, self._forced_down.get(service.node.record.id, now))
        if now - since <= service.report_interval + _SLACK or self._is_cut_off(process, since):
            return None
        return f"was refused {now - since:.1f} s before"

    def _is_cut_off(self, process: SimulatedProcess, since: float) -> bool:
        """Return whether a fault since then may have kept a process from hearing of it."""
        assert process.service is not None
        direct = process.service.db_allowed
        conductors = () if direct else [node.host for node in self._simulation.nodes if node.topic == CONDUCTOR_TOPIC]
        return any(
            end >= since
            and (
                not fault.places
                or (process.host in fault.places and fault.kind not in _OTHERS_DO)
                or any(host in fault.places for host in conductors)
            )
            for _, end, fault in self._simulation.disturbances
        )
