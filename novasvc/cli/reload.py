"""``novasvc reload``: reload the configuration."""

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.control import ask
from novasvc.cli.output import Output, output_options
from novasvc.cli.remote import TIMEOUT

COLUMNS = ("Setting", "Before", "After")


@click.command()
@click.option(
    "--timeout",
    type=TIMEOUT,
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the reload.",
)
@output_options
@pass_command_context
def reload(context: CommandContext, timeout: float, output: Output) -> None:
    """Reload the configuration, replace all workers one by one, and print the changed settings.

    An invalid configuration is rejected: the exit status is 1 and the workers go on as before. --timeout limits only
    how long this command waits; the reload goes on.
    """
    rows = ask(context.configuration.settings.control_socket, "reload", timeout=timeout)
    if output.format == "json":
        names = tuple(name.lower() for name in COLUMNS)
        output.write_list(names, [{name: row.get(name) for name in names} for row in rows])
    elif rows or output.format != "table":
        output.write_list(COLUMNS, [{column: row.get(column.lower()) for column in COLUMNS} for row in rows])
    else:
        click.echo("all workers are replaced; no setting has changed")
