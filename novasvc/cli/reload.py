"""``novasvc reload``: read the configuration again."""

import click

from novasvc.cli.control import ask
from novasvc.cli.output import Output, output_options
from novasvc.cli.place import Place, pass_place
from novasvc.cli.remote import TIMEOUT

COLUMNS = ("Setting", "Before", "After")


@click.command()
@click.option(
    "--timeout", type=TIMEOUT, default=600.0, show_default=True, metavar="SECONDS", help="How long to wait for it."
)
@output_options
@pass_place
def reload(place: Place, timeout: float, output: Output) -> None:
    """Read the configuration again, replace all workers one after the other, and print the settings that changed.

    A configuration that has an error is refused: the status is 1, and all goes on as before. A --timeout only ends
    the waiting, not the reloading.
    """
    rows = ask(place.configuration.settings.control_socket, "reload", timeout=timeout)
    if output.format == "json":
        names = tuple(name.lower() for name in COLUMNS)
        output.write_list(names, [{name: row.get(name) for name in names} for row in rows])
    elif rows or output.format != "table":
        output.write_list(COLUMNS, [{column: row.get(column.lower()) for column in COLUMNS} for row in rows])
    else:
        click.echo("the workers are replaced; no setting has changed")
