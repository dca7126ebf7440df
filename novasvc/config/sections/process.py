"""Start, shutdown and log of a process."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, NUMBER, choice


@attrs.frozen(kw_only=True, slots=False)
class ProcessSection:
    """Start, shutdown and log of a process."""

    graceful_shutdown_timeout: float = setting(
        "How long a service that stops may finish what it has begun; 0 is without limit.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    fail_fast: bool = setting(
        "Fail the start if the broker or the database is not there, instead of waiting for it.", BOOLEAN, default=False
    )
    log_level: str = setting(
        "Least level of the events that `twistd novasvc` logs.",
        choice("debug", "info", "warn", "error", "critical"),
        default="info",
    )
    log_json: bool = setting("Log one JSON object a line.", BOOLEAN, default=False)
