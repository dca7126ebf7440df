"""One process: launchers that run services, and wait for them."""

from typing import Any

from twisted.internet.defer import Deferred


def run_until_ended(launcher: Any, reactor: Any) -> Deferred[None] | None:
    """Wait for the end of a launcher; run the reactor for that, unless it runs.

    :param launcher: has startService, stopService and when_ended.
    :return: None if this ran the reactor, else a Deferred of the end.
    :raises SystemExit: what the launcher's end failed with, or status 1.
    """
    if reactor.running:
        ended: Deferred[None] = launcher.when_ended()
        return ended
    outcome: list[Any] = []
    stopping: list[bool] = []

    def end(result: Any) -> None:
        outcome.append(result)
        if not stopping:
            reactor.stop()

    def stop() -> Deferred[None]:
        stopping.append(True)
        stopped: Deferred[None] = launcher.stopService()
        return stopped

    def begin() -> None:
        reactor.addSystemEventTrigger("before", "shutdown", stop)
        launcher.startService()
        launcher.when_ended().addBoth(end)

    reactor.callWhenRunning(begin)
    reactor.run()
    if outcome and outcome[0] is not None:
        raise SystemExit(1)
    return None
