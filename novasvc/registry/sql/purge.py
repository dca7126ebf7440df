"""Delete rows of the ``services`` table for good: what one transaction reads and writes, in a worker thread."""

from sqlalchemy import Connection, bindparam, delete, exists, func, or_, select
from sqlalchemy import Integer as SQLInteger

from novasvc.registry.purge import PurgedRow, PurgedRows, PurgeRequest
from novasvc.registry.sql.incarnations import SAID
from novasvc.registry.sql.schema import database_ago, database_now, incarnations, services

# Note [What a purge keeps]
#
# The row of an incarnation stays, with its number: a later start of the same host and binary must not get a number that
# was used before. A service that has never sent a heartbeat is silent by intention, as Nova's API servers are; its row
# goes only if its incarnation has ended.

_BEFORE = database_ago(bindparam("seconds"))
_OURS = exists().where(incarnations.c.host == services.c.host, incarnations.c.binary == services.c.binary)
_HAS_ENDED = exists().where(
    incarnations.c.service_id == services.c.id,
    incarnations.c.state.in_(["stopped", "failed"]),
    incarnations.c.since < _BEFORE,
)
_SAID_SINCE = exists().where(incarnations.c.service_id == services.c.id, SAID >= _BEFORE)
_DELETED = (services.c.deleted != 0) & (services.c.deleted_at < _BEFORE)
_SILENT = (
    (services.c.deleted == 0)
    & ((services.c.last_seen_up < _BEFORE) | (services.c.last_seen_up.is_(None) & _HAS_ENDED))
    & (func.coalesce(services.c.created_at, services.c.last_seen_up, _BEFORE) <= _BEFORE)
    & ~_SAID_SINCE
)
_WANTED = or_(_DELETED, _SILENT)
_SINCE = func.coalesce(services.c.deleted_at, services.c.last_seen_up, services.c.created_at)
_FIND = (
    select(services.c.id, services.c.host, services.c.binary, services.c.deleted, _SINCE.label("since"), database_now())
    .where(_WANTED, services.c.id > bindparam("after"))
    .order_by(services.c.id)
    .limit(bindparam("most", type_=SQLInteger()))
)
_PURGE = delete(services).where(services.c.id == bindparam("of_id"), _WANTED)


def find(connection: Connection, request: PurgeRequest, after: int, most: int) -> PurgedRows:
    """Read rows that may be purged, in the order of their ids.

    :param after: only rows with a greater id.
    """
    statement = _FIND if request.include_nova else _FIND.where(_OURS)
    rows = connection.execute(statement, {"seconds": request.seconds, "after": after, "most": most}).all()
    return [
        PurgedRow(
            id=number,
            host=host or "",
            binary=binary or "",
            why="deleted" if deleted else "silent",
            age=0.0 if since is None else (now - since).total_seconds(),
        )
        for number, host, binary, deleted, since, now in rows
    ]


def purge(connection: Connection, request: PurgeRequest, after: int, most: int) -> PurgedRows:
    """Delete what :func:`find` finds, except for rows whose service has been heard of meanwhile."""
    found = find(connection, request, after, most)
    return [row for row in found if connection.execute(_PURGE, {"of_id": row.id, "seconds": request.seconds}).rowcount]
