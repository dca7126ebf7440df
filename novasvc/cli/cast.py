"""``novasvc cast``: have a method run, and wait for no result."""

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
    """Have a service of the topic, or the one on HOST, run METHOD; done when the broker has the message.

    Nobody may be there to run it: it then waits for who comes, if somebody ever was. Arguments are written as
    those of `novasvc call`.
    """

    async def work(client: Any, _reactor: Any) -> None:
        await client.cast(RequestContext.admin(), method, **arguments)

    with_client(context.configuration.settings, target, work)
