"""Begin, resume and run operations on the fleet for a command."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import click
from twisted.internet.defer import CancelledError

from novasvc.cli.confirmation import confirm
from novasvc.cli.fleet_connections import FleetConnections
from novasvc.cli.fleet_display import FleetDisplay, LeftOut
from novasvc.cli.fleet_options import who_operates
from novasvc.cli.progress import ProgressBar
from novasvc.cli.service import API_BINARIES
from novasvc.fleet.actions import KINDS
from novasvc.fleet.calls import NodeCalls
from novasvc.fleet.plan import Limits, make_nodes
from novasvc.fleet.run import OperationRun
from novasvc.fleet.selection import Selection, others_in_process
from novasvc.registry.operation import Operation, OperationRequest
from novasvc.registry.outages import VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdicts import judge_some

HALTED = 3
"""Exit status of an operation that was halted: services are left that it has not touched."""


async def select(
    connections: FleetConnections, selection: Selection
) -> tuple[list[ServiceRecord], list[ServiceRecord]]:
    """Return the selected services in their order, and all services."""
    records = [
        record
        for record in await connections.registry.list(None, None, None)
        if record.binary not in API_BINARIES or selection.binary == record.binary
    ]
    return selection.choose(records), records


def none_selected(selection: Selection, records: Sequence[ServiceRecord]) -> int:
    """Say that no service matches; return the exit status."""
    click.echo(f"novasvc: none of {len(records)} registered services matches: {selection}", err=True)
    return 1


async def operate(
    connections: FleetConnections,
    kind: str,
    selection: Selection,
    limits: Limits,
    *,
    options: Mapping[str, Any] | None = None,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> int:
    """Select services, show the plan, ask, and run the operation.

    :return: the exit status.
    """
    chosen, records = await select(connections, selection)
    if not chosen:
        return none_selected(selection, records)
    left_out: list[LeftOut] = []
    if KINDS[kind].calls:
        left_out = await _find_left_out(connections, chosen)
        out = {each.record.id for each in left_out}
        chosen = [record for record in chosen if record.id not in out]
    nodes = make_nodes(chosen, limits)
    with ProgressBar(kind) as bar:
        display = FleetDisplay(as_json, bar)
        others = others_in_process(chosen, records) if KINDS[kind].calls else []
        display.plan(kind, nodes, limits, left_out, others)
        if not nodes:
            click.echo("novasvc: no service is left", err=True)
            return 1
        if dry_run:
            return 0
        if not yes:
            confirm(f"{KINDS[kind].verb} {len(nodes)} of {len(records)} services?")
        owner, operator = str(uuid.uuid4()), who_operates()
        stored = {**limits.to_json(), **(options or {})}
        request = OperationRequest(kind=kind, options=stored, owner=owner, operator=operator, nodes=nodes)
        # First, because an operation that has begun holds its nodes until its command ends it.
        calls = await _connect(connections, kind)
        status = await _run(connections, await connections.store.begin(request), calls, display)
        return status or int(bool(left_out))


async def resume(connections: FleetConnections, number: int, *, skip_failed: bool, as_json: bool) -> int:
    """Take over an operation, and run it to its end.

    :return: the exit status.
    """
    owner = str(uuid.uuid4())
    calls = await _connect(connections, (await connections.store.read(number)).kind)
    operation = await connections.store.resume(number, owner, who_operates(), skip_failed)
    with ProgressBar(operation.kind) as bar:
        return await _run(connections, operation, calls, FleetDisplay(as_json, bar), resumed=True)


async def _connect(connections: FleetConnections, kind: str) -> NodeCalls | None:
    """Connect to the broker, if operations of this kind call nodes."""
    return await connections.connect() if KINDS[kind].calls else None


async def _run(
    connections: FleetConnections,
    operation: Operation,
    calls: NodeCalls | None,
    display: FleetDisplay,
    *,
    resumed: bool = False,
) -> int:
    try:
        nodes = await connections.store.nodes(operation.id)
        display.begin(operation, nodes, resumed=resumed)
        run = OperationRun(
            operation=operation,
            nodes=nodes,
            registry=connections.registry,
            store=connections.store,
            calls=calls,
            clock=connections.clock,
            service_down_time=connections.settings.service_down_time,
            observer=display,
        )
        ended = await run.run()
    except CancelledError:
        click.echo(f"novasvc: operation {operation.id} is interrupted; `novasvc fleet resume {operation.id}`", err=True)
        raise
    display.end(ended)
    if ended.state == "halted":
        return HALTED
    return 1 if ended.counts["failed"] or ended.counts["skipped"] else 0


async def _find_left_out(connections: FleetConnections, chosen: Sequence[ServiceRecord]) -> list[LeftOut]:
    """Return the services that cannot be called, or to which nothing should be done yet, with the reasons."""
    verdicts = await judge_some(connections.registry, chosen, VerdictRule.of(connections.settings))
    found = []
    for record, verdict in zip(chosen, verdicts, strict=True):
        if record.topic is None:
            found.append(LeftOut(record, "it serves no topic, so it cannot be called"))
        elif verdict.status != "alive":
            found.append(LeftOut(record, f"it is {verdict.status}: {verdict.reason}"))
    return found
