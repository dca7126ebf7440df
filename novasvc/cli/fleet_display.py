"""How an operation on the fleet is shown: a bar and lines on a terminal, lines in a log, JSON for programs."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import click

from novasvc.cli.output import printable
from novasvc.cli.progress import ProgressBar
from novasvc.fleet.plan import Limits
from novasvc.listing import list_some
from novasvc.registry.operation import Operation, OperationNode
from novasvc.registry.record import ServiceRecord
from novasvc.telemetry.logs import pluralize

_MOST_NAMES = 4
"""Services that a line names."""


@attrs.frozen
class LeftOut:
    """A service that was selected, but cannot take part."""

    record: ServiceRecord
    reason: str


@attrs.define(eq=False)
class FleetDisplay:
    """Shows one operation; see :class:`novasvc.fleet.run.Observer`.

    :param as_json: print JSON, one object a line.
    :param bar: of a terminal; shows nothing without one.
    """

    as_json: bool
    bar: ProgressBar
    _nodes: dict[int, OperationNode] = attrs.field(factory=dict, init=False)
    _waves: int = attrs.field(default=0, init=False)
    _wave: int = attrs.field(default=0, init=False)
    _left_out: Sequence[LeftOut] = attrs.field(default=(), init=False)

    def plan(
        self,
        kind: str,
        nodes: Sequence[OperationNode],
        limits: Limits,
        left_out: Sequence[LeftOut],
        others: Sequence[ServiceRecord],
    ) -> None:
        """Show what is going to be done."""
        waves, self._left_out = _by_wave(nodes), left_out
        if self.as_json:
            skipped = [{"service": each.record.name, "reason": each.reason} for each in left_out]
            names = [record.name for record in others]
            self._json("plan", kind=kind, waves=waves, left_out=skipped, same_process=names, **limits.to_json())
            return
        click.echo(f"{kind}: {pluralize(len(nodes), 'service')} in {pluralize(len(waves), 'wave')}; {_limits(limits)}")
        for number, names in enumerate(waves):
            canary = " (canary)" if number == 0 and limits.canary else ""
            click.echo(f"  wave {number + 1}{canary}: {printable(list_some(names, _MOST_NAMES))}")
        for each in left_out:
            click.echo(f"  left out: {printable(each.record.name)}: {printable(each.reason)}")
        if others:
            names = [record.name for record in others]
            click.echo(
                f"  they share a process, so this happens to them, too: {printable(list_some(names, _MOST_NAMES))}"
            )

    def begin(self, operation: Operation, nodes: Sequence[OperationNode], *, resumed: bool = False) -> None:
        """Show that an operation begins, or goes on because a command has resumed it."""
        self._nodes = {node.service_id: node for node in nodes}
        self._waves = len(_by_wave(nodes))
        if self.as_json:
            self._json("begin", id=operation.id, kind=operation.kind, counts=dict(operation.counts))
        else:
            verb = "goes on" if resumed else "begins"
            self._line(f"operation {operation.id} ({operation.kind}) {verb}; `novasvc fleet show {operation.id}`")

    def wave(self, number: int, nodes: Sequence[OperationNode]) -> None:
        """See :class:`novasvc.fleet.run.Observer`."""
        self._wave = number
        if self.as_json:
            self._json("wave", wave=number + 1, services=[node.name for node in nodes])
        else:
            self._line(f"wave {number + 1} of {self._waves}: {list_some([node.name for node in nodes], _MOST_NAMES)}")

    def changed(self, node: OperationNode) -> None:
        """See :class:`novasvc.fleet.run.Observer`."""
        self._nodes[node.service_id] = node
        if self.as_json:
            self._json("node", service=node.name, state=node.state, detail=node.detail)
        elif node.state != "running":
            self._line(f"  {node.name}: {node.state}" + (f": {node.detail}" if node.detail else ""))
        if not self.as_json and self.bar.shown:
            self._draw()

    def end(self, operation: Operation) -> None:
        """Show how an operation ended."""
        self.bar.finish()
        counts = operation.counts
        if self.as_json:
            counted = dict(counts)
            self._json("end", id=operation.id, state=operation.state, reason=operation.reason, counts=counted)
            return
        told = ", ".join(f"{counts[state]} {state}" for state in counts if counts[state]) or "no services"
        if self._left_out:
            names = [each.record.name for each in self._left_out]
            told += f"; {len(names)} left out: {printable(list_some(names, _MOST_NAMES))}"
        if operation.state == "done":
            click.echo(f"operation {operation.id} is done: {told}")
            return
        reason = printable(operation.reason or "")
        click.echo(f"operation {operation.id} is {operation.state} ({reason}): {told}")
        left = [node.name for node in self._nodes.values() if node.state == "pending"]
        if left:
            click.echo(f"  left: {printable(list_some(left, _MOST_NAMES))}")
        if operation.state == "halted":
            click.echo(f"  to go on: `novasvc fleet resume {operation.id}`, or without the failed ones: --skip-failed")

    def _draw(self) -> None:
        counts = Counter(node.state for node in self._nodes.values())
        ended = counts["done"] + counts["failed"] + counts["skipped"]
        running = [node.name for node in self._nodes.values() if node.state == "running"]
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        waiting = f"; waiting for {list_some(running, 2)}" if running else ""
        self.bar.update(ended / max(1, len(self._nodes)), f"wave {self._wave + 1} of {self._waves}{failed}{waiting}")

    def _line(self, text: str) -> None:
        if not self.bar.write(printable(text)):
            click.echo(printable(text))

    def _json(self, event: str, **values: Any) -> None:
        click.echo(json.dumps({"event": event, **values}))


def _limits(limits: Limits) -> str:
    canary = f"canary {limits.canary}, then {limits.batch} each" if limits.canary else f"{limits.batch} each"
    return f"{canary}; halts if more than {limits.max_failures} fail; {limits.timeout:g} s for each"


def _by_wave(nodes: Sequence[OperationNode]) -> list[list[str]]:
    waves: list[list[str]] = [[] for _ in range(1 + max((node.wave for node in nodes), default=-1))]
    for node in sorted(nodes, key=lambda node: node.position):
        waves[node.wave].append(node.name)
    return waves
