"""Errors of operations on a fleet."""

import attrs

from novasvc.errors import NovasvcError


@attrs.define
class NodeFailedError(NovasvcError):
    """An operation has failed at one node.

    :param problem: why, in one line.
    """

    problem: str

    def __str__(self) -> str:
        return self.problem
