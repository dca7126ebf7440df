"""``novasvc call``: call an RPC method of a service."""

import json
from typing import Any

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.gather import print_answers
from novasvc.cli.output import printable_lines
from novasvc.cli.progress import ProgressBar
from novasvc.cli.remote import TIMEOUT, Seconds, request_options, run_with_client
from novasvc.context import RequestContext
from novasvc.rpc.failures.reply import wait_for_reply
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
@click.option(
    "--gather", is_flag=True, help="Call every service of the topic, and print the result of each host as it arrives."
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
    gather: bool,  # noqa: FBT001 - click's
    as_json: bool,  # noqa: FBT001 - click's
) -> int:
    """Call METHOD of a service of TOPIC, or of the one on HOST, and print the result.

    In TOPIC.HOST, the host starts after the first dot. `novasvc describe TOPIC` lists the methods.

    A VALUE that is valid JSON is passed as JSON, any other as a string. So count=3 is a number, name=disk a string,
    force=true a boolean, 'sizes=[1, 2]' a list, 'name="3"' a string, and count=3x a string as well. The shell removes
    quotes: write JSON that has quotes or spaces in single quotes.

    With --fanout every service of the topic runs the method, and no result is returned. With --gather each of them
    answers, until all have that are up according to the registry, or the timeout; the exit status is 1 if one failed or
    is missing.

    If METHOD reports its progress, a terminal shows it. An interrupt (Ctrl-C) cancels the method, too.
    """
    if gather and (target.server is not None or target.fanout or call_monitor is not None):
        problem = "--gather calls every service of a topic; give no host, and neither --fanout nor --call-monitor."
        raise click.UsageError(problem, click.get_current_context(silent=True))

    waiting = False

    async def work(client: Any, _reactor: Any) -> int:
        nonlocal waiting
        client = client.prepare(idempotent=idempotent)
        if target.fanout:
            await client.cast(RequestContext.admin(), method, **arguments)
            click.echo(f"sent to {target}; a fanout returns no results", err=True)
            return 0
        if call_monitor is not None:
            client = client.prepare(timeout=timeout, call_monitor_timeout=call_monitor)
        elif timeout is not None:
            client = client.prepare(timeout=timeout)
        if gather:
            return await print_answers(client.gather(RequestContext.admin(), method, **arguments), as_json=as_json)
        with ProgressBar(method) as bar:
            client = client.prepare(on_progress=bar.update if bar.shown else None)
            waiting = True
            result = await wait_for_reply(client.call(RequestContext.admin(), method, **arguments))
            waiting = False
        # Print now: closing the connections may take a moment.
        click.echo(json.dumps(result) if as_json else readable(result))
        return 0

    try:
        return run_with_client(context.configuration.settings, target, work, (method, arguments))
    except KeyboardInterrupt:
        if waiting:
            click.echo(
                f"\nnovasvc: interrupted; if {target} has the call, it was asked to cancel {method!r}",
                err=True,
                nl=False,
            )
        raise  # click ends the line


def readable(result: Any) -> str:
    """Format a result for people: a string as it is, anything else as indented JSON, control characters escaped."""
    text = result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False)
    return printable_lines(text)
