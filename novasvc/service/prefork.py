"""Several processes: a launcher that forks workers, and sees that they are there."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
from twisted.application import service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults, succeed
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.errors import NovasvcError, StateError, describe
from novasvc.flight import format_events
from novasvc.interfaces import IPreforkable, IStartable, ISupervisor
from novasvc.service.launcher import run_until_ended
from novasvc.service.lifecycle import Course
from novasvc.settings import Configuration, Settings, load
from novasvc.settings.listing import changes
from novasvc.supervision.errors import NoSuchWorkerError, ReloadError, ResizeError, WorkerFailedError
from novasvc.supervision.fleet import Fleet, Generation
from novasvc.supervision.forks import Forks
from novasvc.supervision.order import pack
from novasvc.supervision.policy import RestartPolicy
from novasvc.supervision.signals import Signals
from novasvc.supervision.slot import Limits, Slot
from novasvc.supervision.systemd import CHILD_VARIABLES, Notifier
from novasvc.supervision.title import set_title

_log = Logger()

MOST_WORKERS = 1024
"""Workers of a server; more is a slip of the pen."""

_CHECK_INTERVAL = 1.0
"""Seconds between two looks at the workers."""

_PROGRESS_INTERVAL = 5.0
"""Seconds between two lines of the log about workers that drain."""


@attrs.define(eq=False)
class ServerWrapper:
    """A server, and in how many processes it runs.

    :param server: provides IService, or takes a reactor and returns such a one; see
        :func:`novasvc.supervision.order.pack`.
    :param workers: their number.
    Source: nova.service.ServerWrapper.
    """

    server: Any
    workers: int
    _fleet: Fleet | None = attrs.field(default=None, init=False)

    @property
    def children(self) -> set[int]:
        """The process ids of the workers."""
        return {slot.process.pid for slot in self._fleet or () if slot.process is not None and slot.process.pid}

    @property
    def forktimes(self) -> list[float]:
        """The reactor's seconds of the last forks, as many as the throttle looks at."""
        return [] if self._fleet is None else list(self._fleet.throttle.times)


Reread = Callable[[], tuple[Configuration, Sequence[ServerWrapper] | None]]
"""Reads the configuration again; returns the servers that it describes, or None for those that are there."""


