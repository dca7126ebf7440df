"""The plan of an operation: waves, canary and failure budget. Pure: values in, values out.

The waves are made once, and stored with the nodes. What to do next follows from the states of the nodes alone, so a
command that resumes an operation needs nothing else.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import attrs

from novasvc.fleet.selection import process_of
from novasvc.listing import list_some
from novasvc.registry.operation import Nodes, NodeState, OperationNode
from novasvc.registry.record import ServiceRecord

MAX_CONCURRENT = 100
"""Nodes under way at a time, however large a wave is."""

_SIZE = re.compile(r"(?P<number>\d{1,9})(?P<percent>%?)")


@attrs.frozen
class BatchSize:
    """The size of a wave: a number of nodes, or a percentage of the nodes of the operation.

    :param number: > 0; at most 100 as a percentage.
    """

    number: int
    is_percentage: bool = False

    @classmethod
    def parse(cls, text: str) -> "BatchSize":
        """Parse "25" or "10%".

        :raises ValueError: it is neither.
        """
        found = _SIZE.fullmatch(text.strip())
        size = cls(int(found["number"]), found["percent"] == "%") if found else cls(0)
        if size.number < 1 or (size.is_percentage and size.number > 100):  # noqa: PLR2004 - of a hundred
            raise ValueError(f'{text!r} is not a number of nodes from 1, such as "25", or a percentage such as "10%"')
        return size

    def of(self, total: int) -> int:
        """Return the number of nodes of a wave: at least 1, and a percentage never rounded up beyond that."""
        return max(1, total * self.number // 100) if self.is_percentage else self.number

    def __str__(self) -> str:
        return f"{self.number}{'%' if self.is_percentage else ''}"


@attrs.frozen(kw_only=True)
class Limits:
    """How an operation proceeds.

    :param batch: size of each wave after the canary.
    :param canary: nodes of the first wave, every one of which must succeed; 0 for none.
    :param max_failures: failed nodes that are tolerated; one more halts the operation.
    :param timeout: seconds that each node has.
    """

    batch: BatchSize = BatchSize(10, is_percentage=True)
    canary: int = 1
    max_failures: int = 0
    timeout: float = 300.0

    def to_json(self) -> dict[str, Any]:
        """Return the limits as they are stored."""
        return {**attrs.asdict(self, recurse=False), "batch": str(self.batch)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Limits":
        """Read stored limits; other keys are ignored.

        :raises ValueError: the batch is not valid.
        """
        known = {field.name: stored[field.name] for field in attrs.fields(cls) if field.name in stored}
        if "batch" in known:
            known["batch"] = BatchSize.parse(known["batch"])
        return cls(**known)


def make_nodes(records: Sequence[ServiceRecord], limits: Limits) -> list[OperationNode]:
    """Divide services into waves: the canary first, then batches.

    A wave is larger if its end would divide the services of one process, which change together.

    :param records: in the order in which they are to begin.
    """
    nodes: list[OperationNode] = []
    wave, size, room = 0, limits.batch.of(len(records)), limits.canary or limits.batch.of(len(records))
    for position, record in enumerate(records):
        process = process_of(record)
        together = position > 0 and process is not None and process == process_of(records[position - 1])
        if room <= 0 and not together:
            wave, room = wave + 1, size
        room -= 1
        nodes.append(OperationNode(service_id=record.id, name=record.name, position=position, wave=wave))
    return nodes


@attrs.frozen
class Start:
    """Begin these nodes, all of one wave."""

    nodes: Nodes


@attrs.frozen
class Wait:
    """Wait for a node that is under way."""


@attrs.frozen
class Finish:
    """No node is left.

    :param failed: the number of nodes that failed, or were skipped after they had failed.
    """

    failed: int


@attrs.frozen
class Halt:
    """Begin no further node.

    :param reason: why.
    """

    reason: str


Action = Start | Wait | Finish | Halt


def next_action(nodes: Iterable[OperationNode], limits: Limits) -> Action:
    """Return what to do next.

    A wave begins when all nodes of the wave before have ended. Nodes under way always end before the operation does.

    :param nodes: in the order of their positions.
    """
    # One pass: an operation on ten thousand nodes asks ten thousand times.
    by_state: dict[NodeState, list[OperationNode]] = {state: [] for state in get_args(NodeState)}
    for node in nodes:
        by_state[node.state].append(node)
    running, pending, failed = by_state["running"], by_state["pending"], by_state["failed"]
    reason = _reason_to_halt(failed, limits)
    if not pending or reason:
        if running:
            return Wait()
        return Halt(reason) if pending and reason else Finish(len(failed) + len(by_state["skipped"]))
    wave = pending[0].wave
    room = MAX_CONCURRENT - len(running)
    if room <= 0 or any(node.wave != wave for node in running):
        return Wait()
    return Start([node for node in pending[:room] if node.wave == wave])


def _reason_to_halt(failed: Nodes, limits: Limits) -> str:
    """Return why no further node may begin; "" if one may."""
    names = list_some([node.name for node in failed], 3)
    if limits.canary and any(node.wave == 0 for node in failed):
        return f"the canary failed: {names}"
    if len(failed) > limits.max_failures:
        return f"{len(failed)} failed, and {limits.max_failures} may: {names}"
    return ""
