"""``novasvc service purge``: delete rows that are of no use any more."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options, printable
from novasvc.listing import list_some
from novasvc.registry.outages import VerdictRule
from novasvc.registry.purge import PurgeBatch, PurgedRow, PurgeRequest
from novasvc.registry.verdict import OutageKey
from novasvc.telemetry.logs import pluralize

COLUMNS = ("ID", "Binary", "Host", "Why", "Days")
_SHOWN = 20
"""Suspect services that are named."""

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
    """Delete rows for good: those that were deleted, and those of services that have been down, for longer than AGE.

    A service that is up is never purged, nor one that is suspect (see `novasvc service verdicts`), nor one that sends
    no heartbeats, unless it has stopped or failed. The numbers of incarnations are kept: a service of the same name
    goes on counting.
    """
    settings = context.configuration.settings
    down_time = settings.service_down_time
    if seconds < down_time:
        message = f"--before must not be less than service_down_time ({down_time:g} s): a service may be up until then."
        raise click.UsageError(message, click.get_current_context())
    request = PurgeRequest(seconds=seconds, rule=VerdictRule.of(settings), include_nova=include_nova)

    def ask(found: PurgeBatch) -> None:
        _write(output, found.rows)
        _write_suspect(found)
        if found.rows:
            _confirm(len(found.rows))

    batch = context.with_registry(lambda registry: _purge(registry, request, dry_run, None if yes else ask))
    if yes or dry_run:
        _write(output, batch.rows)
    _write_suspect(batch)
    if output.format == "table":
        done = "would be deleted" if dry_run else "deleted"
        click.echo(f"{pluralize(len(batch.rows), 'row')} {done}")


async def _purge(
    registry: Any,
    request: PurgeRequest,
    dry_run: bool,  # noqa: FBT001
    ask: Callable[[PurgeBatch], None] | None,
) -> PurgeBatch:
    """Return what was deleted, or would be.

    :param ask: shows what would be deleted, and which services are suspect, and raises an exception if the rows are to
        stay. Then only services that have become suspect since are in the result.
    """
    if dry_run:
        return await _all(registry.find_purgeable, request)
    if ask is None:
        return await _all(registry.purge, request)
    found = await _all(registry.find_purgeable, request)
    ask(found)
    purged = await _all(registry.purge, request) if found.rows else PurgeBatch()
    shown = set(found.suspect)
    return attrs.evolve(purged, suspect=[name for name in purged.suspect if name not in shown])


async def _all(step: Callable[[PurgeRequest, int], Awaitable[PurgeBatch]], request: PurgeRequest) -> PurgeBatch:
    """Take one batch after the other; return them as one."""
    rows: list[PurgedRow] = []
    suspect: list[str] = []
    outages: dict[OutageKey, str] = {}
    after: int | None = 0
    while after is not None:
        batch = await step(request, after)
        rows += batch.rows
        suspect += batch.suspect
        outages.update(batch.outages)
        after = batch.last
    return PurgeBatch(rows=rows, suspect=suspect, outages=outages)


def _write(output: Output, rows: list[PurgedRow]) -> None:
    output.write_list(
        COLUMNS,
        [
            {"ID": row.id, "Binary": row.binary, "Host": row.host, "Why": row.why, "Days": round(row.age / 86400, 1)}
            for row in rows
        ],
    )


def _write_suspect(batch: PurgeBatch) -> None:
    if not batch.suspect:
        return
    names = printable(list_some(batch.suspect, _SHOWN))
    click.echo(f"novasvc: suspect, not down, so their rows stay: {names}; see `novasvc service verdicts`", err=True)
    for problem in batch.outages.values():
        click.echo(f"novasvc: {printable(problem)}", err=True)


def _confirm(count: int) -> None:
    from novasvc.cli.confirmation import confirm  # noqa: PLC0415 - `--help` does not need it

    confirm(f"delete {count} rows for good?")
