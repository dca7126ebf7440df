"""Rows of the table ``novasvc_incarnations``: what one transaction reads and writes, in a worker thread."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import (
    Connection,
    Double,
    FromClause,
    Join,
    String,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from novasvc.registry.errors import ServiceForcedDownError, ServiceNotFoundError
from novasvc.registry.incarnation import LONGEST, Incarnation, ServiceStart, ServiceState
from novasvc.registry.sql.schema import database_ago, database_now, incarnations, services
from novasvc.registry.text import storable

# Note [Two starts want one number]
#
# Each reads the latest incarnation, and takes the next number only if the row still has the number that was read, so
# the second changes nothing, at READ COMMITTED (PostgreSQL) as at REPEATABLE READ (InnoDB), where an UPDATE sees what
# others have committed; it then reads again. A start that takes over from one that is silent does so only if no
# heartbeat was written since, which report_count tells. If there is no row yet, both insert one, and the second fails
# with a conflict of the unique key.

COLUMNS = (
    incarnations.c.number,
    incarnations.c.state,
    incarnations.c.since,
    incarnations.c.until,
    incarnations.c.reason,
    incarnations.c.calls,
    incarnations.c.machine,
    incarnations.c.pid,
    incarnations.c.started_at,
    incarnations.c.zone,
    incarnations.c.tags,
)
"""What :func:`read` reads, in this order."""

ZONE, TAGS = incarnations.c.zone, incarnations.c.tags
"""What queries filter by; the tags are a JSON array."""

SAID = case(
    (incarnations.c.state == "starting", func.coalesce(incarnations.c.until, incarnations.c.since)),
    else_=incarnations.c.since,
)
"""When a service said its state last; see :attr:`novasvc.registry.incarnation.Incarnation.said`."""

OF_SERVICE = incarnations.c.service_id
"""The id of the row of a service, also after that row was purged."""


def join_to(rows: FromClause) -> Join:
    """Return rows of ``services``, each with its latest incarnation if it has one."""
    return rows.outerjoin(incarnations, incarnations.c.service_id == services.c.id)


JOIN = join_to(services)

_NUMBER = select(incarnations.c.number).where(incarnations.c.service_id == services.c.id).scalar_subquery()
NUMBER = _NUMBER.label("number")
"""The number of a service's latest incarnation, or NULL, in a statement that reads ``services``."""

_OF_ID = (services.c.id == bindparam("of_id")) & (services.c.deleted == 0)
_LOCK = select(services.c.host, services.c.binary, services.c.forced_down).where(_OF_ID).with_for_update()
_READ_NUMBER = select(incarnations.c.number).where(incarnations.c.service_id == bindparam("of_id"))
_IS_LIVE = exists().where(_OF_ID)
_IS_SILENT = exists().where(_OF_ID, services.c.report_count == bindparam("of_count"))
_BEGIN: dict[str, Any] = {
    "service_id": bindparam("of_id"),
    "owner": bindparam("new_owner"),
    "lock_id": bindparam("new_lock"),
    "state": "starting",
    "since": database_now(),
    "until": None,
    "reason": None,
    "calls": 0,
    "machine": bindparam("new_machine"),
    "pid": bindparam("new_pid"),
    "started_at": database_now(),
    "zone": bindparam("new_zone"),
    "tags": bindparam("new_tags"),
}
_INSERT = insert(incarnations).values(
    host=bindparam("of_host"), binary=bindparam("of_binary"), number=bindparam("new_number"), **_BEGIN
)
_TAKE = (
    update(incarnations)
    .where(
        incarnations.c.host == bindparam("of_host"),
        incarnations.c.binary == bindparam("of_binary"),
        incarnations.c.number == bindparam("of_number"),
        _IS_SILENT,
    )
    .values(number=bindparam("new_number"), **_BEGIN)
)
_DESCRIBE = (
    update(incarnations)
    .where(incarnations.c.service_id == bindparam("of_id"), incarnations.c.owner == bindparam("of_owner"))
    .values(zone=bindparam("new_zone"), tags=bindparam("new_tags"))
)
# In this order, because MySQL assigns one column after the other, and ``since`` depends on the earlier state.
_STATE = bindparam("new_state", type_=String)
_SINCE = case((incarnations.c.state == _STATE, incarnations.c.since), else_=database_now())
_ENTER = (
    update(incarnations)
    .where(incarnations.c.service_id == bindparam("of_id"), incarnations.c.number == bindparam("of_number"), _IS_LIVE)
    .ordered_values(
        (incarnations.c.since, _SINCE),
        (incarnations.c.state, _STATE),
        (incarnations.c.until, database_ago(bindparam("minus", type_=Double))),
        (incarnations.c.reason, bindparam("new_reason")),
        (incarnations.c.calls, bindparam("new_calls")),
    )
)


