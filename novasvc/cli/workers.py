"""``novasvc workers``: list and resize the worker processes of a supervisor."""

from collections.abc import Sequence
from typing import Any

import click

from novasvc.cli import candidates
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.control import ask
from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.suggestion import SuggestingGroup

COLUMNS = ("Number", "Server", "PID", "State", "Since", "Restarts", "Memory", "Trouble")
_MIB = 1024 * 1024


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@output_options
@pass_command_context
def workers(context: CommandContext, output: Output) -> None:
    """List the workers of this host's supervisor, or change their number.

    Memory is the part that a worker does not share with other processes; JSON, CSV and values give it in bytes.
    """
    if click.get_current_context().invoked_subcommand is None:
        write(output, ask(context.configuration.settings.control_socket, "workers"))


@workers.command("set")
@click.argument("count", metavar="N", type=click.IntRange(min=1))
@click.option(
    "--server", metavar="NAME", help="The server to resize, if there are several.", shell_complete=candidates.servers
)
@pass_command_context
def set_(context: CommandContext, count: int, server: str | None) -> None:
    """Set the number of workers to N, until the supervisor exits or a reload changes the configured number."""
    ask(context.configuration.settings.control_socket, "resize", count=count, server=server)
    what = f"{count} worker{'' if count == 1 else 's'}" + (f" of {printable(server)}" if server else "")
    click.echo(f"resizing to {what}; `novasvc workers` shows the progress")


def write(output: Output, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows; in JSON, the columns have the names that the supervisor's protocol uses."""
    if output.format == "json":
        names = tuple(name.lower() for name in COLUMNS)
        output.write_list(names, [{name: row.get(name) for name in names} for row in rows])
    else:
        table = [{column: row.get(column.lower()) for column in COLUMNS} for row in rows]
        if output.format == "table":
            table = [{**row, "Memory": _for_people(row["Memory"])} for row in table]
        output.write_list(COLUMNS, table)


def _for_people(octets: int | None) -> str | None:
    return None if octets is None else f"{octets / _MIB:.1f} MiB"
