"""``novasvc service``: list and change the registered services."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, get_args

import attrs
import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.reason import reason_option
from novasvc.cli.remote import Seconds
from novasvc.cli.service_filter import ServiceFilter, filter_options, zone_of
from novasvc.cli.service_purge import purge
from novasvc.cli.service_selector import ServiceSelector, selector_options
from novasvc.cli.suggestion import SuggestingGroup
from novasvc.cli.verdicts import confirm_down, verdicts
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.liveness import is_up
from novasvc.registry.query import ServicePage, ServiceQuery, Sort
from novasvc.registry.record import ServiceChanges, ServiceRecord
from novasvc.registry.verdict import Verdict, VerdictRule, needs_outages
from novasvc.registry.verdicts import judge_some, may_be_heard

if TYPE_CHECKING:
    from novasvc.cli.thread_reactor import ThreadReactor

API_BINARIES = ("nova-osapi_compute", "nova-metadata")
"""Nova's API servers register without ever sending heartbeats; like Nova, list them only if asked by name."""

COLUMNS = ("ID", "Binary", "Host", "Zone", "Status", "State", "Updated At")
TABLE_COLUMNS = ("ID", "Binary", "Host", "Zone", "Status", "State", "Last Seen")
"""For people, to whom an age says more than a time stamp."""
LONG_COLUMNS = (
    "Disabled Reason",
    "Forced Down",
    "Lifecycle",
    "Lifecycle Since",
    "Lifecycle Reason",
    "Incarnation",
    "Tags",
    "Version",
)
ALL_COLUMNS = (
    *COLUMNS,
    *("Last Seen", "Disabled Reason", "Forced Down", "UUID", "Topic", "Report Count", "Last Seen Up", "Created At"),
    *("Version", "Lifecycle", "Lifecycle Since", "Lifecycle Until", "Lifecycle Reason", "Calls", "Incarnation"),
    *("Machine", "PID", "Started At", "Tags"),
)


@click.group(cls=SuggestingGroup)
def service() -> None:
    """List the registered services, enable and disable them."""


service.add_command(purge)
service.add_command(verdicts)
service.add_command(confirm_down)


