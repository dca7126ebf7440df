"""``novasvc service``: list and change the registered services."""

from collections.abc import Sequence

import click

from novasvc.cli import candidates
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.service_selector import ServiceSelector, selector_options
from novasvc.cli.suggestion import SuggestingGroup
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceChanges, ServiceRecord

API_BINARIES = ("nova-osapi_compute", "nova-metadata")
"""Nova's API servers register without ever sending heartbeats; like Nova, list them only if asked by name."""

COLUMNS = ("ID", "Binary", "Host", "Zone", "Status", "State", "Updated At")
LONG_COLUMNS = ("Disabled Reason", "Forced Down")
_MAX_REASON_LENGTH = 255


@click.group(cls=SuggestingGroup)
def service() -> None:
    """List the registered services, enable and disable them."""


@service.command("list")
@click.option("--host", help="List only services of this host.", shell_complete=candidates.service_hosts)
@click.option("--binary", help="List only services of this binary name.", shell_complete=candidates.binaries)
@click.option("--long", "long_", is_flag=True, help="Print more columns.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a listed service is down, or if none is listed.")
@output_options
@pass_command_context
def list_(
    context: CommandContext,
    host: str | None,
    binary: str | None,
    long_: bool,  # noqa: FBT001 - click's
    check: bool,  # noqa: FBT001 - click's
    output: Output,
) -> int:
    """List the registered services with their status and state."""
    down_time = context.configuration.settings.service_down_time

    async def read(registry: IServiceRegistry) -> list[ServiceRecord]:
        records: list[ServiceRecord] = await registry.list(host, binary, None)
        return [record for record in records if binary or record.binary not in API_BINARIES]

    records = context.with_registry(read)
    output.write_list((*COLUMNS, *LONG_COLUMNS) if long_ else COLUMNS, [row(record, down_time) for record in records])
    return _check(records, down_time) if check else 0


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
    record = context.with_registry(selector.find)
    output.write_one(row(record, context.configuration.settings.service_down_time))


@service.command()
@selector_options
@pass_command_context
def enable(context: CommandContext, selector: ServiceSelector) -> None:
    """Enable a service: schedulers use it again."""
    record = _change(context, selector, ServiceChanges(disabled=False))
    click.echo(f"{record.name} is enabled")


@service.command()
@selector_options
@click.option("--reason", help="Reason that other operators see, up to 255 characters.")
@pass_command_context
def disable(context: CommandContext, selector: ServiceSelector, reason: str | None) -> None:
    """Disable a service: schedulers no longer use it, but it goes on running."""
    if reason is not None and not 0 < len(reason.strip()) <= len(reason) <= _MAX_REASON_LENGTH:
        message = f"--reason takes 1 to {_MAX_REASON_LENGTH} characters, not {len(reason)}."
        raise click.UsageError(message, click.get_current_context())
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
    """Delete a service; a running one registers again at its next heartbeat."""

    async def delete(registry: IServiceRegistry) -> ServiceRecord:
        record = await selector.find(registry)
        await registry.delete(record.id)
        return record

    record = context.with_registry(delete)
    click.echo(f"{record.name} is deleted")
    if is_up(record, context.configuration.settings.service_down_time):
        click.echo("novasvc: its node was up, so it registers again at its next heartbeat unless you stop it", err=True)


def _change(context: CommandContext, selector: ServiceSelector, changes: ServiceChanges) -> ServiceRecord:
    async def change(registry: IServiceRegistry) -> ServiceRecord:
        selected = await selector.find(registry)
        record: ServiceRecord = await registry.update(selected.id, changes)
        return record

    return context.with_registry(change)


def row(record: ServiceRecord, down_time: float) -> dict[str, object]:
    """Return a service as column -> value; the columns of a list come first.

    :param down_time: the setting service_down_time.
    Source: `openstack compute service list`.
    """
    return {
        "ID": record.id,
        "Binary": record.binary,
        "Host": record.host,
        "Zone": "nova" if record.topic == "compute" else "internal",
        "Status": "disabled" if record.disabled else "enabled",
        "State": "up" if is_up(record, down_time) else "down",
        "Updated At": record.updated_at,
        "Disabled Reason": record.disabled_reason,
        "Forced Down": record.forced_down,
        "UUID": record.uuid,
        "Topic": record.topic,
        "Report Count": record.report_count,
        "Last Seen Up": record.last_seen_up,
        "Created At": record.created_at,
        "Version": record.version,
    }
