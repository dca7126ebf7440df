"""Leases of periodic tasks that run once in a fleet, as values."""

from collections.abc import Mapping
from datetime import datetime

import attrs


@attrs.frozen(kw_only=True)
class Lease:
    """The lease of one task, as its row is in the database. Times are by the database's clock.

    There is one lease for each pair of topic and task name: nodes of one topic share it, whatever their manager's class
    and binary are called, so that a class can be renamed while a fleet is upgraded.

    :param topic: topic of the nodes that run the task.
    :param task: name of the task.
    :param holder: who has the lease, for people: "h1" or "h1 worker 2"; None if it was released.
    :param owner: random id of the process that has the lease; None if it was released.
    :param fencing: the fencing number. It grows whenever the lease passes on, and is never used again, so a resource
        that remembers the greatest number it has seen can refuse an earlier holder. From 1.
    :param acquired_at: when this holder got it, UTC without a time zone.
    :param held_for: seconds since ``acquired_at``.
    :param expires_in: seconds until it ends if it is not renewed; <= 0 if it is free.
    :param known_for: seconds since the lease was taken for the first time, by any holder.
    :param last_run_at: when a run was last reported, by any holder, UTC without a time zone; None before the first.
    :param ran_ago: seconds since ``last_run_at``; None before the first run.
    :param last_due: the last due time that a run was reported for, Unix seconds; None for a task without cron line.
    """

    topic: str
    task: str
    holder: str | None
    owner: str | None
    fencing: int
    acquired_at: datetime
    held_for: float
    expires_in: float
    known_for: float
    last_run_at: datetime | None
    ran_ago: float | None
    last_due: float | None

    @property
    def is_free(self) -> bool:
        """Whether the next contender gets it."""
        return self.owner is None or self.expires_in <= 0


Leases = list[Lease]


@attrs.frozen(kw_only=True)
class LeaseRequest:
    """What a process asks of the leases of its tasks, all of one topic.

    :param topic: topic of the node.
    :param holder: the process's name for people.
    :param owner: random id of the process, which no earlier process had.
    :param seconds: length of a lease, > 0.
    :param tasks: names of the tasks.
    :param runs: tasks of which runs have begun since the last request -> their due time in Unix seconds, or None for a
        task without a cron line.
    """

    topic: str
    holder: str
    owner: str
    seconds: float
    tasks: tuple[str, ...]
    runs: Mapping[str, float | None] = attrs.field(factory=dict)
