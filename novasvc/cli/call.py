"""``novasvc call``: call an RPC method of a service."""

import json
from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import printable_lines
from novasvc.cli.remote import TIMEOUT, Seconds, request_options, run_with_client, wait_for_reply
from novasvc.context import RequestContext
from novasvc.rpc.target import Target


@click.command(epilog="Example: novasvc call agent.host1 get_host_facts")
@request_options
@click.option(
    "--timeout",
    type=TIMEOUT,
    metavar="SECONDS",
    help="Timeout of the call.  [default: the setting rpc_response_timeout]",
)
@click.option(
    "--call-monitor",
    type=Seconds(min=2),
    metavar="SECONDS",
    help="Wait as long as the service sends RPC heartbeats at least this often, up to --timeout if given.",
)
@click.option(
    "--idempotent",
    is_flag=True,
    help="METHOD is safe to run twice: resend the request if the broker does not confirm it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on one line.")
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
    """Call METHOD of a service of TOPIC, or of the one on HOST, and print the result.

    In TOPIC.HOST, the host starts after the first dot. `novasvc describe TOPIC` lists the methods.

    A VALUE that is valid JSON is passed as JSON, any other as a string. So count=3 is a number, name=disk a string,
    force=true a boolean, 'sizes=[1, 2]' a list, 'name="3"' a string, and count=3x a string as well. The shell removes
    quotes: write JSON that has quotes or spaces in single quotes.

    With --fanout every service of the topic runs the method, and no result is returned.
    """

    async def work(client: Any, _reactor: Any) -> None:
        client = client.prepare(idempotent=idempotent)
        if target.fanout:
            await client.cast(RequestContext.admin(), method, **arguments)
            click.echo(f"sent to {target}; a fanout returns no results", err=True)
            return
        if call_monitor is not None:
            client = client.prepare(timeout=timeout, call_monitor_timeout=call_monitor)
        elif timeout is not None:
            client = client.prepare(timeout=timeout)
        result = await wait_for_reply(client.call(RequestContext.admin(), method, **arguments))
        # Print now: closing the connections may take a moment.
        click.echo(json.dumps(result) if as_json else readable(result))

    run_with_client(context.configuration.settings, target, work, (method, arguments))


def readable(result: Any) -> str:
    """Format a result for people: a string as it is, anything else as indented JSON, control characters escaped."""
    text = result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False)
    return printable_lines(text)
