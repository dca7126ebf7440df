"""``novasvc drain``: stop workers gracefully."""

import click

from novasvc.cli import candidates
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.control import ControlClient
from novasvc.cli.remote import TIMEOUT

_MARGIN = 10.0
"""Seconds that a supervisor has to exit after the grace period of its workers."""


@click.command()
@click.option(
    "--worker",
    "number",
    type=click.IntRange(min=0),
    metavar="N",
    shell_complete=candidates.worker_numbers,
    help="Drain only this worker; a new one replaces it.",
)
@click.option(
    "--timeout",
    type=TIMEOUT,
    metavar="SECONDS",
    help="How long to wait.  [default: the setting graceful_shutdown_timeout plus 10]",
)
@pass_command_context
def drain(context: CommandContext, number: int | None, timeout: float | None) -> None:
    """Stop workers gracefully: accept no more work, finish work in progress, exit. Returns when they have exited.

    Without --worker, the supervisor drains all workers and exits as well. A worker that has not finished after
    graceful_shutdown_timeout seconds is killed. --timeout limits only how long this command waits; draining goes on.
    """
    settings = context.configuration.settings
    grace = settings.graceful_shutdown_timeout
    wait_timeout = timeout or (grace + _MARGIN if grace else None)
    with ControlClient(settings.control_socket) as client:
        if number is not None:
            client.ask("drain", timeout=wait_timeout, number=number)
            click.echo(f"worker {number} is drained and has exited; a new one replaces it")
            return
        pid = client.ask("who")["pid"]
        client.ask("drain", timeout=wait_timeout)
        client.wait_for_end(wait_timeout)
        click.echo(f"supervisor {pid} and its workers are drained and have exited")
