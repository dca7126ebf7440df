"""Periodic tasks."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, NUMBER


@attrs.frozen(kw_only=True, slots=False)
class PeriodicSection:
    """Periodic tasks."""

    periodic_enable: bool = setting("Run the periodic tasks.", BOOLEAN, default=True)
    periodic_fuzzy_delay: float = setting(
        "Longest random delay before the first pass over the periodic tasks, so that a fleet does not beat as one.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    periodic_interval_max: float | None = setting(
        "Longest time between two passes over the periodic tasks.",
        NUMBER,
        default=None,
        unit="seconds",
        minimum=1,
        optional=True,
    )
    run_external_periodic_tasks: bool = setting(
        "Run the periodic tasks that another process could run, too.", BOOLEAN, default=True
    )
