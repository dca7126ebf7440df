"""Rows of the table ``novasvc_silences``, and the outages that follow from them; in a worker thread."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, bindparam, case, delete, exists, func, insert, null, select

from novasvc.registry.outage_search import find_outages
from novasvc.registry.outages import CONDUCTOR_TOPIC, SILENCES_KEPT, Outages, Silence, VerdictRule, make_member
from novasvc.registry.sql import incarnations
from novasvc.registry.sql.schema import database_ago, database_now, services, silences
from novasvc.registry.sql.schema import incarnations as incarnations_table

LARGEST_PURGE = 10_000
"""Rows of a transaction that deletes old silences."""

_MOST = 100_000
"""Silences that are read, the latest first: ten of each of ten thousand services."""

BEGAN = case(
    (services.c.last_seen_up < database_ago(bindparam("silent_after", type_=Double)), services.c.last_seen_up),
    else_=null(),
).label("began")
"""The last heartbeat of a service that is silent for longer than the parameter ``silent_after``, else NULL."""

_INSERT = insert(silences).values(service_id=bindparam("of_service"), began=bindparam("since"), ended=database_now())
_OLD = (
    select(silences.c.id)
    .where(silences.c.ended < database_ago(bindparam("kept", type_=Double)))
    .order_by(silences.c.id)
    .limit(LARGEST_PURGE)
)
_DELETE = delete(silences).where(silences.c.id.in_(bindparam("ids", expanding=True)))
_RECENT = (
    select(silences.c.service_id, silences.c.began, silences.c.ended)
    .where(silences.c.ended >= database_ago(bindparam("kept", type_=Double)))
    .order_by(silences.c.ended.desc())
    .limit(_MOST)
)
_MEMBERS_ALONE = select(
    services.c.id,
    services.c.binary,
    services.c.topic,
    services.c.forced_down,
    services.c.last_seen_up,
    services.c.created_at,
).where(services.c.deleted == 0)
_MEMBERS = _MEMBERS_ALONE.add_columns(
    incarnations_table.c.state,
    incarnations_table.c.since,
    incarnations_table.c.until,
    incarnations_table.c.started_at,
    incarnations_table.c.zone,
).select_from(incarnations.JOIN)
_NOW = select(database_now())
_SEEN = func.coalesce(services.c.last_seen_up, services.c.created_at)


def _is_silent(sign: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that a last sign of life was in the time in which its service could be suspect."""
    late, longest = (database_ago(bindparam(name, type_=Double)) for name in ("late", "longest"))
    return (late > sign) & (longest < sign)


_SUMMARY_ALONE = select(
    func.coalesce(func.sum(case((_is_silent(_SEEN), 1), else_=0)), 0),
    func.max(_SEEN),
    func.max(case((services.c.topic == CONDUCTOR_TOPIC, _SEEN), else_=null())),
    database_now(),
).where(services.c.deleted == 0)
# A service that was lost while it started may have sent its last heartbeat long before. Few are starting, so they are
# counted by themselves instead of in a join of all rows; those that are counted twice only have the rows read. The
# starts of deleted services are not counted: they stay as they were.
_IS_REGISTERED = exists().where(services.c.id == incarnations.OF_SERVICE, services.c.deleted == 0)
_STARTING = incarnations_table.c.state == "starting"
_SUMMARY = _SUMMARY_ALONE.add_columns(
    select(func.count())
    .where(_STARTING, _is_silent(incarnations.SAID), _IS_REGISTERED.correlate(incarnations_table))
    .scalar_subquery()
)
_ANY_RECENT = _RECENT.limit(1)

_YEAR = 366 * 86400.0
"""Seconds; longer than any silence that is of interest."""


def record(connection: Connection, began: Iterable[tuple[int, datetime]]) -> None:
    """Record silences that end now. Called before the heartbeats are written, with the rows locked.

    :param began: id of a service and its last heartbeat.
    """
    rows = [{"of_service": service_id, "since": since} for service_id, since in began]
    if rows:
        connection.execute(_INSERT, rows)


def purge(connection: Connection) -> int:
    """Delete silences that are too old to matter, at most LARGEST_PURGE.

    :return: how many.
    """
    # By id: a DELETE by time would lock gaps in the index of InnoDB, and with them the heartbeats that write there.
    ids = list(connection.execute(_OLD, {"kept": SILENCES_KEPT}).scalars())
    if ids:
        connection.execute(_DELETE, {"ids": ids})
    return len(ids)


def read_outages(connection: Connection, rule: VerdictRule, *, ours: bool) -> Outages:
    """Find the outages of the fleet.

    :param ours: whether the database has our tables; Nova's own has none.
    """
    if _is_quiet(connection, rule, ours=ours):
        return Outages()
    rows: Iterable[Any] = connection.execute(_MEMBERS if ours else _MEMBERS_ALONE)
    members = [
        make_member(
            service_id=service_id,
            binary=binary or "",
            topic=topic,
            forced_down=bool(forced_down),
            last_seen_up=last_seen_up,
            created_at=created_at,
            state=rest[0] if rest else None,
            since=rest[1] if rest else None,
            until=rest[2] if rest else None,
            started_at=rest[3] if rest else None,
            zone=rest[4] if rest else None,
        )
        for service_id, binary, topic, forced_down, last_seen_up, created_at, *rest in rows
    ]
    found: list[Silence] = []
    if ours:
        recent = connection.execute(_RECENT, {"kept": SILENCES_KEPT})
        found = [Silence(service_id=service_id, began=began, ended=ended) for service_id, began, ended in recent]
    now: datetime = connection.execute(_NOW).scalar_one()
    return find_outages(members, found, now, rule)


def _is_quiet(connection: Connection, rule: VerdictRule, *, ours: bool) -> bool:
    """Return whether there is certainly no outage, without reading the rows.

    That is so if no silence was recorded lately, some service and some conductor were heard just now, and at most one
    service became silent in the time for which it could be suspect. Services that died long ago do not matter.
    """
    longest = min(rule.longest + rule.slack, _YEAR)
    summary = connection.execute(_SUMMARY if ours else _SUMMARY_ALONE, {"late": rule.late, "longest": longest}).one()
    silent, newest, conductors, now, *starting = summary
    if silent + sum(starting) > 1 or newest is None or (now - newest).total_seconds() > rule.slack:
        return False
    if conductors is not None and (now - conductors).total_seconds() > rule.slack:
        return False
    return not ours or connection.execute(_ANY_RECENT, {"kept": SILENCES_KEPT}).first() is None
