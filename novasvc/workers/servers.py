"""The servers of a supervisor: their numbers of workers, their names, and their listening sockets."""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from novasvc.config import Configuration
from novasvc.interfaces import IPreforkable
from novasvc.workers.errors import NotPreforkableError, ResizeError
from novasvc.workers.group import WorkerGroup
from novasvc.workers.specification import server_name

MAX_WORKERS = 1024
"""Workers per server; a larger number is taken for a typing error."""

Sockets = Mapping[str, Sequence[socket.socket]]
"""Listening sockets by the name of their server."""


@attrs.define(eq=False)
class ServerWrapper:
    """A server and its number of worker processes.

    :param server: provides IService, or takes a reactor and returns such a one; see
        :func:`novasvc.workers.specification.pickle_server`.
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
        close_sockets(opened, keep=held)
        raise
    return opened


def close_sockets(sockets: Sockets, *, keep: Sockets) -> None:
    """Close sockets, except those that are also in ``keep``."""
    kept = {id(shared) for these in keep.values() for shared in these}
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
