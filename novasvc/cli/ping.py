"""``novasvc ping``: see that a service answers, and how fast."""

from typing import Any

import attrs
import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import printable
from novasvc.cli.remote import TIMEOUT, Seconds, read_target, wait_for_reply, with_client
from novasvc.context import RequestContext
from novasvc.errors import RPCError


@click.command()
@click.argument("target", metavar="TOPIC[.HOST]")
@click.option("--server", metavar="HOST", help="The host, where the topic itself has a dot.")
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="How often.")
@click.option(
    "--interval", type=Seconds(min=0), default=0.5, show_default=True, metavar="SECONDS", help="Time between."
)
@click.option(
    "--timeout",
    type=TIMEOUT,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each answer.",
)
@pass_command_context
def ping(context: CommandContext, target: str, server: str | None, count: int, interval: float, timeout: float) -> int:
    """Call the services of a topic, or the one on HOST, and write how long each answer took.

    Every service answers, whatever its manager is. The first answer takes longer, as a way back is made for it.
    The status is 1 if an answer is missing.
    """
    whom = attrs.evolve(read_target(target, server), namespace="baseapi", version="1.0")

    async def work(client: Any, reactor: Any) -> int:
        from twisted.internet.task import deferLater  # noqa: PLC0415 - `--help` does not need it

        pinging, answered = client.prepare(timeout=timeout, idempotent=True), 0
        for number in range(1, count + 1):
            if number > 1:
                await deferLater(reactor, interval)
            begun = reactor.seconds()
            try:
                answer = await wait_for_reply(pinging.call(RequestContext.admin(), "ping", arg=number))
            except RPCError as error:
                click.echo(f"{number}: {printable(error)}", err=True)
            else:
                answered += 1
                service = answer.get("service") if isinstance(answer, dict) else answer
                click.echo(f"{number}: {printable(service)} answers in {(reactor.seconds() - begun) * 1000:.1f} ms")
        click.echo(f"{answered} of {count} answered")
        return 0 if answered == count else 1

    return with_client(context.configuration.settings, whom, work)
