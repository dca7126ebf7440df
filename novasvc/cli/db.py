"""``novasvc db``: the database's schema."""

from types import ModuleType

import click

from novasvc.cli.command_context import CommandContext, pass_command_context


@click.group()
def db() -> None:
    """Look after the database's schema."""


@db.command()
@pass_command_context
def upgrade(context: CommandContext) -> None:
    """Bring the schema up to date; make the SQLite file if there is none."""
    settings = context.configuration.settings
    if context.configuration.origins["database_url"] == "default":
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    click.echo(f"revision {_migrate().upgrade(settings.database_url)}")


@db.command()
@pass_command_context
def current(context: CommandContext) -> None:
    """Print the schema's revision."""
    click.echo(_migrate().current(_existing(context)) or "none: the tables of novasvc are not there yet")


@db.command()
@pass_command_context
def check(context: CommandContext) -> int:
    """Exit with status 1 if the schema is not the one that this version works with."""
    if _migrate().check(_existing(context)):
        click.echo("the schema is up to date")
        return 0
    click.echo("novasvc: the schema is not up to date; `novasvc db upgrade` brings it there", err=True)
    return 1


def _existing(context: CommandContext) -> str:
    from novasvc.cli.database import require_database  # noqa: PLC0415 - imports SQLAlchemy

    url = context.configuration.settings.database_url
    require_database(url)
    return url


def _migrate() -> ModuleType:
    from novasvc.registry.sql import migrate  # noqa: PLC0415 - imports SQLAlchemy

    return migrate
