"""Operations on a fleet, as values: what an operator does to many nodes, wave by wave, and how far it has come."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

import attrs

OperationState = Literal["running", "done", "halted", "aborted"]
NodeState = Literal["pending", "running", "done", "failed", "skipped"]

RUNNER_TIMEOUT = 30.0
"""Seconds without a word of the command that runs an operation, after which another command may resume it."""

LONGEST = 10_000
"""Characters of a detail or a reason that are stored. MariaDB's TEXT has 64 KiB."""

KEPT = 30 * 86400.0
"""Seconds for which an operation that has ended is kept."""


@attrs.frozen(kw_only=True)
class OperationNode:
    """One node of an operation.

    :param service_id: the row's number in the ``services`` table.
    :param name: the display name, "binary@host".
    :param position: its place in the operation, from 0; nodes begin in this order.
    :param wave: number of its wave, from 0.
    :param state: "pending" until its command is sent, "running" until its outcome is known; "skipped" if it failed, and
        the operation was resumed without it.
    :param detail: why it failed, or what the node answered.
    :param incarnation: its incarnation when the command was sent; None before that, or if it has none.
    """

    service_id: int
    name: str
    position: int
    wave: int
    state: NodeState = attrs.field(default="pending", validator=attrs.validators.in_(get_args(NodeState)))
    detail: str | None = None
    incarnation: int | None = None


Nodes = Sequence[OperationNode]


@attrs.frozen(kw_only=True)
class OperationRequest:
    """A new operation.

    :param kind: what is done: "drain", "restart", ...
    :param options: JSON object: how it is done; see :class:`novasvc.fleet.plan.Limits`.
    :param owner: random id of the command that runs it.
    :param operator: who runs it, for people: "alice@box, pid 4711".
    :param nodes: in the order of their positions.
    """

    kind: str
    options: Mapping[str, Any]
    owner: str
    operator: str
    nodes: Nodes


@attrs.frozen(kw_only=True)
class Operation:
    """A stored operation. Times and ages are by the database's clock.

    :param id: its number.
    :param kind: see :class:`OperationRequest`, also for options, owner and operator.
    :param owner: None when it has ended.
    :param state: "running" also if its command has died; see ``silent``.
    :param reason: why it is halted, or who aborted it.
    :param created_at: UTC without a time zone, as ``ended_at``.
    :param ended_at: when it was done, halted or aborted; None while it runs.
    :param age: seconds since ``created_at``.
    :param silent: seconds since its command was last heard of.
    :param counts: numbers of its nodes by state; all states are there.
    """

    id: int
    kind: str
    options: Mapping[str, Any]
    owner: str | None
    operator: str
    state: OperationState
    reason: str | None
    created_at: datetime
    ended_at: datetime | None
    age: float
    silent: float
    counts: Mapping[NodeState, int]

    @property
    def is_unattended(self) -> bool:
        """Whether it is running, but nothing was heard of its command for RUNNER_TIMEOUT."""
        return self.state == "running" and self.silent > RUNNER_TIMEOUT

    @property
    def title(self) -> str:
        """The operation for messages: "operation 12 (restart, by alice@box, pid 4711)"."""
        return f"operation {self.id} ({self.kind}, by {self.operator})"


Operations = list[Operation]
"""An alias, because IOperationStore and its providers have a method named ``list``."""


@attrs.frozen(kw_only=True)
class NodeChange:
    """How a node of an operation has come on; see :class:`OperationNode`."""

    service_id: int
    state: NodeState
    detail: str | None = None
    incarnation: int | None = None
