"""Wait for Deferreds and coroutines by advancing a clock."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

_T = TypeVar("_T")


class Answer(Deferred[_T]):
    """A Deferred whose ``await`` advances the fleet's time until it fires.

    So a coroutine that awaits it is never suspended, and runs to its end under any event loop, or under none.

    :param source: what it fires with; cancelled when this is cancelled.
    :param finish: advances the time until a Deferred has fired, or raises.
    """

    def __init__(self, source: Deferred[_T], finish: Callable[[Deferred[Any]], None]) -> None:
        super().__init__(lambda _: source.cancel())
        self._finish = finish
        source.addBoth(self._pass_on)

    def _pass_on(self, result: Any) -> Any:
        if not self.called:
            self.callback(result)  # a Failure goes to the errbacks
            return None
        # It was cancelled, and its source has ended all the same, later.
        return result if isinstance(result, Failure) and not result.check(CancelledError) else None

    def __await__(self) -> Generator[Deferred[_T], None, _T]:
        """Advance the time until it fires, and return its result."""
        self._finish(self)
        return super().__await__()


def has_result(deferred: Deferred[Any]) -> bool:
    """Return whether a Deferred has fired, and does not wait for another one."""
    return deferred.called and not deferred.paused


def run_awaitable(awaitable: Awaitable[_T], finish: Callable[[Deferred[Any]], None]) -> _T:
    """Run a coroutine to its end, or wait for a Deferred; return its result.

    The coroutine is resumed here, and not from within a call of the clock, so it may advance the time itself.

    :param finish: advances the time until a Deferred has fired, or raises.
    :raises TypeError: it is not awaitable, or awaits something other than a Deferred.
    """
    if not hasattr(awaitable, "__await__"):
        raise TypeError(f"cannot wait for {awaitable!r}; give a Deferred or a coroutine")
    steps = awaitable.__await__()
    waiting: Any = None
    try:
        waiting = steps.send(None)
        while True:
            try:
                finish(_checked(waiting))
            except Exception as error:  # noqa: BLE001 - the coroutine shows where it waits, and cleans up
                waiting = steps.throw(error)
            else:
                waiting = steps.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _checked(waiting: Any) -> Deferred[Any]:
    if isinstance(waiting, Deferred):
        return waiting
    problem = f"awaited {waiting!r}, which is no Deferred; let asyncio's loop run a test that awaits asyncio's futures"
    raise TypeError(problem)
