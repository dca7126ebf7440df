"""``novasvc token``: make a token for the API."""

import os
import secrets
from pathlib import Path

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.errors import SettingError


@click.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["read", "admin"]),
    default="read",
    show_default=True,
    help="read looks at everything; admin changes things, and calls nodes.",
)
@click.option(
    "--file", type=click.Path(path_type=Path), help="The file of tokens.  [default: the setting api_token_file]"
)
@pass_command_context
def token(context: CommandContext, name: str, scope: str, file: Path | None) -> None:
    """Make a token called NAME, add it to the file of tokens, and print it: it is shown this once.

    The file is made if it is not there, with mode 0600. An API that runs knows the token after it has started again,
    or after `novasvc reload`.
    """
    # Here, because `--help` needs none of it.
    from novasvc.api.tokens import add_token  # noqa: PLC0415

    path = file or context.configuration.settings.api_token_file
    if path is None:
        problem, remedy = "there is no file to put the token into", "set it, or give --file"
        raise SettingError("api_token_file", None, "nowhere", problem, remedy)
    new = secrets.token_urlsafe(32)
    add_token(Path(os.path.abspath(path)), name, scope, new)  # noqa: PTH100 - it need not be there yet
    click.echo(new)
