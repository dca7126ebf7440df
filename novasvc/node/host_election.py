"""Elections within a node: one process of a host leads all tasks that run once in a node.

In a process without a supervisor, :class:`ProcessElection` chooses among the nodes of the process. Among the workers
of a supervisor, :class:`FileElection` chooses by a lock on a file.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
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

_log = Logger()

POLL = 1.0
"""Seconds between two attempts to lock the file, and between two checks of a locked file."""

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}

# Note [A lock, not the supervisor]
#
# The kernel releases flock() when the process that has it exits, however it exits, and no message can be lost. The
# supervisor could tell a worker to lead; but it may be killed while its workers drain, and a second supervisor of the
# same host may start meanwhile, whose workers must wait for those of the first. The lock file is never unlinked: a
# second process would lock the old file while a third creates a new one. If somebody else deletes it, the holder
# notices within POLL, and stands for the lead again on the new file.


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

    :param directories: where the file may be: the first that is writable. All workers find the same one.
    :param name: the file's name.
    :param clock: for the timer.
    """

    _directories: Sequence[Path]
    _name: str
    _clock: IReactorTime
    _descriptor: int | None = attrs.field(default=None, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _trouble: str | None = attrs.field(default=None, init=False)

    def leader(self, task: str) -> str | None:
        """See IElection."""
        for directory in self._directories if task in self._tasks else ():
            with suppress(OSError):
                pid = (directory / self._name).read_text(encoding="ascii", errors="replace").strip()
                return f"process {pid}" if pid.isdecimal() else None
        return None

    def _stand(self) -> None:
        self._timer = self._clock.callLater(POLL, self._stand)
        if self._descriptor is not None:
            if not self._is_in_place(self._descriptor):
                self._close()
                self._lose(f"the lock file {self._name} was deleted")
            return
        try:
            self._descriptor = self._lock()
        except BlockingIOError:
            return  # another worker leads
        except OSError as error:
            trouble = f"{error.strerror or error}: {error.filename or self._name}"
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
        if self._descriptor is not None:
            self._close()

    def _lock(self) -> int:
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_place(descriptor)
            with suppress(OSError):  # on a full disk only the answer of leader() is missing
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _open(self) -> int:
        refused: OSError | None = None
        for directory in self._directories:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if directory.stat().st_uid != os.geteuid():
                    # Somebody else could delete the file, or keep it locked.
                    raise PermissionError(errno.EPERM, "it belongs to another user", str(directory))
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                return os.open(directory / self._name, flags, 0o600)
            except OSError as error:
                if error.errno not in _NOT_WRITABLE:
                    raise  # such as a full disk, which the next worker may not meet
                refused = refused or error
        raise refused or FileNotFoundError(errno.ENOENT, "no directory is given", self._name)

    def _check_place(self, descriptor: int) -> None:
        if not self._is_in_place(descriptor):
            raise BlockingIOError  # deleted since; the next attempt creates another

    def _is_in_place(self, descriptor: int) -> bool:
        ours = os.fstat(descriptor)
        for directory in self._directories:
            with suppress(OSError):
                found = (directory / self._name).stat()
                return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
        return False

    def _close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile shares the lock
            os.close(self._descriptor)
        self._descriptor = None
