"""``novasvc config``: show and check the settings."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import attrs
import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.suggestion import SuggestingGroup
from novasvc.config.definition import text_of
from novasvc.config.errors import ConfigurationError
from novasvc.config.load import load_leniently
from novasvc.config.show import rows


@click.group(cls=SuggestingGroup)
def config() -> None:
    """Show the settings, and check configuration files."""


def config_file_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add FILE arguments and --config to a command; they add to the files of the CommandContext that it gets."""

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
    """Print every setting with its value and origin; passwords are masked.

    FILEs are read as `twistd novasvc --config FILE` reads them, together with NOVASVC_* variables and the options
    in front of `config`. Without FILEs, those of NOVASVC_CONFIG are read.
    """
    table = list(rows(context.configuration))
    if output.format != "json":
        table = [{**row, "Value": text_of(row["Value"])} for row in table]
    output.write_list(("Setting", "Value", "Origin"), table)


@config.command()
@click.option("--running", is_flag=True, help="Skip the check for addresses in use, because the node is running.")
@pass_command_context
@config_file_arguments
def check(context: CommandContext, running: bool) -> int:  # noqa: FBT001 - click's
    """Report everything that would prevent a node from starting with these settings.

    FILEs are read as `twistd novasvc --config FILE` reads them, together with NOVASVC_* variables and the options
    in front of `config`. Without FILEs, those of NOVASVC_CONFIG are read.

    The checks run on this host as this user. They find invalid settings, managers that cannot be imported or do not
    take their options, unreadable files, directories that are not writable, and addresses in use. Nothing is
    started; neither the broker nor the database is contacted.
    """
    from novasvc.cli.preflight import problems  # noqa: PLC0415 - imports SQLAlchemy and OpenSSL

    read = load_leniently(context.files, context.environ, context.options)
    checked = read.configuration
    for warning in checked.warnings:
        click.echo(f"novasvc: {warning}", err=True)
    if read.errors:
        click.echo(f"novasvc: {ConfigurationError(read.errors)}", err=True)
    found = []
    if read.complete:  # otherwise most problems would be about defaults that the unread file overrides
        found = [printable(str(each)) for each in problems(checked.settings, running=running, invalid=read.invalid)]
    if found:
        lines = f" {found[0]}" if len(found) == 1 else "".join(f"\n  - {line}" for line in found)
        click.echo(f"novasvc: a start would {'also ' if read.errors else ''}fail:{lines}", err=True)
    if found or read.errors:
        return 1
    names = ", ".join(map(str, context.files)) or "the settings"
    count = len(checked.settings.services)
    click.echo(f"ok: {names} ({count} service{'' if count == 1 else 's'})")
    return 0
