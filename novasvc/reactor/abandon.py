"""Waiting that ends when it is cancelled, whatever becomes of what was waited for."""

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()
_T = TypeVar("_T")


def abandon_on_cancel(step: Deferred[_T]) -> Deferred[_T]:
    """Wait for a step; to cancel that cancels the step, and does not wait for it any more.

    To cancel a coroutine is to ask it: one that awaits in a ``finally`` goes on, and with it
    whoever awaits it, addTimeout or not.

    :param step: the result is taken from it; who waits for it as well sees None.
    :return: Deferred of the step's result; fails with CancelledError as soon as it is cancelled.
    """
    waiter: Deferred[_T] = Deferred(lambda _: step.cancel())

    def pass_on(result: _T | Failure) -> None:
        if not waiter.called:
            waiter.callback(result)
        elif isinstance(result, Failure) and not result.check(CancelledError):
            _log.failure("it failed when it was no longer waited for", result)

    step.addBoth(pass_on)
    return waiter
