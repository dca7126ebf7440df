"""``novasvc service verdicts`` and ``confirm-down``: which services are alive, suspect or down, and what follows."""

from collections.abc import Sequence
from typing import get_args

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.confirmation import confirm
from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.service_filter import ServiceFilter, filter_options, zone_of
from novasvc.interfaces import IServiceRegistry
from novasvc.listing import list_some
from novasvc.registry.outages import VerdictRule
from novasvc.registry.query import ServiceQuery
from novasvc.registry.record import ServiceChanges, ServiceRecord
from novasvc.registry.verdict import Status, Verdict, describe_outages
from novasvc.registry.verdicts import FleetVerdicts, judge_all, judge_some

COLUMNS = ("ID", "Binary", "Host", "Zone", "Verdict", "Since", "Reason")

_SHOWN = 20
"""Services that are named before a confirmation."""


@click.command()
@filter_options
@click.option(
    "--verdict", "wanted", type=click.Choice(get_args(Status)), multiple=True, help="List only these; repeat."
)
@click.option(
    "--check", is_flag=True, help="Exit with status 1 if a listed service is not alive, or if none is listed."
)
@output_options
@pass_command_context
def verdicts(
    context: CommandContext,
    selection: ServiceFilter,
    wanted: tuple[str, ...],
    check: bool,  # noqa: FBT001 - click's
    output: Output,
) -> int:
    """List which services are alive, suspect or down, since when and why, and the outages that concern many.

    `novasvc service list` calls suspect services down: it keeps Nova's rule, by age alone.
    """
    fleet = context.with_registry(lambda registry: _judge(context, registry, selection))
    services = sorted(fleet.services, key=lambda each: (each[0].binary, each[0].host))
    found = [each for each in services if not wanted or each[1].status in wanted]
    output.write_list(COLUMNS, [_row(*each) for each in found])
    for problem in describe_outages(fleet.outages).values():
        click.echo(f"novasvc: {printable(problem)}", err=True)
    return int(check and (not found or any(verdict.status != "alive" for _, verdict in found)))


@click.command()
@filter_options
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_command_context
def confirm_down(
    context: CommandContext,
    selection: ServiceFilter,
    yes: bool,  # noqa: FBT001 - click's
) -> None:
    """Confirm that suspect services are down: force them down.

    A service that comes back takes in no work until `novasvc service force-down --unset` lets it up again.
    """
    fleet = context.with_registry(lambda registry: _judge(context, registry, selection))
    suspect = [record for record, verdict in fleet.services if verdict.status == "suspect"]
    for problem in describe_outages(fleet.outages).values():
        click.echo(printable(problem))
    if not suspect:
        click.echo("no service is suspect, so there is nothing to confirm")
        return
    click.echo(f"suspect: {printable(list_some([record.name for record in suspect], _SHOWN))}")
    if not yes:
        confirm(f"Force {len(suspect)} {'service' if len(suspect) == 1 else 'services'} down?")
    forced, returned = context.with_registry(lambda registry: _force_down(context, registry, suspect))
    click.echo(f"forced down: {forced}" + (f"; back or deleted, and left alone: {returned}" if returned else ""))


async def _judge(context: CommandContext, registry: IServiceRegistry, selection: ServiceFilter) -> FleetVerdicts:
    # Not by all of the selection: an outage is told although no selected service is silent.
    query = ServiceQuery(binary=selection.binary)
    fleet = await judge_all(registry, VerdictRule.of(context.configuration.settings), query)
    return FleetVerdicts([each for each in fleet.services if selection.matches(each[0])], fleet.outages)


async def _force_down(
    context: CommandContext, registry: IServiceRegistry, suspect: Sequence[ServiceRecord]
) -> tuple[int, int]:
    """Force services down that have not come back: the operator may have thought for a while.

    :return: how many were forced down, and how many were not.
    """
    rule = VerdictRule.of(context.configuration.settings)
    forced = 0
    for seen in suspect:
        found = [record for record in await registry.list(seen.host, seen.binary, None) if record.id == seen.id]
        if found and (await judge_some(registry, found, rule))[0].status != "alive":
            await registry.update(seen.id, ServiceChanges(forced_down=True))
            forced += 1
    return forced, len(suspect) - forced


def _row(record: ServiceRecord, verdict: Verdict) -> dict[str, object]:
    return {
        "ID": record.id,
        "Binary": record.binary,
        "Host": record.host,
        "Zone": zone_of(record),
        "Verdict": verdict.status,
        "Since": verdict.since,
        "Reason": verdict.reason or None,
    }
