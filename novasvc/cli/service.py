"""``novasvc service``: the registered services."""

from collections.abc import Sequence

import click

from novasvc.cli.output import Output, output_options, printable
from novasvc.cli.place import Place, pass_place
from novasvc.cli.selection import Selection, selection_options
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceChanges, ServiceRecord

API_BINARIES = ("nova-osapi_compute", "nova-metadata")
"""What Nova's API servers register and never beat for: like Nova's list, ours shows them only to who asks for them."""

COLUMNS = ("ID", "Binary", "Host", "Zone", "Status", "State", "Updated At")
LONG = ("Disabled Reason", "Forced Down")
_LONGEST_REASON = 255


@click.group()
def service() -> None:
    """See the registered services, take them out of service and back."""


@service.command("list")
@click.option("--host", help="Only those of this host.")
@click.option("--binary", help="Only those of this name.")
@click.option("--long", "long_", is_flag=True, help="Write more columns.")
@click.option("--check", is_flag=True, help="Exit with status 1 if one of them is down, or if there are none.")
@output_options
@pass_place
def list_(place: Place, host: str | None, binary: str | None, long_: bool, check: bool, output: Output) -> int:  # noqa: FBT001
    """List the registered services: which are up, which are out of service."""
    down_time = place.configuration.settings.service_down_time

    async def read(registry: IServiceRegistry) -> list[ServiceRecord]:
        records: list[ServiceRecord] = await registry.list(host, binary, None)
        return [record for record in records if binary or record.binary not in API_BINARIES]

    records = place.work(read)
    output.write_list((*COLUMNS, *LONG) if long_ else COLUMNS, [row(record, down_time) for record in records])
    return _check(records, down_time) if check else 0


def _check(records: Sequence[ServiceRecord], down_time: float) -> int:
    down = [record for record in records if not is_up(record, down_time)]
    if not records:
        click.echo("novasvc: no service is registered that fits", err=True)
    elif down:
        names = ", ".join(f"{record.binary}@{record.host}" for record in down)
        click.echo(f"novasvc: {len(down)} of {len(records)} down: {names}", err=True)
    return 1 if down or not records else 0


@service.command()
@selection_options
@output_options
@pass_place
def show(place: Place, selection: Selection, output: Output) -> None:
    """Show all that is known of a service."""
    record = place.work(selection.find)
    output.write_one(row(record, place.configuration.settings.service_down_time))


@service.command()
@selection_options
@pass_place
def enable(place: Place, selection: Selection) -> None:
    """Take a service back into service."""
    record = _change(place, selection, ServiceChanges(disabled=False))
    click.echo(f"{record.binary}@{record.host} is enabled")


@service.command()
@selection_options
@click.option("--reason", help="Why, for the others: up to 255 characters.")
@pass_place
def disable(place: Place, selection: Selection, reason: str | None) -> None:
    """Take a service out of service; it goes on running."""
    if reason is not None and not 0 < len(reason.strip()) <= len(reason) <= _LONGEST_REASON:
        message = f"--reason takes 1 to {_LONGEST_REASON} characters, not {len(reason)}."
        raise click.UsageError(message, click.get_current_context())
    record = _change(place, selection, ServiceChanges(disabled=True, disabled_reason=reason))
    click.echo(f"{record.binary}@{record.host} is disabled" + (f": {printable(reason)}" if reason else ""))


@service.command()
@selection_options
@click.option("--unset", is_flag=True, help="Let its heartbeats count again.")
@pass_place
def force_down(place: Place, selection: Selection, unset: bool) -> None:  # noqa: FBT001
    """Declare a service down, whatever its heartbeats say."""
    record = _change(place, selection, ServiceChanges(forced_down=not unset))
    state = "down by force" if record.forced_down else "judged by its heartbeats"
    click.echo(f"{record.binary}@{record.host} is {state}")


@service.command()
@selection_options
@pass_place
def delete(place: Place, selection: Selection) -> None:
    """Delete a service's row; one that runs registers again at its next heartbeat."""

    async def delete(registry: IServiceRegistry) -> ServiceRecord:
        record = await selection.find(registry)
        await registry.delete(record.id)
        return record

    record = place.work(delete)
    click.echo(f"{record.binary}@{record.host} is deleted")
    if is_up(record, place.configuration.settings.service_down_time):
        click.echo("novasvc: its node was up: it registers again at its next heartbeat, unless it is stopped", err=True)


def _change(place: Place, selection: Selection, changes: ServiceChanges) -> ServiceRecord:
    async def change(registry: IServiceRegistry) -> ServiceRecord:
        found = await selection.find(registry)
        record: ServiceRecord = await registry.update(found.id, changes)
        return record

    return place.work(change)


def row(record: ServiceRecord, down_time: float) -> dict[str, object]:
    """Return a service as it is written, by column; the columns of a list come first.

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
