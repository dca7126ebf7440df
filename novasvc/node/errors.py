"""Errors of nodes and HTTP services, and of the directories they need."""

import attrs

from novasvc.errors import NovasvcError, ProblemError
from novasvc.registry.errors import ServiceTwinError
from novasvc.rpc.errors import RPCError


class DirectoryError(ProblemError):
    """A required file or directory is missing or not usable; the subject says which: "state directory '/x'"."""


class AppError(ProblemError):
    """A WSGI application cannot be loaded; the subject is its name and the file that configures it."""

    about = "application {}"


@attrs.define
class StartError(NovasvcError):
    """A node failed to start.

    :param node: "binary@host".
    :param step: the step that failed, a noun or the name of a hook: "transport", "init_host", "consumers", ...
    :param problem: the reason, in one line.
    """

    node: str
    step: str
    problem: str

    def __str__(self) -> str:
        return f"{self.node} did not start; step {self.step} failed: {self.problem}"

    @property
    def is_final(self) -> bool:
        """Whether another worker would fail for the same reason: another start is alive, or the release is too old."""
        return isinstance(self.__cause__, ServiceTwinError | ServiceTooOldError)


@attrs.define
class UnreachableError(RPCError):
    """Messages do not reach a node although it consumes.

    :param node: "binary@host".
    :param problem: why, as the rest of a sentence.
    """

    node: str
    problem: str

    def __str__(self) -> str:
        return f"no messages reach {self.node}: {self.problem}"


@attrs.define
class ServiceTooOldError(NovasvcError):
    """A service is older than all others of its binary that are up, so it may not understand what they send.

    :param service: "binary@host".
    :param version: its service version.
    :param minimum: the lowest service version of the others.
    :param host: the host of one that has it.
    Source: nova.exception.ServiceTooOld.
    """

    service: str
    version: int
    minimum: int
    host: str

    def __str__(self) -> str:
        return (
            f"{self.service} has the service version {self.version}, and the lowest of the others that are up is "
            f"{self.minimum} (on {self.host}): install the release that they run; or, to take the fleet back to the "
            "older release, set allow_older_service = true"
        )
