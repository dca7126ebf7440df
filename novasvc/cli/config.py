"""``novasvc config``: the settings, and where they come from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from novasvc.cli.output import Output, output_options
from novasvc.cli.place import Place, pass_place
from novasvc.errors import SettingsError
from novasvc.settings import Configuration, load, masked, masked_url
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


def rows(configuration: Configuration) -> Iterator[dict[str, Any]]:
    """Return a row for each setting; the settings of a service follow as ``service[0].host``."""
    settings, origins = configuration.settings, configuration.origins
    tables = any(name.startswith("service[") for name in origins)
    for field in attrs.fields(type(settings)):
        value = getattr(settings, field.name)
        if field.name == "managers":
            for topic, manager in value.items():
                yield _row(f"{topic}_manager", manager, origins)
        elif field.name == "services":
            for number, service in enumerate(value if tables else ()):
                for part in attrs.fields(type(service)):
                    yield _row(f"service[{number}].{part.name}", getattr(service, part.name), origins)
        elif not (tables and field.name in {"binary", "topic", "manager"}):
            yield _row(field.name, value, origins)


def _row(name: str, value: object, origins: Any) -> dict[str, Any]:
    if isinstance(value, Path):
        value = str(value)
    shown = masked_url(value) if isinstance(value, str) and name.endswith("_url") else masked(value)
    # A service takes what it does not say from the setting of that name, or from its own other values.
    origin = origins.get(name) or origins.get(name.rpartition(".")[2], "default")
    return {"Setting": name, "Value": shown, "Origin": origin}
