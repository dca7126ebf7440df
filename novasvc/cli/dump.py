"""``novasvc dump``: show what each worker is doing."""

import json
from collections.abc import Iterator
from typing import Any

import click

from novasvc.cli import candidates
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.control import ask
from novasvc.cli.output import printable, printable_lines
from novasvc.cli.remote import TIMEOUT
from novasvc.workers.errors import NoSuchWorkerError


@click.command()
@click.option(
    "--worker",
    "number",
    type=click.IntRange(min=0),
    metavar="N",
    shell_complete=candidates.worker_numbers,
    help="Dump only this worker.",
)
@click.option(
    "--timeout",
    type=TIMEOUT,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the supervisor.",
)
@click.option(
    "-f", "--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output format."
)
@pass_command_context
def dump(context: CommandContext, number: int | None, timeout: float, output_format: str) -> None:
    """Print calls in flight, recent events and stacks of every worker, even of one that hangs."""
    rows = ask(context.configuration.settings.control_socket, "dump", timeout=timeout)
    if number is not None:
        known = ", ".join(f"worker {row['number']}" for row in rows) or "none"
        rows = [row for row in rows if row["number"] == number]
        if not rows:
            raise NoSuchWorkerError(f"worker {number}", known)
    if output_format == "json":
        click.echo(json.dumps(rows, indent=2))
    else:
        click.echo("\n\n".join("\n".join(lines(row)) for row in rows))


def lines(row: dict[str, Any]) -> Iterator[str]:
    """Format what a worker is doing for people, control characters escaped."""
    process = "no process" if row["pid"] is None else f"pid {row['pid']}"
    yield printable(f"worker {row['number']} of {row['server']} ({process}): {row['state']}")
    calls = row["calls"]
    yield "  calls in flight:" + (
        "" if calls else " unknown, the worker does not respond" if calls is None else " none"
    )
    for call in calls or ():
        yield printable(f"    {call['method']} for {call['seconds']:.1f} s, request {call['request_id']}")
    yield "  last events:" + ("" if row["events"] else " none")
    for event in row["events"]:
        yield printable(f"    {event['time']} {event['kind']}: {event['text']}")
    stacks = (row["stacks"] or "").strip("\n")
    yield "  stacks:" + ("" if stacks else " none")
    if stacks:
        yield "\n".join(f"    {line}".rstrip() for line in printable_lines(stacks).split("\n"))
