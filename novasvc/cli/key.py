"""``novasvc key``: make the key of an identity, with which a process signs its calls."""

import os
from pathlib import Path

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.config.errors import SettingError


@click.command(epilog="Example: novasvc key shop --file /etc/novasvc/shop.key")
@click.argument("identity")
@click.option(
    "--file", type=click.Path(path_type=Path), help="File of the key.  [default: the setting rpc_signing_key_file]"
)
@pass_command_context
def key(context: CommandContext, identity: str, file: Path | None) -> None:
    """Make a key for IDENTITY, and print the line that the services need in their rpc_callers_file.

    The file is created with mode 0600, and is the rpc_signing_key_file of the processes that call as IDENTITY.
    """
    # Imported here, because `--help` does not need it.
    from novasvc.rpc.identity.keys import create_signing_key  # noqa: PLC0415

    path = file or context.configuration.settings.rpc_signing_key_file
    if path is None:
        problem, remedy = "no file is configured", "set it, or give --file"
        raise SettingError("rpc_signing_key_file", None, "default", problem, remedy)
    click.echo(create_signing_key(Path(os.path.abspath(path)), identity))  # noqa: PTH100 - it does not exist yet
