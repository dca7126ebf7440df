"""``novasvc call``: call a method of a service."""

import json
from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import printable_lines
from novasvc.cli.remote import TIMEOUT, Seconds, request_options, wait_for_reply, with_client
from novasvc.context import RequestContext
from novasvc.rpc.target import Target


@click.command(epilog="Example: novasvc call agent.host1 get_host_facts")
@request_options
@click.option(
    "--timeout", type=TIMEOUT, metavar="SECONDS", help="How long to wait.  [default: the setting rpc_response_timeout]"
)
@click.option(
    "--call-monitor",
    type=Seconds(min=2),
    metavar="SECONDS",
    help="Wait as long as the service says, at least so often, that the method runs; and --timeout, if it is given.",
)
@click.option(
    "--idempotent",
    is_flag=True,
    help="METHOD is safe to run twice: send the request again if the broker did not confirm it.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON on one line.")
@pass_command_context
def call(
    context: CommandContext,
    target: Target,
    method: str,
    arguments: dict[str, Any],
    timeout: float | None,
    call_monitor: float | None,
    idempotent: bool,  # noqa: FBT001 - click's
    as_json: bool,  # noqa: FBT001 - click's
) -> None:
    """Call METHOD of the services of a topic, or of the one on HOST, and write what it returns.

    All after the first dot of TOPIC.HOST is the host. A VALUE that is JSON is taken as JSON, any other as a text:
    count=3 is a number, name=disk a text, name='"3"' a text as well, 'sizes=[1,2]' a list.

    With --fanout every service of the topic runs the method, and there is no result to wait for.
    """

    async def work(client: Any, _reactor: Any) -> None:
        client = client.prepare(idempotent=idempotent)
        if target.fanout:
            await client.cast(RequestContext.admin(), method, **arguments)
            click.echo(f"sent to {target}; their results do not come back", err=True)
            return
        if call_monitor is not None:
            client = client.prepare(timeout=timeout, call_monitor_timeout=call_monitor)
        elif timeout is not None:
            client = client.prepare(timeout=timeout)
        result = await wait_for_reply(client.call(RequestContext.admin(), method, **arguments))
        # Before the connections are closed, which may take a moment.
        click.echo(json.dumps(result) if as_json else readable(result))

    with_client(context.configuration.settings, target, work)


def readable(result: Any) -> str:
    """Write a result for a person: texts as they are, all else as indented JSON; nothing steers the terminal."""
    text = result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False)
    return printable_lines(text)
