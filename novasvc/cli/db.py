"""``novasvc db``: the database's schema."""

from types import ModuleType

import click

from novasvc.cli.place import Place, pass_place


@click.group()
def db() -> None:
    """Look after the database's schema."""


@db.command()
@pass_place
def upgrade(place: Place) -> None:
    """Bring the schema up to date; make the SQLite file if there is none."""
    settings = place.configuration.settings
    if place.configuration.origins["database_url"] == "default":
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    click.echo(f"revision {_migrate().upgrade(settings.database_url)}")


@db.command()
@pass_place
def current(place: Place) -> None:
    """Print the schema's revision."""
    click.echo(_migrate().current(_existing(place)) or "none: the tables of novasvc are not there yet")


@db.command()
@pass_place
def check(place: Place) -> int:
    """Exit with status 1 if the schema is not the one that this version works with."""
    if _migrate().check(_existing(place)):
        click.echo("the schema is up to date")
        return 0
    click.echo("novasvc: the schema is not up to date; `novasvc db upgrade` brings it there", err=True)
    return 1


def _existing(place: Place) -> str:
    from novasvc.cli.missing import look_for_database  # noqa: PLC0415 - imports SQLAlchemy

    url = place.configuration.settings.database_url
    look_for_database(url)
    return url


def _migrate() -> ModuleType:
    from novasvc.registry.sql import migrate  # noqa: PLC0415 - imports SQLAlchemy

    return migrate
