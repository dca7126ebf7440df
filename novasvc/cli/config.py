"""``novasvc config``: the settings, and where they come from."""

from collections.abc import Sequence
from pathlib import Path

import click

from novasvc.cli.output import Output, output_options
from novasvc.cli.place import Place, pass_place
from novasvc.errors import SettingsError
from novasvc.settings import load
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
@pass_place
def check(place: Place, files: Sequence[Path]) -> int:
    """Say all that is wrong with these files, or else with the settings that would be used here."""
    try:
        checked = load(files, {}, {}) if files else place.configuration
    except SettingsError as error:
        click.echo(f"novasvc: {error}", err=True)
        return 1
    names = ", ".join(map(str, files)) or "the settings"
    count = len(checked.settings.services)
    click.echo(f"ok: {names} ({count} service{'' if count == 1 else 's'})")
    return 0
