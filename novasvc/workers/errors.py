"""Errors of supervisors and workers."""

from typing import ClassVar

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
class CommandError(SupervisionError):
    """Base class of errors of a command that cannot be executed.

    The names of the classes are the error types of the control protocol.

    :param subject: what the command is about; a subclass says what it is in ``about``.
    :param problem: the reason, and the consequence or what to give instead.
    """

    about: ClassVar[str]

    subject: object
    problem: str

    def __str__(self) -> str:
        return f"{self.about.format(self.subject)}: {self.problem}"


class DrainError(CommandError):
    """A worker that cannot be drained and replaced; the subject is its number."""

    about = "cannot drain worker {}"


class ResizeError(CommandError):
    """An impossible number of workers, which is the subject."""

    about = "cannot run {} workers"


class NoSuchWorkerError(CommandError):
    """No worker has this number, or no server this name.

    The subject is "worker 7" or "server 'api'"; the problem lists the existing ones.
    """

    about = "there is no {}; there are"


class ControlError(SupervisionError, ProblemError):
    """The control socket cannot be created, or no supervisor answers there; the subject is its path."""

    about = "control socket {!r}"


@attrs.define
class OrphansError(ControlError):
    """A supervisor was killed, and its workers are still draining; or it runs without its socket file.

    :param supervisor: "the previous supervisor", with its pid if known.
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
