"""Several processes: the launcher that forks workers, and sees that they are there."""

import os
import signal
from collections.abc import Sequence
from itertools import count
from typing import Any

from twisted.application import service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.config import Configuration, load
from novasvc.errors import NovasvcError, StateError, describe
from novasvc.interfaces import IReplaceable, IStartable
from novasvc.node.lifecycle import Lifecycle
from novasvc.node.runtime import Runtime, process_runtime, set_process_runtime
from novasvc.run.launcher import SignalExit, keep_status, log_settings, run_until_ended
from novasvc.run.process import end_process, is_alone, stop_reactor
from novasvc.telemetry import flight
from novasvc.telemetry.logfiles import rotate_at_signal
from novasvc.telemetry.logs import pluralize
from novasvc.telemetry.stalls import StallWatch
from novasvc.workers.control.listener import ControlSocket
from novasvc.workers.errors import OrphansError, WorkerFailedError
from novasvc.workers.exit_status import UNSUPERVISED
from novasvc.workers.signals import Signals
from novasvc.workers.slot import HURRY_PATIENCE
from novasvc.workers.specification import pack
from novasvc.workers.supervisor import (
    Reread,
    ServerWrapper,
    Sockets,
    Supervisor,
    open_sockets,
    see_names,
    see_number,
)
from novasvc.workers.systemd import Notifier, Watchdog
from novasvc.workers.title import set_title

_log = Logger()

_CHECK_INTERVAL = 1.0
"""Seconds between two looks at the workers."""

_ORPHANS_INTERVAL = 0.1
"""Seconds between two looks whether the workers of a supervisor that was killed are gone."""

_ORPHANS_PATIENCE = 5.0
"""Seconds that are waited for that beyond the grace which they have."""

_PROGRESS_INTERVAL = 5.0
"""Seconds between two lines of the log about workers that drain."""


