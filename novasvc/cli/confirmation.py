"""Ask the operator while the reactor runs."""

import signal
import sys

import click


def confirm(question: str) -> None:
    """Ask the operator, on a terminal.

    :raises UsageError: there is no terminal to ask on.
    :raises Abort: the answer is no, or Ctrl-C.
    """
    if not sys.stdin.isatty():
        message = "Without a terminal to confirm on, add --yes."
        raise click.UsageError(message, click.get_current_context(silent=True))
    # The reactor's handler would only note the signal: the terminal is read here.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        click.confirm(question, abort=True, err=True)  # standard output may be a file
    finally:
        signal.signal(signal.SIGINT, former)
