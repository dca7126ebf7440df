"""cotyledon's ServiceManager, at its default options: ``... cotyledon WORKERS``.

It knows that a worker's process is there, not whether its service has started. Each worker has
three threads; two processes are begun at least 10 ms apart.
"""

import sys

import cotyledon

from tests.benchmarks.peers.telling import tell_up


class Idle(cotyledon.Service):  # type: ignore[misc]
    """Tells that it is up, and does nothing."""

    def run(self) -> None:
        """Tell."""
        tell_up()


def main(workers: str) -> None:
    """Run that many workers until SIGTERM."""
    manager = cotyledon.ServiceManager()
    manager.add(Idle, workers=int(workers))
    manager.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