@implementer(IStartable)
class ProcessLauncher(service.Service):
    """Run each server in a number of worker processes, and start again whatever dies.

    A service like others: ``twistd novasvc --workers``, a .tac file and any application can have one.
    ``launch_server`` and ``wait`` are Nova's names.

    If it is all that an application has, as in a .tac file of its own, the process ends with status 1
    when it fails; beside other services it does not harm these, and :meth:`when_ended` tells.

    :param configuration: the settings, for what a supervisor does; None is what the environment says.
    :param reactor: None is the global one.
    :param reread: reads the configuration again at SIGHUP; None reads the environment, and keeps the servers.
    :param log_file: where workers log to; "" is standard output.
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
            from twisted.internet import reactor  # noqa: PLC0415 - importing the package installs no reactor
        self._reactor = reactor
        self._wrappers: list[ServerWrapper] = []
        self._error: WorkerFailedError | None = None
        self._checked_at = 0.0
        self._reload_again = self._cut = False
        self._signo: int | None = None
        self._lifecycle = Lifecycle("the supervisor", self._begin, self._end, self._entered)
        self.configuration = configuration or _from_environment()[0]
        self._reread = reread or self._reread_environment
        self._log_file = log_file
        self._renew()
        self._notifier = Notifier(os.environ)
        self._watchdog = Watchdog(self._notifier, os.environ, reactor)
        self._stalls = StallWatch(flight.installed(), reactor)
        self._status = ""
        self._signals = Signals(
            reactor,
            {
                signal.SIGTERM: self.terminate,
                signal.SIGINT: self._interrupted,
                signal.SIGHUP: self._hung_up,
                signal.SIGTTIN: lambda: self._supervisor.resize_all(+1),
                signal.SIGTTOU: lambda: self._supervisor.resize_all(-1),
                signal.SIGUSR2: self._asked_to_dump,
            },
        )
        self._checks = self._loop(self._check)
        self._progress = self._loop(self._log_progress)

    def _renew(self) -> None:
        """Make what is of one life, from a start to its stop."""
        self._sockets: Sockets | None = None
        self._refusal: NovasvcError | None = None
        self._settled: Deferred[None] = Deferred()
        self._ends_at: float | None = None
        self._supervisor = Supervisor(self._reactor, self.configuration, self._reread, self._log_file, self)
        self._control = ControlSocket(self.configuration.settings.control_socket, self._supervisor, self._reactor)

    def _loop(self, function: Any) -> LoopingCall:
        loop = LoopingCall(function)
        loop.clock = self._reactor
        return loop

    @property
    def state(self) -> str:
        """The state's name: initial, starting, running, draining, stopped or failed."""
        return self._lifecycle.state

    # -- Nova's names --------------------------------------------------------------------------

    @property
    def children(self) -> dict[int, ServerWrapper]:
        """The workers' process ids now, each with the wrapper of its server."""
        return {pid: wrapper for wrapper in self._supervisor.wrappers for pid in wrapper.children}

    def launch_server(self, server: Any, workers: int = 1) -> None:
        """Run a server in worker processes, from the start of this launcher on.

        :param server: provides IService and can be pickled; or a function of a module, or another
            callable that can be pickled, which takes the worker's reactor and returns an IService.
        :param workers: > 0.
        :raises NotPreforkableError: the server cannot be brought into another process, or another has its name.
        :raises ResizeError: the number cannot be had.
        :raises StateError: the launcher has been started.
        """
        wrapper = ServerWrapper(server, workers)
        if self.state != "initial":
            raise StateError("the launcher", self.state, "take another server")
        see_names([*self._wrappers, wrapper])
        see_number(workers)
        pack(server)
        self._wrappers.append(wrapper)

    def wait(self) -> Deferred[None] | None:
        """Run the workers until the launcher is stopped.

        :return: None, if this ran the reactor; where it runs already, a Deferred that fires at the end.
        :raises SignalExit: a signal ended it at once, or a worker did not end by itself: work may be lost.
        :raises SystemExit: with status 1, if the workers cannot run.
        """
        ran = not self._reactor.running
        waiting = run_until_ended(self, self._reactor, lambda: self.configuration.settings)
        if ran and self._signo is not None:
            keep_status()
            if self._cut:
                raise SignalExit(self._signo)
        return waiting

    # -- Twisted's names -----------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Open the listening sockets, with the rights that the process has now. If one cannot be, the start fails."""
        super().privilegedStartService()
        if self._sockets is None and self._refusal is None:
            try:
                self._sockets = open_sockets(self._wrappers, {})
            except NovasvcError as error:
                # Whoever drives us has no answer here but a traceback. It has one for a start.
                self._refusal = error

    def startService(self) -> None:
        """Begin to start the workers; :meth:`when_started` tells the outcome, and so does the log."""
        super().startService()
        self._lifecycle.start().addErrback(lambda _: None)

    def when_started(self) -> Deferred[None]:
        """Wait until all workers have been ready; see :class:`~novasvc.interfaces.IStartable`."""
        return self._lifecycle.when_started()

    def stopService(self) -> Deferred[None]:
        """Drain the workers, up to graceful_shutdown_timeout.

        :return: Deferred[None], fired when there is none any more.
        """
        super().stopService()
        return self._lifecycle.stop()

    stop = stopService

    def when_ended(self) -> Deferred[None]:
        """Wait until there is no worker any more.

        :return: Deferred[None]; fails if that is because they could not start, or run.
        """

        def see_error(_: None) -> None:
            error = self._error or (self._lifecycle.reason if self.state == "failed" else None)
            if error is not None:
                raise error

        return self._lifecycle.when_ended().addCallback(see_error)

    def hurry(self) -> None:
        """End at once: workers cut short what they do, and are killed after two seconds."""
        self._cut = True
        self._end_within(HURRY_PATIENCE)
        self._supervisor.hurry()

    def _end_within(self, seconds: float) -> None:
        """Note for the log when the workers will have ended."""
        ends_at = self._reactor.seconds() + seconds
        self._ends_at = ends_at if self._ends_at is None else min(self._ends_at, ends_at)

    def _entered(self, state: str) -> None:
        _log.info("the supervisor is {state}", state=state)
        if (state == "failed" or (state == "stopped" and self._error is not None)) and is_alone(self):
            end_process(self._reactor, 1)

    # -- the way up ----------------------------------------------------------------------------

    async def _begin(self) -> None:
        try:
            await self._walk_up()
        except CancelledError:
            raise
        except Exception as error:
            problem = str(error) if isinstance(error, NovasvcError) else describe(error)
            _log.critical("the supervisor did not start: {problem}", problem=problem)
            _log.failure("where it was raised", level=LogLevel.debug)
            raise

    async def _walk_up(self) -> None:
        if not self._wrappers:
            raise StateError("the launcher", "without a server", "start: give it one by launch_server")
        self._error = self._signo = None
        self._cut = False
        log_settings(self.configuration)
        self.privilegedStartService()
        self._signals.startService()
        if self._log_file:
            # Where the log of this process is another file, or another program's to rotate.
            rotate_at_signal(self._rotate_log, self._reactor)
        await self._take_control()
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self._open_again(refusal)
        assert self._sockets is not None
        set_title("novasvc: supervisor")
        if not self._log_file and _logs_to_nothing():
            _log.warn("workers log to standard output, which is {null} here: give a log_file", null=os.devnull)
        self._watchdog.startService()
        self._stalls.start()
        self._checks.start(_CHECK_INTERVAL).addErrback(_checks_broke)
        # Not awaited itself: to cancel it would be to forget the workers.
        self._supervisor.start(self._wrappers, self._sockets, self._control.lock).addCallback(lambda _: self._settle())
        await self._settled
        if self._error is not None:
            raise self._error
        self._notifier.ready(self._supervisor.status)
        self._reload_if_asked()

    async def _take_control(self) -> None:
        """Listen at the control socket, when nothing is left of a supervisor before this one.

        :raises ControlError: the place cannot be had, or workers of another supervisor do not end.
        """
        patience = _ORPHANS_PATIENCE + (self.configuration.settings.graceful_shutdown_timeout or UNSUPERVISED)
        deadline = self._reactor.seconds() + patience
        for attempt in count():
            try:
                self._control.startService()
            except OrphansError as error:
                if self._reactor.seconds() >= deadline:
                    raise
                if attempt == 1:  # at the first it may be a supervisor that is about to listen
                    _log.warn(
                        "waiting up to {s:g} s for the workers of {supervisor} to drain; list them with `fuser {lock}`",
                        s=patience,
                        supervisor=error.supervisor,
                        lock=error.lock,
                    )
                await deferLater(self._reactor, _ORPHANS_INTERVAL)
            else:
                if attempt > 1:
                    _log.info("nothing is left of the supervisor before this one")
                return

    def _open_again(self, refusal: NovasvcError) -> None:
        """Open the listening sockets that could not be opened: what had them may have been waited for.

        :raises NovasvcError: the refusal, if they still cannot be.
        """
        try:
            self._sockets = open_sockets(self._wrappers, {})
        except NovasvcError:
            raise refusal from None  # it says more: there may have been other rights then

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
        # If we did not run, maybe nobody did: the workers get another second to prove themselves.
        if not late:
            self._supervisor.check()

    # -- the way down --------------------------------------------------------------------------

    def failed(self, error: WorkerFailedError) -> None:
        """End everything: no worker can run. Called by the supervisor, as are the two below."""
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
        if self.state == "running":  # whoever waits for the start is not to take this for its end
            if under_way:
                self._notifier.reloading()
            else:
                self._notifier.ready(self._supervisor.status)
        if not under_way:
            self._reload_if_asked()

    def _reload_if_asked(self) -> None:
        if self._reload_again:
            self._reload_again = False
            self._reactor.callLater(0, self._hung_up)

    async def _end(self) -> None:
        self._notifier.stopping()
        if grace := self._supervisor.configuration.settings.graceful_shutdown_timeout:
            self._end_within(grace)
        drained = self._supervisor.drain_all()
        self._progress.start(_PROGRESS_INTERVAL)
        await drained
        self._cut = self._cut or self._supervisor.cut
        for loop in (self._progress, self._checks):
            if loop.running:
                loop.stop()
        self._stalls.stop()
        self._watchdog.stopService()
        await self._control.stopService()
        self._signals.stopService()
        self.configuration, self._wrappers = self._supervisor.configuration, list(self._supervisor.wrappers)
        self._renew()

    def _log_progress(self) -> None:
        left = self._supervisor.slots
        if left:
            limit = "without a limit"
            if self._ends_at is not None:
                limit = f"at most {max(0.0, self._ends_at - self._reactor.seconds()):.0f} s more"
            _log.info(
                "draining: {count} left, {limit}: {workers}",
                count=pluralize(len(left), "worker"),
                limit=limit,
                workers=", ".join(f"{slot.number} ({slot.state})" for slot in left),
            )

    # -- signals -------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Drain, and end; a second time, end at once."""
        if self._signo is None and self.state in {"starting", "running"}:
            _log.info("all workers are to finish what they have begun, and to end")
            self._signo = signal.SIGTERM
            if not self._signals.resume(signal.SIGTERM):
                stop_reactor(self._reactor)
        else:
            _log.warn("SIGTERM while the workers drain: all workers end at once")
            self._signo = self._signo or signal.SIGTERM
            self._reactor.callLater(0, self.hurry)  # the reactor may not have begun to stop

    def _interrupted(self) -> None:
        _log.warn("interrupted: all workers end at once")
        self._signo = self._signo or signal.SIGINT
        if self.state in {"starting", "running"} and not self._signals.resume(signal.SIGINT):
            stop_reactor(self._reactor)
        self._reactor.callLater(0, self.hurry)

    def _hung_up(self) -> None:
        if self._supervisor.reloads or self._supervisor.comes_up:
            # What was read for that may be older than what this is for.
            _log.info("SIGHUP: a reload follows what is under way")
            self._reload_again = True
            return
        self._supervisor.reload().addErrback(lambda failure: _log.error("{error}", error=failure.value))

    def _rotate_log(self) -> None:
        self._supervisor.rotate_log()

    def _reread_environment(self) -> tuple[Configuration, list[ServerWrapper] | None]:
        configuration, _ = _from_environment()
        # Services that were given no settings go to the new workers with these.
        before = process_runtime()
        set_process_runtime(Runtime.from_settings(configuration.settings, self._reactor))
        try:
            servers = [_renewed(wrapper.server) for wrapper in self._supervisor.wrappers]
        except BaseException:
            set_process_runtime(before)
            raise
        wrappers = [
            ServerWrapper(server, wrapper.configured)
            for server, wrapper in zip(servers, self._supervisor.wrappers, strict=True)
        ]
        return configuration, wrappers if any(map(_is_renewed, servers)) else None

    def _asked_to_dump(self) -> None:
        dumped = self._supervisor.dump().addCallback(_log_dump)
        dumped.addErrback(lambda failure: _log.failure("there is no dump", failure))


def _renewed(server: Any) -> Any:
    return server.made_again() if _is_renewed(server) else server


def _is_renewed(server: Any) -> bool:
    """Whether a server has read files, and looked where it is to listen; others are made again in the workers."""
    return IReplaceable.providedBy(server) and callable(getattr(server, "made_again", None))


def _logs_to_nothing() -> bool:
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


def _checks_broke(failure: Failure) -> None:
    _log.failure("workers that hang are not seen any more", failure)


def _from_environment() -> tuple[Configuration, None]:
    return load((), os.environ, {}), None
