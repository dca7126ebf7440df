"""What each kind of fault does to a simulation."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from novasvc.registry.record import Records, ServiceChanges
from novasvc.testing.simulation.plan import Fault
from novasvc.testing.simulation.process import SimulatedProcess
from novasvc.testing.simulation.randomness import happens

if TYPE_CHECKING:
    from novasvc.testing.simulation.simulation import Simulation

_NOTICED = 20.0
"""Seconds after which each side of a silent connection gives it up: two heartbeats."""
RECOVERY = 30.0
"""Seconds for which the traces of a fault may last: reconnections, redeliveries, retries."""

Apply = Callable[["Simulation", Fault, Random], float]
"""Begins a fault; returns the seconds after which its own effects are over, without RECOVERY."""


def apply(simulation: "Simulation", fault: Fault) -> None:
    """Begin a fault, and note for how long its traces may last."""
    source = simulation.seed.source(f"fault {fault.number}")
    simulation.trace.note("fault", "", str(fault))
    lasts = _APPLY[fault.kind](simulation, fault, source)
    now = simulation.clock.rightNow
    simulation.disturbances.append((now, now + lasts + RECOVERY, fault))


def _processes(simulation: "Simulation", fault: Fault) -> list[SimulatedProcess]:
    return [process for host in fault.places for process in simulation.processes_on(host)]


def _kill(simulation: "Simulation", fault: Fault, source: Random) -> float:
    notices = 0.0 if happens(source, 0.6) else source.uniform(5.0, _NOTICED)
    for host in fault.places:
        for node in simulation.nodes_on(host):
            node.kill(notices)
            simulation.clock.callLater(fault.seconds, node.start_again)
    return max(notices, fault.seconds)


def _restart(simulation: "Simulation", fault: Fault, source: Random) -> float:
    for host in fault.places:
        for node in simulation.nodes_on(host):
            node.restart()
    return 0.0


def _pause(simulation: "Simulation", fault: Fault, source: Random) -> float:
    for process in _processes(simulation, fault):
        process.pause(fault.seconds)
    return fault.seconds


def _cut(simulation: "Simulation", fault: Fault, source: Random) -> float:
    gets_out, gets_in = source.choice(((False, False), (True, False), (False, True)))
    sudden = happens(source, 0.5)  # a reset: both sides know at once
    noticed, broker_notices = (0.0, 0.0) if sudden else (source.uniform(0, _NOTICED), source.uniform(0, _NOTICED))
    for process in _processes(simulation, fault):
        for link in process.links:
            link.cut(
                gets_out=gets_out,
                gets_in=gets_in,
                noticed_after=noticed,
                broker_notices_after=broker_notices,
                back_after=fault.seconds,
            )
    return max(noticed, broker_notices, fault.seconds)


def _broker_partition(simulation: "Simulation", fault: Fault, source: Random) -> float:
    until = simulation.clock.rightNow + fault.seconds
    for process in _processes(simulation, fault):
        process.held_until = max(process.held_until, until)
        for link in process.links:
            link.held_until = max(link.held_until, until)
            if fault.seconds > _NOTICED / 2:
                noticed, broker_notices = source.uniform(_NOTICED / 2, _NOTICED), source.uniform(_NOTICED / 2, _NOTICED)
                if min(noticed, broker_notices) < fault.seconds:
                    link.cut(noticed_after=noticed, broker_notices_after=broker_notices, back_after=fault.seconds)
    return max(fault.seconds, _NOTICED)


def _database_partition(simulation: "Simulation", fault: Fault, source: Random) -> float:
    for process in _processes(simulation, fault):
        process.registry.held_until = max(process.registry.held_until, simulation.clock.rightNow + fault.seconds)
    return fault.seconds


def _slow(simulation: "Simulation", fault: Fault, source: Random) -> float:
    seconds = source.choice((0.1, 0.5, 3.0))
    links = [link for process in _processes(simulation, fault) for link in process.links]
    for link in links:
        link.slow = seconds

    def end() -> None:
        for link in links:
            link.slow = 0.0

    simulation.clock.callLater(fault.seconds, end)
    return fault.seconds + seconds


def _broker_stall(simulation: "Simulation", fault: Fault, source: Random) -> float:
    simulation.weather.held_until = max(simulation.weather.held_until, simulation.clock.rightNow + fault.seconds)
    if fault.seconds > _NOTICED:
        for process in simulation.running():
            for link in process.links:
                link.cut(noticed_after=source.uniform(10, _NOTICED), broker_notices_after=fault.seconds)
    return fault.seconds


def _database_stall(simulation: "Simulation", fault: Fault, source: Random) -> float:
    database = simulation.database
    database.stalled_until = max(database.stalled_until, simulation.clock.rightNow + fault.seconds)
    return fault.seconds


def _database_refusal(simulation: "Simulation", fault: Fault, source: Random) -> float:
    database = simulation.database
    database.refuses_until = max(database.refuses_until, simulation.clock.rightNow + fault.seconds)
    return fault.seconds


def _broker_refusal(simulation: "Simulation", fault: Fault, source: Random) -> float:
    names = frozenset(process.name for process in _processes(simulation, fault))
    simulation.broker.refuse(fault.seconds, names)
    return fault.seconds


def _lost_queue(simulation: "Simulation", fault: Fault, source: Random) -> float:
    for host in fault.places:
        for node in simulation.nodes_on(host):
            for server in (host, None):
                if happens(source, 0.7) and simulation.broker.lose_queue(node.topic, server):
                    simulation.lost_queues.add((node.topic, server))
    return 0.0


def _twin(simulation: "Simulation", fault: Fault, source: Random) -> float:
    for host in fault.places:
        for node in simulation.nodes_on(host):
            node.start_twin()
    return simulation.service_down_time


def _forced_down(simulation: "Simulation", fault: Fault, source: Random) -> float:
    registry = simulation.database.registry

    def change(rows: Records, *, forced_down: bool) -> None:
        for row in rows:
            if row.host in fault.places:
                registry.update(row.id, ServiceChanges(forced_down=forced_down))
                simulation.refusals.force_down(row.id, forced_down=forced_down)

    registry.list(None, None, None).addCallback(change, forced_down=True)
    simulation.clock.callLater(
        fault.seconds, lambda: registry.list(None, None, None).addCallback(change, forced_down=False)
    )
    return fault.seconds


_APPLY: dict[str, Apply] = {
    "kill": _kill,
    "restart": _restart,
    "pause": _pause,
    "cut": _cut,
    "broker partition": _broker_partition,
    "database partition": _database_partition,
    "slow": _slow,
    "broker stall": _broker_stall,
    "database stall": _database_stall,
    "database refusal": _database_refusal,
    "broker refusal": _broker_refusal,
    "lost queue": _lost_queue,
    "twin": _twin,
    "forced down": _forced_down,
}
