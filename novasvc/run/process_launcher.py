"""The launcher for worker processes: connects a supervisor to signals, systemd and the control socket."""

import os
import signal
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.config import Configuration
from novasvc.errors import NovasvcError, StateError, describe
from novasvc.interfaces import IInterruptible, IRebuildable, IReplaceable, IWaitable
from novasvc.node.lifecycle import Lifecycle
from novasvc.node.lifecycle_service import LifecycleService
from novasvc.run.environment import default_settings, load_from_environment
from novasvc.run.forced_exit import ExitSignals, cancel_forced_exit, schedule_forced_exit
from novasvc.run.process_end import end_process, is_only_service, stop_reactor
from novasvc.run.restart import restart_process
from novasvc.run.waiting import SIGNALLED, SignalExit, ignore_signals_at_exit, run_until_ended
from novasvc.telemetry import flight
from novasvc.telemetry.configuration import log_settings
from novasvc.telemetry.logfiles import rotate_at_signal
from novasvc.telemetry.logs import pluralize
from novasvc.telemetry.stalls import StallWatch
from novasvc.workers.control.listener import ControlSocket
from novasvc.workers.errors import OrphansError, WorkerFailedError
from novasvc.workers.exit_status import UNSUPERVISED_GRACE
from novasvc.workers.servers import (
    Reread,
    ServerWrapper,
    Sockets,
    check_names,
    check_workers,
    close_sockets,
    open_sockets,
)
from novasvc.workers.signals import Signals
from novasvc.workers.slot import INTERRUPT_TIMEOUT
from novasvc.workers.specification import pickle_server
from novasvc.workers.supervisor import Supervisor, log_failed_reload
from novasvc.workers.systemd import SystemdNotifier, Watchdog
from novasvc.workers.title import set_title

_log = Logger()

_CHECK_INTERVAL = 1.0
"""Seconds between two checks of the workers."""

_FORCED_EXIT_DELAY = 7.0
"""Seconds after the drain deadline, or after an immediate stop, at which a supervisor that has not exited is killed.

By then its workers have been killed, within INTERRUPT_TIMEOUT, and their forkserver has ended: only a supervisor whose
reactor is blocked is left. Workers that it has not stopped drain by themselves when it is gone.
"""

_ORPHANS_INTERVAL = 0.1
"""Seconds between two attempts to take over the control socket from orphaned workers."""

_ORPHANS_TIMEOUT = 5.0
"""Seconds to wait for orphaned workers beyond their drain timeout."""

_PROGRESS_INTERVAL = 5.0
"""Seconds between two progress lines during a drain."""


