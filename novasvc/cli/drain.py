"""``novasvc drain``: let workers finish what they have begun, and end."""

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.control import Connection
from novasvc.cli.remote import TIMEOUT

_MARGIN = 10.0
"""Seconds that a supervisor has to end after its workers were given up."""


@click.command()
@click.option("--worker", "number", type=click.IntRange(min=0), metavar="N", help="This one only; another replaces it.")
@click.option(
    "--timeout",
    type=TIMEOUT,
    metavar="SECONDS",
    help="How long to wait.  [default: the setting graceful_shutdown_timeout, and a little more]",
)
@pass_command_context
def drain(context: CommandContext, number: int | None, timeout: float | None) -> None:
    """Take in no more work, finish what was begun, and end; return when that is done.

    Without --worker the supervisor itself ends with its workers. After graceful_shutdown_timeout seconds a worker
    that has not finished is killed. A --timeout only ends the waiting, not the draining.
    """
    settings = context.configuration.settings
    grace = settings.graceful_shutdown_timeout
    patience = timeout or (grace + _MARGIN if grace else None)
    with Connection(settings.control_socket) as connection:
        if number is not None:
            connection.ask("drain", timeout=patience, number=number)
            click.echo(f"worker {number} has finished and ended; another takes its place")
            return
        pid = connection.ask("who")["pid"]
        connection.ask("drain", timeout=patience)
        connection.wait_for_end(patience)
        click.echo(f"supervisor {pid} and its workers have finished and ended")
