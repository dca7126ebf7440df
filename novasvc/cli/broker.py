"""``novasvc broker``: change what the services have declared on the broker."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import click

from novasvc.cli import candidates
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import printable
from novasvc.cli.remote import TIMEOUT
from novasvc.cli.suggestion import SuggestingGroup
from novasvc.config import Settings
from novasvc.errors import NovasvcError, ProblemError
from novasvc.listing import list_some

if TYPE_CHECKING:
    from novasvc.registry.record import Records
    from novasvc.transport.amqp.migration.request import Step

_SHOWN = 3
"""Queues of a step that are named in a line; the others are counted."""

_UNFINISHED = (
    "novasvc: queues are half replaced: run this command again before any node of the topic starts, since messages to "
    "a node that starts now are delivered twice until then"
)


@click.group(cls=SuggestingGroup)
def broker() -> None:
    """Change the queues of a running fleet."""


@broker.command()
@click.option(
    "--to", "kind", type=click.Choice(["quorum", "classic"]), required=True, help="The type of the new queues."
)
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="TOPIC",
    shell_complete=candidates.topics,
    help="Replace only the queues of this topic; may be repeated.  [default: all topics of the registry]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option(
    "--cut-off-others",
    is_flag=True,
    help="Go on in spite of consumers that do not take part, such as servers of oslo.messaging: they lose their queue, "
    "and have to be restarted with the new type.",
)
@click.option(
    "--timeout",
    type=TIMEOUT,
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for requests in progress. The command can be run again to go on.",
)
@click.option("--json", "as_json", is_flag=True, help="Write each step as a line of JSON.")
@pass_command_context
def migrate(
    context: CommandContext,
    *,
    kind: str,
    topics: tuple[str, ...],
    dry_run: bool,
    cut_off_others: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Replace the queues of topics and hosts by queues of another type, while calls go on.

    Run it with the settings of the services. If it is interrupted, run it again: it goes on where it was. Afterwards
    set rabbit_quorum_queue in the settings of all services; they may be restarted at any time then.
    """
    settings = context.configuration.settings
    if not settings.uses_broker:
        raise ProblemError(
            f"transport_url = {settings.transport_url!r}",
            "without a broker there are no queues to replace",
            "give the URL of the services' broker: --transport-url amqp://user:password@host/vhost",
        )
    if settings.amqp_auto_delete:
        raise ProblemError(
            "amqp_auto_delete = true",
            "queues that are deleted with their last consumer cannot be replaced while calls go on",
            "restart the services with the new settings instead",
        )

    def report(step: "Step") -> None:
        if as_json:
            click.echo(json.dumps({"topic": step.topic, "step": step.step, "queues": list(step.queues)}))
        else:
            click.echo(f"{printable(list_some(step.queues, _SHOWN))}: {step.step}")

    wanted = {"kind": kind, "dry_run": dry_run, "cut_off_others": cut_off_others, "timeout": timeout}
    replaced = _run(settings, topics, wanted, report)
    if as_json:
        click.echo(json.dumps({"replaced": replaced, "dry_run": dry_run}))
    elif not dry_run:
        value = "true" if kind == "quorum" else "false"
        done = f"{len(replaced)} queues replaced" if replaced else "nothing to do"
        click.echo(f"{done}; set rabbit_quorum_queue = {value} for all services and clients")


def _run(
    settings: Settings, topics: Collection[str], wanted: Mapping[str, Any], report: "Callable[[Step], None]"
) -> list[str]:
    # Imported here, because `--help` needs neither Twisted nor AMQP.
    from novasvc.cli.reactor import run_on_reactor  # noqa: PLC0415
    from novasvc.config.transport_url import BrokerAddress  # noqa: PLC0415
    from novasvc.transport.amqp.configured import broker_options  # noqa: PLC0415
    from novasvc.transport.amqp.migration.migration import Migration  # noqa: PLC0415
    from novasvc.transport.amqp.migration.request import Request  # noqa: PLC0415

    options = attrs.evolve(broker_options(settings), quorum_queue=wanted["kind"] == "quorum")
    address = BrokerAddress.parse(settings.transport_url, tls=settings.rabbit_ssl)

    async def work(reactor: Any) -> list[str]:
        hosts = await _hosts(settings, reactor, topics)
        request = Request(exchange=settings.control_exchange, hosts=hosts, **wanted)
        migration = Migration(address, options, request, reactor, report)
        try:
            await migration.run()
        finally:
            if migration.in_progress:
                click.echo(_UNFINISHED, err=True)
        return migration.replaced

    return run_on_reactor(work)


async def _hosts(settings: Settings, reactor: Any, topics: Collection[str]) -> dict[str, set[str]]:
    """Return the registered hosts of each topic.

    :raises NovasvcError: the registry cannot be read, and no topic is given.
    """
    found: dict[str, set[str]] = {topic: set() for topic in topics}
    try:
        rows = await _rows(settings, reactor)
    except NovasvcError as error:
        if not topics:
            raise
        click.echo(f"novasvc: queues of hosts that are down are left as they are: {printable(error)}", err=True)
        return found
    for row in rows:
        if row.topic is not None and (not topics or row.topic in topics):
            found.setdefault(row.topic, set()).add(row.host)
    return found


async def _rows(settings: Settings, reactor: Any) -> "Records":
    from novasvc.cli.database import require_database  # noqa: PLC0415 - see _run
    from novasvc.registry.sql.services import connect_registry  # noqa: PLC0415 - see _run

    require_database(settings.database_url)
    registry = connect_registry(settings.database_url, reactor=reactor, migrate=False)
    try:
        await registry.open()
        rows: Records = await registry.list(None, None, None)
        return rows
    finally:
        await registry.close()
