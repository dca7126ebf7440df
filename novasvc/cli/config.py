"""``novasvc config``: the settings, and where they come from."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import attrs
import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options, printable
from novasvc.config.definition import text_of
from novasvc.config.load import load_leniently
from novasvc.config.show import rows
from novasvc.errors import ConfigurationError


@click.group()
def config() -> None:
    """See the settings, and check files of them."""


def config_file_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the ways to name files of settings; its ``place`` has them beside those in front of `config`."""

    @click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
    @click.option(
        "--config", "more", multiple=True, type=click.Path(path_type=Path), help="The same as FILE; may be repeated."
    )
    @wraps(function)
    def with_files(context: CommandContext, files: Sequence[Path], more: Sequence[Path], **kwargs: Any) -> Any:
        return function(attrs.evolve(context, files=(*context.files, *more, *files)), **kwargs)

    return with_files


@config.command()
@output_options
@pass_command_context
@config_file_arguments
def show(context: CommandContext, output: Output) -> None:
    """Print every setting, its value and where that comes from; passwords are masked.

    FILEs are read as `twistd novasvc --config FILE` reads them: NOVASVC_* variables and the options in front of
    `config` count as well. Without FILEs those of NOVASVC_CONFIG are read.
    """
    table = list(rows(context.configuration))
    if output.format != "json":
        table = [{**row, "Value": text_of(row["Value"])} for row in table]
    output.write_list(("Setting", "Value", "Origin"), table)


@config.command()
@click.option("--running", is_flag=True, help="Skip the check for ports in use: the node is already running.")
@pass_command_context
@config_file_arguments
def check(context: CommandContext, running: bool) -> int:  # noqa: FBT001 - click's
    """Say all that is wrong with the settings that a node would have here.

    FILEs are read as `twistd novasvc --config FILE` reads them: NOVASVC_* variables and the options in front of
    `config` count as well. Without FILEs those of NOVASVC_CONFIG are read.

    Finds what would end a start on this host, of this user: managers that cannot be imported or do not take their
    options, files that cannot be read, directories that cannot be written to, addresses that are taken. Starts nothing,
    and asks neither the broker nor the database.
    """
    from novasvc.cli.preflight import problems  # noqa: PLC0415 - imports SQLAlchemy and OpenSSL

    read = load_leniently(context.files, context.environ, context.options)
    checked = read.configuration
    for warning in checked.warnings:
        click.echo(f"novasvc: {warning}", err=True)
    if read.errors:
        click.echo(f"novasvc: {ConfigurationError(read.errors)}", err=True)
    found = []
    if read.complete:  # or most of what is found would be about defaults that nobody wants
        found = [printable(str(each)) for each in problems(checked.settings, running=running, unsure=read.invalid)]
    if found:
        lines = f" {found[0]}" if len(found) == 1 else "".join(f"\n  - {line}" for line in found)
        click.echo(f"novasvc: a start would {'also ' if read.errors else ''}fail:{lines}", err=True)
    if found or read.errors:
        return 1
    names = ", ".join(map(str, context.files)) or "the settings"
    count = len(checked.settings.services)
    click.echo(f"ok: {names} ({count} service{'' if count == 1 else 's'})")
    return 0
