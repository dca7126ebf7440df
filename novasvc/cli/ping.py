"""``novasvc ping``: check that a service responds, and how fast."""

from typing import Any

import attrs
import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import printable
from novasvc.cli.remote import TIMEOUT, Seconds, run_with_client, target_options
from novasvc.context import RequestContext
from novasvc.rpc.errors import RPCError, UndeliverableError
from novasvc.rpc.failures.reply import wait_for_reply
from novasvc.rpc.target import Target


@click.command()
@target_options
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Number of calls.")
@click.option(
    "--interval", type=Seconds(min=0), default=0.5, show_default=True, metavar="SECONDS", help="Time between two calls."
)
@click.option(
    "--timeout",
    type=TIMEOUT,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Timeout of each call.",
)
@pass_command_context
def ping(context: CommandContext, target: Target, count: int, interval: float, timeout: float) -> int:
    """Ping a service of TOPIC, or the one on HOST, and print the round-trip times.

    Every service responds, whatever its manager. The first reply takes longer, because it includes the setup of the
    reply queue. The exit status is 1 if a reply is missing.
    """
    rpc_target = attrs.evolve(target, namespace="baseapi", version="1.0")

    async def work(client: Any, reactor: Any) -> int:
        from twisted.internet.task import deferLater  # noqa: PLC0415 - `--help` does not need it

        from novasvc.cli.hints import explained  # noqa: PLC0415

        unserved: RPCError | None = None
        pinging, answered = client.prepare(timeout=timeout, idempotent=True), 0
        for number in range(1, count + 1):
            if number > 1:
                await deferLater(reactor, interval)
            begun = reactor.seconds()
            try:
                answer = await wait_for_reply(pinging.call(RequestContext.admin(), "ping", arg=number))
            except RPCError as error:
                unserved = error if isinstance(error, UndeliverableError) else None
                click.echo(f"{number}: {printable(error)}", err=True)
            else:
                answered += 1
                service = answer.get("service") if isinstance(answer, dict) else answer
                click.echo(f"{number}: {printable(service)} responded in {(reactor.seconds() - begun) * 1000:.1f} ms")
        click.echo(f"{answered} of {count} calls answered")
        if unserved is not None:
            hint = await explained(unserved, context.configuration.settings, client, reactor, rpc_target, ("", {}))
            click.echo(f"novasvc: {hint}", err=True)
        return 0 if answered == count else 1

    return run_with_client(context.configuration.settings, rpc_target, work)