@implementer(IInterruptible, IWaitable)
class ProcessLauncher(LifecycleService):
    """Run each server in several worker processes, and restart those that exit.

    An ordinary service: for ``twistd novasvc --workers``, a .tac file, or any application.
    ``launch_server`` and ``wait`` are Nova's names.

    If it is the only service of its application, a failure ends the process with status 1. Beside other
    services a failure is only reported by :meth:`when_ended`.

    :param configuration: the supervisor's settings; None reads the environment.
    :param reactor: None is the global one.
    :param reread: reads the configuration on SIGHUP; None reads the environment, and rebuilds the servers.
    :param log_file: path of the workers' log; "" is standard output. It is opened now: later this process may have
        fewer privileges.
    :raises ProblemError: the log file cannot be opened.
    Source: nova.service.ProcessLauncher.
    """

    def __init__(
        self,
        configuration: Configuration | None = None,
        reactor: Any = None,
        *,
        reread: Reread | None = None,
        log_file: str = "",
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing novasvc must not install a reactor
        self._reactor = reactor
        self._wrappers: list[ServerWrapper] = []
        self._error: WorkerFailedError | None = None
        self._checked_at = 0.0
        self._reload_pending = self._interrupted_work = self._executes_again = False
        self._signo: int | None = None
        self._exit_signals = ExitSignals()
        self._ran_reactor = False
        self._lifecycle = Lifecycle("the supervisor", self._begin, self._end, self._entered)
        self.configuration = configuration or load_from_environment()
        self._reread = reread or self._reread_environment
        self._log_file = log_file
        self._reset()
        self._notifier = SystemdNotifier(os.environ)
        self._watchdog = Watchdog(self._notifier, os.environ, reactor)
        self._stalls = StallWatch(flight.installed(), reactor)
        self._status = ""
        self._signals = Signals(
            reactor,
            {
                signal.SIGTERM: self.terminate,
                signal.SIGINT: self._handle_sigint,
                signal.SIGHUP: self._handle_sighup,
                signal.SIGTTIN: lambda: self._supervisor.resize_all(+1),
                signal.SIGTTOU: lambda: self._supervisor.resize_all(-1),
                signal.SIGUSR2: self._handle_sigusr2,
            },
            self._handle_signal,
        )
        self._checks = self._loop(self._check)
        self._progress = self._loop(self._log_progress)

    def _reset(self) -> None:
        """Create the state of one run, from start to stop."""
        self._has_ended = False
        self._sockets: Sockets | None = None
        self._listen_error: NovasvcError | None = None
        self._settled: Deferred[None] = Deferred()
        self._ends_at: float | None = None
        self._supervisor = Supervisor(self._reactor, self.configuration, self._reread, self._log_file, self)
        self._control = ControlSocket(self.configuration.settings.control_socket, self._supervisor, self._reactor)

    def _loop(self, function: Any) -> LoopingCall:
        loop = LoopingCall(function)
        loop.clock = self._reactor
        return loop

    # -- Nova's names --------------------------------------------------------------------------

    @property
    def children(self) -> dict[int, ServerWrapper]:
        """Process ids of the current workers, each with its server's wrapper."""
        return {pid: wrapper for wrapper in self._supervisor.wrappers for pid in wrapper.children}

    def launch_server(self, server: Any, workers: int = 1) -> None:
        """Add a server, to run in worker processes when this launcher starts.

        :param server: provides IService and can be pickled; or a picklable callable, such as a module-level
            function, that takes the worker's reactor and returns an IService.
        :param workers: number of processes, > 0.
        :raises NotPreforkableError: the server cannot be pickled, or another one has its name.
        :raises ResizeError: the number is invalid.
        :raises StateError: the launcher has started.
        """
        wrapper = ServerWrapper(server, workers)
        if self.state != "initial":
            raise StateError("the launcher", self.state, "take another server")
        check_names([*self._wrappers, wrapper])
        check_workers(workers)
        pickle_server(server)
        self._wrappers.append(wrapper)

    def wait(self) -> Deferred[None] | None:
        """Run the workers until the launcher is stopped.

        :return: None if this ran the reactor; if it is running already, a Deferred that fires at the end.
        :raises SignalExit: a signal stopped it immediately, or a worker was killed: work may be lost.
        :raises SystemExit: with status 1, if the workers cannot run.
        """
        self._ran_reactor = not self._reactor.running
        try:
            waiting = run_until_ended(self, self._reactor, lambda: self.configuration.settings)
        finally:
            if self._ran_reactor:
                cancel_forced_exit()
        if self._ran_reactor and self._signo is not None:
            ignore_signals_at_exit()
            if self._interrupted_work:
                raise SignalExit(self._signo)
        return waiting

    # -- Twisted's names -----------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Open the listening sockets with the current privileges. An error is raised by the start.

        :raises ProblemError: this is not the first start, and the log file cannot be opened any more.
        """
        if self._has_ended:
            self._reset()
        if self._sockets is None and self._listen_error is None:
            try:
                self._sockets = open_sockets(self._wrappers, {})
            except NovasvcError as error:
                # twistd would only print a traceback here; a failed start is reported properly.
                self._listen_error = error

    def stop(self) -> Deferred[None]:
        """Drain the workers, up to graceful_shutdown_timeout.

        :return: Deferred[None], fired when all have exited.
        """
        return self.stopService()

    def when_ended(self) -> Deferred[None]:
        """Wait until all workers have exited.

        :return: Deferred[None]; fails if they could not start or run.
        """

        def raise_error(_: None) -> None:
            error = self._error or (self._lifecycle.reason if self.state == "failed" else None)
            if error is not None:
                raise error

        return self._lifecycle.when_ended().addCallback(raise_error)

    def hurry(self) -> None:
        """Stop now: workers cancel their work, and are killed after two seconds."""
        self._interrupted_work = True
        self._end_within(INTERRUPT_TIMEOUT)
        self._supervisor.interrupt()

    def _end_within(self, seconds: float) -> None:
        """Record the deadline, for progress lines."""
        ends_at = self._reactor.seconds() + seconds
        self._ends_at = ends_at if self._ends_at is None else min(self._ends_at, ends_at)

    def _entered(self, state: str) -> None:
        _log.info("the supervisor is {state}", state=state)
        if state in {"stopped", "failed"} and not (self._ran_reactor or is_only_service(self)):
            cancel_forced_exit()  # other services of this process may take longer
        if (state == "failed" or (state == "stopped" and self._error is not None)) and is_only_service(self):
            end_process(self._reactor, 1)

    # -- start ---------------------------------------------------------------------------------

    async def _begin(self) -> None:
        try:
            await self._start_up()
        except CancelledError:
            raise
        except Exception as error:
            problem = str(error) if isinstance(error, NovasvcError) else describe(error)
            _log.critical("the supervisor did not start: {problem}", problem=problem)
            _log.failure("traceback of the failed start", level=LogLevel.debug)
            raise

    async def _start_up(self) -> None:
        if not self._wrappers:
            raise StateError("the launcher", "without a server", "start: give it one by launch_server")
        self._error = self._signo = None
        self._exit_signals = ExitSignals()
        self._interrupted_work = False
        log_settings(self.configuration)
        self.privilegedStartService()
        self._signals.startService()
        if self._log_file:
            # The workers' log is ours to rotate, even if this process logs elsewhere.
            rotate_at_signal(self._rotate_log, self._reactor)
        await self._listen_for_control()
        listen_error, self._listen_error = self._listen_error, None
        if listen_error is not None:
            self._retry_sockets(listen_error)
        assert self._sockets is not None
        set_title("novasvc: supervisor")
        if not self._log_file and _logs_to_dev_null():
            _log.warn("workers log to standard output, which is {null}: set log_file", null=os.devnull)
        self._watchdog.startService()
        self._stalls.start()
        self._checks.start(_CHECK_INTERVAL).addErrback(_log_failed_checks)
        # Not awaited: a cancelled start must still drain these workers.
        self._supervisor.start(self._wrappers, self._sockets, self._control.lock_fd).addCallback(
            lambda _: self._settle()
        )
        await self._settled
        if self._error is not None:
            raise self._error
        self._notifier.ready(self._supervisor.status)
        self._reload_if_pending()

    async def _listen_for_control(self) -> None:
        """Listen on the control socket; wait for the orphaned workers of a killed supervisor first.

        :raises ControlError: the path cannot be used, or the orphans do not exit in time.
        """
        patience = _ORPHANS_TIMEOUT + (self.configuration.settings.graceful_shutdown_timeout or UNSUPERVISED_GRACE)
        deadline = self._reactor.seconds() + patience
        for attempt in count():
            try:
                self._control.startService()
            except OrphansError as error:
                if self._reactor.seconds() >= deadline:
                    raise
                if attempt == 1:  # the first failure may be a supervisor that is about to listen
                    _log.warn(
                        "waiting up to {s:g} s for the workers of {supervisor} to drain; list them with `fuser {lock}`",
                        s=patience,
                        supervisor=error.supervisor,
                        lock=error.lock,
                    )
                await deferLater(self._reactor, _ORPHANS_INTERVAL)
            else:
                if attempt > 1:
                    _log.info("the workers of the previous supervisor have exited")
                return

    def _retry_sockets(self, listen_error: NovasvcError) -> None:
        """Retry to open the listening sockets: orphans, which have exited by now, may have held them.

        :raises NovasvcError: the first error, if it fails again.
        """
        try:
            self._sockets = open_sockets(self._wrappers, {})
        except NovasvcError:
            raise listen_error from None  # the first attempt may have had more privileges, so its error says more

    def _settle(self) -> None:
        if not self._settled.called:
            self._settled.callback(None)

    def _check(self) -> None:
        status = self._supervisor.status
        if status != self._status:
            self._status = status
            self._notifier.status(status)
        now = self._reactor.seconds()
        late, self._checked_at = now - self._checked_at > 2 * _CHECK_INTERVAL, now
        # If this process was suspended, so were the workers, probably: give them a second to send a heartbeat.
        if not late:
            self._supervisor.check()

    # -- stop -----------------------------------------------------------------------------------

    def failed(self, error: WorkerFailedError) -> None:
        """Stop everything: no worker can run. Called by the supervisor."""
        if self._error is not None:
            return
        self._error = error
        if self.state == "starting":
            self._settle()
        else:
            _log.critical("{error}", error=error)
            self._lifecycle.stop()

    def reloading(self, *, under_way: bool) -> None:
        """Tell systemd that a reload has begun or ended."""
        if self.state == "running":  # during the start, READY=1 would announce it as finished
            if under_way:
                self._notifier.reloading()
            else:
                self._notifier.ready(self._supervisor.status)
        if not under_way:
            self._reload_if_pending()

    def _reload_if_pending(self) -> None:
        if self._reload_pending:
            self._reload_pending = False
            self._reactor.callLater(0, self._handle_sighup)

    async def _end(self) -> None:
        if self._is_restarting():
            self._notifier.reloading()  # after STOPPING=1 systemd would wait for the end of the process
        else:
            self._notifier.stopping()
        if grace := self._grace:
            self._end_within(grace)
        drained = self._supervisor.drain_all()
        self._progress.start(_PROGRESS_INTERVAL)
        await drained
        # The supervisor closes the sockets that it was given; a start that failed earlier has left them to us.
        close_sockets(self._sockets or {}, keep={})
        self._interrupted_work = self._interrupted_work or self._supervisor.interrupted
        for loop in (self._progress, self._checks):
            if loop.running:
                loop.stop()
        self._stalls.stop()
        self._watchdog.stopService()
        await self._control.stopService()
        self._signals.stopService()
        self.configuration, self._wrappers = self._supervisor.configuration, list(self._supervisor.wrappers)
        self._has_ended = True

    def _log_progress(self) -> None:
        left = self._supervisor.slots
        if left:
            limit = "no deadline"
            if self._ends_at is not None:
                limit = f"at most {max(0.0, self._ends_at - self._reactor.seconds()):.0f} s left"
            _log.info(
                "draining: {count} left, {limit}: {workers}",
                count=pluralize(len(left), "worker"),
                limit=limit,
                workers=", ".join(f"{slot.number} ({slot.state})" for slot in left),
            )

    # -- signals -------------------------------------------------------------------------------

    def _handle_signal(self, number: int) -> None:
        """Limit the time to exit, at whatever point a signal interrupts the process.

        See Note [Forced exit] in :mod:`novasvc.run.forced_exit`.
        """
        asked = self._exit_signals.note(number)
        if asked == "stop now":
            self._force_exit(number, 0)
        elif asked == "drain" and (grace := self._grace):
            self._force_exit(number, grace)

    def _force_exit(self, number: int, seconds: float, restarts: Callable[[], bool] = lambda: False) -> None:
        status = SIGNALLED if self._ran_reactor else None
        schedule_forced_exit(number, seconds + _FORCED_EXIT_DELAY, status, restarts)

    @property
    def _grace(self) -> float:
        """The longest drain timeout of the workers in seconds, 0 for no limit."""
        # Workers from before a reload keep the timeout that they were started with.
        timeouts = [slot.timeouts.drain for slot in self._supervisor.slots]
        timeouts.append(self._supervisor.configuration.settings.graceful_shutdown_timeout)
        return max(timeouts) if all(timeouts) else 0.0

    def terminate(self) -> None:
        """Drain and exit; the second time, stop now."""
        if self._signo is None and self.state in {"starting", "running"}:
            _log.info("draining all workers, then exiting")
            self._signo = signal.SIGTERM
            if not self._signals.resume(signal.SIGTERM):
                stop_reactor(self._reactor)
        elif self._executes_again and self._signo is None:
            _log.info("exiting when all workers are drained, instead of restarting")
            self._signo = signal.SIGTERM
        else:
            _log.warn("SIGTERM while draining: stopping all workers now")
            self._signo = self._signo or signal.SIGTERM
            self._reactor.callLater(0, self.hurry)  # let the reactor begin to stop first

    def drain(self) -> None:
        """Drain all workers and exit; the second time, go on: a second SIGTERM would stop them now."""
        if self._signo is None and not self._exit_signals.count:
            self._handle_signal(signal.SIGTERM)
            self.terminate()
        else:
            _log.warn("not draining: the supervisor is stopping")

    def restart(self) -> None:
        """Drain all workers, and run the program again in this process; see :mod:`novasvc.run.restart`."""
        if self._signo is not None or self._executes_again or self.state not in {"starting", "running"}:
            _log.warn("not restarting: the supervisor is stopping")
            return
        _log.info("restarting: draining all workers first")
        self._executes_again = True
        if grace := self._grace:
            self._force_exit(signal.SIGTERM, grace, self._is_restarting)
        restart_process(self._reactor, self._is_restarting)

    def _is_restarting(self) -> bool:
        # The reactor may be blocked: then only the counter shows that a signal asks for an exit.
        return self._executes_again and self._signo is None and not self._exit_signals.count

    def _handle_sigint(self) -> None:
        _log.warn("SIGINT: stopping all workers now")
        self._signo = self._signo or signal.SIGINT
        if self.state in {"starting", "running"} and not self._signals.resume(signal.SIGINT):
            stop_reactor(self._reactor)
        self._reactor.callLater(0, self.hurry)

    def _handle_sighup(self) -> None:
        if self._supervisor.is_reloading or self._supervisor.is_starting:
            # The reload under way may have read an older configuration: follow it with another.
            _log.info("SIGHUP: reloading again after the start or reload under way")
            self._reload_pending = True
            return
        self._supervisor.reload().addErrback(log_failed_reload)

    def _rotate_log(self) -> None:
        self._supervisor.rotate_log()

    def _reread_environment(self) -> tuple[Configuration, list[ServerWrapper] | None]:
        configuration = load_from_environment()
        # What is not rebuilt here, workers make again: with these settings, unless it was given its own.
        with default_settings(configuration, self._reactor):
            servers = [_rebuilt(wrapper.server) for wrapper in self._supervisor.wrappers]
        wrappers = [
            ServerWrapper(server, wrapper.configured)
            for server, wrapper in zip(servers, self._supervisor.wrappers, strict=True)
        ]
        return configuration, wrappers if any(map(_can_rebuild, servers)) else None

    def _handle_sigusr2(self) -> None:
        dumped = self._supervisor.dump().addCallback(_log_dump)
        dumped.addErrback(lambda failure: _log.failure("cannot collect the dump", failure))


def _rebuilt(server: Any) -> Any:
    return server.rebuild() if _can_rebuild(server) else server


def _can_rebuild(server: Any) -> bool:
    """Return whether a server is rebuilt here: it reads files or binds addresses. Others are rebuilt in workers."""
    return IReplaceable.providedBy(server) and IRebuildable.providedBy(server)


def _logs_to_dev_null() -> bool:
    try:
        return os.path.samestat(os.fstat(1), os.stat(os.devnull))  # noqa: PTH116 - compared with the one above
    except OSError:
        return True


def _log_dump(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        events = "\n".join("{time} {kind} {text}".format(**event) for event in row["events"])
        _log.info(
            "worker {number} (pid {pid}) of {server} is {state}\ncalls under way: {calls}\n"
            "stacks:\n{stacks}\nlast events:\n{log}",
            **row,
            log=events,
        )


def _log_failed_checks(failure: Failure) -> None:
    _log.failure("watchdog checks of the workers stopped", failure)
