"""``novasvc fleet ping``: check that services respond, and how fast."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.fleet_connections import FleetConnections
from novasvc.cli.fleet_options import json_option, selection_options
from novasvc.cli.output import printable
from novasvc.cli.progress import ProgressBar
from novasvc.cli.remote import TIMEOUT
from novasvc.fleet.selection import Selection
from novasvc.registry.outages import VerdictRule
from novasvc.registry.verdict import Verdict
from novasvc.registry.verdicts import judge_some

if TYPE_CHECKING:
    from novasvc.fleet.ping import Pong

_LINES = 100
"""Services that answered and are printed each; of more, only the number is. Those that did not answer all are."""


@click.command()
@click.option(
    "--timeout", type=TIMEOUT, default=5.0, show_default=True, metavar="SECONDS", help="Time of each service."
)
@json_option
@selection_options
@pass_command_context
def ping(context: CommandContext, timeout: float, as_json: bool, selection: Selection) -> int:  # noqa: FBT001 - click's
    """Ping services, a hundred at a time, and print those that do not respond.

    Services that are down are pinged as well. The exit status is 1 if a service does not respond.
    """
    return context.with_fleet(lambda connections: ping_fleet(connections, selection, timeout, as_json=as_json))


async def ping_fleet(connections: FleetConnections, selection: Selection, seconds: float, *, as_json: bool) -> int:
    """Ping the selected services; return the exit status.

    :param seconds: that each has.
    """
    from novasvc.cli.fleet_operations import none_selected, select  # noqa: PLC0415 - `--help` does not need it
    from novasvc.fleet.ping import ping_all  # noqa: PLC0415

    chosen, records = await select(connections, selection)
    if not chosen:
        return none_selected(selection, records)
    calls = await connections.connect()
    began, ended = connections.clock.seconds(), 0

    with ProgressBar("ping") as bar:

        def answered(pong: "Pong") -> None:
            nonlocal ended
            ended += 1
            if as_json:
                milliseconds = None if pong.seconds is None else round(pong.seconds * 1000, 3)
                line = {"service": pong.record.name, "milliseconds": milliseconds, "problem": pong.problem}
                click.echo(json.dumps(line))
            elif bar.shown:
                bar.update(ended / len(chosen), f"{ended} of {len(chosen)}")

        pongs = await ping_all(chosen, calls, seconds, answered)
    seconds = connections.clock.seconds() - began
    silent = [pong for pong in pongs if pong.seconds is None]
    if not as_json:
        rule = VerdictRule.of(connections.settings)
        verdicts = await judge_some(connections.registry, [pong.record for pong in silent], rule) if silent else []
        _print(pongs, silent, verdicts, seconds)
    return 1 if silent else 0


def _print(pongs: list["Pong"], silent: list["Pong"], verdicts: Sequence[Verdict], seconds: float) -> None:
    answered = [pong for pong in pongs if pong.seconds is not None]
    for pong in answered if len(answered) <= _LINES else ():
        click.echo(f"{printable(pong.record.name)} responded in {(pong.seconds or 0) * 1000:.1f} ms")
    for pong, verdict in zip(silent, verdicts, strict=True):
        known = "" if verdict.status == "alive" else f"; {verdict.status}: {verdict.reason}"
        click.echo(f"{printable(pong.record.name)}: {printable(pong.problem)}{printable(known)}")
    times = sorted(pong.seconds or 0 for pong in answered)
    median = f"; half of them within {times[len(times) // 2] * 1000:.1f} ms" if times else ""
    click.echo(f"{len(answered)} of {len(pongs)} services responded in {seconds:.1f} s{median}")
