"""Start, reload and drain the workers of all servers, and run their forkservers."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.logger import Logger

from novasvc.config import Settings
from novasvc.errors import ProblemError
from novasvc.telemetry.logfiles import LogFile
from novasvc.workers.current import SharedStart
from novasvc.workers.errors import ReloadError
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.group import WorkerGroup, WorkerTemplate
from novasvc.workers.restart_policy import RestartPolicy
from novasvc.workers.servers import ServerWrapper, Sockets
from novasvc.workers.slot import Slot, WorkerTimeouts
from novasvc.workers.specification import pickle_server
from novasvc.workers.systemd import CHILD_VARIABLES

_log = Logger()


class WorkerGroups:
    """One group per server, plus groups of removed servers until they are drained.

    :param reactor: provides IReactorProcess, IReactorSocket and IReactorTime.
    :param log_file: path of the workers' log; "" is standard output.
    :param should_give_up: see :class:`novasvc.workers.slot.Slot`.
    :raises ProblemError: the log file cannot be opened.
    :ivar lock_fd: descriptor of the lock file that workers inherit, or None; see
        :class:`novasvc.workers.control.path_lock.PathLock`.
    :ivar shared_start: what all workers share; a supervisor that starts makes a new one.
    """

    def __init__(self, reactor: Any, log_file: str, should_give_up: Callable[[Slot, str], bool]) -> None:
        self.lock_fd: int | None = None
        self.shared_start = SharedStart("", 0)
        self._reactor = reactor
        self._log_path = os.path.abspath(log_file) if log_file else ""  # noqa: PTH100 - links are kept: the name is reopened
        self._log_file = _open_log(self._log_path) if log_file else None
        self._should_give_up = should_give_up
        self._groups: list[WorkerGroup] = []
        self._draining: list[WorkerGroup] = []
        self._forkservers: list[ForkserverClient] = []

    def __iter__(self) -> Iterator[WorkerGroup]:
        """Iterate over the groups of the present servers."""
        return iter(list(self._groups))

    @property
    def names(self) -> str:
        """The names of the servers, for messages."""
        return ", ".join(group.name for group in self._groups) or "none"

    @property
    def slots(self) -> list[Slot]:
        """All worker slots, including those that drain."""
        return [slot for group in self._all for slot in group]

    @property
    def _all(self) -> list[WorkerGroup]:
        return [*self._groups, *self._draining]

    # -- start and stop ------------------------------------------------------------------------

    def start(self, wrappers: Sequence[ServerWrapper], settings: Settings, sockets: Sockets) -> Deferred[None]:
        """Start the workers.

        :param sockets: the listening sockets; the caller keeps them open.
        :return: Deferred, fired when each worker has been ready.
        """
        for wrapper, template in zip(wrappers, self._make_templates(wrappers, settings, sockets), strict=True):
            self._groups.append(self._make_group(wrapper, template))
        started = [group.start() for group in self._groups]
        return gatherResults(started, consumeErrors=True).addCallback(lambda _: None)

    def drain(self) -> Deferred[bool]:
        """Drain all workers, then shut the forkservers down.

        :return: Deferred, fired when all have exited: whether a worker was interrupted or killed.
        """
        slots = self.slots
        drained = DeferredList([group.drain() for group in self._all], consumeErrors=True)
        closed = drained.addCallback(lambda _: self._close())
        return closed.addCallback(lambda _: any(slot.interrupted for slot in slots))

    def interrupt(self) -> None:
        """Make all workers cancel their work and exit now."""
        for group in self._all:
            group.interrupt()

    def check(self) -> None:
        """Check for blocked workers, and for a rotated log file. Called about once a second."""
        for slot in self.slots:
            slot.check()
        if self._log_file is not None and self._log_file.follow():
            self._send_log_to_forkservers()

    def rotate_log(self) -> None:
        """Rotate the log, unless another program has."""
        if self._log_file is not None and self._log_file.rotate():
            self._send_log_to_forkservers()

    def _send_log_to_forkservers(self) -> None:
        for forkserver in self._forkservers:
            forkserver.send_log_file()

    def _close(self) -> Deferred[None]:
        closed = DeferredList([forkserver.close() for forkserver in self._forkservers], consumeErrors=True)
        self._forkservers, self._groups, self._draining = [], [], []
        return closed.addCallback(lambda _: self._close_log())

    def _close_log(self) -> None:
        log_file, self._log_file = self._log_file, None
        if log_file is not None:
            log_file.close()

    # -- templates -----------------------------------------------------------------------------

    def _make_group(self, wrapper: ServerWrapper, template: WorkerTemplate) -> WorkerGroup:
        wrapper.group = WorkerGroup(
            wrapper.workers, template, self._reactor, self._lowest_free_number, self._should_give_up
        )
        return wrapper.group

    def _make_templates(
        self, wrappers: Sequence[ServerWrapper], settings: Settings, sockets: Sockets
    ) -> list[WorkerTemplate]:
        """Make the templates of the servers' workers, and start a forkserver for them."""
        servers = [pickle_server(wrapper.server) for wrapper in wrappers]
        modules = frozenset[str]().union(*(server.modules for server in servers)) - {"__main__", "builtins"}
        main = next((server.main for server in servers if server.main is not None), None)
        environment = {name: value for name, value in os.environ.items() if name not in CHILD_VARIABLES}
        forkserver = ForkserverClient(
            self._reactor, sorted(modules), main, environment, self._log_file, lock_fd=self.lock_fd
        )
        forkserver.start()
        self._forkservers.append(forkserver)
        parameters = {
            "reactor": _module_of(self._reactor),
            "log": {"file": self._log_path, "json": settings.log_json, "level": settings.log_level},
            "grace": settings.graceful_shutdown_timeout,
            "watchdog": settings.worker_watchdog,
            "start": attrs.asdict(self.shared_start),
        }
        timeouts = WorkerTimeouts(
            settings.worker_start_timeout, settings.graceful_shutdown_timeout, settings.worker_watchdog
        )
        policy = RestartPolicy.from_settings(settings)
        return [
            WorkerTemplate(server, sockets[server.name], forkserver, policy, timeouts, parameters) for server in servers
        ]

    def _lowest_free_number(self) -> int:
        taken = {slot.number for slot in self.slots}
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    # -- reload --------------------------------------------------------------------------------

    async def replace(
        self,
        wrappers: Sequence[ServerWrapper],
        settings: Settings,
        sockets: Sockets,
        configured: Mapping[str, int],
    ) -> None:
        """Replace the workers of servers that stay, start those that are new, drain the others.

        :param configured: number of workers by server before the reload: a resize by an operator survives the reload
            unless the configured number changed.
        :raises ReloadError: a new worker did not become ready; the former workers run.
        """
        before = {group.name: (group, group.template) for group in self._groups}
        after: list[tuple[ServerWrapper, WorkerGroup]] = []
        templates = self._make_templates(wrappers, settings, sockets)
        forkserver = self._forkservers[-1]
        try:
            for wrapper, template in zip(wrappers, templates, strict=True):
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
        self._drain_all_but([group for _, group in after])
        _assign_groups(after, configured)
        for other in self._forkservers:
            if other is not forkserver:
                self._retire(other)

    async def _roll_back(self, before: Collection[tuple[WorkerGroup, WorkerTemplate]], *, replace: bool) -> None:
        """Restore the groups from before a failed reload.

        :param before: the groups and their templates.
        :param replace: replace workers of the failed template, too; False if the supervisor is shutting down.
        """
        self._drain_all_but([group for group, _ in before])
        for group, template in before:
            group.template = template
        for group, template in before if replace else ():
            try:
                await group.replace_all(template)
            except ReloadError as error:
                _log.error("rolling back the workers of {name} failed: {error}", name=group.name, error=error)

    def _drain_all_but(self, kept: Sequence[WorkerGroup]) -> None:
        """Drain every group that is not in `kept`."""
        for group in [group for group in self._groups if not any(group is each for each in kept)]:
            self._groups.remove(group)
            self._draining.append(group)
            group.drain().addCallback(self._group_drained, group)

    def _group_drained(self, _: None, group: WorkerGroup) -> None:
        if group in self._draining:
            self._draining.remove(group)

    def _retire(self, forkserver: ForkserverClient) -> None:
        """Shut down a forkserver when its last worker has exited."""
        slots = [slot for group in self._all for slot in group.forked_by(forkserver)]

        def close(_: object) -> None:
            if forkserver in self._forkservers:
                self._forkservers.remove(forkserver)
                forkserver.close()

        DeferredList([slot.reaches("ended") for slot in slots], consumeErrors=True).addCallback(close)


def _assign_groups(after: Sequence[tuple[ServerWrapper, WorkerGroup]], configured: Mapping[str, int]) -> None:
    """Give the new wrappers of servers their groups, and resize those whose configured number changed."""
    for wrapper, group in after:
        if wrapper.group is None:
            wrapper.group = group
            if configured.get(wrapper.name) != wrapper.configured:
                group.resize(wrapper.workers)
        wrapper.workers = group.size


def _open_log(path: str) -> LogFile:
    try:
        return LogFile(path)
    except OSError as error:
        remedy = "name a file that this user can write, in a directory that exists"
        raise ProblemError(f"log file {path!r}", error.strerror or str(error), remedy) from error


def _module_of(reactor: Any) -> str:
    """Return the module whose ``install`` makes this kind of reactor, or Twisted's default module."""
    module = type(reactor).__module__
    return module if hasattr(sys.modules.get(module), "install") else "twisted.internet.default"
