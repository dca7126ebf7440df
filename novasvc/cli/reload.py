"""``novasvc reload``: read the configuration again."""

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.control import ask
from novasvc.cli.output import Output, output_options
from novasvc.cli.remote import TIMEOUT

COLUMNS = ("Setting", "Before", "After")


@click.command()
@click.option(
    "--timeout", type=TIMEOUT, default=600.0, show_default=True, metavar="SECONDS", help="How long to wait for it."
)
@output_options
@pass_command_context
def reload(context: CommandContext, timeout: float, output: Output) -> None:
    """Read the configuration again, replace all workers one after the other, and print the settings that changed.

    A configuration that has an error is refused: the status is 1, and all goes on as before. A --timeout only ends
    the waiting, not the reloading.
    """
    rows = ask(context.configuration.settings.control_socket, "reload", timeout=timeout)
    if output.format == "json":
        names = tuple(name.lower() for name in COLUMNS)
        output.write_list(names, [{name: row.get(name) for name in names} for row in rows])
    elif rows or output.format != "table":
        output.write_list(COLUMNS, [{column: row.get(column.lower()) for column in COLUMNS} for row in rows])
    else:
        click.echo("the workers are replaced; no setting has changed")
