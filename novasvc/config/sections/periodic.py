"""Periodic tasks."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, NUMBER


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
