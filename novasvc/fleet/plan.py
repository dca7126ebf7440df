"""The plan of an operation: waves, canary and failure budget. Pure: values in, values out.

The waves are made once, and stored with the nodes. What to do next follows from the states of the nodes alone, so a
command that resumes an operation needs nothing else.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from novasvc.registry.operation import Nodes, OperationNode
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


def wave_sizes(total: int, limits: Limits) -> list[int]:
    """Return the sizes of the waves for a number of nodes, the canary first."""
    sizes = [min(limits.canary, total)] if limits.canary and total else []
    rest, batch = total - sum(sizes), limits.batch.of(total)
    while rest > 0:
        sizes.append(min(batch, rest))
        rest -= sizes[-1]
    return sizes


def make_nodes(records: Sequence[ServiceRecord], limits: Limits) -> list[OperationNode]:
    """Divide services into waves.

    :param records: in the order in which they are to begin.
    """
    waves = [wave for wave, size in enumerate(wave_sizes(len(records), limits)) for _ in range(size)]
    return [
        OperationNode(service_id=record.id, name=record.name, position=position, wave=wave)
        for position, (record, wave) in enumerate(zip(records, waves, strict=True))
    ]


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
    """
    by_position = sorted(nodes, key=lambda node: node.position)
    running = [node for node in by_position if node.state == "running"]
    pending = [node for node in by_position if node.state == "pending"]
    failed = [node for node in by_position if node.state == "failed"]
    reason = _reason_to_halt(failed, limits)
    if not pending or reason:
        if running:
            return Wait()
        skipped = sum(node.state == "skipped" for node in by_position)
        return Halt(reason) if pending and reason else Finish(len(failed) + skipped)
    wave = pending[0].wave
    room = MAX_CONCURRENT - len(running)
    if room <= 0 or any(node.wave != wave for node in running):
        return Wait()
    return Start([node for node in pending if node.wave == wave][:room])


def _reason_to_halt(failed: Nodes, limits: Limits) -> str:
    """Return why no further node may begin; "" if one may."""
    names = ", ".join(node.name for node in failed[:3]) + (" and others" if len(failed) > 3 else "")  # noqa: PLR2004
    if limits.canary and any(node.wave == 0 for node in failed):
        return f"the canary failed: {names}"
    if len(failed) > limits.max_failures:
        return f"{len(failed)} failed, and {limits.max_failures} may: {names}"
    return ""
