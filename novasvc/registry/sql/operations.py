"""Operations in a database: the tables ``novasvc_operations`` and ``novasvc_operation_nodes``."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar, get_args

import attrs
from sqlalchemy import Connection, bindparam, case, delete, func, insert, literal, select, update
from twisted.internet.defer import Deferred
from zope.interface import implementer

from novasvc.interfaces import IOperationStore
from novasvc.registry.errors import DatabaseConflictError, DatabaseLockedError, OperationNotFoundError
from novasvc.registry.operation import (
    KEPT,
    LONGEST,
    NodeChange,
    Nodes,
    NodeState,
    Operation,
    OperationNode,
    OperationRequest,
    Operations,
    OperationState,
)
from novasvc.registry.operation_rules import check_abort, check_owner, check_resume, conflict
from novasvc.registry.sql.engine import Engine
from novasvc.registry.sql.schema import database_ago, database_now, operation_nodes, operations
from novasvc.registry.text import storable

_Result = TypeVar("_Result")

# Note [Two operators, one node]
#
# A node of an operation that runs has its service id in the column "claim" too, which is unique. So the database
# itself refuses the second of two operations that are begun at the same time, whatever its isolation. The column
# becomes NULL when the node, or the operation, has ended; NULLs are distinct in a unique key (SQL-92, 11.7). Rows are
# inserted in the order of their claims, so that two operations do not wait for each other; a deadlock of InnoDB is
# tried again.

_RETRIES = 2
"""How often a transaction is repeated that was in conflict with another one."""

_OF_ID = operations.c.id == bindparam("of_id")
_NODES_OF_ID = operation_nodes.c.operation_id == bindparam("of_id")
_OWNED = _OF_ID & (operations.c.owner == bindparam("of_owner")) & (operations.c.state == "running")
_STATES: tuple[NodeState, ...] = get_args(NodeState)
_COUNTS = [
    func.coalesce(func.sum(case((operation_nodes.c.state == state, 1), else_=0)), 0).label(state) for state in _STATES
]
_READ = (
    select(operations, database_now().label("now"), *_COUNTS)
    .select_from(operations.outerjoin(operation_nodes, operation_nodes.c.operation_id == operations.c.id))
    .group_by(*operations.columns)
)
_HEARD = update(operations).where(_OWNED).values(heard_at=database_now())
_CHANGE = (
    update(operation_nodes)
    .where(_NODES_OF_ID, operation_nodes.c.service_id == bindparam("of_service"))
    .values(
        state=bindparam("new_state"),
        detail=bindparam("new_detail"),
        incarnation=bindparam("new_incarnation"),
        claim=bindparam("new_claim"),
    )
)
_RELEASE = update(operation_nodes).where(_NODES_OF_ID, operation_nodes.c.claim.is_not(None)).values(claim=None)
_OLD = operations.c.ended_at < database_ago(literal(KEPT))


@implementer(IOperationStore)
@attrs.frozen(eq=False)
class SQLOperations:
    """The operations in a database.

    :param engine: owned by the registry of the same database.
    """

    _engine: Engine

    def begin(self, request: OperationRequest) -> Deferred[Operation]:
        """See :class:`novasvc.interfaces.IOperationStore` for this and the other methods."""
        return Deferred.fromCoroutine(self._run_again(lambda connection: _begin(connection, request)))

    def read(self, operation: int) -> Deferred[Operation]:
        """Read an operation."""
        return self._engine.run(lambda connection: _read(connection, operation))

    def nodes(self, operation: int) -> Deferred[Nodes]:
        """Read the nodes of an operation."""
        return self._engine.run(lambda connection: _nodes(connection, operation))

    def list(self, limit: int) -> Deferred[Operations]:
        """Read the latest operations."""
        latest = _READ.order_by(operations.c.id.desc()).limit(limit)

        def read(connection: Connection) -> Operations:
            return [_operation(row) for row in connection.execute(latest).mappings()]

        return self._engine.run(read)

    def resume(self, operation: int, owner: str, operator: str, skip_failed: bool) -> Deferred[Operation]:  # noqa: FBT001
        """Take over an operation."""

        def resume(connection: Connection) -> Operation:
            return _resume(connection, operation, owner, operator, "skipped" if skip_failed else "pending")

        return Deferred.fromCoroutine(self._run_again(resume))

    def note(self, operation: int, owner: str, changes: Sequence[NodeChange]) -> Deferred[None]:
        """Write how nodes have come on."""

        def note(connection: Connection) -> None:
            _check_owned(connection, operation, owner)
            if changes:
                connection.execute(_CHANGE, [_change_values(operation, change) for change in changes])

        return self._engine.run(note)

    def end(self, operation: int, owner: str, state: OperationState, reason: str | None) -> Deferred[None]:
        """End an operation."""

        def end(connection: Connection) -> None:
            _check_owned(connection, operation, owner)
            _end(connection, operation, state, reason)

        return self._engine.run(end)

    def abort(self, operation: int, operator: str) -> Deferred[Operation]:
        """End an operation for good."""

        def abort(connection: Connection) -> Operation:
            check_abort(_read(connection, operation))
            _end(connection, operation, "aborted", f"aborted by {operator}")
            return _read(connection, operation)

        return self._engine.run(abort)

    async def _run_again(self, function: Callable[[Connection], _Result]) -> _Result:
        for _ in range(_RETRIES):
            with suppress(DatabaseConflictError, DatabaseLockedError):
                return await self._engine.run(function)
        return await self._engine.run(function)


def _begin(connection: Connection, request: OperationRequest) -> Operation:
    old = select(operations.c.id).where(_OLD)
    connection.execute(delete(operation_nodes).where(operation_nodes.c.operation_id.in_(old)))
    connection.execute(delete(operations).where(_OLD))
    _check_free(connection, [node.service_id for node in request.nodes])
    inserted = connection.execute(
        insert(operations).values(
            kind=request.kind,
            options=json.dumps(dict(request.options)),
            owner=request.owner,
            operator=storable(request.operator, 255),
            state="running",
            reason=None,
            created_at=database_now(),
            heard_at=database_now(),
            ended_at=None,
        )
    )
    number: int = inserted.inserted_primary_key[0]  # type: ignore[index] # an insert into a table with a key has one
    rows = [
        {**attrs.asdict(node), "operation_id": number, "claim": node.service_id}
        for node in sorted(request.nodes, key=lambda node: node.service_id)
    ]
    if rows:
        connection.execute(insert(operation_nodes), rows)
    return _read(connection, number)


def _resume(connection: Connection, number: int, owner: str, operator: str, again: NodeState) -> Operation:
    found = _read(connection, number)
    check_resume(found)
    # Nobody else resumes it meanwhile: the second of two finds another owner, or none.
    same = operations.c.owner.is_(None) if found.owner is None else operations.c.owner == found.owner
    taken = connection.execute(
        update(operations)
        .where(_OF_ID, same, operations.c.state == found.state)
        .values(
            owner=owner,
            operator=storable(operator, 255),
            state="running",
            reason=None,
            heard_at=database_now(),
            ended_at=None,
        ),
        {"of_id": number},
    )
    if not taken.rowcount:
        raise DatabaseConflictError("", "another command has resumed the operation meanwhile")
    values: dict[str, Any] = {"state": again} if again == "skipped" else {"state": again, "detail": None}
    connection.execute(
        update(operation_nodes).where(_NODES_OF_ID, operation_nodes.c.state == "failed").values(**values),
        {"of_id": number},
    )
    left = [node for node in _nodes(connection, number) if node.state in {"pending", "running"}]
    _check_free(connection, [node.service_id for node in left], number)
    connection.execute(
        update(operation_nodes)
        .where(_NODES_OF_ID, operation_nodes.c.state.in_(["pending", "running"]))
        .values(claim=operation_nodes.c.service_id),
        {"of_id": number},
    )
    return _read(connection, number)


def _check_free(connection: Connection, service_ids: Sequence[int], but: int | None = None) -> None:
    """Raise an OperationConflictError that names an operation which has some of the services."""
    wanted = set(service_ids)
    claims = select(operation_nodes.c.claim, operation_nodes.c.operation_id, operation_nodes.c.name).where(
        operation_nodes.c.claim.is_not(None)
    )
    held = [row for row in connection.execute(claims).all() if row[0] in wanted and row[1] != but]
    if held:
        first = held[0][1]
        raise conflict(_read(connection, first), sorted(name for _, number, name in held if number == first))


def _check_owned(connection: Connection, number: int, owner: str) -> None:
    """Note that the command is there; raise if the operation is not its own any more."""
    if not connection.execute(_HEARD, {"of_id": number, "of_owner": owner}).rowcount:
        check_owner(_read(connection, number), owner)


def _end(connection: Connection, number: int, state: OperationState, reason: str | None) -> None:
    reason = storable(reason, LONGEST)
    connection.execute(
        update(operations)
        .where(_OF_ID)
        .values(state=state, reason=reason, owner=None, heard_at=database_now(), ended_at=database_now()),
        {"of_id": number},
    )
    connection.execute(_RELEASE, {"of_id": number})


def _read(connection: Connection, number: int) -> Operation:
    row = connection.execute(_READ.where(_OF_ID), {"of_id": number}).mappings().first()
    if row is None:
        raise OperationNotFoundError(number)
    return _operation(row)


def _nodes(connection: Connection, number: int) -> list[OperationNode]:
    columns = [operation_nodes.c[field.name] for field in attrs.fields(OperationNode)]
    statement = select(*columns).where(_NODES_OF_ID).order_by(operation_nodes.c.position)
    rows = connection.execute(statement, {"of_id": number}).mappings()
    found = [OperationNode(**{str(name): value for name, value in row.items()}) for row in rows]
    if not found:
        _read(connection, number)  # there is no such operation, or it has no nodes
    return found


def _change_values(number: int, change: NodeChange) -> dict[str, Any]:
    return {
        "of_id": number,
        "of_service": change.service_id,
        "new_state": change.state,
        "new_detail": storable(change.detail, LONGEST),
        "new_incarnation": change.incarnation,
        "new_claim": change.service_id if change.state in {"pending", "running"} else None,
    }


def _operation(row: Mapping[Any, Any]) -> Operation:
    now: datetime = row["now"]
    return Operation(
        id=row["id"],
        kind=row["kind"],
        options=json.loads(row["options"]),
        owner=row["owner"],
        operator=row["operator"],
        state=row["state"],
        reason=row["reason"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        age=(now - row["created_at"]).total_seconds(),
        silent=(now - row["heard_at"]).total_seconds(),
        counts={state: int(row[state]) for state in _STATES},
    )
