"""The supervisor: starts, replaces, resizes, reloads and drains the workers of all servers."""

import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
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
from novasvc.telemetry.timestamps import iso_time
from novasvc.workers.aggregation import collect_health, collect_metrics, row
from novasvc.workers.errors import (
    DrainError,
    NoSuchWorkerError,
    NotPreforkableError,
    ReloadError,
    ResizeError,
    WorkerFailedError,
)
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.group import WorkerGroup, WorkerTemplate
from novasvc.workers.restart_policy import RestartPolicy
from novasvc.workers.slot import Slot, WorkerTimeouts
from novasvc.workers.specification import make_specification, server_name
from novasvc.workers.systemd import CHILD_VARIABLES

_log = Logger()

MAX_WORKERS = 1024
"""Workers per server; a larger number is taken for a typing error."""

Row = dict[str, Any]
Sockets = Mapping[str, Sequence[socket.socket]]
"""Listening sockets by the name of their server."""


@attrs.define(eq=False)
class ServerWrapper:
    """A server and its number of worker processes.

    :param server: provides IService, or takes a reactor and returns such a one; see
        :func:`novasvc.workers.specification.make_specification`.
    :param workers: number of processes, > 0.
    :ivar children: process ids of its current workers. For those of all servers of a launcher, see
        :attr:`novasvc.service.ProcessLauncher.children`.
    :ivar forktimes: reactor times of recent forks, for whatever reason.
    :ivar configured: the number given at construction; an operator may change ``workers`` at run time.
    Source: nova.service.ServerWrapper.
    """

    server: Any
    workers: int
    configured: int = attrs.field(init=False, repr=False)
    group: WorkerGroup | None = attrs.field(default=None, init=False, repr=False)

    @configured.default
    def _as_given(self) -> int:
        return self.workers

    @property
    def name(self) -> str:
        """The server's name, as operators see it."""
        return server_name(self.server)

    @property
    def children(self) -> set[int]:
        """The process ids of the workers."""
        return {slot.process.pid for slot in self.group or () if slot.process is not None and slot.process.pid}

    @property
    def forktimes(self) -> list[float]:
        """Reactor times of recent forks."""
        return [] if self.group is None else list(self.group.throttle.times)


Reread = Callable[[], tuple[Configuration, Sequence[ServerWrapper] | None]]
"""Reads the configuration again; returns it with its servers, or with None to keep the present servers."""


def open_sockets(wrappers: Sequence[ServerWrapper], held: Sockets) -> Sockets:
    """Open the listening sockets of preforkable servers.

    :param held: sockets of the servers being replaced, to reuse.
    :raises NovasvcError: an address cannot be bound; all new sockets are closed again.
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
    """The owner of a supervisor: the launcher of this process."""

    def failed(self, error: WorkerFailedError) -> None:
        """Handle workers that cannot run: the supervisor cannot continue."""

    def terminate(self) -> None:
        """Drain all workers and exit, on an operator's request."""

    def reloading(self, *, under_way: bool) -> None:
        """Handle the begin or the end of a reload."""


