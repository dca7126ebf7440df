"""Errors of periodic tasks."""

from collections.abc import Sequence

import attrs

from novasvc.errors import NovasvcError


@attrs.define
class TaskTimeoutError(NovasvcError):
    """A periodic task was cancelled by its timeout.

    :param task: name of the task.
    :param timeout: the timeout in seconds.
    """

    task: str
    timeout: float

    def __str__(self) -> str:
        return f"periodic task {self.task!r} was cancelled after {self.timeout:g} s"


@attrs.define
class UnknownTaskError(NovasvcError):
    """No periodic task has this name.

    :param task: the requested name.
    :param known: the existing names.
    """

    task: str
    known: Sequence[str]

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no periodic task is named {self.task!r}; existing tasks: {known}"


@attrs.define
class LeadLostError(NovasvcError):
    """A periodic task was cancelled, because its process lost the lead of it.

    :param task: name of the task.
    :param reason: why, as the rest of a sentence: "its lease ends in 6 s and cannot be renewed".
    """

    task: str
    reason: str

    def __str__(self) -> str:
        return f"periodic task {self.task!r} was cancelled: {self.reason}"
