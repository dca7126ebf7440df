"""Wait for a step that may keep running: stop waiting on cancellation, or leave the step and its result alone."""

from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()
_T = TypeVar("_T")


def abandon_on_cancel(step: Deferred[_T]) -> Deferred[_T]:
    """Wrap a Deferred so that cancelling the wrapper ends the waiting at once.

    Cancelling a coroutine only requests its end: a coroutine that awaits in a ``finally`` runs on,
    and so does everything that awaits it, ``addTimeout`` or not.

    :param step: its result is consumed; other callbacks on it get None. Cancelled with the wrapper.
    :return: Deferred of the step's result. Once cancelled, it fails with CancelledError immediately, and a later
        failure of the step is logged.
    """
    waiter: Deferred[_T] = Deferred(lambda _: step.cancel())

    def pass_on(result: _T | Failure) -> None:
        if not waiter.called:
            waiter.callback(result)
        elif isinstance(result, Failure) and not result.check(CancelledError):
            _log.failure("a step failed after it was cancelled and abandoned", result)

    step.addBoth(pass_on)
    return waiter


def completion(step: Deferred[Any]) -> Deferred[None]:
    """Return a Deferred that fires when a step ends, however it ends; the step's own result stays with it.

    Cancelling it leaves the step alone.
    """
    done: Deferred[None] = Deferred()

    def end(result: Any) -> Any:
        if not done.called:
            done.callback(None)
        return result

    step.addBoth(end)
    return done
