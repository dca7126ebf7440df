"""The supervisor: starts, replaces, resizes, reloads and drains the workers of all servers."""

import os
import random
from collections.abc import Sequence
from typing import Any, Protocol
from uuid import uuid4

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.config import Configuration
from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import ISupervisor
from novasvc.telemetry.configuration import log_changes
from novasvc.telemetry.logs import pluralize
from novasvc.workers.current import SharedStart
from novasvc.workers.errors import DrainError, NoSuchWorkerError, ReloadError, ResizeError, WorkerFailedError
from novasvc.workers.exit_status import problem_of
from novasvc.workers.file_lock import lock_identity
from novasvc.workers.group import WorkerGroup
from novasvc.workers.groups import WorkerGroups
from novasvc.workers.inspection import (
    Row,
    collect_descriptions,
    collect_dumps,
    collect_health,
    collect_metrics,
    worker_rows,
)
from novasvc.workers.recycling import Recycler
from novasvc.workers.servers import (
    MAX_WORKERS,
    Reread,
    ServerWrapper,
    Sockets,
    check_names,
    check_workers,
    close_sockets,
    open_sockets,
)
from novasvc.workers.slot import Slot

_log = Logger()


class Owner(Protocol):
    """The owner of a supervisor: the launcher of this process."""

    def failed(self, error: WorkerFailedError) -> None:
        """Handle workers that cannot run: the supervisor cannot continue."""

    def drain(self) -> None:
        """Drain all workers and exit, on an operator's request; ignored if they are to exit already."""

    def restart(self) -> None:
        """Drain all workers, and run the program again in this process, on an operator's request."""

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
    :ivar interrupted: a worker did not finish the last drain: it was interrupted or killed.
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
        self._owner = owner
        self._groups = WorkerGroups(reactor, log_file, self._should_give_up)
        self._recycler = Recycler(self._groups, lambda: self.configuration.settings, reactor, random.Random())  # noqa: S311
        self._sockets: Sockets = {}
        self.wrappers: Sequence[ServerWrapper] = ()
        self._reloading: Deferred[list[Row]] | None = None
        self._reloads_ended = 0
        self._reload_problem: str | None = None
        self._started = self._draining = self.interrupted = False

    @property
    def slots(self) -> list[Slot]:
        """All worker slots."""
        return self._groups.slots

    @property
    def status(self) -> str:
        """A one-line status, for systemd."""
        if self._draining:
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

    def start(self, wrappers: Sequence[ServerWrapper], sockets: Sockets, lock_fd: int | None = None) -> Deferred[None]:
        """Start the workers.

        :param sockets: the listening sockets; the supervisor owns them from now on.
        :param lock_fd: descriptor of the lock file, which workers inherit: if this process is killed, they hold the
            lock until the last of them exits. See :class:`novasvc.workers.control.path_lock.PathLock`.
        :return: Deferred, fired when each worker has been ready.
        """
        self._groups.lock_fd = lock_fd
        lock = None if lock_fd is None else lock_identity(lock_fd)
        self._groups.shared_start = SharedStart(uuid4().hex, os.getpid(), lock)
        self.wrappers, self._sockets = list(wrappers), sockets
        return self._groups.start(wrappers, self.configuration.settings, sockets).addCallback(self._note_started)

    def _note_started(self, _: object) -> None:
        self._started = True

    def drain_all(self) -> Deferred[None]:
        """Drain all workers.

        :return: Deferred, fired when all have exited.
        """
        self._draining = True
        self._recycler.cancel()
        if self._reloading is not None:
            self._reloading.cancel()
        drained = self._groups.drain()
        # Workers still accept what is in the backlog. With our copies closed, the last worker to exit closes the
        # address, so new clients are refused instead of waiting in a backlog that nobody serves.
        close_sockets(self._sockets, keep={})
        return drained.addCallback(self._drained)

    def _drained(self, interrupted: bool) -> None:  # noqa: FBT001 - the result of the drain
        self.interrupted = interrupted
        close_sockets(self._sockets, keep={})
        self._sockets = {}

    def interrupt(self) -> None:
        """Make all workers cancel their work and exit now."""
        self._groups.interrupt()

    def check(self) -> None:
        """Check for blocked workers, workers to recycle, and a rotated log file. Called about once a second."""
        self._groups.check()
        if self._started and not self._draining and self._reloading is None:
            self._recycler.check()

    def rotate_log(self) -> None:
        """Rotate the log, unless another program has."""
        self._groups.rotate_log()

    def _should_give_up(self, slot: Slot, problem: str) -> bool:
        """Decide whether to stop restarting a worker.

        :param problem: a fatal problem of its configuration; "" if its restart budget is exhausted.
        :return: True to give it up.
        """
        group = next((group for group in self._groups if slot in group.slots), None)
        if group is None:
            return True  # a replacement in a reload: the old worker keeps running
        settings = self.configuration.settings
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
        return worker_rows(self.slots)

    def resize(self, count: int, server: str | None) -> None:
        """See :meth:`novasvc.interfaces.ISupervisor.resize`."""
        check_workers(count)
        groups = [group for group in self._groups if server in {None, group.name}]
        if server is not None and not groups:
            raise NoSuchWorkerError(f"server {server!r}", self._groups.names)
        if len(groups) != 1:
            raise ResizeError(str(count), f"name the server; there are: {self._groups.names}")
        self._resize(groups[0], count)

    def resize_all(self, more: int) -> None:
        """Add (or remove) workers of each server, within 1 and the maximum."""
        for group in self._groups:
            if 1 <= group.size + more <= MAX_WORKERS and not self._draining:
                self._resize(group, group.size + more)
            else:
                _log.warn(
                    "{name} keeps {workers}: out of range, or shutting down",
                    name=group.name,
                    workers=pluralize(group.size, "worker"),
                )

    def _resize(self, group: WorkerGroup, count: int) -> None:
        if self._draining:
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
            self._reactor.callLater(0, self._owner.drain)
            return succeed(None)
        if self._draining:
            raise DrainError(number, "the supervisor is shutting down, and this worker with it")
        for group in self._groups:
            for slot in group.slots:
                if slot.number == number:
                    return Deferred.fromCoroutine(_replace(group, slot))
        numbers = ", ".join(str(slot.number) for group in self._groups for slot in group.slots) or "none"
        raise NoSuchWorkerError(f"worker {number}", numbers)

    def dump(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.dump`."""
        return Deferred.fromCoroutine(collect_dumps(self.slots))

    def metrics(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.metrics`."""
        return Deferred.fromCoroutine(collect_metrics(self.slots))

    def health(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.health`."""
        return Deferred.fromCoroutine(collect_health(self.slots))

    def inspect(self, what: str) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.inspect`."""
        return Deferred.fromCoroutine(collect_descriptions(self.slots, what))

    def reload(self) -> Deferred[Sequence[Row]]:
        """See :meth:`novasvc.interfaces.ISupervisor.reload`."""
        return Deferred.fromCoroutine(self._reload())

    def begin_reload(self) -> None:
        """See :meth:`novasvc.interfaces.ISupervisor.begin_reload`."""
        refusals: list[BaseException] = []
        begun = False

        def failed(failure: Failure) -> None:
            if begun:
                log_failed_reload(failure)
            else:
                refusals.append(failure.value)  # type: ignore[arg-type] # a failure has one

        self.reload().addErrback(failed)
        begun = True
        if refusals:
            raise refusals[0]

    def reload_report(self) -> dict[str, Any]:
        """See :meth:`novasvc.interfaces.ISupervisor.reload_report`."""
        return {"ended": self._reloads_ended, "under_way": self.is_reloading, "problem": self._reload_problem}

    def restart(self) -> None:
        """See :meth:`novasvc.interfaces.ISupervisor.restart`."""
        self._reactor.callLater(0, self._owner.restart)

    # -- reload --------------------------------------------------------------------------------

    async def _reload(self) -> list[Row]:
        if self._draining:
            raise ReloadError("the supervisor is shutting down")
        if self.is_starting:
            raise ReloadError("the first start has not finished; wait until all workers are ready")
        if self._reloading is not None:
            raise ReloadError("another reload is under way")
        self._recycler.cancel()
        self._owner.reloading(under_way=True)
        self._reloading = Deferred.fromCoroutine(self._reload_all())
        self._reload_problem = None
        try:
            return await self._reloading
        except CancelledError:
            raise ReloadError("the supervisor is shutting down") from None
        except Exception as error:
            self._reload_problem = error.problem if isinstance(error, ReloadError) else describe(error)
            raise
        finally:
            self._reloading = None
            self._reloads_ended += 1
            if not self._draining:
                self._owner.reloading(under_way=False)

    async def _reload_all(self) -> list[Row]:
        """Read the configuration, check it, replace all workers; roll back on any error."""
        try:
            configuration, wrappers = self._reread()
            check_names(wrappers or ())
            sockets = self._sockets if wrappers is None else open_sockets(wrappers, self._sockets)
        except (NovasvcError, SystemExit) as error:
            raise ReloadError(problem_of(error)) from error
        if wrappers is not None and not wrappers:
            raise ReloadError("the configuration asks for no workers; restart to run everything in one process")
        rows = log_changes(self.configuration, configuration)
        before = self.configuration, self.wrappers, self._sockets
        configured = {wrapper.name: wrapper.configured for wrapper in self.wrappers}
        if wrappers is not None:
            self.wrappers = wrappers
        self.configuration, self._sockets = configuration, sockets
        try:
            await self._groups.replace(self.wrappers, configuration.settings, sockets, configured)
        except BaseException as error:
            self.configuration, self.wrappers, self._sockets = before
            close_sockets(sockets, keep=self._sockets)
            if isinstance(error, NovasvcError | OSError) and not isinstance(error, ReloadError):
                raise ReloadError(str(error)) from error
            raise
        close_sockets(before[2], keep=self._sockets)
        _log.info("reloaded: all workers were replaced; the old ones are draining")
        return rows


def log_failed_reload(failure: Failure) -> None:
    """Log why a reload failed; an error that nobody raises on purpose with its traceback."""
    if failure.check(NovasvcError):
        _log.error("{error}", error=failure.value)
    else:
        _log.failure("reloading the workers failed", failure)


async def _replace(group: WorkerGroup, slot: Slot) -> None:
    try:
        await group.replace(slot)
    except ReloadError as error:
        raise DrainError(slot.number, f"it keeps running: {error.problem}") from error
    await slot.reaches("ended")
