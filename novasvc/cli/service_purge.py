"""``novasvc service purge``: delete rows that are of no use any more."""

import re
from collections.abc import Callable
from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options
from novasvc.registry.purge import PurgedRow, PurgeRequest

COLUMNS = ("ID", "Binary", "Host", "Why", "Days")
_AGE = re.compile(r"(?P<number>\d{1,6})(?P<unit>s|min|h|d|w)")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _read_age(_context: click.Context, _option: click.Parameter, text: str) -> float:
    """Parse an age such as "30d"; a click callback."""
    found = _AGE.fullmatch(text.strip())
    if found is None or not int(found["number"]):
        raise click.BadParameter(f'{text!r} is not an age, such as "30d", "12h" or "90min".')
    return float(int(found["number"]) * _UNITS[found["unit"]])


@click.command()
@click.option(
    "--before", "seconds", required=True, callback=_read_age, metavar="AGE", help='How old: "30d", "12h", "90min".'
)
@click.option(
    "--include-nova",
    is_flag=True,
    help="Also rows of Nova's own services, and of novasvc before it numbered the starts of services.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@output_options
@pass_command_context
def purge(
    context: CommandContext,
    /,
    seconds: float,
    *,
    include_nova: bool,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Delete rows for good: those that were deleted, and those of services that have been silent, for longer than AGE.

    A service that is up is never purged, nor one that sends no heartbeats, unless it has stopped or failed. The numbers
    of incarnations are kept: a service of the same name goes on counting.
    """
    down_time = context.configuration.settings.service_down_time
    if seconds < down_time:
        message = f"--before must not be less than service_down_time ({down_time:g} s): a service may be up until then."
        raise click.UsageError(message, click.get_current_context())
    request = PurgeRequest(seconds=seconds, include_nova=include_nova)

    def ask(found: list[PurgedRow]) -> None:
        _write(output, found)
        _confirm(len(found))

    rows = context.with_registry(lambda registry: _purge(registry, request, dry_run, None if yes else ask))
    if yes or dry_run:
        _write(output, rows)
    if output.format == "table":
        done = "would be deleted" if dry_run else "deleted"
        click.echo(f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} {done}")


async def _purge(
    registry: Any,
    request: PurgeRequest,
    dry_run: bool,  # noqa: FBT001
    ask: Callable[[list[PurgedRow]], None] | None,
) -> list[PurgedRow]:
    """Return the rows that were deleted, or would be.

    :param ask: shows the rows, and raises an exception if they are to stay.
    """
    found: list[PurgedRow] = []
    if dry_run or ask is not None:
        while batch := await registry.find_purgeable(request, found[-1].id if found else 0):
            found += batch
    if dry_run or (ask is not None and not found):
        return found
    if ask is not None:
        ask(found)
    purged: list[PurgedRow] = []
    while batch := await registry.purge(request):
        purged += batch
    return purged


def _write(output: Output, rows: list[PurgedRow]) -> None:
    output.write_list(
        COLUMNS,
        [
            {"ID": row.id, "Binary": row.binary, "Host": row.host, "Why": row.why, "Days": round(row.age / 86400, 1)}
            for row in rows
        ],
    )


def _confirm(count: int) -> None:
    from novasvc.cli.confirmation import confirm  # noqa: PLC0415 - `--help` does not need it

    confirm(f"delete {count} rows for good?")
