"""Heartbeats, and when a service counts as down."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import NUMBER, choice


@attrs.frozen(kw_only=True, slots=False)
class LivenessSection:
    """Heartbeats, and when a service counts as down."""

    servicegroup_driver: str = setting("How services prove that they are up.", choice("db"), default="db")
    report_interval: float = setting(
        "Time from heartbeat to heartbeat; 0 disables heartbeats: the service registers once and counts as down after "
        "service_down_time.",
        NUMBER,
        default=10.0,
        unit="seconds",
        minimum=1,
        zero=True,
    )
    service_down_time: float = setting(
        "Time without a heartbeat after which a service is down; more than report_interval.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=1,
    )
