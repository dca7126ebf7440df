"""A fleet in a seed: nodes, callers, a broker and a database in one process, with faults, all repeatable.

docs/guides/simulate-a-fleet.md is the guide.
"""

from novasvc.testing.errors import BrokenPromiseError
from novasvc.testing.simulation.caller import Caller
from novasvc.testing.simulation.node import SimulatedNode
from novasvc.testing.simulation.plan import KINDS, Fault
from novasvc.testing.simulation.promises import check
from novasvc.testing.simulation.seeds import Outcome, check_seeds, run_seed, shrink
from novasvc.testing.simulation.simulation import Simulation

__all__ = [
    "KINDS",
    "BrokenPromiseError",
    "Caller",
    "Fault",
    "Outcome",
    "SimulatedNode",
    "Simulation",
    "check",
    "check_seeds",
    "run_seed",
    "shrink",
]
