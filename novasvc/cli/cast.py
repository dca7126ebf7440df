"""``novasvc cast``: send a request, and do not wait for its result."""

from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.remote import request_options, run_with_client
from novasvc.context import RequestContext
from novasvc.rpc.target import Target


@click.command(epilog="Example: novasvc cast --fanout agent refresh")
@request_options
@pass_command_context
def cast(context: CommandContext, target: Target, method: str, arguments: dict[str, Any]) -> None:
    """Send a request for METHOD to one service of TOPIC, to the service on HOST, or with --fanout to all.

    Return once the broker, or the process that serves it, has taken the request. It waits in the queue if no service is
    running. If there is no queue, because no service of this name has ever run, or without a broker no process serves
    it, the command fails; with --fanout such a request is dropped. Write the arguments as for `novasvc call`.
    """

    async def work(client: Any, _reactor: Any) -> None:
        await client.cast(RequestContext.admin(), method, **arguments)

    run_with_client(context.configuration.settings, target, work, (method, arguments))
