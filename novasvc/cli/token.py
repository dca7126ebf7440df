"""``novasvc token``: create a token for the API."""

import os
import secrets
from pathlib import Path

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.config.errors import SettingError


@click.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["read", "admin"]),
    default="read",
    show_default=True,
    help="read: read-only access; admin: may also make changes and call nodes.",
)
@click.option("--file", type=click.Path(path_type=Path), help="Token file.  [default: the setting api_token_file]")
@pass_command_context
def token(context: CommandContext, name: str, scope: str, file: Path | None) -> None:
    """Create a token called NAME, add it to the token file, and print it. It cannot be shown again.

    A missing file is created with mode 0600. A running API accepts the token after a restart or `novasvc reload`.
    """
    # Imported here, because `--help` does not need it.
    from novasvc.api.tokens import add_token  # noqa: PLC0415

    path = file or context.configuration.settings.api_token_file
    if path is None:
        problem, remedy = "no token file is configured", "set it, or give --file"
        raise SettingError("api_token_file", None, "default", problem, remedy)
    new = secrets.token_urlsafe(32)
    add_token(Path(os.path.abspath(path)), name, scope, new)  # noqa: PTH100 - the file may not exist yet
    click.echo(new)
