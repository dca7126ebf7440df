"""Delete rows of the ``services`` table for good: what one transaction reads and writes, in a worker thread."""

from datetime import datetime

import attrs
from sqlalchemy import ColumnElement, Connection, DateTime, bindparam, delete, exists, func, or_, select
from sqlalchemy import Integer as SQLInteger

from novasvc.registry.outages import Outages, moment_of, seconds_of
from novasvc.registry.purge import PurgeBatch, PurgedRow, PurgeRequest
from novasvc.registry.sql.incarnations import SAID
from novasvc.registry.sql.queries import ROWS
from novasvc.registry.sql.rows import record_of
from novasvc.registry.sql.schema import database_now, incarnations, services
from novasvc.registry.sql.silences import read_outages
from novasvc.registry.verdict import Judge, describe_outages, needs_outages

# Note [What a purge keeps]
#
# The row of an incarnation stays, with its number: a later start of the same host and binary must not get a number that
# was used before. A service that has never sent a heartbeat is silent by intention, as Nova's API servers are; its row
# goes only if its incarnation has ended.
#
# A service that is suspect stays, too: it runs, as far as is known, and without its row it would fence itself. So each
# batch is judged in the transaction that deletes it. The moment before which a service must have been heard last is
# read first, and is the same when the rows are deleted. However long a transaction takes, a service that was heard
# after it was judged stays.

_NOW = select(database_now())
_BEFORE = bindparam("before", type_=DateTime())


def _has_incarnation(*wanted: ColumnElement[bool]) -> ColumnElement[bool]:
    # Correlated with the services alone: the statement that finds rows has joined the incarnations, too.
    return exists().where(*wanted).correlate(services)


_OF_SERVICE = incarnations.c.service_id == services.c.id
_OURS = _has_incarnation(incarnations.c.host == services.c.host, incarnations.c.binary == services.c.binary)
_HAS_ENDED = _has_incarnation(
    _OF_SERVICE, incarnations.c.state.in_(["stopped", "failed"]), incarnations.c.since < _BEFORE
)
_SAID_SINCE = _has_incarnation(_OF_SERVICE, SAID >= _BEFORE)
_DELETED = (services.c.deleted != 0) & (services.c.deleted_at < _BEFORE)
_SILENT = (
    (services.c.deleted == 0)
    & ((services.c.last_seen_up < _BEFORE) | (services.c.last_seen_up.is_(None) & _HAS_ENDED))
    & (func.coalesce(services.c.created_at, services.c.last_seen_up, _BEFORE) <= _BEFORE)
    & ~_SAID_SINCE
)
_WANTED = or_(_DELETED, _SILENT)
_FIND = (
    ROWS.where(_WANTED, services.c.id > bindparam("after"))
    .order_by(services.c.id)
    .limit(bindparam("most", type_=SQLInteger()))
)
_PURGE = delete(services).where(services.c.id == bindparam("of_id"), _WANTED)


def find(connection: Connection, request: PurgeRequest, after: int, most: int) -> PurgeBatch:
    """Read rows that may be purged, in the order of their ids.

    :param after: only rows with a greater id.
    :param most: rows that are looked at.
    """
    return _find(connection, request, after, most, _before(connection, request))


def purge(connection: Connection, request: PurgeRequest, after: int, most: int) -> PurgeBatch:
    """Delete what :func:`find` finds, except for rows whose service has been heard of meanwhile."""
    before = _before(connection, request)
    found = _find(connection, request, after, most, before)
    deleted = [row for row in found.rows if connection.execute(_PURGE, {"of_id": row.id, "before": before}).rowcount]
    return attrs.evolve(found, rows=deleted)


def _before(connection: Connection, request: PurgeRequest) -> datetime:
    now: datetime = connection.execute(_NOW).scalar_one()
    return moment_of(max(0.0, seconds_of(now) - request.seconds))


def _find(connection: Connection, request: PurgeRequest, after: int, most: int, before: datetime) -> PurgeBatch:
    statement = _FIND if request.include_nova else _FIND.where(_OURS)
    rows = connection.execute(statement, {"before": before, "after": after, "most": most}).all()
    records = [record_of(row) for row in rows]
    # Read after the rows; a deleted one needs no verdict.
    outages = Outages()
    if any(not row.deleted and needs_outages(record, request.rule) for row, record in zip(rows, records, strict=True)):
        outages = read_outages(connection, request.rule, ours=True)
    judge = Judge(request.rule, outages)
    found: list[PurgedRow] = []
    suspect: list[str] = []
    for row, record in zip(rows, records, strict=True):
        if row.deleted:
            age = (row.now - row.deleted_at).total_seconds()
            found.append(PurgedRow(id=record.id, host=record.host, binary=record.binary, why="deleted", age=age))
        elif judge(record).is_down:
            age = record.age
            found.append(PurgedRow(id=record.id, host=record.host, binary=record.binary, why="silent", age=age))
        else:
            suspect.append(record.name)
    return PurgeBatch(
        rows=found,
        suspect=suspect,
        outages=describe_outages(outages) if suspect else {},
        last=records[-1].id if records else None,
    )
