"""Rows of the table ``novasvc_leases``, read and written in a worker thread."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from novasvc.registry.lease import Lease, LeaseRequest, Leases
from novasvc.registry.sql.schema import database_ago, database_now, leases

# Note [Two processes want a lease]
#
# Each statement is a transaction of its own: a process that is stopped between two of them, or whose connection hangs,
# holds no lock that its successor would wait for.
#
# A lease is renewed only while it lasts by the database's clock. After that the rows are read. What has ended then,
# one's own too, is free. Of two processes that try to take it, each does so only if the row is still free and has the
# fencing number that was read, so the second changes nothing. If there is no row yet, both insert one, and the second
# fails with a conflict of the primary key. The rows that are read last tell who has the lease.

_ORDER = (leases.c.topic, leases.c.task)
_READ = select(leases, database_now().label("now")).order_by(*_ORDER)
_OF_TOPIC = _READ.where(leases.c.topic == bindparam("of_topic"))
_ONE = (leases.c.topic == bindparam("of_topic")) & (leases.c.task == bindparam("of_task"))
_OURS = _ONE & (leases.c.owner == bindparam("of_owner"))
_END = database_ago(bindparam("minus"))
"""The end of a lease that begins now: as many seconds ahead as ``minus`` is below 0."""

_RENEW = (
    update(leases)
    .where(
        leases.c.topic == bindparam("of_topic"),
        leases.c.task.in_(bindparam("of_tasks", expanding=True)),
        leases.c.owner == bindparam("of_owner"),
        leases.c.expires_at > database_now(),
    )
    .values(expires_at=_END)
)
_TAKE = (
    update(leases)
    .where(
        _ONE,
        leases.c.fencing == bindparam("of_fencing"),
        or_(leases.c.owner.is_(None), leases.c.expires_at <= database_now()),
    )
    .values(
        holder=bindparam("new_holder"),
        owner=bindparam("new_owner"),
        fencing=leases.c.fencing + 1,
        acquired_at=database_now(),
        expires_at=_END,
    )
)
_RAN = (
    update(leases)
    .where(_OURS, leases.c.expires_at > database_now())
    .values(last_run_at=database_now(), last_due=bindparam("new_due"))
)
_RELEASE = update(leases).where(_OURS).values(holder=None, owner=None, expires_at=database_now())


def read_all(connection: Connection) -> Leases:
    """Read all leases, ordered by topic and task."""
    return [_lease(row) for row in connection.execute(_READ).mappings()]


def hold(connection: Connection, request: LeaseRequest) -> Leases:
    """Renew and take leases; see :meth:`novasvc.interfaces.IServiceRegistry.hold_leases`.

    :param connection: commits each statement.
    """
    tasks, length = sorted(request.tasks), {"minus": -request.seconds}
    of_all = {"of_topic": request.topic, "of_owner": request.owner}
    if tasks:
        connection.execute(_RENEW, {**of_all, "of_tasks": tasks, **length})
    present = _of_tasks(connection, request)
    changed = bool(request.runs)
    for task in tasks:
        found = present.get(task)
        if found is None:
            # Another process may have inserted it meanwhile.
            with suppress(IntegrityError):
                _insert(connection, request, task)
        elif found.is_free:
            of_one = {"of_topic": request.topic, "of_task": task, "of_fencing": found.fencing}
            owner = {"new_holder": request.holder[:255], "new_owner": request.owner}
            connection.execute(_TAKE, {**of_one, **owner, **length})
        changed = changed or found is None or found.is_free
        if task in request.runs:
            connection.execute(_RAN, {**of_all, "of_task": task, "new_due": request.runs[task]})
    return list((_of_tasks(connection, request) if changed else present).values())


def release(connection: Connection, topic: str, owner: str, tasks: Sequence[str]) -> None:
    """Free the leases of an owner, one after the other.

    :param connection: commits each statement.
    """
    for task in sorted(tasks):
        connection.execute(_RELEASE, {"of_topic": topic, "of_task": task, "of_owner": owner})


def _of_tasks(connection: Connection, request: LeaseRequest) -> dict[str, Lease]:
    rows = connection.execute(_OF_TOPIC, {"of_topic": request.topic}).mappings()
    return {row["task"]: _lease(row) for row in rows if row["task"] in request.tasks}


def _insert(connection: Connection, request: LeaseRequest, task: str) -> None:
    connection.execute(
        insert(leases).values(
            topic=request.topic,
            task=task,
            holder=request.holder[:255],
            owner=request.owner,
            fencing=1,
            created_at=database_now(),
            acquired_at=database_now(),
            expires_at=database_ago(bindparam("minus", -request.seconds)),
            last_run_at=None,
            last_due=None,
        )
    )


def _lease(row: Mapping[Any, Any]) -> Lease:
    now: datetime = row["now"]
    last_run_at: datetime | None = row["last_run_at"]
    return Lease(
        topic=row["topic"],
        task=row["task"],
        holder=row["holder"],
        owner=row["owner"],
        fencing=row["fencing"],
        acquired_at=row["acquired_at"],
        held_for=(now - row["acquired_at"]).total_seconds(),
        expires_in=(row["expires_at"] - now).total_seconds(),
        known_for=(now - row["created_at"]).total_seconds(),
        last_run_at=last_run_at,
        ran_ago=None if last_run_at is None else (now - last_run_at).total_seconds(),
        last_due=row["last_due"],
    )
