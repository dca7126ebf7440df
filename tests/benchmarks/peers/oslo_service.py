"""oslo.service's ProcessLauncher on eventlet, at its default options: ``... oslo_service WORKERS``.

It knows that a worker's process is there, not whether its service has started. The supervisor
looks for dead processes every 10 ms.
"""

# ruff: noqa: E402 - eventlet has to be first
import eventlet

eventlet.monkey_patch()

import sys

from oslo_config import cfg
from oslo_service import backend

backend.init_backend(backend.BackendType.EVENTLET)

from oslo_service import service

from tests.benchmarks.peers.telling import tell_up


class Idle(service.Service):  # type: ignore[misc]
    """Tells that it is up, and does nothing."""

    def start(self) -> None:
        """Tell."""
        tell_up()


def main(workers: str) -> None:
    """Run that many workers until SIGTERM."""
    cfg.CONF([], project="benchmark")
    launcher = service.ProcessLauncher(cfg.CONF)
    launcher.launch_service(Idle(), workers=int(workers))
    launcher.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