@implementer(ISupervisor)
class Supervisor:
    """Keeps the workers of all servers running, and answers operators.

    :param reactor: provides IReactorProcess, IReactorSocket and IReactorTime.
    :param configuration: the settings at start.
    :param reread: see :data:`Reread`.
    :param log_file: path of the workers' log; "" is standard output.
    :param owner: is told of failures, requests to terminate, and reloads.
    :ivar configuration: the settings now.
    :ivar wrappers: the servers now.
    :ivar cut: a worker did not finish the last drain: it was interrupted or killed.
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
        self._log_path = os.path.abspath(log_file) if log_file else ""  # noqa: PTH100 - links are kept: the name is reopened
        self._log_file = LogFile(log_file) if log_file else None
        self._owner = owner
        self._groups: list[WorkerGroup] = []
        self._leaving: list[WorkerGroup] = []
        self._forkservers: list[ForkserverClient] = []
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
        """All worker slots."""
        return [slot for group in (*self._groups, *self._leaving) for slot in group]

    @property
    def status(self) -> str:
        """A one-line status, for systemd."""
        if self._ending:
            return f"draining: {pluralize(len(self.slots), 'worker')} left"
        slots = [slot for group in self._groups for slot in group.slots]
        return f"{sum(slot.state == 'ready' for slot in slots)} of {len(slots)} workers are ready"

    @property
    def is_starting(self) -> bool:
        """Whether the first start is under way; not if all workers are backing off, since a reload may fix them."""
        slots = self.slots
        return not self._started and (not slots or any(slot.state in {"idle", "starting"} for slot in slots))

    @property
    def is_reloading(self) -> bool:
        """Whether a reload is under way."""
        return self._reloading is not None

    # -- start and stop -------------------------------------------------------------------

    def start(self, wrappers: Sequence[ServerWrapper], sockets: Sockets, lock: int | None = None) -> Deferred[None]:
        """Start the workers.

        :param sockets: the listening sockets; the supervisor owns them from now on.
        :param lock: descriptor of the lock file, which workers inherit: if this process is killed, they hold the lock
            until the last of them exits. See :class:`novasvc.workers.control.path_lock.PathLock`.
        :return: Deferred, fired when each worker has been ready.
        """
        self._lock = lock
        self.wrappers, self._sockets = list(wrappers), sockets
        for wrapper, template in zip(wrappers, self._make_templates(wrappers, sockets), strict=True):
            self._groups.append(self._make_group(wrapper, template))
        started = [group.start() for group in self._groups]
        return gatherResults(started, consumeErrors=True).addCallback(self._note_started)

    def _note_started(self, _: object) -> None:
        self._started = True

    def drain_all(self) -> Deferred[None]:
        """Drain all workers.

        :return: Deferred, fired when all have exited.
        """
        self._ending = True
        if self._reloading is not None:
            self._reloading.cancel()
        drained = DeferredList([group.drain() for group in (*self._groups, *self._leaving)], consumeErrors=True)
        # Workers still accept what is in the backlog. With our copies closed, the last worker to exit closes the
        # address, so new clients are refused instead of waiting in a backlog that nobody serves.
        _close(self._sockets, but={})
        return drained.addCallback(self._note_cut, self.slots).addCallback(lambda _: self._close())

    def _note_cut(self, _: object, slots: Sequence[Slot]) -> None:
        self.cut = any(slot.cut for slot in slots)

    def hurry(self) -> None:
        """Make all workers cancel their work and exit now."""
        for group in (*self._groups, *self._leaving):
            group.hurry()

    def check(self) -> None:
        """Check for blocked workers, and for a rotated log file. Called about once a second."""
        for slot in self.slots:
            slot.check()
        if self._log_file is not None and self._log_file.follow():
            self._pass_on_log()

    def rotate_log(self) -> None:
        """Reopen the log file, unless that has been done."""
        if self._log_file is not None and self._log_file.rotate():
            self._pass_on_log()

    def _pass_on_log(self) -> None:
        for forkserver in self._forkservers:
            forkserver.pass_on_log()

    def _close(self) -> Deferred[None]:
        closed = DeferredList([forkserver.close() for forkserver in self._forkservers], consumeErrors=True)
        _close(self._sockets, but={})
        self._forkservers, self._groups, self._leaving, self._sockets = [], [], [], {}
        return closed.addCallback(lambda _: self._close_log())

    def _close_log(self) -> None:
        log_file, self._log_file = self._log_file, None
        if log_file is not None:
            log_file.close()

    # -- templates and groups ------------------------------------------------------------

    def _make_group(self, wrapper: ServerWrapper, template: WorkerTemplate) -> WorkerGroup:
        wrapper.group = WorkerGroup(wrapper.workers, template, self._reactor, self._take_number, self._give_up)
        return wrapper.group

    def _make_templates(self, wrappers: Sequence[ServerWrapper], sockets: Sockets) -> list[WorkerTemplate]:
        settings = self._settings
        specifications = [make_specification(wrapper.server) for wrapper in wrappers]
        modules = frozenset[str]().union(*(each.modules for each in specifications)) - {
            "__main__",
            "builtins",
        }
        main = next((each.main for each in specifications if each.main is not None), None)
        environment = {name: value for name, value in os.environ.items() if name not in CHILD_VARIABLES}
        forkserver = ForkserverClient(
            self._reactor, sorted(modules), main, environment, self._log_file, lock=self._lock
        )
        forkserver.start()
        self._forkservers.append(forkserver)
        parameters = {
            "reactor": _module_of(self._reactor),
            "log": {"file": self._log_path, "json": settings.log_json, "level": settings.log_level},
            "grace": settings.graceful_shutdown_timeout,
            "watchdog": settings.worker_watchdog,
        }
        timeouts = WorkerTimeouts(
            settings.worker_start_timeout, settings.graceful_shutdown_timeout, settings.worker_watchdog
        )
        policy = RestartPolicy.from_settings(settings)
        return [
            WorkerTemplate(each, sockets[each.name], forkserver, policy, timeouts, parameters)
            for each in specifications
        ]

    def _take_number(self) -> int:
        taken = {slot.number for slot in self.slots}
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    def _give_up(self, slot: Slot, problem: str) -> bool:
        """Decide whether to stop restarting a worker.

        :param problem: a fatal problem of its configuration; "" if its restart budget is exhausted.
        :return: True to give it up.
        """
        group = next((group for group in self._groups if slot in group.slots), None)
        if group is None:
            return True  # a replacement in a reload: the old worker keeps running
        settings = self._settings
        proven = group.proven and self._started
        if problem:
            if not proven:
                self._fail(WorkerFailedError(group.name, problem, "fix that and start again"))
            return True
        if settings.worker_crash_loop == "retry" or (settings.worker_crash_loop == "auto" and proven):
            return False
        budget, window = settings.worker_restart_budget, settings.worker_restart_window
        died = f"worker {slot.number} exited {budget} times within {window:g} s, at last: {slot.trouble}"
        self._fail(WorkerFailedError(group.name, died, "see the log above for the reason of each exit"))
        return True

    def _fail(self, error: WorkerFailedError) -> None:
        # Not re-entrant: the owner drains all workers, and this slot is still handling an exit.
        self._reactor.callLater(0, self._owner.failed, error)

    # -- ISupervisor ---------------------------------------------------------------------------

    def workers(self) -> list[Row]:
        """See :meth:`novasvc.interfaces.ISupervisor.workers`."""
        return [{**row(slot), **_details(slot)} for slot in sorted(self.slots, key=lambda slot: slot.number)]

    def resize(self, count: int, server: str | None) -> None:
        """See :meth:`novasvc.interfaces.ISupervisor.resize`."""
        check_workers(count)
        names = ", ".join(group.name for group in self._groups) or "none"
        groups = [group for group in self._groups if server in {None, group.name}]
        if server is not None and not groups:
            raise NoSuchWorkerError(f"server {server!r}", names)
        if len(groups) != 1:
            raise ResizeError(str(count), f"name the server; there are: {names}")
        self._resize(groups[0], count)

    def resize_all(self, more: int) -> None:
        """Add (or remove) workers of each server, within 1 and the maximum."""
        for group in self._groups:
            if 1 <= group.size + more <= MAX_WORKERS and not self._ending:
                self._resize(group, group.size + more)
            else:
                _log.warn(
                    "{name} keeps {workers}: out of range, or shutting down",
                    name=group.name,
                    workers=pluralize(group.size, "worker"),
                )

    def _resize(self, group: WorkerGroup, count: int) -> None:
        if self._ending:
            raise ResizeError(str(count), "the supervisor is shutting down")
        _log.info(
            "resizing {name} from {size} to {workers}",
            name=group.name,
            workers=pluralize(count, "worker"),
            size=group.size,
        )
        group.resize(count)

    def drain(self, number: int | None) -> Deferred[None]:
        """See :meth:`novasvc.interfaces.ISupervisor.drain`."""
        if number is None:
            self._reactor.callLater(0, self._owner.terminate)
            return succeed(None)
        if self._ending:
            raise DrainError(number, "the supervisor is shutting down, and this worker with it")
        for group in self._groups:
            for slot in group.slots:
                if slot.number == number:
                    return Deferred.fromCoroutine(_replace(group, slot))
        numbers = ", ".join(str(slot.number) for group in self._groups for slot in group.slots) or "none"
        raise NoSuchWorkerError(f"worker {number}", numbers)

    def dump(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.dump`."""
        dumping = gatherResults([Deferred.fromCoroutine(_dump(slot)) for slot in self.slots], consumeErrors=True)
        return cast(Deferred[Sequence[Row]], dumping)

    def metrics(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.metrics`."""
        return Deferred.fromCoroutine(collect_metrics(self.slots))

    def health(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.health`."""
        return Deferred.fromCoroutine(collect_health(self.slots))

    def reload(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.reload`."""
        return Deferred.fromCoroutine(self._reload())

    # -- reload --------------------------------------------------------------------------------

    async def _reload(self) -> list[Row]:
        if self._ending:
            raise ReloadError("the supervisor is shutting down")
        if self.is_starting:
            raise ReloadError("the first start has not finished; wait until all workers are ready")
        if self._reloading is not None:
            raise ReloadError("another reload is under way")
        self._owner.reloading(under_way=True)
        self._reloading = Deferred.fromCoroutine(self._reload_all())
        try:
            return await self._reloading
        except CancelledError:
            raise ReloadError("the supervisor is shutting down") from None
        finally:
            self._reloading = None
            if not self._ending:
                self._owner.reloading(under_way=False)

    async def _reload_all(self) -> list[Row]:
        """Read the configuration, check it, replace all workers; roll back on any error."""
        try:
            configuration, wrappers = self._reread()
            check_names(wrappers or ())
            sockets = self._sockets if wrappers is None else open_sockets(wrappers, self._sockets)
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(str(error)) from error
        if wrappers is not None and not wrappers:
            raise ReloadError("the configuration asks for no workers; restart to run everything in one process")
        rows = changes(self.configuration, configuration)
        for change in rows:
            _log.info("reload: {setting} changed from {before} to {after}", **change)
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
        _log.info("reloaded: all workers were replaced; the old ones are draining")
        return rows

    async def _replace_all(self, configured: Mapping[str, int]) -> None:
        """Replace the workers of servers that stay, start those that are new, drop the others.

        :param configured: number of workers by server before the reload: a resize by an operator survives the reload
            unless the configured number changed.
        """
        before = {group.name: (group, group.template) for group in self._groups}
        after: list[tuple[ServerWrapper, WorkerGroup]] = []
        templates = self._make_templates(self.wrappers, self._sockets)
        forkserver = self._forkservers[-1]
        try:
            for wrapper, template in zip(self.wrappers, templates, strict=True):
                if wrapper.name in before:
                    group, _ = before[wrapper.name]
                    await group.replace_all(template)
                else:
                    group = self._make_group(wrapper, template)
                    self._groups.append(group)
                    await group.start_and_wait()
                after.append((wrapper, group))
        except BaseException as error:
            await self._roll_back(before.values(), replace=isinstance(error, ReloadError))
            self._retire(forkserver)
            raise
        for group in [group for group in self._groups if all(group is not kept for _, kept in after)]:
            self._drop(group)
        for wrapper, group in after:
            if wrapper.group is None:
                wrapper.group = group
                if configured.get(wrapper.name) != wrapper.configured:
                    group.resize(wrapper.workers)
            wrapper.workers = group.size
        for other in self._forkservers:
            if other is not forkserver:
                self._retire(other)

    async def _roll_back(self, before: Collection[tuple[WorkerGroup, WorkerTemplate]], *, replace: bool) -> None:
        """Restore the groups from before a failed reload.

        :param before: the groups and their templates.
        :param replace: replace workers of the failed template, too; False if the supervisor is shutting down.
        """
        for group in [group for group in self._groups if all(group is not former for former, _ in before)]:
            self._drop(group)
        for group, template in before:
            group.template = template
        for group, template in before if replace else ():
            try:
                await group.replace_all(template)
            except ReloadError as error:
                _log.error("rolling back the workers of {name} failed: {error}", name=group.name, error=error)

    def _drop(self, group: WorkerGroup) -> None:
        """Drain the workers of a server that the configuration no longer has."""
        self._groups.remove(group)
        self._leaving.append(group)
        group.drain().addCallback(lambda _: self._leaving.remove(group) if group in self._leaving else None)

    def _retire(self, forkserver: ForkserverClient) -> None:
        """Shut down a superseded forkserver when the last of its workers has exited."""
        slots = [slot for group in (*self._groups, *self._leaving) for slot in group.forked_by(forkserver)]

        def close(_: object) -> None:
            if forkserver in self._forkservers:
                self._forkservers.remove(forkserver)
                forkserver.close()

        DeferredList([slot.reaches("ended") for slot in slots], consumeErrors=True).addCallback(close)


def _close(sockets: Sockets, *, but: Sockets) -> None:
    """Close sockets, except those that are also in ``but``."""
    kept = {id(shared) for these in but.values() for shared in these}
    for shared in (shared for these in sockets.values() for shared in these):
        if id(shared) not in kept:
            shared.close()


def check_names(wrappers: Sequence[ServerWrapper]) -> None:
    """Check that server names are unique.

    :raises NotPreforkableError: two servers have the same name.
    """
    names = [wrapper.name for wrapper in wrappers]
    for name in names:
        if names.count(name) > 1:
            problem, remedy = (
                "another server has the same name",
                "give each server its own name, by setName or an attribute `name`",
            )
            raise NotPreforkableError(name, problem, remedy)


def check_workers(workers: object) -> None:
    """Check a number of workers.

    :raises ResizeError: it is not an integer from 1 to the maximum.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= MAX_WORKERS:
        raise ResizeError(repr(workers), f"give a number from 1 to {MAX_WORKERS}")


async def _replace(group: WorkerGroup, slot: Slot) -> None:
    try:
        await group.replace(slot)
    except ReloadError as error:
        raise DrainError(slot.number, f"it keeps running: {error.problem}") from error
    await slot.reaches("ended")


def _module_of(reactor: Any) -> str:
    """Return the module whose ``install`` makes this kind of reactor, or Twisted's default module."""
    module = type(reactor).__module__
    return module if hasattr(sys.modules.get(module), "install") else "twisted.internet.default"


def _details(slot: Slot) -> Row:
    return {
        "since": iso_time(slot.since),
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
    events = [{"time": iso_time(event.time), "kind": event.kind, "text": event.text} for event in process.events]
    return {**told, "stacks": stacks, "calls": calls, "events": events}
