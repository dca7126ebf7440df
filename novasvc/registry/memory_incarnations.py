"""The incarnations of a registry in memory."""

from datetime import datetime, timedelta

import attrs

from novasvc.registry.errors import ServiceNotFoundError
from novasvc.registry.incarnation import (
    LONGEST,
    Incarnation,
    LatestStart,
    ServiceStart,
    ServiceState,
    check_twin,
)
from novasvc.registry.record import ServiceRecord
from novasvc.registry.text import storable


@attrs.frozen
class _Row:
    """What only the registry knows of the latest incarnation of a service."""

    number: int
    owner: str
    lock: str | None


@attrs.define(eq=False)
class MemoryIncarnations:
    """The private part of the table ``novasvc_incarnations``; the rows of services have the other part."""

    _rows: dict[tuple[str, str], _Row] = attrs.field(factory=dict, init=False)

    def check_not_deleted(self, start: ServiceStart) -> None:
        """Check that a start whose service has no row is a new one.

        :raises ServiceNotFoundError: it had a row, which was deleted.
        """
        row = self._rows.get((start.host, start.binary))
        if row is not None and row.owner == start.owner:
            raise ServiceNotFoundError(start.name)

    def begin(self, start: ServiceStart, record: ServiceRecord, now: datetime) -> Incarnation:
        """Return the incarnation that a start has now; the caller writes it.

        :param record: the row of the service.
        :raises ServiceTwinError: another start is alive.
        """
        row, incarnation = self._rows.get((record.host, record.binary)), record.incarnation
        if row is not None and incarnation is not None:
            if row.owner == start.owner:
                return attrs.evolve(incarnation, zone=start.zone, tags=start.tags)
            heard = max(incarnation.said, record.last_seen_up or incarnation.since)
            quiet = (now - heard).total_seconds()
            latest = LatestStart(
                incarnation=incarnation,
                owner=row.owner,
                lock=row.lock,
                forced_down=record.forced_down,
                quiet=quiet,
                beats=record.report_count,
            )
            check_twin(start, latest)
        row = _Row(max(0 if row is None else row.number, start.after) + 1, start.owner, start.lock)
        self._rows[record.host, record.binary] = row
        return Incarnation(
            number=row.number,
            state="starting",
            since=now,
            until=None,
            reason=None,
            calls=0,
            machine=storable(start.machine, LONGEST),
            pid=start.pid,
            started_at=now,
            zone=start.zone,
            tags=start.tags,
        )


def entered(
    incarnation: Incarnation, now: datetime, state: ServiceState, until: float | None, reason: str | None, calls: int
) -> Incarnation:
    """Return an incarnation in another state; see :meth:`novasvc.interfaces.IServiceRegistry.enter`."""
    return attrs.evolve(
        incarnation,
        state=state,
        since=incarnation.since if state == incarnation.state else now,
        until=None if until is None else now + timedelta(seconds=until),
        reason=storable(reason, LONGEST),
        calls=calls,
    )
