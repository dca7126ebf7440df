"""The `novasvc` program: global options, subcommands, error messages and exit status.

Exit status: 0 success; 1 failure, or a check that says no; 2 usage error; 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from novasvc._version import __version__
from novasvc.cli.command_context import CommandContext
from novasvc.cli.output import printable, printable_lines
from novasvc.cli.suggestion import SuggestingGroup
from novasvc.errors import NovasvcError, describe

_USAGE = 2
_INTERRUPTED = 130


class LazyGroup(SuggestingGroup):
    """Imports a subcommand only when it is used: `service` needs Twisted, `config` does not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands in the order of the help."""
        work = ["new", "run", "service", "fleet", "lease", "workers", "drain", "reload", "dump"]
        calls = ["call", "cast", "ping", "describe", "stub", "shell"]
        return [*work, *calls, "token", "key", "login", "db", "broker", "config", "completion"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand; return None if there is none of this name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(import_module(f"novasvc.cli.{cmd_name}"), cmd_name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 success; 1 failure, or a check that says no; 2 usage error.",
)
@click.option(
    "--config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Configuration file; may be repeated.  [default: $NOVASVC_CONFIG]",
)
@click.option("--database-url", metavar="URL", help="URL of the database with the services table.")
@click.option(
    "--state-dir",
    metavar="DIRECTORY",
    help="State directory, which contains the SQLite database and the control socket by default.",
)
@click.option(
    "--control-socket", metavar="PATH", help="Control socket of the supervisor, for workers, drain, reload and dump."
)
@click.option("--transport-url", metavar="URL", help="URL of the broker, for call, cast and ping.")
@click.version_option(__version__, prog_name="novasvc", message="%(prog)s %(version)s")
@click.pass_context
def program(context: click.Context, /, **options: Any) -> None:
    """Manage services and their workers, call them, and manage the database and the settings."""
    context.obj = CommandContext.of(options)


def main() -> None:
    """Run the command with the arguments of the process, and exit."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell closed it, as by `>&-`
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the exit
    # Escape what the terminal's encoding cannot represent, instead of failing on it.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command; report any failure as one message on standard error.

    :param arguments: without the program's name.
    :return: the exit status.
    """
    try:
        status = program.main(list(arguments), prog_name="novasvc", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - an operator can do more with one line than with a traceback
        return _failed(error)
    except SystemExit as error:
        # twistd raises it with a message; click and rich with 1, when the reader of their output has gone.
        if isinstance(error.code, str):
            click.echo(error.code, err=True)
            return 1
        return 0 if error.code is None else error.code
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status if isinstance(status, int) else 0


def _failed(error: Exception) -> int:
    """Print an error message, and return the exit status for it."""
    # Imported here, because a command that succeeds does not need them.
    from novasvc.rpc.errors import RPCError  # noqa: PLC0415
    from novasvc.rpc.failures.origin import with_origin  # noqa: PLC0415

    status, text = 1, ""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            status = _USAGE
            click.echo(error.format_message(), err=True)
        case click.UsageError():
            status = _USAGE
            command = "novasvc" if error.ctx is None else error.ctx.command_path
            text = f"{error.format_message()} See `{command} --help`."
        case click.Abort():
            status = _INTERRUPTED
        case BrokenPipeError():
            # The reader has gone, as `head` does after ten lines.
            _discard_output()
        # The text comes from another process, maybe on another host: escape control characters.
        case RPCError():
            text = printable(with_origin(error, str(error)))
        case NovasvcError():
            text = printable_lines(with_origin(error, str(error)))
        case UnicodeEncodeError():
            # Octets of an argument that are not UTF-8 arrive as lone surrogates (PEP 383).
            status = _USAGE
            text = f"an argument is not valid UTF-8: it has {error.object[error.start : error.end]!r}"
        case OSError():
            _discard_output()
            text = f"{error.strerror}: {error.filename}" if error.filename else f"output: {error.strerror}"
        case _:
            text = f"internal error, please report this bug: {describe(error)}"
    if text:
        click.echo(f"novasvc: {text}", err=True)
    return status


def _discard_output() -> None:
    """Redirect standard output to /dev/null, so that the flush at interpreter exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
