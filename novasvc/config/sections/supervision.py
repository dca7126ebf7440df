"""Supervised worker processes and the control socket."""

from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import INTEGER, NUMBER, PATH, choice


@attrs.frozen(kw_only=True, slots=False)
class SupervisionSection:
    """Supervised worker processes and the control socket."""

    workers: int = setting(
        "Supervised processes that share the work of the services; 0 runs them in the one process that was started.",
        INTEGER,
        default=0,
        minimum=0,
    )
    worker_start_timeout: float = setting(
        "How long a worker may take to be ready; one that waits for the database or the broker may take longer. "
        "0 is without limit.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=0,
    )
    worker_watchdog: float = setting(
        "How long a worker's reactor may not turn, before the worker is ended and replaced; 0 is for ever.",
        NUMBER,
        default=30.0,
        unit="seconds",
        minimum=0,
    )
    worker_restart_budget: int = setting(
        "Times that a worker may die before it is ready, or at once when it is, within worker_restart_window.",
        INTEGER,
        default=5,
        minimum=1,
    )
    worker_restart_window: float = setting(
        "Time in which the deaths of worker_restart_budget are counted.",
        NUMBER,
        default=60.0,
        unit="seconds",
        minimum=1,
    )
    worker_crash_loop: str = setting(
        "What follows when the budget is used up: exit ends everything with an error, retry tries on slowly, auto "
        "is exit until a worker has been ready once, and retry from then on.",
        choice("auto", "exit", "retry"),
        default="auto",
    )
    control_socket: Path = setting(  # noqa: RUF009
        "Unix socket by which `novasvc workers`, `drain`, `reload` and `dump` reach the supervisor.",
        PATH,
        default=attrs.Factory(lambda self: self.state_dir / "novasvc.control", takes_self=True),
        shown="novasvc.control in state_dir",
    )
