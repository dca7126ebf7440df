"""The scope of a task: how many processes run it. The term of a process that leads a task."""

from typing import Literal

import attrs

Scope = Literal["worker", "node", "fleet"]
"""In each worker process; in one process of a node; in one process of all nodes of a topic."""


@attrs.frozen(kw_only=True)
class Term:
    """What a process is given when it gets the lead of a task.

    :param fencing: the fencing number of its lease; None within a node.
    :param known_for: seconds since the task was led for the first time by any process; None if that is unknown.
    :param ran_ago: seconds since a run by any leader was last reported; None if that is unknown, or there was none.
    :param last_due: the due time of that run by the task's cron line, Unix seconds; None if that is unknown.
    """

    fencing: int | None = None
    known_for: float | None = None
    ran_ago: float | None = None
    last_due: float | None = None
