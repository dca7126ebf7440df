"""Heartbeats, and when a service counts as down."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import INTEGER, NUMBER, SHARE, choice


@attrs.frozen(kw_only=True, slots=False)
class LivenessSection:
    """Heartbeats, and when a service counts as down."""

    servicegroup_driver: str = setting("Driver that decides whether a service is up.", choice("db"), default="db")
    report_interval: float = setting(
        "Heartbeat interval; 0 disables heartbeats: the service registers once and counts as down after "
        "service_down_time.",
        NUMBER,
        default=10.0,
        unit="seconds",
        minimum=1,
        zero=True,
    )
    service_down_time: float = setting(
        "A service without a heartbeat for this long is down. Must be greater than report_interval.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=1,
    )
    fence_after: float = setting(
        "A service that has written no heartbeat for this long takes in nothing and cancels what it does, until one is "
        "written: so it has ended before others take over its work. 0 disables: it goes on, as in Nova. "
        "Must be greater than report_interval, which must not be 0.",
        NUMBER,
        default=0.0,
        unit="seconds",
        minimum=1,
        zero=True,
    )
    suspect_share: float = setting(
        "Services of a binary, or of a binary in a zone, that become silent at the same time are suspect instead of "
        "down if they are more than this share of those that were up; 1 disables that.",
        SHARE,
        default=1 / 3,
        default_text="0.333",
    )
    suspect_group_size: int = setting(
        "Number of services of a binary, or of a binary in a zone, below which none is suspect because of the others.",
        INTEGER,
        default=5,
        minimum=1,
    )
    suspect_time: float = setting(
        "A service that is suspect because of the others is down after this long; 0 waits until an operator forces it "
        "down.",
        NUMBER,
        default=300.0,
        unit="seconds",
        minimum=1,
        zero=True,
    )
