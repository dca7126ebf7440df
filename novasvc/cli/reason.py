"""The option ``--reason`` of the commands that disable services."""

import click

_MAX_LENGTH = 255


def _check(context: click.Context, _: click.Parameter, reason: str | None) -> str | None:
    if reason is not None and not 0 < len(reason.strip()) <= len(reason) <= _MAX_LENGTH:
        raise click.UsageError(f"--reason takes 1 to {_MAX_LENGTH} characters, not {len(reason)}.", context)
    return reason


reason_option = click.option(
    "--reason", callback=_check, help=f"Reason that other operators see, up to {_MAX_LENGTH} characters."
)
