"""``novasvc lease``: list the leases of the periodic tasks that run once in a fleet."""

from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options
from novasvc.cli.suggestion import SuggestingGroup
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.lease import Lease, Leases
from novasvc.telemetry.timestamps import iso_time

COLUMNS = ("Topic", "Task", "Holder", "Since", "Fencing", "Expires In", "Last Run At")
ALL_COLUMNS = (*COLUMNS, "Last Due At")


@click.group(cls=SuggestingGroup)
def lease() -> None:
    """List the leases of the periodic tasks with the scope "fleet"."""


@lease.command("list")
@click.option("--topic", help="List only leases of this topic.")
@output_options
@pass_command_context
def list_(context: CommandContext, topic: str | None, output: Output) -> None:
    """List who has which lease, and since when. Times are in UTC, by the database's clock."""

    async def read(registry: IServiceRegistry) -> Leases:
        found: Leases = await registry.list_leases()
        return found

    leases = [each for each in context.with_registry(read) if topic in {None, each.topic}]
    output.write_list(COLUMNS, [row(each) for each in leases], all_columns=ALL_COLUMNS)


def row(lease: Lease) -> dict[str, Any]:
    """Return a lease as column -> value; the columns of a list come first. A free lease has no holder."""
    return {
        "Topic": lease.topic,
        "Task": lease.task,
        "Holder": None if lease.is_free else lease.holder,
        "Since": None if lease.is_free else lease.acquired_at,
        "Fencing": lease.fencing,
        "Expires In": None if lease.is_free else round(lease.expires_in, 1),
        "Last Run At": lease.last_run_at,
        "Last Due At": None if lease.last_due is None else iso_time(lease.last_due),
    }
