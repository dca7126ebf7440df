"""``novasvc config``: the settings, and where they come from."""

from collections.abc import Sequence
from pathlib import Path

import attrs
import click

from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.place import Place, pass_place
from novasvc.errors import SettingsError
from novasvc.settings.listing import rows
from novasvc.settings.spec import text_of


@click.group()
def config() -> None:
    """See the settings, and check files of them."""


@config.command()
@output_options
@pass_place
def show(place: Place, output: Output) -> None:
    """Print every setting, its value and where that comes from; passwords are masked."""
    table = list(rows(place.configuration))
    if output.format != "json":
        table = [{**row, "Value": text_of(row["Value"])} for row in table]
    output.write_list(("Setting", "Value", "Origin"), table)


@config.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
@click.option("--running", is_flag=True, help="Skip the check for ports in use: the node is already running.")
@pass_place
def check(place: Place, files: Sequence[Path], running: bool) -> int:  # noqa: FBT001 - click's
    """Say all that is wrong with the settings that a node would have here.

    FILEs are read as `twistd novasvc --config FILE` reads them: NOVASVC_* variables and the options in front of
    `config` count as well. Without FILEs those of NOVASVC_CONFIG are read.

    Finds what would end a start on this host, of this user: managers that cannot be imported or do not take their
    options, files that cannot be read, directories that cannot be written to, addresses that are taken. Starts nothing,
    and asks neither the broker nor the database.
    """
    try:
        checked = attrs.evolve(place, files=(*place.files, *files)).configuration
    except SettingsError as error:
        click.echo(f"novasvc: {error}", err=True)
        return 1
    from novasvc.cli.preflight import problems  # noqa: PLC0415 - imports SQLAlchemy and OpenSSL

    for warning in checked.warnings:
        click.echo(f"novasvc: {warning}", err=True)
    found = [printable(str(problem)) for problem in problems(checked.settings, running=running)]
    if found:
        lines = f" {found[0]}" if len(found) == 1 else "".join(f"\n  - {line}" for line in found)
        click.echo(f"novasvc: a start would fail:{lines}", err=True)
        return 1
    names = ", ".join(map(str, files)) or "the settings"
    count = len(checked.settings.services)
    click.echo(f"ok: {names} ({count} service{'' if count == 1 else 's'})")
    return 0
