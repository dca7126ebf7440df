"""What can go wrong with a supervisor and its workers."""

import attrs

from novasvc.errors import NovasvcError


class SupervisionError(NovasvcError):
    """The root of what a supervisor refuses, and of what ends it."""


@attrs.define
class NotPreforkableError(SupervisionError):
    """A server that cannot be brought into a worker.

    :param server: its name.
    :param problem: why, in one line.
    :param remedy: what to do.
    """

    server: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.server} cannot run in a worker: {self.problem}; {self.remedy}"


@attrs.define
class WorkerFailedError(SupervisionError):
    """Workers that cannot run, so that the supervisor ends.

    :param server: the name of what they were to run.
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
    """A reload that was refused or given up; what ran before goes on.

    :param problem: why.
    """

    problem: str

    def __str__(self) -> str:
        return f"reload failed, previous configuration kept: {self.problem}"


@attrs.define
class DrainError(SupervisionError):
    """A worker that cannot be drained by itself.

    :param number: of the worker.
    :param problem: why, and what comes of it.
    """

    number: int
    problem: str

    def __str__(self) -> str:
        return f"cannot drain worker {self.number}: {self.problem}"


@attrs.define
class NoSuchWorkerError(SupervisionError):
    """No worker, or no server, has this number or name.

    :param wanted: "worker 7", "server 'api'".
    :param known: those that there are.
    """

    wanted: str
    known: str

    def __str__(self) -> str:
        return f"there is no {self.wanted}; there are: {self.known}"


@attrs.define
class ResizeError(SupervisionError):
    """A number of workers that cannot be had.

    :param wanted: the number, or what was given for one.
    :param problem: why, and what would be right.
    """

    wanted: str
    problem: str

    def __str__(self) -> str:
        return f"cannot run {self.wanted} workers: {self.problem}"


@attrs.define
class ControlError(SupervisionError):
    """The control socket cannot be made, or nobody answers there.

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
    """A supervisor was killed, and its workers still finish their work.

    :param supervisor: names it, with its pid if that is known.
    :param lock: path of the file that the workers have open.
    """

    supervisor: str
    lock: str


@attrs.define
class CommandRejectedError(SupervisionError):
    """A supervisor did not do what was asked for.

    :param kind: name of the error's class over there.
    :param problem: its text, which says what to do.
    """

    kind: str
    problem: str

    def __str__(self) -> str:
        return self.problem
