"""``novasvc cast``: send a request without waiting for a result."""

from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.remote import request_options, with_client
from novasvc.context import RequestContext
from novasvc.rpc.target import Target


@click.command(epilog="Example: novasvc cast --fanout agent refresh")
@request_options
@pass_command_context
def cast(context: CommandContext, target: Target, method: str, arguments: dict[str, Any]) -> None:
    """Send a request for METHOD to a service of TOPIC, or to the one on HOST, and return when the broker has it.

    No service need be running: if the queue exists, the request waits there for one. Write the arguments as for
    `novasvc call`.
    """

    async def work(client: Any, _reactor: Any) -> None:
        await client.cast(RequestContext.admin(), method, **arguments)

    with_client(context.configuration.settings, target, work)
