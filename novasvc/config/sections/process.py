"""Start, shutdown and log of a process."""

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import BOOLEAN, NUMBER, choice


@attrs.frozen(kw_only=True, slots=False)
class ProcessSection:
    """Start, shutdown and log of a process."""

    graceful_shutdown_timeout: float = setting(
        "How long a graceful shutdown waits for work in progress; 0 is unlimited.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    fail_fast: bool = setting(
        "Exit with an error if the broker or the database is unavailable at start; otherwise wait for it.",
        BOOLEAN,
        default=False,
    )
    allow_older_service: bool = setting(
        "Start a service even if its service_version is below that of all others of its binary that are up: to take a "
        "fleet back to an older release.",
        BOOLEAN,
        default=False,
    )
    log_level: str = setting(
        "Minimum level of the events that `twistd novasvc` logs.",
        choice("debug", "info", "warn", "error", "critical"),
        default="info",
    )
    log_json: bool = setting("Log one JSON object per line.", BOOLEAN, default=False)
