"""Errors of supervisors and workers."""

import attrs

from novasvc.errors import NovasvcError


class SupervisionError(NovasvcError):
    """Base class of errors of supervisors and workers."""


@attrs.define
class NotPreforkableError(SupervisionError):
    """A server that cannot run in a worker process.

    :param server: the server's name.
    :param problem: the reason, in one line.
    :param remedy: what to do.
    """

    server: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.server} cannot run in a worker: {self.problem}; {self.remedy}"


@attrs.define
class WorkerFailedError(SupervisionError):
    """Workers that cannot run; the supervisor shuts down.

    :param server: the server's name.
    :param problem: why, in one line.
    :param remedy: what to do.
    """

    server: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"the workers of {self.server} cannot run: {self.problem}; {self.remedy}"


@attrs.define
class ReloadError(SupervisionError):
    """A reload that was rejected or rolled back; the previous configuration stays.

    :param problem: why.
    """

    problem: str

    def __str__(self) -> str:
        return f"reload failed, previous configuration kept: {self.problem}"


@attrs.define
class DrainError(SupervisionError):
    """A worker that cannot be drained and replaced.

    :param number: of the worker.
    :param problem: the reason, and the consequence.
    """

    number: int
    problem: str

    def __str__(self) -> str:
        return f"cannot drain worker {self.number}: {self.problem}"


@attrs.define
class NoSuchWorkerError(SupervisionError):
    """No worker has this number, or no server this name.

    :param wanted: "worker 7", "server 'api'".
    :param known: the existing ones.
    """

    wanted: str
    known: str

    def __str__(self) -> str:
        return f"there is no {self.wanted}; there are: {self.known}"


@attrs.define
class ResizeError(SupervisionError):
    """An impossible number of workers.

    :param wanted: the rejected value.
    :param problem: the reason, and what to give instead.
    """

    wanted: str
    problem: str

    def __str__(self) -> str:
        return f"cannot run {self.wanted} workers: {self.problem}"


@attrs.define
class ControlError(SupervisionError):
    """The control socket cannot be created, or no supervisor answers there.

    :param path: of the socket.
    :param problem: what happened.
    :param remedy: what to do.
    """

    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"control socket {self.path!r}: {self.problem}; {self.remedy}"


@attrs.define
class OrphansError(ControlError):
    """A supervisor was killed, and its workers are still draining.

    :param supervisor: "the killed supervisor", with its pid if known.
    :param lock: path of the lock file that the workers hold.
    """

    supervisor: str
    lock: str


@attrs.define
class CommandRejectedError(SupervisionError):
    """The supervisor rejected a command.

    :param kind: class name of the supervisor's error.
    :param problem: the error's text.
    """

    kind: str
    problem: str

    def __str__(self) -> str:
        return self.problem
