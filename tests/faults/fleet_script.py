"""A plain script that runs workers: python -m tests.faults.fleet_script KIND:NAME=WORKERS ...

A kind is one of those below. FLEET_LOG in the environment is where the workers log to.
"""

import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from twisted.logger import globalLogBeginner

from novasvc.node.stream_server import StreamServer
from novasvc.service import ProcessLauncher
from novasvc.telemetry.logs import make_observer
from tests.faults.fleet_parts import Dying, Obedient, echo

KINDS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {"obedient": Obedient, "dying": Dying, "echo": lambda endpoint: StreamServer(endpoint, echo)}
)


def main(*words: str) -> None:
    from twisted.internet import reactor  # noqa: PLC0415 - where a script installs it

    launcher = ProcessLauncher(reactor=reactor, log_file=os.environ.get("FLEET_LOG", ""))
    globalLogBeginner.beginLoggingTo([make_observer(sys.stdout)], redirectStandardIO=False)
    for word in words:
        what, _, workers = word.rpartition("=")
        kind, _, name = what.partition(":")
        launcher.launch_server(KINDS[kind](name), workers=int(workers))
    launcher.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
