"""The workers of all servers together: what starts, replaces, counts and ends them."""

import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults, succeed
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.config import Configuration, Settings
from novasvc.config.show import changes
from novasvc.errors import NovasvcError
from novasvc.interfaces import IPreforkable, ISupervisor
from novasvc.telemetry.logfiles import LogFile
from novasvc.telemetry.logs import pluralize
from novasvc.workers.errors import (
    DrainError,
    NoSuchWorkerError,
    NotPreforkableError,
    ReloadError,
    ResizeError,
    WorkerFailedError,
)
from novasvc.workers.forkserver_client import Forks
from novasvc.workers.group import Fleet, Generation
from novasvc.workers.restart_policy import RestartPolicy
from novasvc.workers.slot import Limits, Slot
from novasvc.workers.specification import name_of, pack
from novasvc.workers.survey import row, survey_figures, survey_health
from novasvc.workers.systemd import CHILD_VARIABLES

_log = Logger()

MOST_WORKERS = 1024
"""Workers of a server; more is a slip of the pen."""

Row = dict[str, Any]
Sockets = Mapping[str, Sequence[socket.socket]]
"""By the name of the server that they listen for."""


@attrs.define(eq=False)
class ServerWrapper:
    """A server, and in how many processes it runs.

    :param server: provides IService, or takes a reactor and returns such a one; see
        :func:`novasvc.workers.specification.pack`.
    :param workers: their number.
    :ivar children: process ids of its workers now. Those of a wrapper that a launcher runs: see
        :attr:`novasvc.service.ProcessLauncher.children`.
    :ivar forktimes: the reactor's seconds of its last forks, of any reason.
    :ivar configured: the number as it was given; an operator may have changed the other.
    Source: nova.service.ServerWrapper.
    """

    server: Any
    workers: int
    configured: int = attrs.field(init=False, repr=False)
    fleet: Fleet | None = attrs.field(default=None, init=False, repr=False)

    @configured.default
    def _as_given(self) -> int:
        return self.workers

    @property
    def name(self) -> str:
        """What operators call the server."""
        return name_of(self.server)

    @property
    def children(self) -> set[int]:
        """The process ids of the workers."""
        return {slot.process.pid for slot in self.fleet or () if slot.process is not None and slot.process.pid}

    @property
    def forktimes(self) -> list[float]:
        """The reactor's seconds of the last forks."""
        return [] if self.fleet is None else list(self.fleet.throttle.times)


Reread = Callable[[], tuple[Configuration, Sequence[ServerWrapper] | None]]
"""Reads the configuration again; returns the servers that it describes, or None for those that are there."""


def open_sockets(wrappers: Sequence[ServerWrapper], held: Sockets) -> Sockets:
    """Have the servers that share sockets open them.

    :param held: those of the servers that they replace.
    :raises NovasvcError: an address cannot be had; none is left open.
    """
    opened: dict[str, Sequence[socket.socket]] = {}
    try:
        for wrapper in wrappers:
            shares = IPreforkable.providedBy(wrapper.server)
            opened[wrapper.name] = [*wrapper.server.open_sockets(held.get(wrapper.name, ()))] if shares else []
    except BaseException:
        _close(opened, but=held)
        raise
    return opened


class Owner(Protocol):
    """Who has a supervisor: the process around it."""

    def failed(self, error: WorkerFailedError) -> None:
        """See that no worker of a server can run; nothing goes on from there."""

    def terminate(self) -> None:
        """Drain all and end: an operator wants it."""

    def reloading(self, *, under_way: bool) -> None:
        """See a reload begin or end."""


