"""``novasvc fleet versions``: the service versions of a fleet, and the hosts that are behind."""

from typing import Any

import click

from novasvc.cli import candidates
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.service import API_BINARIES
from novasvc.interfaces import IServiceRegistry
from novasvc.listing import list_some
from novasvc.registry.outages import VerdictRule
from novasvc.registry.query import ServiceQuery
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Verdict
from novasvc.registry.verdicts import judge_all
from novasvc.registry.versions import VersionUse, versions_in_use

COLUMNS = ("Binary", "Topic", "Version", "Services", "Up", "Behind")
_SHOWN = 8
"""Most hosts in one line; JSON has all of them."""


@click.command()
@click.option("--binary", help="Only services of this binary name.", shell_complete=candidates.binaries)
@click.option("--topic", help="Only services of this topic.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a binary is up in several versions, or none is up.")
@output_options
@pass_command_context
def versions(
    context: CommandContext,
    binary: str | None,
    topic: str | None,
    check: bool,  # noqa: FBT001 - click's
    output: Output,
) -> int:
    """List the service versions that are in use, and the hosts that have the lowest one while others have a higher.

    The version is the service_version of the manager. Services that are down do not count as behind.
    """
    rule = VerdictRule.of(context.configuration.settings)

    async def read(registry: IServiceRegistry) -> list[tuple[ServiceRecord, Verdict]]:
        judged = await judge_all(registry, rule, ServiceQuery(binary=binary, topic=topic))
        return [each for each in judged.services if binary or each[0].binary not in API_BINARIES]

    uses = versions_in_use(context.with_registry(read))
    output.write_list(COLUMNS, [row(use, whole=output.format == "json") for use in uses])
    return _check(uses) if check else 0


def row(use: VersionUse, *, whole: bool) -> dict[str, Any]:
    """Return a version as column -> value.

    :param whole: give the hosts as a list of all of them, not as a text of some.
    """
    behind = list(use.hosts) if use.lowest else []
    return {
        "Binary": use.binary,
        "Topic": use.topic,
        "Version": use.version,
        "Services": use.services,
        "Up": use.up,
        "Behind": behind if whole else list_some(behind, _SHOWN) or None,
    }


def _check(uses: list[VersionUse]) -> int:
    behind = [use for use in uses if use.lowest]
    for use in behind:
        name = printable(f"{use.binary}, version {use.version}: {list_some(use.hosts, _SHOWN)}")
        click.echo(f"novasvc: {use.up} behind the others: {name}", err=True)
    if not any(use.up for use in uses):
        click.echo("novasvc: no matching service is up", err=True)
        return 1
    return 1 if behind else 0
