"""What a plain script needs: serve a server, and wait."""

from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from novasvc.reactor.monotonic import use_monotonic_clock
from novasvc.run.launcher import ServiceLauncher
from novasvc.run.process_launcher import ProcessLauncher

_T = TypeVar("_T")

_launcher: ServiceLauncher | ProcessLauncher | None = None
"""What serve has made, until wait is over. One in a process, as there is one reactor."""


def serve(server: Any, workers: int | None = None) -> None:
    """Launch a server; :func:`wait` runs it.

    The log goes to standard output, as the settings log_level and log_json say, as it does with a launcher of your own.

    :param server: provides IService; see :meth:`novasvc.service.Launcher.launch_server` and, with
        workers, :meth:`novasvc.service.ProcessLauncher.launch_server`.
    :param workers: processes that run it, supervised; None or 0 is this one process.
    :raises RuntimeError: another server is being served.
    :raises NovasvcError: the settings have an error, or the server cannot run in workers.
    Source: nova.service.serve.
    """
    global _launcher  # noqa: PLW0603 - Nova's scripts have no object to hold it
    if _launcher is not None:
        raise RuntimeError("serve() was called before, and can be called once: use a launcher for several servers")
    from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor

    use_monotonic_clock(reactor)
    launcher: ServiceLauncher | ProcessLauncher
    if workers:
        launcher = ProcessLauncher(reactor=reactor)
        launcher.launch_server(server, workers=workers)
    else:
        launcher = ServiceLauncher(reactor)
        launcher.launch_server(server)
    _launcher = launcher


def wait() -> Deferred[None] | None:
    """Run what was served until it has ended.

    :return: None, if this ran the reactor; where it runs already, a Deferred that fires at the end.
    :raises SignalExit: a signal ended it, where it ran in this one process.
    :raises SystemExit: with status 1, if it did not start, or its workers could not run.
    :raises RuntimeError: nothing was served.
    Source: nova.service.wait.
    """
    if _launcher is None:
        raise RuntimeError("nothing was served: call serve(server) before wait()")
    try:
        waiting = _launcher.wait()
    except BaseException:
        _forget(None)
        raise
    return _forget(None) if waiting is None else waiting.addBoth(_forget)


def _forget(result: _T) -> _T:
    global _launcher  # noqa: PLW0603 - see serve
    _launcher = None
    return result