@service.command("list")
@filter_options
@click.option("--state", type=click.Choice(["up", "down"]), help="Only services that are up, or down.")
@click.option("--status", type=click.Choice(["enabled", "disabled"]), help="Only enabled or disabled services.")
@click.option("--search", metavar="TEXT", help="Only services with this text in host, binary, topic or reason.")
@click.option("--sort", type=click.Choice(get_args(Sort)), default="name", help="Sort by this; seen: the oldest first.")
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@click.option("--limit", type=click.IntRange(min=1), metavar="NUMBER", help="List no more services than this.")
@click.option("--long", "long_", is_flag=True, help="Print more columns.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a listed service is down, or if none is listed.")
@click.option(
    "--watch",
    type=Seconds(min=0.5),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Print the list again and again, every 2 seconds unless another number is given, until interrupted.",
)
@output_options
@pass_command_context
def list_(
    context: CommandContext,
    selection: ServiceFilter,
    state: str | None,
    status: str | None,
    search: str | None,
    sort: Sort,
    reverse: bool,  # noqa: FBT001 - click's
    limit: int | None,
    long_: bool,  # noqa: FBT001 - click's
    check: bool,  # noqa: FBT001 - click's
    watch: float | None,
    output: Output,
) -> int:
    """List the registered services with their status and state.

    The state is Nova's: down is every service without a recent heartbeat. `novasvc service verdicts` tells services
    that are suspect from those that are down, and gives the reasons.
    """
    if check and watch is not None:
        message = "--check ends with a status, and --watch does not end: use one of them."
        raise click.UsageError(message, click.get_current_context())
    rule = VerdictRule.of(context.configuration.settings)
    query = attrs.evolve(
        selection.query,
        up=None if state is None else state == "up",
        disabled=None if status is None else status == "disabled",
        text=search,
        sort=sort,
        descending=reverse,
        service_down_time=rule.service_down_time,
        limit=limit if selection.is_query else None,
    )
    columns = (*(TABLE_COLUMNS if output.format == "table" else COLUMNS), *(LONG_COLUMNS if long_ else ()))

    async def read(registry: IServiceRegistry) -> tuple[list[ServiceRecord], int]:
        records = await _read(registry, query, selection, limit)
        # Programs read the list alone, and do not wait for more.
        judges = check or output.format == "table"
        return records, await _count_suspect(registry, records, rule) if judges else 0

    def write(records: Sequence[ServiceRecord], suspect: int) -> None:
        rows = [row(record, rule.service_down_time) for record in records]
        output.write_list(columns, rows, all_columns=ALL_COLUMNS)
        if suspect:
            sys.stdout.flush()
            note = f"{suspect} of those that are down may run, and {'is' if suspect == 1 else 'are'} only suspect"
            click.echo(f"novasvc: {note}: see `novasvc service verdicts`", err=True)

    async def write_again(registry: IServiceRegistry, reactor: "ThreadReactor", seconds: float) -> NoReturn:
        from twisted.internet.task import deferLater  # noqa: PLC0415 - only --watch needs them

        from novasvc.telemetry.logs import pluralize  # noqa: PLC0415

        while True:
            records, suspect = await read(registry)
            if output.format == "table":  # programs get the list alone
                click.clear()
                click.echo(
                    f"{datetime.now(UTC):%H:%M:%S} UTC, every {seconds:g} s; {pluralize(len(records), 'service')}"
                )
            write(records, suspect)
            sys.stdout.flush()
            await deferLater(reactor, seconds, lambda: None)

    if watch is not None:
        from novasvc.cli.thread_reactor import ThreadReactor  # noqa: PLC0415 - as above

        clock = ThreadReactor()
        context.with_registry(lambda registry: write_again(registry, clock, watch), clock)
    records, suspect = context.with_registry(read)
    write(records, suspect)
    return _check(records, rule.service_down_time) if check else 0


async def _read(
    registry: IServiceRegistry, query: ServiceQuery, selection: ServiceFilter, limit: int | None
) -> list[ServiceRecord]:
    filters = not selection.is_query
    records: list[ServiceRecord] = []
    after: str | None = None
    while True:
        page: ServicePage = await registry.page(attrs.evolve(query, after=after))
        found = page.rows if query.binary else [row for row in page.rows if row.binary not in API_BINARIES]
        records += filter(selection.matches, found) if filters else found
        # Rows that are not listed must not count for the limit.
        if limit is None or not page.more or len(records) >= limit:
            return records[:limit]
        after = str(page.rows[-1].id)


async def _count_suspect(registry: IServiceRegistry, records: Sequence[ServiceRecord], rule: VerdictRule) -> int:
    """Return how many of the services that are down by their age are suspect.

    The registry is asked about the other services only if one of these is silent.
    """
    down = [record for record in records if not is_up(record, rule.service_down_time)]
    silent = [record for record in down if needs_outages(record, rule) and may_be_heard(record)]
    return sum(verdict.status == "suspect" for verdict in await judge_some(registry, silent, rule))


def _check(records: Sequence[ServiceRecord], down_time: float) -> int:
    down = [record for record in records if not is_up(record, down_time)]
    if not records:
        click.echo("novasvc: no matching service is registered", err=True)
    elif down:
        names = ", ".join(record.name for record in down)
        click.echo(f"novasvc: {len(down)} of {len(records)} down: {names}", err=True)
    return 1 if down or not records else 0


@service.command()
@selector_options
@output_options
@pass_command_context
def show(context: CommandContext, selector: ServiceSelector, output: Output) -> None:
    """Show all details of a service."""
    settings = context.configuration.settings

    async def find(registry: IServiceRegistry) -> tuple[ServiceRecord, Verdict]:
        record = await selector.find(registry)
        (verdict,) = await judge_some(registry, [record], VerdictRule.of(settings))
        return record, verdict

    record, verdict = context.with_registry(find)
    shown = {"Verdict": verdict.status, "Verdict Reason": verdict.reason or None, "Verdict Since": verdict.since}
    output.write_one(row(record, settings.service_down_time) | shown)


