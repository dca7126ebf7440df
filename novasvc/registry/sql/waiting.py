"""Callers that wait for a transaction: each for a limited time, and answered unless it has given up."""

from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.registry.errors import DatabaseUnavailableError

_T = TypeVar("_T")


def limit_wait(waiting: Deferred[_T], seconds: float, clock: IReactorTime, masked_url: str) -> Deferred[_T]:
    """Cancel a Deferred that has not fired in time; it fails with DatabaseUnavailableError then.

    :param masked_url: URL of the database, for the error.
    :return: the same Deferred.
    """

    def late(outcome: Any, _seconds: float) -> Any:
        if isinstance(outcome, Failure) and outcome.check(CancelledError):
            raise DatabaseUnavailableError(masked_url, f"no answer within {seconds:g} s")
        return outcome

    return waiting.addTimeout(seconds, clock, onTimeoutCancel=late)


def answer(outcome: _T | Failure, waiting: Deferred[_T]) -> None:
    """Fire a Deferred with an outcome, unless its caller has cancelled it."""
    if not waiting.called:
        waiting.callback(outcome)  # a Failure fires its errbacks
