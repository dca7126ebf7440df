"""Errors of supervisors and workers."""

import attrs

from novasvc.errors import NovasvcError, ProblemError


class SupervisionError(NovasvcError):
    """Base class of errors of supervisors and workers."""


class NotPreforkableError(SupervisionError, ProblemError):
    """A server cannot run in a worker process; the subject is its name."""

    about = "{} cannot run in a worker"


class SpecificationError(ProblemError):
    """A service cannot be made again, in a worker or in a reload; the subject is its name."""

    about = "{} cannot be made again"


class WorkerFailedError(SupervisionError, ProblemError):
    """The workers of a server cannot run, and the supervisor shuts down; the subject is the server's name."""

    about = "the workers of {} cannot run"


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


class ControlError(SupervisionError, ProblemError):
    """The control socket cannot be created, or no supervisor answers there; the subject is its path."""

    about = "control socket {!r}"


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
