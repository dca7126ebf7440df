"""`python -m tests.walks [--json FILE] [--steps WALK] [WALK ...]`: print how long the walks are.

Each unit of work is done several times when it is warm, and the shortest counts: what a timer of the process adds
to one of them is left out.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.task import react

from tests.servers.rabbitmq import Broker
from tests.walks.recorder import Walk, figures
from tests.walks.units import WITHOUT_SERVER, rpc_amqp

WALKS = ("rpc_amqp", *WITHOUT_SERVER)


def walk_all(names: Sequence[str]) -> dict[str, Walk]:
    """Walk these, of :data:`WALKS`; for ``rpc_amqp`` a RabbitMQ is started."""
    walks = {}
    for name in names:
        walks[name] = _over_rabbitmq() if name == "rpc_amqp" else WITHOUT_SERVER[name]()
    return walks


def _over_rabbitmq() -> Walk:
    walks: list[Walk] = []

    async def main(reactor: Any, url: str) -> None:
        walks.append(await rpc_amqp(reactor, url))

    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder) / "broker") as broker:
        try:
            react(main, [broker.url(broker.new_vhost())])
        except SystemExit as ended:  # as react always ends
            if ended.code:
                raise
    return walks[0]


def main(words: Sequence[str] | None = None) -> None:
    """Print the figures, and keep them.

    :param words: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.walks", description=__doc__)
    parser.add_argument("walks", nargs="*", default=WALKS, metavar="WALK", help=f"of {', '.join(WALKS)}; all of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one flat object: figure name to number")
    parser.add_argument("--steps", action="store_true", help="print the calls of each walk as well, in order")
    arguments = parser.parse_args(words)
    unknown = set(arguments.walks) - set(WALKS)
    if unknown:
        parser.error(f"no such walk: {', '.join(sorted(unknown))}")
    found: dict[str, int] = {}
    for name, walk in walk_all(arguments.walks).items():
        found |= {f"walks.{name}.{what}": number for what, number in figures(walk).items()}
        if arguments.steps:
            for step in walk:
                print(f"{step.file:34} {step.function}")
    for name, number in found.items():
        print(name, number)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
