"""Periodic tasks."""

from typing import Literal

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, NUMBER, choice


@attrs.frozen(kw_only=True, slots=False)
class PeriodicSection:
    """Periodic tasks."""

    periodic_enable: bool = setting("Run periodic tasks.", BOOLEAN, default=True)
    periodic_fuzzy_delay: float = setting(
        "Maximum random delay before the first run of the periodic tasks, to spread the load of a fleet.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    periodic_interval_max: float | None = setting(
        "Maximum interval between two runs of the periodic tasks.",
        NUMBER,
        default=None,
        unit="seconds",
        minimum=1,
        optional=True,
    )
    run_external_periodic_tasks: bool = setting(
        "Run also the periodic tasks that may run in another process (external_process_ok).", BOOLEAN, default=True
    )
    default_task_scope: Literal["node", "worker"] = setting(
        "Scope of the periodic tasks that are declared without one: node runs them in one worker of each node, worker "
        "in each worker process, as in Nova.",
        choice("node", "worker"),
        default="node",
    )
    task_lease_time: float = setting(
        'Length of the leases of periodic tasks with scope="fleet". If the node that has one dies, another takes over '
        "within two lease times.",
        NUMBER,
        default=30.0,
        unit="seconds",
        minimum=1,
    )
