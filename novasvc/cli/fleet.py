"""``novasvc fleet``: operations on many services, in waves."""

from collections.abc import Mapping
from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.fleet_connections import FleetConnections
from novasvc.cli.fleet_history import abort, list_, show
from novasvc.cli.fleet_options import json_option, operation_options
from novasvc.cli.fleet_ping import ping
from novasvc.cli.fleet_versions import versions
from novasvc.cli.reason import reason_option
from novasvc.cli.suggestion import SuggestingGroup


@click.group(
    cls=SuggestingGroup,
    epilog="Exit status: 0 all selected services succeeded; 1 some failed, or were skipped or left out, or an error; "
    "2 usage error; 3 halted, with services left; 130 interrupted. A halted or interrupted operation can be resumed.",
)
def fleet() -> None:
    """Operate many services: a canary first, then wave after wave, within a failure budget.

    Each operation is stored in the database: another terminal, on any host, can show, resume or abort it. No two
    operations that run have the same service at the same time; one that is halted holds none.
    """


def _operate(context: CommandContext, kind: str, given: Mapping[str, Any], **options: Any) -> int:
    from novasvc.cli.fleet_operations import operate  # noqa: PLC0415 - `--help` does not need it

    async def work(connections: FleetConnections) -> int:
        return await operate(connections, kind, options=options, **given)

    return context.with_fleet(work)


@fleet.command()
@operation_options
@reason_option
@pass_command_context
def disable(context: CommandContext, /, reason: str | None, **given: Any) -> int:
    """Disable services: schedulers no longer use them, but they go on running."""
    return _operate(context, "disable", given, reason=reason)


@fleet.command()
@operation_options
@pass_command_context
def enable(context: CommandContext, /, **given: Any) -> int:
    """Enable services: schedulers use them again."""
    return _operate(context, "enable", given)


@fleet.command()
@operation_options
@pass_command_context
def drain(context: CommandContext, /, **given: Any) -> int:
    """Drain services: they finish their work, and their processes exit. Waits until each has stopped."""
    return _operate(context, "drain", given)


@fleet.command()
@operation_options
@pass_command_context
def restart(context: CommandContext, /, **given: Any) -> int:
    """Restart services: they finish their work, and run the code that is installed now.

    Waits until each is a new incarnation, ready and healthy. A supervisor restarts with all its workers.
    """
    return _operate(context, "restart", given)


@fleet.command()
@operation_options
@pass_command_context
def reload(context: CommandContext, /, **given: Any) -> int:
    """Reload services: they read their configuration again, and go on.

    A supervisor replaces its workers one by one. Waits until the reload has ended, and the service is healthy.
    """
    return _operate(context, "reload", given)


@fleet.command()
@click.argument("operation", metavar="ID", type=click.IntRange(min=1))
@click.option("--skip-failed", is_flag=True, help="Leave out the services that failed; otherwise they are tried again.")
@json_option
@pass_command_context
def resume(context: CommandContext, operation: int, skip_failed: bool, as_json: bool) -> int:  # noqa: FBT001 - click's
    """Go on with an operation that was halted or interrupted, or whose command has died.

    Services that are done stay so. One that was under way is not told a second time if it has done what it was told,
    or still reloads; a reload that has ended since is repeated.
    """
    from novasvc.cli.fleet_operations import resume  # noqa: PLC0415 - `--help` does not need it

    async def work(connections: FleetConnections) -> int:
        return await resume(connections, operation, skip_failed=skip_failed, as_json=as_json)

    return context.with_fleet(work)


for _command in (ping, versions, list_, show, abort):
    fleet.add_command(_command)
