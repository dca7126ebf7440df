"""The operations of a registry in memory."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, get_args

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from novasvc.errors import NovasvcError
from novasvc.interfaces import IOperationStore
from novasvc.registry.errors import OperationNotFoundError
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
from novasvc.registry.text import storable

_T = TypeVar("_T")


@attrs.define
class _Row:
    """An operation; times are seconds on the clock."""

    id: int
    request: OperationRequest
    owner: str | None
    operator: str
    created: float
    heard: float
    nodes: dict[int, OperationNode]
    state: OperationState = "running"
    reason: str | None = None
    ended: float | None = None


@implementer(IOperationStore)
@attrs.define(eq=False)
class MemoryOperations:
    """The tables of operations as a dictionary.

    :param clock: the database's clock.
    :param outage: returns the error with which every method fails; None while the database is there.
    """

    _clock: IReactorTime
    _outage: Callable[[], NovasvcError | None] = lambda: None
    _rows: dict[int, _Row] = attrs.field(factory=dict, init=False)
    _last_id: int = attrs.field(default=0, init=False)

    def begin(self, request: OperationRequest) -> Deferred[Operation]:
        """See :class:`novasvc.interfaces.IOperationStore` for this and the other methods."""

        def begin() -> Operation:
            now = self._clock.seconds()
            old = [row.id for row in self._rows.values() if row.ended is not None and row.ended < now - KEPT]
            for number in old:
                del self._rows[number]
            self._check_free(request.nodes)
            self._last_id += 1
            nodes = {node.service_id: node for node in request.nodes}
            row = _Row(self._last_id, request, request.owner, request.operator, now, now, nodes)
            self._rows[row.id] = row
            return self._operation(row)

        return self._answer(begin)

    def read(self, operation: int) -> Deferred[Operation]:
        """Read an operation."""
        return self._answer(lambda: self._operation(self._row(operation)))

    def nodes(self, operation: int) -> Deferred[Nodes]:
        """Read the nodes of an operation."""

        def read() -> Nodes:
            return sorted(self._row(operation).nodes.values(), key=lambda node: node.position)

        return self._answer(read)

    def list(self, limit: int) -> Deferred[Operations]:
        """Read the latest operations."""
        latest = sorted(self._rows, reverse=True)[:limit]
        return self._answer(lambda: [self._operation(self._rows[number]) for number in latest])

    def resume(self, operation: int, owner: str, operator: str, skip_failed: bool) -> Deferred[Operation]:  # noqa: FBT001
        """Take over an operation."""

        def resume() -> Operation:
            row = self._row(operation)
            check_resume(self._operation(row))
            again: NodeState = "skipped" if skip_failed else "pending"
            nodes = {
                number: attrs.evolve(node, state=again, detail=node.detail if skip_failed else None)
                if node.state == "failed"
                else node
                for number, node in row.nodes.items()
            }
            self._check_free([node for node in nodes.values() if node.state in {"pending", "running"}], row)
            row.nodes, row.owner, row.operator = nodes, owner, operator
            row.state, row.reason, row.ended, row.heard = "running", None, None, self._clock.seconds()
            return self._operation(row)

        return self._answer(resume)

    def note(self, operation: int, owner: str, changes: Sequence[NodeChange]) -> Deferred[None]:
        """Write how nodes have come on."""

        def note() -> None:
            row = self._owned(operation, owner)
            row.heard = self._clock.seconds()
            for change in changes:
                row.nodes[change.service_id] = attrs.evolve(
                    row.nodes[change.service_id],
                    state=change.state,
                    detail=storable(change.detail, LONGEST),
                    incarnation=change.incarnation,
                )

        return self._answer(note)

    def end(self, operation: int, owner: str, state: OperationState, reason: str | None) -> Deferred[None]:
        """End an operation."""
        return self._answer(lambda: self._end(self._owned(operation, owner), state, reason))

    def abort(self, operation: int, operator: str) -> Deferred[Operation]:
        """End an operation for good."""

        def abort() -> Operation:
            row = self._row(operation)
            check_abort(self._operation(row))
            self._end(row, "aborted", f"aborted by {operator}")
            return self._operation(row)

        return self._answer(abort)

    def _answer(self, operation: Callable[[], _T]) -> Deferred[_T]:
        def answer() -> _T:
            outage = self._outage()
            if outage is not None:
                raise outage
            return operation()

        return maybeDeferred(answer)

    def _end(self, row: _Row, state: OperationState, reason: str | None) -> None:
        row.state, row.owner = state, None
        row.reason = storable(reason, LONGEST)
        row.ended = row.heard = self._clock.seconds()

    def _row(self, number: int) -> _Row:
        if number not in self._rows:
            raise OperationNotFoundError(number)
        return self._rows[number]

    def _owned(self, number: int, owner: str) -> _Row:
        row = self._row(number)
        check_owner(self._operation(row), owner)
        return row

    def _check_free(self, wanted: Nodes, but: _Row | None = None) -> None:
        names = {node.service_id: node.name for node in wanted}
        for row in self._rows.values():
            held = [
                names[number]
                for number, node in row.nodes.items()
                if number in names and node.state in {"pending", "running"}
            ]
            if held and row is not but and row.state == "running":
                raise conflict(self._operation(row), sorted(held))

    def _operation(self, row: _Row) -> Operation:
        now = self._clock.seconds()
        counts: Counter[Any] = Counter(node.state for node in row.nodes.values())
        return Operation(
            id=row.id,
            kind=row.request.kind,
            options=row.request.options,
            owner=row.owner,
            operator=row.operator,
            state=row.state,
            reason=row.reason,
            created_at=_stamp(row.created),
            ended_at=None if row.ended is None else _stamp(row.ended),
            age=now - row.created,
            silent=now - row.heard,
            counts={state: counts[state] for state in get_args(NodeState)},
        )


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
