"""Supervised worker processes and the control socket."""

from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import INTEGER, NUMBER, PATH, choice


@attrs.frozen(kw_only=True, slots=False)
class SupervisionSection:
    """Supervised worker processes and the control socket."""

    workers: int = setting(
        "Number of supervised worker processes that run the services; 0 runs the services in the main process.",
        INTEGER,
        default=0,
        minimum=0,
    )
    worker_start_timeout: float = setting(
        "Replace a worker that is not ready within this time; 0 disables. The time that a worker waits for the "
        "database or the broker does not count, but for a reload.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    worker_watchdog: float = setting(
        "Replace a worker whose reactor is blocked for longer than this; 0 disables.",
        NUMBER,
        default=30.0,
        unit="seconds",
        minimum=0,
    )
    worker_restart_budget: int = setting(
        "Number of early deaths of a worker, before it is ready or right after, tolerated per worker_restart_window.",
        INTEGER,
        default=5,
        minimum=1,
    )
    worker_restart_window: float = setting(
        "Sliding window of worker_restart_budget.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=1,
    )
    worker_crash_loop: str = setting(
        "What to do when worker_restart_budget is exceeded. exit: stop all workers and exit with an error; retry: keep "
        "restarting, with back-off; auto: exit until all workers have been ready once, retry afterwards.",
        choice("auto", "exit", "retry"),
        default="auto",
    )
    worker_max_age: float = setting(
        "Replace a worker when it has been ready for this time; 0 disables. Each worker draws up to a fifth less, and "
        "one is replaced at a time: the new one is ready before the old one drains.",
        NUMBER,
        default=0.0,
        unit="seconds",
        minimum=0,
    )
    worker_max_calls: int = setting(
        "Replace a worker when it has served this many RPC calls and HTTP requests; 0 disables. See worker_max_age.",
        INTEGER,
        default=0,
        minimum=0,
    )
    worker_max_memory: float = setting(
        "Replace a worker when its private memory, which it shares with no other process, reaches this; 0 disables. "
        "See worker_max_age.",
        NUMBER,
        default=0.0,
        unit="MiB",
        minimum=0,
    )
    control_socket: Path = setting(  # noqa: RUF009
        "Path of the supervisor's UNIX socket, used by `novasvc workers`, `drain`, `reload` and `dump`.",
        PATH,
        default=attrs.Factory(lambda self: self.state_dir / "novasvc.control", takes_self=True),
        default_text="novasvc.control in state_dir",
    )