@implementer(ISupervisor)
class Supervisor:
    """Keeps the workers of some servers running.

    :param reactor: provides IReactorProcess, IReactorSocket and IReactorTime.
    :param configuration: what it goes by.
    :param reread: see :data:`Reread`.
    :param log_file: where workers log to; "" is standard output.
    :param owner: is told what is more than its business.
    :ivar configuration: what it goes by now.
    :ivar wrappers: the servers that it runs now.
    :ivar cut: when all were drained, a worker did not end by itself, but was cut short or killed.
    """

    def __init__(
        self,
        reactor: Any,
        configuration: Configuration,
        reread: Reread,
        log_file: str,
        owner: Owner,
    ) -> None:
        self._reactor = reactor
        self.configuration = configuration
        self._reread = reread
        self._log_path = os.path.abspath(log_file) if log_file else ""  # noqa: PTH100 - the name, whatever links there are
        self._log_file = LogFile(log_file) if log_file else None
        self._owner = owner
        self._fleets: list[Fleet] = []
        self._leaving: list[Fleet] = []
        self._forks: list[Forks] = []
        self._sockets: Sockets = {}
        self._lock: int | None = None
        self.wrappers: Sequence[ServerWrapper] = ()
        self._reloading: Deferred[list[Row]] | None = None
        self._started = self._ending = self.cut = False

    @property
    def _settings(self) -> Settings:
        return self.configuration.settings

    @property
    def slots(self) -> list[Slot]:
        """All places of workers."""
        return [slot for fleet in (*self._fleets, *self._leaving) for slot in fleet]

    @property
    def status(self) -> str:
        """How it goes, in a line."""
        if self._ending:
            return f"draining: {pluralize(len(self.slots), 'worker')} left"
        slots = [slot for fleet in self._fleets for slot in fleet.slots]
        return f"{sum(slot.state == 'ready' for slot in slots)} of {len(slots)} workers are ready"

    @property
    def comes_up(self) -> bool:
        """Whether the start is under way: workers that only wait for the next try may get another configuration."""
        slots = self.slots
        return not self._started and (not slots or any(slot.state in {"idle", "starting"} for slot in slots))

    @property
    def reloads(self) -> bool:
        """Whether a reload is under way."""
        return self._reloading is not None

    # -- the way up and down -------------------------------------------------------------------

    def start(self, wrappers: Sequence[ServerWrapper], sockets: Sockets, lock: int | None = None) -> Deferred[None]:
        """Begin to start the workers.

        :param sockets: theirs from now on.
        :param lock: descriptor of a lock that is held until the last of the workers has ended, should this process be
            killed: see :class:`novasvc.workers.control.path_lock.Claim`.
        :return: fires when all of them have been ready.
        """
        self._lock = lock
        self.wrappers, self._sockets = list(wrappers), sockets
        for wrapper, generation in zip(wrappers, self._generations(wrappers, sockets), strict=True):
            self._fleets.append(self._make_fleet(wrapper, generation))
        started = [fleet.start() for fleet in self._fleets]
        return gatherResults(started, consumeErrors=True).addCallback(self._note_started)

    def _note_started(self, _: object) -> None:
        self._started = True

    def drain_all(self) -> Deferred[None]:
        """Let all workers finish what they have begun.

        :return: fires when there is none any more.
        """
        self._ending = True
        if self._reloading is not None:
            self._reloading.cancel()
        drained = DeferredList([fleet.drain() for fleet in (*self._fleets, *self._leaving)], consumeErrors=True)
        # Each worker takes in those who have connected, and the last one closes the address: who comes
        # now is to go elsewhere, and not to wait here for nobody.
        _close(self._sockets, but={})
        return drained.addCallback(self._note_cut, self.slots).addCallback(lambda _: self._close())

    def _note_cut(self, _: object, slots: Sequence[Slot]) -> None:
        self.cut = any(slot.cut for slot in slots)

    def hurry(self) -> None:
        """Let all workers end at once."""
        for fleet in (*self._fleets, *self._leaving):
            fleet.hurry()

    def check(self) -> None:
        """See whether the workers' reactors turn, and which file the log is. Called about once a second."""
        for slot in self.slots:
            slot.check()
        if self._log_file is not None and self._log_file.follow():
            self._pass_on_log()

    def rotate_log(self) -> None:
        """Begin a new log file, unless another program has done so."""
        if self._log_file is not None and self._log_file.rotate():
            self._pass_on_log()

    def _pass_on_log(self) -> None:
        for forks in self._forks:
            forks.pass_on_log()

    def _close(self) -> Deferred[None]:
        closed = DeferredList([forks.close() for forks in self._forks], consumeErrors=True)
        _close(self._sockets, but={})
        self._forks, self._fleets, self._leaving, self._sockets = [], [], [], {}
        return closed.addCallback(lambda _: self._close_log())

    def _close_log(self) -> None:
        log_file, self._log_file = self._log_file, None
        if log_file is not None:
            log_file.close()

    # -- what workers are made from ------------------------------------------------------------

    def _make_fleet(self, wrapper: ServerWrapper, generation: Generation) -> Fleet:
        wrapper.fleet = Fleet(wrapper.workers, generation, self._reactor, self._take_number, self._give_up)
        return wrapper.fleet

    def _generations(self, wrappers: Sequence[ServerWrapper], sockets: Sockets) -> list[Generation]:
        settings = self._settings
        packages = [pack(wrapper.server) for wrapper in wrappers]
        modules = frozenset[str]().union(*(package.modules for package in packages)) - {"__main__", "builtins"}
        main = next((package.main for package in packages if package.main is not None), None)
        environment = {name: value for name, value in os.environ.items() if name not in CHILD_VARIABLES}
        forks = Forks(self._reactor, sorted(modules), main, environment, self._log_file, lock=self._lock)
        forks.start()
        self._forks.append(forks)
        order = {
            "reactor": _module_of(self._reactor),
            "log": {"file": self._log_path, "json": settings.log_json, "level": settings.log_level},
            "grace": settings.graceful_shutdown_timeout,
            "silence": settings.worker_watchdog,
        }
        limits = Limits(settings.worker_start_timeout, settings.graceful_shutdown_timeout, settings.worker_watchdog)
        policy = RestartPolicy.from_settings(settings)
        return [Generation(package, sockets[package.name], forks, policy, limits, order) for package in packages]

    def _take_number(self) -> int:
        taken = {slot.number for slot in self.slots}
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    def _give_up(self, slot: Slot, problem: str) -> bool:
        """Decide whether a worker that cannot run is started no more.

        :param problem: what is wrong with its configuration; "" is that it has died too often.
        """
        fleet = next((fleet for fleet in self._fleets if slot in fleet.slots), None)
        if fleet is None:
            return True  # it was to replace another, which stays
        settings = self._settings
        proven = fleet.proven and self._started
        if problem:
            if not proven:
                self._fail(WorkerFailedError(fleet.name, problem, "mend that, and start again"))
            return True
        if settings.worker_crash_loop == "retry" or (settings.worker_crash_loop == "auto" and proven):
            return False
        budget, window = settings.worker_restart_budget, settings.worker_restart_window
        died = f"worker {slot.number} died {budget} times within {window:g} s, at last: {slot.trouble}"
        self._fail(WorkerFailedError(fleet.name, died, "the log above has the reason of each"))
        return True

    def _fail(self, error: WorkerFailedError) -> None:
        # In a turn of its own: who is told, drains all workers, and this one is in the midst of its end.
        self._reactor.callLater(0, self._owner.failed, error)

    # -- ISupervisor ---------------------------------------------------------------------------

    def workers(self) -> list[Row]:
        """See :meth:`novasvc.interfaces.ISupervisor.workers`."""
        return [{**row(slot), **_details(slot)} for slot in sorted(self.slots, key=lambda slot: slot.number)]

    def resize(self, count: int, server: str | None) -> None:
        """See :meth:`novasvc.interfaces.ISupervisor.resize`."""
        see_number(count)
        names = ", ".join(fleet.name for fleet in self._fleets) or "none"
        fleets = [fleet for fleet in self._fleets if server in {None, fleet.name}]
        if server is not None and not fleets:
            raise NoSuchWorkerError(f"server {server!r}", names)
        if len(fleets) != 1:
            raise ResizeError(str(count), f"say which server is meant; there are: {names}")
        self._resize(fleets[0], count)

    def resize_all(self, more: int) -> None:
        """Give each server some more workers, or less; each keeps at least one."""
        for fleet in self._fleets:
            if 1 <= fleet.size + more <= MOST_WORKERS and not self._ending:
                self._resize(fleet, fleet.size + more)
            else:
                _log.warn("{name} keeps its {workers}", name=fleet.name, workers=pluralize(fleet.size, "worker"))

    def _resize(self, fleet: Fleet, count: int) -> None:
        if self._ending:
            raise ResizeError(str(count), "the supervisor ends")
        _log.info(
            "{name} has {workers} from now on, before: {size}",
            name=fleet.name,
            workers=pluralize(count, "worker"),
            size=fleet.size,
        )
        fleet.resize(count)

    def drain(self, number: int | None) -> Deferred[None]:
        """See :meth:`novasvc.interfaces.ISupervisor.drain`."""
        if number is None:
            self._reactor.callLater(0, self._owner.terminate)
            return succeed(None)
        if self._ending:
            raise DrainError(number, "the supervisor ends, and this worker with it")
        for fleet in self._fleets:
            for slot in fleet.slots:
                if slot.number == number:
                    return Deferred.fromCoroutine(_replace(fleet, slot))
        numbers = ", ".join(str(slot.number) for fleet in self._fleets for slot in fleet.slots) or "none"
        raise NoSuchWorkerError(f"worker {number}", numbers)

    def dump(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.dump`."""
        dumping = gatherResults([Deferred.fromCoroutine(_dump(slot)) for slot in self.slots], consumeErrors=True)
        return cast(Deferred[Sequence[Row]], dumping)

    def metrics(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.metrics`."""
        return Deferred.fromCoroutine(survey_figures(self.slots))

    def health(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.health`."""
        return Deferred.fromCoroutine(survey_health(self.slots))

    def reload(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.reload`."""
        return Deferred.fromCoroutine(self._reload())

    # -- reload --------------------------------------------------------------------------------

    async def _reload(self) -> list[Row]:
        if self._ending:
            raise ReloadError("the supervisor ends")
        if self.comes_up:
            raise ReloadError("its workers have not all been ready since its start; wait for that, or start it again")
        if self._reloading is not None:
            raise ReloadError("another reload is under way")
        self._owner.reloading(under_way=True)
        self._reloading = Deferred.fromCoroutine(self._take_over())
        try:
            return await self._reloading
        except CancelledError:
            raise ReloadError("the supervisor ends") from None
        finally:
            self._reloading = None
            if not self._ending:
                self._owner.reloading(under_way=False)

    async def _take_over(self) -> list[Row]:
        """Read, check, replace; whatever goes wrong leaves what is there."""
        try:
            configuration, wrappers = self._reread()
            see_names(wrappers or ())
            sockets = self._sockets if wrappers is None else open_sockets(wrappers, self._sockets)
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(str(error)) from error
        if wrappers is not None and not wrappers:
            raise ReloadError("the configuration wants no workers; to run all in one process takes a new start")
        rows = changes(self.configuration, configuration)
        for change in rows:
            _log.info("reload: {setting} changes from {before} to {after}", **change)
        before = self.configuration, self.wrappers, self._sockets
        self.configuration, self.wrappers, self._sockets = (
            configuration,
            self.wrappers if wrappers is None else wrappers,
            sockets,
        )
        try:
            await self._replace_all({wrapper.name: wrapper.configured for wrapper in before[1]})
        except BaseException as error:
            self.configuration, self.wrappers, self._sockets = before
            _close(sockets, but=self._sockets)
            if isinstance(error, NovasvcError | OSError) and not isinstance(error, ReloadError):
                raise ReloadError(str(error)) from error
            raise
        _close(before[2], but=self._sockets)
        _log.info("reloaded: the workers were replaced; those that were there before finish what they have begun")
        return rows

    async def _replace_all(self, configured: Mapping[str, int]) -> None:
        """Have fleets of the servers that there are to be, and of no others.

        :param configured: by name, how many workers there were to be; an operator's number outlives one that stays.
        """
        before = {fleet.name: (fleet, fleet.generation) for fleet in self._fleets}
        after: list[tuple[ServerWrapper, Fleet]] = []
        generations = self._generations(self.wrappers, self._sockets)
        forks = self._forks[-1]
        try:
            for wrapper, generation in zip(self.wrappers, generations, strict=True):
                if wrapper.name in before:
                    fleet, _ = before[wrapper.name]
                    await fleet.replace_all(generation)
                else:
                    fleet = self._make_fleet(wrapper, generation)
                    self._fleets.append(fleet)
                    await fleet.start_surely()
                after.append((wrapper, fleet))
        except BaseException as error:
            await self._put_back(before.values(), replace=isinstance(error, ReloadError))
            self._retire(forks)
            raise
        for fleet in [fleet for fleet in self._fleets if all(fleet is not kept for _, kept in after)]:
            self._drop(fleet)
        for wrapper, fleet in after:
            if wrapper.fleet is None:
                wrapper.fleet = fleet
                if configured.get(wrapper.name) != wrapper.configured:
                    fleet.resize(wrapper.workers)
            wrapper.workers = fleet.size
        for other in self._forks:
            if other is not forks:
                self._retire(other)

    async def _put_back(self, before: Collection[tuple[Fleet, Generation]], *, replace: bool) -> None:
        """Have the fleets that there were.

        :param before: they, and what their workers were made from.
        :param replace: the workers that are made from something else; otherwise all end anyway.
        """
        for fleet in [fleet for fleet in self._fleets if all(fleet is not former for former, _ in before)]:
            self._drop(fleet)
        for fleet, generation in before:
            fleet.generation = generation
        for fleet, generation in before if replace else ():
            try:
                await fleet.replace_all(generation)
            except ReloadError as error:
                _log.error("not all workers of {name} were put back: {error}", name=fleet.name, error=error)

    def _drop(self, fleet: Fleet) -> None:
        """Let the workers of a server go that is there no more."""
        self._fleets.remove(fleet)
        self._leaving.append(fleet)
        fleet.drain().addCallback(lambda _: self._leaving.remove(fleet) if fleet in self._leaving else None)

    def _retire(self, forks: Forks) -> None:
        """Let a forkserver go of which no more is wanted, when all workers have ended that came from it."""
        slots = [slot for fleet in (*self._fleets, *self._leaving) for slot in fleet.made_by(forks)]

        def close(_: object) -> None:
            if forks in self._forks:
                self._forks.remove(forks)
                forks.close()

        DeferredList([slot.reaches("ended") for slot in slots], consumeErrors=True).addCallback(close)


def _close(sockets: Sockets, *, but: Sockets) -> None:
    """Close sockets, except those that are among others."""
    kept = {id(shared) for these in but.values() for shared in these}
    for shared in (shared for these in sockets.values() for shared in these):
        if id(shared) not in kept:
            shared.close()


def see_names(wrappers: Sequence[ServerWrapper]) -> None:
    """See that servers can be told apart.

    :raises NotPreforkableError: two have the same name.
    """
    names = [wrapper.name for wrapper in wrappers]
    for name in names:
        if names.count(name) > 1:
            problem, remedy = (
                "another server has this name",
                "give each a name of its own: setName, or an attribute name",
            )
            raise NotPreforkableError(name, problem, remedy)


def see_number(workers: object) -> None:
    """See that this is a number of workers.

    :raises ResizeError: otherwise.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= MOST_WORKERS:
        raise ResizeError(repr(workers), f"give a number from 1 to {MOST_WORKERS}")


async def _replace(fleet: Fleet, slot: Slot) -> None:
    try:
        await fleet.replace(slot)
    except ReloadError as error:
        raise DrainError(slot.number, f"it stays, as {error.problem}") from error
    await slot.reaches("ended")


def _module_of(reactor: Any) -> str:
    """Return the module whose ``install`` makes such a reactor; of one that has none, Twisted's default."""
    module = type(reactor).__module__
    return module if hasattr(sys.modules.get(module), "install") else "twisted.internet.default"


def _details(slot: Slot) -> Row:
    return {
        "since": _time(slot.since),
        "restarts": slot.restarts,
        "memory": None if slot.process is None else slot.process.memory,
        "trouble": slot.trouble,
    }


async def _dump(slot: Slot) -> Row:
    told, process = row(slot), slot.process
    if process is None:
        return {**told, "stacks": "", "calls": None, "events": []}
    calls = await process.calls()
    stacks = await process.dump()
    events = [{"time": _time(event.time), "kind": event.kind, "text": event.text} for event in process.events]
    return {**told, "stacks": stacks, "calls": calls, "events": events}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
