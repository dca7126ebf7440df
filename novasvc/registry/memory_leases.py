"""The leases of a registry in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime

import attrs
from twisted.internet.interfaces import IReactorTime

from novasvc.registry.lease import Lease, LeaseRequest, Leases


@attrs.define
class _Row:
    """A row of the table ``novasvc_leases``; times are seconds on the clock."""

    holder: str | None
    owner: str | None
    fencing: int
    created: float
    acquired: float
    expires: float
    last_run: float | None = None
    last_due: float | None = None


@attrs.define(eq=False)
class MemoryLeases:
    """The table ``novasvc_leases`` as a dictionary.

    :param clock: the database's clock.
    """

    _clock: IReactorTime
    _rows: dict[tuple[str, str], _Row] = attrs.field(factory=dict, init=False)

    def hold(self, request: LeaseRequest) -> Leases:
        """See :meth:`novasvc.interfaces.IServiceRegistry.hold_leases` for this and the other methods."""
        now = self._clock.seconds()
        end = now + request.seconds
        tasks = sorted(set(request.tasks))
        for task in tasks:
            row = self._rows.get((request.topic, task))
            if row is None:
                row = _Row(request.holder, request.owner, 1, now, now, end)
                self._rows[request.topic, task] = row
            elif row.owner is None or row.expires <= now:
                row.holder, row.owner, row.fencing = request.holder, request.owner, row.fencing + 1
                row.acquired, row.expires = now, end
            elif row.owner == request.owner:
                row.expires = end
            if row.owner == request.owner and task in request.runs:
                row.last_run, row.last_due = now, request.runs[task]
        return [self._lease(request.topic, task) for task in tasks]

    def release(self, topic: str, owner: str, tasks: Sequence[str]) -> None:
        """Free the leases of an owner."""
        for task in tasks:
            row = self._rows.get((topic, task))
            if row is not None and row.owner == owner:
                row.holder = row.owner = None
                row.expires = self._clock.seconds()

    def all(self) -> Leases:
        """Return all leases, ordered by topic and task."""
        return [self._lease(*key) for key in sorted(self._rows)]

    def _lease(self, topic: str, task: str) -> Lease:
        row, now = self._rows[topic, task], self._clock.seconds()
        return Lease(
            topic=topic,
            task=task,
            holder=row.holder,
            owner=row.owner,
            fencing=row.fencing,
            acquired_at=_stamp(row.acquired),
            held_for=now - row.acquired,
            expires_in=row.expires - now,
            known_for=now - row.created,
            last_run_at=None if row.last_run is None else _stamp(row.last_run),
            ran_ago=None if row.last_run is None else now - row.last_run,
            last_due=row.last_due,
        )


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