@implementer(IStartable, ISupervisor)
class ProcessLauncher(service.Service):
    """Run each server in a number of worker processes, and start again whatever dies.

    A service like others: ``twistd novasvc --workers``, a .tac file and any application can have one.
    ``launch_server`` and ``wait`` are Nova's names.

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
        self._reread = reread or _from_environment
        self._configuration = configuration or _from_environment()[0]
        self._log_file = log_file
        self._wrappers: list[ServerWrapper] = []
        self._sockets: dict[int, list[socket.socket]] = {}
        self._fleets: list[Fleet] = []
        self._forks: Forks | None = None
        self._course = Course("the supervisor", self._begin, self._end, self._entered)
        self._broken: WorkerFailedError | None = None
        self._gave_up: Deferred[None] | None = None
        self._reloading: Deferred[None] | None = None
        self._notifier = Notifier(os.environ)
        self._signals = Signals(
            reactor,
            {
                signal.SIGTERM: self._terminated,
                signal.SIGINT: self._interrupted,
                signal.SIGHUP: self._hung_up,
                signal.SIGTTIN: lambda: self._resized(+1),
                signal.SIGTTOU: lambda: self._resized(-1),
                signal.SIGUSR2: self._asked_to_dump,
            },
        )
        self._checks = LoopingCall(self._check)
        self._checks.clock = reactor
        self._checked_at = 0.0

    @property
    def _settings(self) -> Settings:
        return self._configuration.settings

    @property
    def state(self) -> str:
        """The state's name: initial, starting, running, draining, stopped or failed."""
        return self._course.state

    # -- Nova's names --------------------------------------------------------------------------

    def launch_server(self, server: Any, workers: int = 1) -> None:
        """Run a server in worker processes, from the start of this launcher on.

        :param server: provides IService and can be pickled; or a function of a module, or another
            callable that can be pickled, which takes the worker's reactor and returns an IService.
        :param workers: > 0.
        :raises NotPreforkableError: the server cannot be brought into another process.
        :raises ResizeError: the number cannot be had.
        :raises StateError: the launcher has been started.
        """
        if self.state != "initial":
            raise StateError("the launcher", self.state, "take another server")
        _see_number(workers)
        pack(server)
        self._wrappers.append(ServerWrapper(server, workers))

    def wait(self) -> Deferred[None] | None:
        """Run the workers until the launcher is stopped.

        :return: None, if this ran the reactor; where it runs already, a Deferred that fires at the end.
        :raises SystemExit: with status 1, if the workers cannot run.
        """
        return run_until_ended(self, self._reactor)

    # -- Twisted's names -----------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Open the listening sockets, with the rights that the process has now.

        :raises NovasvcError: an address cannot be had.
        """
        if not self._sockets:
            self._sockets = self._open(self._wrappers, {})

    def startService(self) -> None:
        """Begin to start the workers; :meth:`when_started` tells the outcome, and so does the log."""
        super().startService()
        self._course.start().addErrback(lambda _: None)

    def when_started(self) -> Deferred[None]:
        """Wait until all workers have been ready; see :class:`~novasvc.interfaces.IStartable`."""
        return self._course.when_started()

    def stopService(self) -> Deferred[None]:
        """Drain the workers, up to graceful_shutdown_timeout.

        :return: Deferred[None], fired when there is none any more.
        """
        super().stopService()
        return self._course.stop()

    stop = stopService

    def when_ended(self) -> Deferred[None]:
        """Wait until there is no worker any more.

        :return: Deferred[None]; fails with WorkerFailedError if that is because they could not run.
        """
        return self._course.when_ended().addCallback(self._tell_broken)

    def _tell_broken(self, _: None) -> None:
        error = self._broken or (self._course.reason if self.state == "failed" else None)
        if error is not None:
            raise error

    def hurry(self) -> None:
        """End at once: workers cut short what they do, and are killed after two seconds."""
        for fleet in self._fleets:
            fleet.hurry()

    def _entered(self, state: str) -> None:
        _log.info("the supervisor is {state}", state=state)

    # -- the way up ----------------------------------------------------------------------------

    async def _begin(self) -> None:
        self.privilegedStartService()
        set_title("novasvc: supervisor")
        if not self._wrappers:
            raise StateError("the launcher", "without a server", "start; give it one by launch_server")
        self._gave_up = Deferred()
        try:
            self._signals.startService()
            self._checks.start(_CHECK_INTERVAL).addErrback(self._checks_broke)
            for wrapper, generation in zip(self._wrappers, self._generations(self._wrappers, self._sockets), strict=True):
                fleet = Fleet(wrapper.workers, generation, self._reactor, self._take_number, self._give_up)
                wrapper._fleet = fleet  # noqa: SLF001 - its other half
                self._fleets.append(fleet)
            self._forks = self._fleets[0].generation.forks
            self._forks.start()
            ready = gatherResults([fleet.start() for fleet in self._fleets], consumeErrors=True)
            await DeferredList([ready, self._gave_up], fireOnOneCallback=True, fireOnOneErrback=True, consumeErrors=True)
        except CancelledError:
            raise
        except Exception as error:
            problem = str(error) if isinstance(error, NovasvcError) else describe(error)
            _log.critical("the supervisor did not start: {problem}", problem=problem)
            _log.failure("where it was raised", level=LogLevel.debug)
            raise
        if self._broken is not None:
            raise self._broken
        self._notifier.ready(self._status())

    def _open(
        self, wrappers: Sequence[ServerWrapper], held: Mapping[int, Sequence[socket.socket]]
    ) -> dict[int, list[socket.socket]]:
        """Have the servers open their sockets."""
        before = [shared for sockets in held.values() for shared in sockets]
        return {
            number: list(wrapper.server.open_sockets(before)) if IPreforkable.providedBy(wrapper.server) else []
            for number, wrapper in enumerate(wrappers)
        }

    def _generations(
        self, wrappers: Sequence[ServerWrapper], sockets: Mapping[int, Sequence[socket.socket]]
    ) -> list[Generation]:
        """Say what the next workers are made from."""
        settings = self._settings
        packages = [pack(wrapper.server) for wrapper in wrappers]
        modules = sorted(frozenset[str]().union(*(package.modules for package in packages)) - {"__main__", "builtins"})
        main = next((package.main for package in packages if package.main is not None), None)
        environment = {name: value for name, value in os.environ.items() if name not in CHILD_VARIABLES}
        forks = Forks(self._reactor, modules, main, environment)
        order = {
            "reactor": type(self._reactor).__module__,
            "log": {"file": self._log_file, "json": settings.log_json, "level": settings.log_level},
        }
        limits = Limits(settings.worker_start_timeout, settings.graceful_shutdown_timeout, settings.worker_watchdog)
        policy = RestartPolicy.from_settings(settings)
        return [
            Generation(package, sockets[number], forks, policy, limits, order)
            for number, package in enumerate(packages)
        ]

    def _take_number(self) -> int:
        taken = {slot.number for fleet in self._fleets for slot in fleet}
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    # -- what goes wrong -----------------------------------------------------------------------

    def _give_up(self, slot: Slot, problem: str) -> bool:
        """Decide whether a worker that cannot run is started no more.

        :param problem: what is wrong with its configuration; "" is that it has died too often.
        """
        settings = self._settings
        fleet = next(fleet for fleet in self._fleets if slot in list(fleet))
        if slot not in fleet.slots:
            return True  # it was to replace another, which stays
        if fleet.proven and (problem or settings.worker_crash_loop != "exit"):
            return bool(problem)
        if not problem and settings.worker_crash_loop == "retry":
            return False
        if problem:
            error = WorkerFailedError(fleet.name, problem, "mend that, and start again")
        else:
            died = f"worker {slot.number} died {settings.worker_restart_budget} times within {settings.worker_restart_window:g} s"
            error = WorkerFailedError(fleet.name, f"{died}, at last: {slot.trouble}", "see the log above for each of them")
        self._fail(error)
        return True

    def _fail(self, error: WorkerFailedError) -> None:
        """End everything: no worker can run."""
        if self._broken is not None:
            return
        self._broken = error
        if self.state == "starting" and self._gave_up is not None:
            self._gave_up.callback(None)
            return
        _log.critical("{error}", error=error)
        self._course.stop()

    # -- once a second -------------------------------------------------------------------------

    def _check(self) -> None:
        now = self._reactor.seconds()
        late, self._checked_at = now - self._checked_at > 2 * _CHECK_INTERVAL, now
        if late:
            return  # If we did not run, maybe nobody did: give the workers a second to prove themselves.
        for fleet in self._fleets:
            fleet.check()

    def _checks_broke(self, failure: Failure) -> None:
        _log.failure("workers that hang are not seen any more", failure)

    def _status(self) -> str:
        slots = [slot for fleet in self._fleets for slot in fleet]
        ready = sum(slot.state == "ready" for slot in slots)
        return f"{ready} of {len(slots)} workers are ready"

    # -- the way down --------------------------------------------------------------------------

    async def _end(self) -> None:
        self._notifier.stopping()
        if self._reloading is not None:
            self._reloading.cancel()
        drained = gatherResults([fleet.drain() for fleet in self._fleets], consumeErrors=True)
        progress = LoopingCall(self._log_progress)
        progress.clock = self._reactor
        if any(True for fleet in self._fleets for _ in fleet):
            progress.start(_PROGRESS_INTERVAL)
        await drained
        if progress.running:
            progress.stop()
        if self._checks.running:
            self._checks.stop()
        if self._forks is not None:
            self._forks.close()
        for sockets in self._sockets.values():
            for shared in sockets:
                shared.close()
        self._sockets.clear()
        self._fleets.clear()
        self._signals.stopService()

    def _log_progress(self) -> None:
        left = [slot for fleet in self._fleets for slot in fleet]
        if left:
            _log.info(
                "draining {count} workers, up to {grace:g} s: {workers}",
                count=len(left),
                grace=self._settings.graceful_shutdown_timeout,
                workers=", ".join(str(slot.number) for slot in left),
            )

    # -- signals -------------------------------------------------------------------------------

    def _terminated(self) -> None:
        if self.state in {"draining", "stopped", "failed"}:
            _log.warn("terminated a second time: all workers end at once")
            self.hurry()
        else:
            _log.info("terminated: all workers drain")
            self._signals.resume(signal.SIGTERM)

    def _interrupted(self) -> None:
        _log.warn("interrupted: all workers end at once")
        if self.state in {"draining", "stopped", "failed"}:
            self.hurry()
        else:
            self._signals.resume(signal.SIGINT)
            self._reactor.callLater(0, self.hurry)

    def _hung_up(self) -> None:
        def refused(failure: Failure) -> None:
            _log.error("{error}", error=failure.value)

        self.reload().addErrback(refused)

    def _resized(self, more: int) -> None:
        for fleet in self._fleets:
            size = fleet.size + more
            if not 1 <= size <= MOST_WORKERS:
                _log.warn("{name} keeps its {size} workers", name=fleet.name, size=fleet.size)
                continue
            _log.info("{name} is to have {size} workers", name=fleet.name, size=size)
            fleet.resize(size)

    def _asked_to_dump(self) -> None:
        self.dump().addCallback(self._log_dump).addErrback(lambda failure: _log.failure("there is no dump", failure))

    def _log_dump(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            _log.info("worker {number} (pid {pid}) of {server} is {state}; calls under way: {calls}\n{stacks}", **row)

    # -- ISupervisor ---------------------------------------------------------------------------

    def workers(self) -> list[dict[str, Any]]:
        """See :meth:`novasvc.interfaces.ISupervisor.workers`."""
        return [
            {
                "number": slot.number,
                "server": fleet.name,
                "pid": None if slot.process is None else slot.process.pid,
                "state": slot.state,
                "since": datetime.fromtimestamp(slot.since, UTC).isoformat(timespec="milliseconds"),
                "restarts": slot.restarts,
                "memory": None if slot.process is None else slot.process.memory,
                "trouble": slot.trouble,
            }
            for fleet in self._fleets
            for slot in fleet
        ]

    def resize(self, count: int, server: str | None) -> None:
        """See :meth:`novasvc.interfaces.ISupervisor.resize`."""
        _see_number(count)
        names = ", ".join(fleet.name for fleet in self._fleets)
        fleets = [fleet for fleet in self._fleets if server in {None, fleet.name}]
        if not fleets:
            raise NoSuchWorkerError(f"server {server!r}", names)
        if len(fleets) > 1:
            raise ResizeError(count, f"there are several servers, say which one: {names}")
        if self.state not in {"starting", "running"}:
            raise ResizeError(count, f"the supervisor is {self.state}")
        _log.info("{name} is to have {size} workers", name=fleets[0].name, size=count)
        fleets[0].resize(count)

    def drain(self, number: int | None) -> Deferred[None]:
        """See :meth:`novasvc.interfaces.ISupervisor.drain`."""
        if number is None:
            self._reactor.callLater(0, self._signals.resume, signal.SIGTERM)
            return succeed(None)
        for fleet in self._fleets:
            for slot in fleet.slots:
                if slot.number == number:
                    return Deferred.fromCoroutine(_replaced(fleet, slot))
        numbers = ", ".join(str(slot.number) for fleet in self._fleets for slot in fleet.slots)
        raise NoSuchWorkerError(f"worker {number}", numbers)

    def reload(self) -> Deferred[list[dict[str, Any]]]:
        """See :meth:`novasvc.interfaces.ISupervisor.reload`."""
        return Deferred.fromCoroutine(self._reload())

    def dump(self) -> Deferred[list[dict[str, Any]]]:
        """See :meth:`novasvc.interfaces.ISupervisor.dump`."""
        rows = [Deferred.fromCoroutine(self._dump(fleet, slot)) for fleet in self._fleets for slot in fleet]
        return gatherResults(rows, consumeErrors=True)

    async def _dump(self, fleet: Fleet, slot: Slot) -> dict[str, Any]:
        row = {"number": slot.number, "server": fleet.name, "pid": None, "state": slot.state}
        process = slot.process
        if process is None:
            return {**row, "stacks": "", "calls": None, "events": []}
        calls = await process.calls()
        stacks = await process.dump_stacks()
        events = [
            {"time": datetime.fromtimestamp(event.time, UTC).isoformat(), "kind": event.kind, "text": event.text}
            for event in process.events
        ]
        return {**row, "pid": process.pid, "stacks": stacks, "calls": calls, "events": events}

    # -- reload --------------------------------------------------------------------------------

    async def _reload(self) -> list[dict[str, Any]]:
        if self.state != "running":
            raise ReloadError(f"the supervisor is {self.state}")
        if self._reloading is not None:
            raise ReloadError("another reload is under way")
        self._notifier.reloading()
        self._reloading = Deferred.fromCoroutine(self._take_over())
        try:
            return await self._reloading
        finally:
            self._reloading = None
            self._notifier.ready(self._status())

    async def _take_over(self) -> list[dict[str, Any]]:
        """Read, check, replace; whatever goes wrong leaves what is there."""
        try:
            configuration, wrappers = self._reread()
            wrappers = self._wrappers if wrappers is None else self._matched(wrappers)
            sockets = self._open(wrappers, self._sockets)
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(str(error)) from error
        rows = changes(self._configuration, configuration)
        for row in rows:
            _log.info("{setting} changes from {before} to {after}", **row)
        before, self._configuration = self._configuration, configuration
        generations = self._generations(wrappers, sockets)
        forks, old_forks = generations[0].forks, self._forks
        forks.start()
        leaving = [slot for fleet in self._fleets for slot in fleet]
        try:
            for fleet, generation, wrapper in zip(self._fleets, generations, wrappers, strict=True):
                await fleet.replace_all(generation)
                if wrapper.workers != fleet.size and wrapper not in self._wrappers:
                    fleet.resize(wrapper.workers)
        except BaseException:
            self._configuration = before
            raise
        _log.info("reloaded: all workers were replaced; those before them finish what they have begun")
        return rows

    def _matched(self, wrappers: Sequence[ServerWrapper]) -> Sequence[ServerWrapper]:
        return wrappers


async def _replaced(fleet: Fleet, slot: Slot) -> None:
    await fleet.replace(slot)
    await slot.reaches("ended")


def _see_number(workers: int) -> None:
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= MOST_WORKERS:
        raise ResizeError(workers, f"give a number from 1 to {MOST_WORKERS}")


def _from_environment() -> tuple[Configuration, None]:
    return load((), os.environ, {}), None
