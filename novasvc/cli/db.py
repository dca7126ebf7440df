"""``novasvc db``: manage the database schema."""

from types import ModuleType

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.suggestion import SuggestingGroup


@click.group(cls=SuggestingGroup)
def db() -> None:
    """Manage the database schema."""


@db.command()
@pass_command_context
def upgrade(context: CommandContext) -> None:
    """Upgrade the schema to this version; create the SQLite file if it is missing."""
    settings = context.configuration.settings
    if context.configuration.origins["database_url"] == "default":
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    click.echo(f"revision {_migrate().upgrade(settings.database_url)}")


@db.command()
@pass_command_context
def current(context: CommandContext) -> None:
    """Print the revision of the schema."""
    click.echo(_migrate().current(_existing(context)) or "none: the database has no tables of novasvc")


@db.command()
@pass_command_context
def check(context: CommandContext) -> int:
    """Exit with status 1 unless the schema is that of this version."""
    if _migrate().check(_existing(context)):
        click.echo("the schema is up to date")
        return 0
    click.echo("novasvc: the schema is not up to date; run `novasvc db upgrade`", err=True)
    return 1


def _existing(context: CommandContext) -> str:
    from novasvc.cli.database import require_database  # noqa: PLC0415 - imports SQLAlchemy

    url = context.configuration.settings.database_url
    require_database(url)
    return url


def _migrate() -> ModuleType:
    from novasvc.registry.sql import migrate  # noqa: PLC0415 - imports SQLAlchemy

    return migrate
