"""``novasvc fleet list``, ``show`` and ``abort``: the stored operations."""

import json
import sys
from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.fleet_connections import FleetConnections
from novasvc.cli.fleet_options import who_operates
from novasvc.cli.output import Output, output_options, printable
from novasvc.registry.operation import Nodes, Operation

COLUMNS = ("ID", "Kind", "State", "Operator", "Began At", "Services", "Done", "Failed", "Left")
ALL_COLUMNS = (*COLUMNS, "Reason", "Ended At", "Options")
NODE_COLUMNS = ("Wave", "Service", "State", "Detail")
ALL_NODE_COLUMNS = (*NODE_COLUMNS, "Incarnation Before")


@click.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="List the latest ones only.")
@output_options
@pass_command_context
def list_(context: CommandContext, limit: int, output: Output) -> None:
    """List the latest operations. One is "unattended" if its command has died: resume it, or abort it."""

    async def read(connections: FleetConnections) -> list[Operation]:
        found: list[Operation] = await connections.store.list(limit)
        return found

    output.write_list(COLUMNS, [row(each) for each in context.with_fleet(read)], all_columns=ALL_COLUMNS)


@click.command()
@click.argument("operation", metavar="ID", type=click.IntRange(min=1))
@click.option("--state", help="Show only services in this state: pending, running, done, failed or skipped.")
@output_options
@pass_command_context
def show(context: CommandContext, operation: int, state: str | None, output: Output) -> None:
    """Show an operation, and how it went at each service."""

    async def read(connections: FleetConnections) -> tuple[Operation, Nodes]:
        return await connections.store.read(operation), await connections.store.nodes(operation)

    found, nodes = context.with_fleet(read)
    rows = [
        {
            "Wave": node.wave + 1,
            "Service": node.name,
            "State": node.state,
            "Detail": node.detail,
            "Incarnation Before": node.incarnation,
        }
        for node in nodes
        if state in {None, node.state}
    ]
    if output.format == "json":
        json.dump({**row(found), "Nodes": rows}, sys.stdout, indent=2, default=printable)
        click.echo()
        return
    if output.format == "table":
        reason = f": {found.reason}" if found.reason else ""
        click.echo(printable(f"{found.title} is {_state(found)}{reason}"))
    output.write_list(NODE_COLUMNS, rows, all_columns=ALL_NODE_COLUMNS)


@click.command()
@click.argument("operation", metavar="ID", type=click.IntRange(min=1))
@pass_command_context
def abort(context: CommandContext, operation: int) -> None:
    """End an operation for good, whoever runs it: its command begins no further service, and other operations may.

    Services that are under way are left to themselves.
    """

    async def end(connections: FleetConnections) -> Operation:
        ended: Operation = await connections.store.abort(operation, who_operates())
        return ended

    ended = context.with_fleet(end)
    counts = ended.counts
    click.echo(
        f"operation {ended.id} is aborted: {counts['done']} done, {counts['failed']} failed, {_left(ended)} left"
    )


def row(operation: Operation) -> dict[str, Any]:
    """Return an operation as column -> value; the columns of a list come first."""
    counts = operation.counts
    return {
        "ID": operation.id,
        "Kind": operation.kind,
        "State": _state(operation),
        "Operator": operation.operator,
        "Began At": operation.created_at,
        "Services": sum(counts.values()),
        "Done": counts["done"],
        "Failed": counts["failed"] + counts["skipped"],
        "Left": _left(operation),
        "Reason": operation.reason,
        "Ended At": operation.ended_at,
        "Options": operation.options,
    }


def _state(operation: Operation) -> str:
    return "unattended" if operation.is_unattended else operation.state


def _left(operation: Operation) -> int:
    return operation.counts["pending"] + operation.counts["running"]
