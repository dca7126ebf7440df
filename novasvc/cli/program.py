"""The command as a program: its groups, its exit status, and what is said when it fails.

Status 0 is done, 1 is "could not" or "no", 2 is a command line that nobody understands.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from novasvc._version import __version__
from novasvc.cli.command_context import CommandContext
from novasvc.cli.output import printable
from novasvc.errors import NovasvcError, RPCError, describe

_USAGE = 2
_INTERRUPTED = 130


class LazyGroup(click.Group):
    """Imports a command when somebody wants it: `service` needs Twisted, `config` does not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        ours = ["service", "workers", "drain", "reload", "dump"]
        return [*ours, "call", "cast", "ping", "token", "login", "db", "config", "completion"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is no such name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(import_module(f"novasvc.cli.{cmd_name}"), cmd_name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Status 0: done. 1: it could not be done, or a check says no. 2: the command line is wrong.",
)
@click.option(
    "--config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Read settings from this file, too; may be repeated.  [default: $NOVASVC_CONFIG]",
)
@click.option("--database-url", metavar="URL", help="The database with the services table.")
@click.option("--state-dir", metavar="DIRECTORY", help="Where the SQLite file is, unless a database is named.")
@click.option("--control-socket", metavar="PATH", help="The supervisor's, for workers, drain, reload and dump.")
@click.option("--transport-url", metavar="URL", help="The broker that call, cast and ping go by.")
@click.version_option(__version__, prog_name="novasvc", message="%(prog)s %(version)s")
@click.pass_context
def program(
    context: click.Context,
    files: Sequence[Path],
    database_url: str | None,
    state_dir: str | None,
    control_socket: str | None,
    transport_url: str | None,
) -> None:
    """See and change services and their workers, and call them; look after the database and the settings."""
    options = {
        "database-url": database_url,
        "state-dir": state_dir,
        "control-socket": control_socket,
        "transport-url": transport_url,
    }
    context.obj = CommandContext(tuple(files), options, os.environ)


def main() -> None:
    """Run the command with the process's arguments, and end the process."""
    # A name in another alphabet is no reason to fail on a terminal that cannot show it.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it is, where the shell has closed it
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command; whatever goes wrong becomes one message on standard error.

    :param arguments: without the program's name.
    :return: the exit status.
    """
    try:
        status = program.main(list(arguments), prog_name="novasvc", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - an operator can do more with one line than with a traceback
        return _failed(error)
    except SystemExit:
        # click and rich end like this when nobody reads what they write.
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status if isinstance(status, int) else 0


def _failed(error: Exception) -> int:
    """Say what went wrong, and return the status for it."""
    status, text = 1, ""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            status = _USAGE
            click.echo(error.format_message(), err=True)
        case click.UsageError():
            status = _USAGE
            command = "novasvc" if error.ctx is None else error.ctx.command_path
            text = f"{error.format_message()} `{command} --help` says how."
        case click.Abort():
            status = _INTERRUPTED
        case BrokenPipeError():
            # Whoever read it is gone, as `head` is after ten lines.
            _discard_output()
        case RPCError():
            # Another host may have written it.
            text = printable(error)
        case NovasvcError():
            text = str(error)
        case OSError():
            _discard_output()
            text = f"{error.strerror}: {error.filename}" if error.filename else f"output: {error.strerror}"
        case _:
            text = f"this is a bug, please report it: {describe(error)}"
    if text:
        click.echo(f"novasvc: {text}", err=True)
    return status


def _discard_output() -> None:
    """Let what is buffered go nowhere, or the interpreter would fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
