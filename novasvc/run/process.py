"""Signal handling and systemd notification for a process with one service tree."""

import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IProcessControl
from novasvc.node.process_control import process_control
from novasvc.node.tree import ServiceTree
from novasvc.run.forced_exit import ExitSignals, read_stacks, schedule_forced_exit
from novasvc.run.process_end import stop_reactor
from novasvc.run.restart import restart_process
from novasvc.telemetry import flight
from novasvc.telemetry.stalls import StallWatch
from novasvc.workers.exit_status import ABANDON_DELAY, KILL_DELAY, interrupt
from novasvc.workers.signals import Signals
from novasvc.workers.systemd import SystemdNotifier, Watchdog

_log = Logger()

IMMEDIATE_STOP_TIMEOUT = 2.0
"""Seconds for a process to exit when it must stop immediately."""

_ABANDON_AFTER = 1.5
"""Seconds of IMMEDIATE_STOP_TIMEOUT after which parts that have not stopped are abandoned."""


@implementer(IProcessControl)
class Process(MultiService):
    """Handles signals and notifies systemd for a process with one service tree.

    SIGTERM stops the reactor, which drains the tree; work that outlasts the deadline is cancelled. A second
    SIGTERM, or SIGINT, stops immediately. SIGHUP restarts the tree. SIGUSR2 logs stacks and events. A node may ask for
    a reload, as by SIGHUP, and for a restart of the whole process: see :mod:`novasvc.run.restart`.

    :param reactor: provides IReactorCore, IReactorFromThreads and IReactorTime.
    :param tree: the whole process; for its parts see :class:`~novasvc.interfaces.IInterruptible`.
    :param restart: coroutine function: reads the configuration again, and restarts the tree.
    :param grace: returns the drain timeout in seconds, 0 for no limit.
    :param environ: has systemd's variables; None is os.environ.
    :param schedule_exit: called with the number of the signal and the seconds until the forced exit, as
        :func:`schedule_forced_exit` is.
    :param run_again: stops the reactor, and runs the program again; see :func:`novasvc.run.restart.restart_process`.
    :ivar signo: the signal that ends the process; None if none has come.
    :ivar stopping_now: an immediate stop was requested.
    """

    def __init__(
        self,
        reactor: Any,
        tree: ServiceTree,
        restart: Callable[[], Coroutine[Deferred[Any], Any, None]],
        grace: Callable[[], float],
        *,
        environ: Mapping[str, str] | None = None,
        schedule_exit: Callable[[int, float], object] = schedule_forced_exit,
        run_again: Callable[[Any, Callable[[], bool]], object] = restart_process,
    ) -> None:
        super().__init__()
        environ = os.environ if environ is None else environ
        self.signo: int | None = None
        self._reactor = reactor
        self._tree = tree
        self._restart = restart
        self._grace = grace
        self._schedule_exit = schedule_exit
        self._run_again = run_again
        self._restarts_under_way = 0
        self._reloads_ended = 0
        self._reload_problem: str | None = None
        self._executes_again = False
        self._exit_signals = ExitSignals()
        self.stopping_now = False
        self._shutdown_trigger: Any = None
        self._drain_timer: IDelayedCall | None = None
        self._abandon_timer: IDelayedCall | None = None
        self._notifier = SystemdNotifier(environ)
        self._stalls = StallWatch(flight.installed(), reactor)
        self._signals = Signals(
            reactor,
            {
                signal.SIGTERM: self._handle_sigterm,
                signal.SIGINT: self._handle_sigint,
                signal.SIGHUP: self._handle_sighup,
                signal.SIGUSR2: log_dump,
            },
            self._handle_signal,
        )
        self._signals.setServiceParent(self)
        Watchdog(self._notifier, environ, reactor).setServiceParent(self)

    def startService(self) -> None:
        """Install the handlers; called just before the tree starts."""
        super().startService()
        process_control.set(self._reactor, self)
        self._shutdown_trigger = self._reactor.addSystemEventTrigger("before", "shutdown", self._shutting_down)
        self._reactor.callWhenRunning(self._stalls.start)
        # The tree logs a failed start.
        self._tree.when_started().addCallbacks(lambda _: self._notifier.ready("running"), lambda _: None)

    def stopService(self) -> Deferred[Any]:
        """Remove the handlers; called when the tree has stopped."""
        process_control.set(self._reactor, None)
        self._stalls.stop()
        for timer in (self._drain_timer, self._abandon_timer):
            if timer is not None and timer.active():
                timer.cancel()
        trigger, self._shutdown_trigger = self._shutdown_trigger, None
        if trigger is not None:
            self._reactor.removeSystemEventTrigger(trigger)
        stopped: Deferred[Any] = super().stopService()
        return stopped

    # -- stop ----------------------------------------------------------------------------------

    def _handle_signal(self, number: int) -> None:
        """Handle a signal at whatever point it interrupts the process.

        See Note [Forced exit] in :mod:`novasvc.run.forced_exit`.
        """
        asked = self._exit_signals.note(number)
        if asked == "stop now":
            for each in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(each) != signal.SIG_IGN:  # a background job ignores SIGINT
                    signal.signal(each, signal.SIG_DFL)
            self._schedule_exit(number, IMMEDIATE_STOP_TIMEOUT)
        elif asked == "drain" and (grace := self._grace()):
            self._schedule_exit(number, grace + KILL_DELAY)

    def _handle_sigterm(self) -> None:
        if self.signo is None:
            _log.info("SIGTERM: draining; exiting when running work is done")
            if grace := self._grace():
                self._drain_timer = self._reactor.callLater(grace, self._drain_timed_out, grace)
            self._begin_stop(signal.SIGTERM)
        else:
            self._stop_now(signal.SIGTERM)

    def _drain_timed_out(self, grace: float) -> None:
        """Cancel work that remains after the drain deadline."""
        self._drain_timer = None
        _log.error(
            "graceful_shutdown_timeout ({grace:g} s) expired: cancelling running work",
            grace=grace,
        )
        self._interrupt(ABANDON_DELAY)

    def _handle_sigint(self) -> None:
        self._stop_now(signal.SIGINT)

    def _begin_stop(self, number: int) -> None:
        self.signo = number
        self._notifier.stopping()
        # The reactor's own handler makes twistd exit by the signal. Not if the reactor is stopping already.
        if self._shutdown_trigger is not None and not self._signals.resume(number):
            stop_reactor(self._reactor)

    def _stop_now(self, number: signal.Signals) -> None:
        _log.warn("{signal}: stopping this process now", signal=number.name)
        self.stopping_now = True
        if self.signo is None:
            self._begin_stop(number)
        if self._shutdown_trigger is None:
            self._interrupt(_ABANDON_AFTER)

    def _shutting_down(self) -> None:
        self._shutdown_trigger = None
        if self.stopping_now:
            self._interrupt(_ABANDON_AFTER)

    def _interrupt(self, seconds: float) -> None:
        """Make the tree cancel its work.

        :param seconds: after which parts are abandoned.
        """
        self._tree.stopService()
        interrupt(self._tree)
        if self._abandon_timer is not None and self._abandon_timer.active():
            seconds = min(seconds, self._abandon_timer.getTime() - self._reactor.seconds())
            self._abandon_timer.cancel()
        self._abandon_timer = self._reactor.callLater(max(0.0, seconds), self._tree.abandon)

    def drain(self) -> None:
        """See :class:`~novasvc.interfaces.IProcessControl`."""
        if self.signo is not None or self._exit_signals.count:
            _log.warn("not draining: this process is stopping")
            return
        os.kill(os.getpid(), signal.SIGTERM)

    # -- restart of the process -----------------------------------------------------------------

    def restart(self) -> None:
        """See :class:`~novasvc.interfaces.IProcessControl`."""
        if self.signo is not None or self._executes_again or self._shutdown_trigger is None:
            _log.warn("not restarting: this process is stopping")
            return
        _log.info("restarting this process: draining first")
        self._executes_again = True
        # systemd sees a reload: after STOPPING=1 it would wait for the end of the process.
        self._notifier.reloading()
        if grace := self._grace():
            self._drain_timer = self._reactor.callLater(grace, self._drain_timed_out, grace)
            schedule_forced_exit(signal.SIGTERM, grace + KILL_DELAY, restarts=self._is_restarting)
        self._run_again(self._reactor, self._is_restarting)

    def _is_restarting(self) -> bool:
        # The reactor may be blocked: then only the counter shows that a signal asks for an exit.
        return self._executes_again and self.signo is None and not self._exit_signals.count

    # -- restarts of the services ---------------------------------------------------------------

    def begin_reload(self) -> None:
        """See :class:`~novasvc.interfaces.IProcessControl`."""
        self._handle_sighup()

    def reload_report(self) -> dict[str, Any]:
        """See :class:`~novasvc.interfaces.IProcessControl`."""
        under_way = self._restarts_under_way > 0
        return {"ended": self._reloads_ended, "under_way": under_way, "problem": self._reload_problem}

    def _handle_sighup(self) -> None:
        if not self._tree.can_restart:
            _log.warn("SIGHUP ignored: the services are {state}", state=self._tree.state)
            return
        if self._restarts_under_way:
            _log.info("SIGHUP: superseding the restart under way")
        self._restarts_under_way += 1
        self._notifier.reloading()
        Deferred.fromCoroutine(self._restart()).addBoth(self._restarted)

    def _restarted(self, result: object) -> None:
        self._restarts_under_way -= 1
        self._reloads_ended += 1
        self._reload_problem = _problem_of(result) if isinstance(result, Failure) else None
        if self.signo is not None or (self._restarts_under_way and not isinstance(result, Failure)):
            return
        if not isinstance(result, Failure):
            _log.info("services restarted")
        elif result.check(NovasvcError):
            _log.error("SIGHUP: {error}", error=result.value)
        else:
            _log.failure("SIGHUP: restarting the services failed", result)
        if self._tree.state == "running":
            self._notifier.ready("running")


def _problem_of(failure: Failure) -> str:
    return str(failure.value) if isinstance(failure.value, NovasvcError) else describe(failure.value)  # type: ignore[arg-type]


def log_dump() -> None:
    """Log the stacks of all threads and the last events."""
    events = flight.dump_text(flight.installed())
    _log.info("stacks:\n{stacks}\nlast events:\n{events}", stacks=read_stacks(), events=events)
