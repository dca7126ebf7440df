"""Nova's ``serve`` and ``wait``, for plain scripts."""

from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from novasvc.reactor.local import ReactorLocal
from novasvc.reactor.monotonic import use_monotonic_clock
from novasvc.run.launcher import ServiceLauncher
from novasvc.run.process_launcher import ProcessLauncher

_T = TypeVar("_T")

_launchers: ReactorLocal[ServiceLauncher | ProcessLauncher | None] = ReactorLocal(lambda _: None)
"""The launcher of serve(), until wait() returns. Nova's API has no object that could hold it."""


def serve(server: Any, workers: int | None = None) -> None:
    """Launch a server; :func:`wait` runs it.

    Logs to standard output, by the settings log_level and log_json.

    :param server: provides IService; see :meth:`novasvc.service.Launcher.launch_server` and, with
        workers, :meth:`novasvc.service.ProcessLauncher.launch_server`.
    :param workers: number of supervised processes; None or 0 runs the server in this process.
    :raises RuntimeError: serve() was called before.
    :raises NovasvcError: the settings are invalid, or the server cannot run in workers.
    Source: nova.service.serve.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor

    if _launchers.get(reactor) is not None:
        raise RuntimeError("serve() was already called; use a launcher to run several servers")
    use_monotonic_clock(reactor)
    launcher: ServiceLauncher | ProcessLauncher
    if workers:
        launcher = ProcessLauncher(reactor=reactor)
        launcher.launch_server(server, workers=workers)
    else:
        launcher = ServiceLauncher(reactor)
        launcher.launch_server(server)
    _launchers.set(reactor, launcher)


def wait() -> Deferred[None] | None:
    """Run the server of serve() until it ends.

    :return: None if this ran the reactor; if it is running already, a Deferred that fires at the end, and fails with
        the error of a server that did not start or failed.
    :raises SignalExit: a signal ended it (without workers).
    :raises SystemExit: the server did not start, it failed while running, or its workers could not run: with status 1,
        or with the status of its own SystemExit.
    :raises RuntimeError: serve() was not called.
    Source: nova.service.wait.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor

    launcher = _launchers.get(reactor)
    if launcher is None:
        raise RuntimeError("nothing to wait for: call serve(server) before wait()")

    def forget(result: _T) -> _T:
        _launchers.set(reactor, None)
        return result

    try:
        waiting = launcher.wait()
    except BaseException:
        forget(None)
        raise
    return forget(None) if waiting is None else waiting.addBoth(forget)
