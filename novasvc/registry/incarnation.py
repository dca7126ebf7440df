"""Incarnations: the starts of a service, numbered, and the state that the latest one is in."""

from datetime import datetime
from typing import Literal

import attrs

from novasvc.registry.errors import ServiceTwinError

ServiceState = Literal["starting", "ready", "draining", "stopped", "failed"]
"""What a service says of itself. That it was lost is not a state: it is a running state without heartbeats."""

ENDED = ("stopped", "failed")
"""The states of a service that does not run."""

LONGEST = 255
"""Characters of a reason, or of the name of a machine, that are stored."""


@attrs.frozen(kw_only=True)
class ServiceStart:
    """What a service says of itself when it starts.

    :param version: the code's service version.
    :param owner: random id of this start, at most 36 characters: beginning it again does not make another incarnation.
        The workers of one supervisor share it, because they are one start of the service.
    :param machine: name of the machine, for people.
    :param pid: the process's number on that machine; with workers, that of their supervisor.
    :param lock: the exclusive lock that this start holds, "NAME@TIME"; None without one. Two starts that hold the same
        lock cannot be alive at the same time: the one that took it earlier is dead.
    :param service_down_time: seconds without a heartbeat after which an earlier start counts as dead.
    :param after: the number that this start had in a database that has lost it since; its next number is greater. 0 for
        a new start.
    """

    host: str
    binary: str
    topic: str | None
    version: int
    owner: str
    machine: str
    pid: int = 0
    lock: str | None = None
    service_down_time: float = 60.0
    after: int = 0
    zone: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The display name, "binary@host"."""
        return f"{self.binary}@{self.host}"


@attrs.frozen(kw_only=True)
class Incarnation:
    """The latest start of a service, and the state it is in. Times are by the database's clock, UTC, naive.

    :param number: 1, 2, 3 ... for each pair of host and binary, never used again, even after the row of the service was
        deleted: a fencing token.
    :param state: one that is unknown here comes from a newer version, and is a running one.
    :param since: when it entered the state.
    :param until: draining: when the deadline of the drain ends. starting: when it said last that it still starts.
    :param reason: failed: why. ready: why it sends no heartbeats. stopped and draining: who asked, if known.
    :param calls: draining: calls in flight.
    :param machine: see :class:`ServiceStart`, as for ``pid``, ``zone`` and ``tags``.
    :param started_at: when it began.
    """

    number: int
    state: ServiceState
    since: datetime
    until: datetime | None
    reason: str | None
    calls: int
    machine: str
    pid: int
    started_at: datetime
    zone: str | None
    tags: tuple[str, ...]

    @property
    def said(self) -> datetime:
        """When it said its state last, heartbeats left out."""
        return said_at(self.state, self.since, self.until)

    @property
    def has_ended(self) -> bool:
        """Whether the service said that it does not run any more."""
        return self.state in ENDED


def said_at(state: str, since: datetime, until: datetime | None) -> datetime:
    """Return when a service said its state last; see :class:`Incarnation` for the arguments."""
    return max(since, until) if state == "starting" and until is not None else since


@attrs.frozen(kw_only=True)
class LatestStart:
    """What the registry knows of the latest start of a service, to judge another one by.

    :param owner: see :class:`ServiceStart`, as for ``lock``.
    :param forced_down: an operator declared the service down.
    :param quiet: seconds since the service was last heard of, by the database's clock.
    :param beats: heartbeats since the row was created.
    """

    incarnation: Incarnation
    owner: str
    lock: str | None
    forced_down: bool
    quiet: float
    beats: int


# Note [A start that arrives late]
#
# A request to begin may be executed when its process is dead, and another one on its machine has begun since: its
# conductor was cut off from the database for a while. Both processes have held the same lock, and the later one is the
# one that took it later. The earlier one has no place any more, not even after the later one has ended. Only after a
# long silence any start may begin, because clocks can be wrong.


def check_twin(start: ServiceStart, latest: LatestStart) -> None:
    """Check that a start may supersede the latest one of the same service.

    :raises ServiceTwinError: the latest one is alive, as far as the registry knows, or began after this one.
    """
    incarnation = latest.incarnation
    order = _compare_locks(start.lock, latest.lock)
    may_begin = order >= 0 if order is not None else incarnation.has_ended or latest.forced_down
    if not may_begin and latest.quiet <= start.service_down_time:
        raise ServiceTwinError(
            start.name,
            incarnation.number,
            incarnation.machine,
            incarnation.pid,
            f"{incarnation.started_at:%Y-%m-%d %H:%M:%S}",
            round(latest.quiet, 3),
            latest.beats,
        )


def _compare_locks(lock: str | None, other: str | None) -> int | None:
    """Compare when two starts took the same lock.

    :return: negative if the first of them took it earlier, positive if later, 0 if that is unknown; None if they are
        not the same lock.
    """
    if lock is None or other is None:
        return None
    (name, taken), (other_name, other_taken) = _divide(lock), _divide(other)
    if name != other_name:
        return None
    return 0 if taken is None or other_taken is None else taken - other_taken


def _divide(lock: str) -> tuple[str, int | None]:
    """Return the name of a lock, and when it was taken; None if that is unknown."""
    name, at, taken = lock.rpartition("@")
    return (name, int(taken)) if at and taken.isdecimal() else (lock, None)