def is_running() -> ColumnElement[bool]:
    """Return the condition that a service has not said that it ended; for statements that read ``JOIN``."""
    return incarnations.c.state.is_(None) | and_(incarnations.c.state != "stopped", incarnations.c.state != "failed")


def read(row: Sequence[Any]) -> Incarnation | None:
    """Return the incarnation in the values of :data:`COLUMNS`; None if there is none.

    :raises ValueError: another program has written what cannot be read.
    """
    number, state, since, until, reason, calls, machine, pid, started_at, zone, tags = row
    if number is None:
        return None
    found: tuple[str, ...] = ()
    if tags != "[]":
        with suppress(ValueError, TypeError):
            found = tuple(str(tag) for tag in json.loads(tags))
    return Incarnation(
        number=number,
        state=state,
        since=since,
        until=until,
        reason=reason,
        calls=calls,
        machine=machine,
        pid=pid,
        started_at=started_at,
        zone=zone,
        tags=found,
    )


def values_of(start: ServiceStart, service_id: int, name: tuple[str, str], number: int, beats: int) -> dict[str, Any]:
    """Return the values that :func:`write` takes for a start.

    :param name: host and binary, as the row of the service has them.
    :param number: the number of the latest incarnation; 0 if there was none.
    :param beats: the report_count that the row had when it was read.
    """
    values: dict[str, Any] = {
        "of_host": name[0],
        "of_binary": name[1],
        "of_id": service_id,
        "new_owner": start.owner,
        "new_lock": start.lock,
        "new_machine": storable(start.machine, LONGEST),
        "new_pid": start.pid,
        "new_zone": start.zone,
        "new_tags": _json(start.tags),
        "new_number": max(number, start.after) + 1,
    }
    return {**values, "of_number": number, "of_count": beats} if number else values


def write(connection: Connection, new: Sequence[dict[str, Any]], numbered: Sequence[dict[str, Any]]) -> None:
    """Write new incarnations. Those of which another transaction has changed what was read are left out.

    :param new: the values of services without an earlier incarnation.
    :param numbered: the values of all others.
    :raises IntegrityError: another transaction has inserted one of the rows since.
    """
    if new:
        connection.execute(_INSERT, new)
    if numbered:
        connection.execute(_TAKE, numbered)


def describe(connection: Connection, start: ServiceStart, service_id: int) -> None:
    """Write zone and tags of a start that has the latest incarnation already: a reload may have changed them."""
    values = {"of_id": service_id, "of_owner": start.owner, "new_zone": start.zone, "new_tags": _json(start.tags)}
    connection.execute(_DESCRIBE, values)


def _json(tags: Sequence[str]) -> str:
    return json.dumps(tags, ensure_ascii=False)


def enter(
    connection: Connection,
    service_id: int,
    number: int,
    state: ServiceState,
    until: float | None,
    reason: str | None,
    calls: int,
) -> bool:
    """Write the state of an incarnation.

    :param until: seconds from now, or None.
    :return: False if there is no such live row, or it has another incarnation.
    """
    values = {
        "of_id": service_id,
        "of_number": number,
        "new_state": state,
        "minus": None if until is None else -until,  # NULL minus NULL seconds is NULL
        "new_reason": storable(reason, LONGEST),
        "new_calls": calls,
    }
    return bool(connection.execute(_ENTER, values).rowcount)


def may_beat(connection: Connection, service_id: int, number: int) -> bool:
    """Lock the row of a service, and return whether an incarnation may write its heartbeat there.

    :return: False if there is another incarnation.
    :raises ServiceNotFoundError: the row was deleted.
    :raises ServiceForcedDownError: the service is forced down.
    """
    # Two statements: the number is read when the lock is held, so after a transaction that begins an incarnation.
    row = connection.execute(_LOCK, {"of_id": service_id}).first()
    if row is None:
        raise ServiceNotFoundError(str(service_id))
    if connection.execute(_READ_NUMBER, {"of_id": service_id}).scalar() != number:
        return False
    if row.forced_down:
        raise ServiceForcedDownError(f"{row.binary}@{row.host}")
    return True
