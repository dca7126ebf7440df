"""Stop waiting on cancellation, even if the step keeps running."""

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()
_T = TypeVar("_T")


def abandon_on_cancel(step: Deferred[_T]) -> Deferred[_T]:
    """Return a Deferred whose cancellation cancels a step, and does not wait for the step to end.

    Cancellation is only a request to a coroutine: one that awaits in a ``finally`` block keeps running, and
    so does everything that awaits it, even with addTimeout.

    :param step: its result is consumed; a callback added later sees None.
    :return: Deferred of the step's result; fails with CancelledError as soon as it is cancelled.
    """
    waiter: Deferred[_T] = Deferred(lambda _: step.cancel())

    def pass_on(result: _T | Failure) -> None:
        if not waiter.called:
            waiter.callback(result)
        elif isinstance(result, Failure) and not result.check(CancelledError):
            _log.failure("an abandoned step failed", result)

    step.addBoth(pass_on)
    return waiter