@service.command()
@selector_options
@pass_command_context
def enable(context: CommandContext, selector: ServiceSelector) -> None:
    """Enable a service: schedulers use it again."""
    record = _change(context, selector, ServiceChanges(disabled=False))
    click.echo(f"{record.name} is enabled")


@service.command()
@selector_options
@reason_option
@pass_command_context
def disable(context: CommandContext, selector: ServiceSelector, reason: str | None) -> None:
    """Disable a service: schedulers no longer use it, but it goes on running."""
    record = _change(context, selector, ServiceChanges(disabled=True, disabled_reason=reason))
    click.echo(f"{record.name} is disabled" + (f": {printable(reason)}" if reason else ""))


@service.command()
@selector_options
@click.option("--unset", is_flag=True, help="Undo: decide by the heartbeats again.")
@pass_command_context
def force_down(context: CommandContext, selector: ServiceSelector, unset: bool) -> None:  # noqa: FBT001
    """Force a service down, whatever its heartbeats say."""
    record = _change(context, selector, ServiceChanges(forced_down=not unset))
    state = "forced down" if record.forced_down else "no longer forced down"
    click.echo(f"{record.name} is {state}")


@service.command()
@selector_options
@pass_command_context
def delete(context: CommandContext, selector: ServiceSelector) -> None:
    """Delete a service; a running one takes in nothing from its next heartbeat on."""

    async def delete(registry: IServiceRegistry) -> ServiceRecord:
        record = await selector.find(registry)
        await registry.delete(record.id)
        return record

    record = context.with_registry(delete)
    click.echo(f"{record.name} is deleted")
    if is_up(record, context.configuration.settings.service_down_time):
        message = (
            "its node was up: it takes in nothing from its next heartbeat on; stop it, or restart it to register it"
        )
        click.echo(f"novasvc: {message}", err=True)


def _change(context: CommandContext, selector: ServiceSelector, changes: ServiceChanges) -> ServiceRecord:
    async def change(registry: IServiceRegistry) -> ServiceRecord:
        selected = await selector.find(registry)
        record: ServiceRecord = await registry.update(selected.id, changes)
        return record

    return context.with_registry(change)


def _age(seconds: float) -> str:
    """Format an age by its largest unit: "4 s ago", "3 min ago", "5 h ago", "12 d ago"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def row(record: ServiceRecord, down_time: float) -> dict[str, object]:
    """Return a service as column -> value; the columns of a list come first.

    :param down_time: the setting service_down_time.
    Source: `openstack compute service list`.
    """
    latest = record.incarnation
    return {
        "ID": record.id,
        "Binary": record.binary,
        "Host": record.host,
        "Zone": zone_of(record),
        "Status": "disabled" if record.disabled else "enabled",
        "State": "up" if is_up(record, down_time) else "down",
        "Updated At": record.updated_at,
        "Last Seen": _age(record.age) if record.last_seen_up else None,
        "Disabled Reason": record.disabled_reason,
        "Forced Down": record.forced_down,
        "UUID": record.uuid,
        "Topic": record.topic,
        "Report Count": record.report_count,
        "Last Seen Up": record.last_seen_up,
        "Created At": record.created_at,
        "Version": record.version,
        "Lifecycle": record.state,
        "Lifecycle Since": None if latest is None else latest.since,
        "Lifecycle Until": None if latest is None else latest.until,
        "Lifecycle Reason": None if latest is None else latest.reason,
        "Calls": None if latest is None else latest.calls,
        "Incarnation": record.incarnation_number,
        "Machine": None if latest is None else latest.machine,
        "PID": None if latest is None else latest.pid,
        "Started At": None if latest is None else latest.started_at,
        "Tags": None if latest is None else latest.tags,
    }
