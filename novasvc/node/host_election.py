"""Elections within a node: one process of a host leads all tasks that run once in a node.

In a process without a supervisor, :class:`ProcessElection` chooses among the nodes of the process. Among the workers
of a supervisor, :class:`FileElection` chooses by a lock on a file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IElection
from novasvc.periodic.term import Term
from novasvc.reactor.local import ReactorLocal
from novasvc.telemetry.flight import note
from novasvc.workers.file_lock import FileLock

_log = Logger()

POLL = 1.0
"""Seconds between two attempts to lock the file, and between two checks of a locked file."""

# Note [A lock, not the supervisor]
#
# The kernel releases flock() when the process that has it exits, however it exits, and no message can be lost. The
# supervisor could tell a worker to lead; but it may be killed while its workers drain, and a second supervisor of the
# same host may start meanwhile, whose workers must wait for those of the first. If somebody deletes the file, the
# holder notices within POLL, and stands for the lead again on the new file.


@implementer(IElection)
@attrs.define(eq=False)
class HostElection:
    """What both elections within a node share: all tasks have the same leader.

    :ivar leads: whether this process leads.
    """

    leads: bool = attrs.field(default=False, init=False)
    _tasks: list[str] = attrs.field(factory=list, init=False)
    _gained: Callable[[str, Term], object] = attrs.field(init=False)
    _lost: Callable[[str, str], object] = attrs.field(init=False)

    def start(
        self, tasks: Sequence[str], gained: Callable[[str, Term], object], lost: Callable[[str, str], object]
    ) -> None:
        """See IElection."""
        self._tasks, self._gained, self._lost = [*tasks], gained, lost
        self._stand()

    def begin(self, task: str, due: float | None) -> bool:
        """See IElection."""
        return self.leads and task in self._tasks

    def leader(self, task: str) -> str | None:
        """See IElection."""
        return None

    def resign(self, task: str) -> Deferred[None]:
        """See IElection."""
        if task in self._tasks:
            self._tasks.remove(task)
            if not self._tasks:
                self.leads = False
                self._leave()
        return succeed(None)

    def gain(self) -> None:
        """Lead all tasks from now on."""
        self.leads = True
        for task in [*self._tasks]:
            self._gained(task, Term())

    def _lose(self, reason: str) -> None:
        self.leads = False
        for task in [*self._tasks]:
            self._lost(task, reason)

    def _stand(self) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        raise NotImplementedError


_standing: ReactorLocal[dict[tuple[str, str], list["ProcessElection"]]] = ReactorLocal(lambda _: {})
"""(host, topic) -> the nodes of this process that stand for the lead; the first one has it."""


@attrs.define(eq=False)
class ProcessElection(HostElection):
    """Choose among the nodes of this process that have the same host and topic: the first one leads.

    :param reactor: of this process.
    :param host: the node's host.
    :param topic: the node's topic.
    """

    _reactor: Any
    _host: str
    _topic: str

    @property
    def _queue(self) -> list["ProcessElection"]:
        return _standing.get(self._reactor).setdefault((self._host, self._topic), [])

    def _stand(self) -> None:
        self._queue.append(self)
        if self._queue[0] is self:
            self.gain()

    def _leave(self) -> None:
        queue = self._queue
        led = queue[0] is self
        queue.remove(self)
        if led and queue:
            queue[0].gain()
        if not queue:
            del _standing.get(self._reactor)[self._host, self._topic]


@attrs.define(eq=False)
class FileElection(HostElection):
    """Choose among the workers of this host by a lock on a file; see Note [A lock, not the supervisor].

    :param lock: the lock of this host and topic.
    :param clock: for the timer.
    """

    _file: FileLock
    _clock: IReactorTime
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _trouble: str | None = attrs.field(default=None, init=False)

    def leader(self, task: str) -> str | None:
        """See IElection."""
        pid = self._file.holder() if task in self._tasks else None
        return None if pid is None else f"process {pid}"

    def _stand(self) -> None:
        self._timer = self._clock.callLater(POLL, self._stand)
        if self._file.held:
            if not self._file.is_in_place():
                self._file.release()
                self._lose(f"the lock file {self._file.name} was deleted")
            return
        try:
            self._file.acquire()
        except BlockingIOError:
            return  # another worker leads
        except OSError as error:
            trouble = f"{error.strerror or error}: {error.filename or self._file.name}"
            if trouble != self._trouble:
                problem = "tasks that run once in a node do not run in this worker: cannot lock a file: {trouble}"
                _log.error(problem, trouble=trouble)
            self._trouble = trouble
            return
        self._trouble = None
        note("task", "this worker leads the tasks of its node")
        _log.info("this worker runs the periodic tasks that run once in a node")
        self.gain()

    def _leave(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._file.release()
