"""How a script waits for its servers: the reactor runs until a launcher has ended, and the status says how."""

import atexit
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRestartable
from twisted.python.failure import Failure

from novasvc._compat import is_log_begun
from novasvc.config import Settings
from novasvc.run.process_end import stop_reactor
from novasvc.run.script_log import begin_logging
from novasvc.workers.exit_status import status_of

SIGNALLED = 1
"""Exit status after a signal, as in Nova."""


class SignalExit(SystemExit):
    """Raised when a signal ended the process.

    :param signo: the signal's number.
    :param exccode: the exit status.
    Source: nova.service.SignalExit.
    """

    def __init__(self, signo: int, exccode: int = SIGNALLED) -> None:
        super().__init__(exccode)
        self.signo = signo


def run_until_ended(launcher: Any, reactor: Any, settings: Callable[[], Settings]) -> Deferred[None] | None:
    """Wait for the end of a launcher; run the reactor unless it is running.

    Logs to standard output if logging has not begun: see :func:`novasvc.run.script_log.begin_logging`.

    :param launcher: provides IWaitable, and has startService, stopService and state.
    :param settings: returns the log settings; called only if logging has not begun.
    :return: None if this ran the reactor, else a Deferred that fires at the end.
    :raises SystemExit: with status 1 if the launcher failed, or with the status of a server's own SystemExit.
    :raises RuntimeError: the reactor has run before, and cannot be restarted.
    """

    def begin() -> Deferred[None]:
        reactor.addSystemEventTrigger("before", "shutdown", launcher.stopService)
        if launcher.state == "initial":
            launcher.startService()
        ended: Deferred[None] = launcher.when_ended()
        return ended

    # Another reactor than the global one is a test's, and so is the log.
    if reactor is sys.modules.get("twisted.internet.reactor") and not is_log_begun():
        begin_logging(settings())
    if reactor.running:
        return begin()
    outcome: list[Failure | None] = []

    def end(result: Failure | None) -> None:
        outcome.append(result)
        stop_reactor(reactor)

    reactor.callWhenRunning(lambda: begin().addBoth(end))
    with _handlers_given_back():
        try:
            reactor.run()
        except ReactorNotRestartable:
            raise RuntimeError(
                "the reactor has already run and cannot be restarted: call wait() once, for all servers"
            ) from None
    if outcome and outcome[0] is not None:
        raise SystemExit(exit_status(outcome[0].value))
    return None


@contextmanager
def _handlers_given_back() -> Iterator[None]:
    """Restore signal handlers after reactor.run(): Twisted leaves its own, which would swallow later signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


# Note [Signals after the end]
#
# After wait(), the script has its own handlers again, and SIGTERM kills it like any program. But a script whose wait()
# was ended by a signal is about to exit with its status. A second SIGTERM during interpreter shutdown (sent to a
# process group and to its leader, or by an impatient operator) would turn a clean drain into "killed by SIGTERM".
# So interpreter shutdown ignores both signals.


def ignore_signals_at_exit() -> None:
    """Ignore SIGTERM and SIGINT during interpreter shutdown, unless the script has its own handlers.

    Called when a signal has ended wait(). See Note [Signals after the end].
    """

    @atexit.register
    def ignore() -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:
                    signal.signal(number, signal.SIG_IGN)


def exit_status(problem: BaseException | None) -> int:
    """Return the exit status of a process whose servers ended with an error."""
    return status_of(problem) if isinstance(problem, SystemExit) else 1
