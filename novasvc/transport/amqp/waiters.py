"""Callers that wait for the same event."""

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


@attrs.define(eq=False)
class Waiters:
    """The Deferreds of callers that wait for one event; each caller may cancel its own."""

    _waiting: list[Deferred[None]] = attrs.field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self) -> Deferred[None]:
        """Return a new Deferred[None], fired by :meth:`fire`. Cancelling it leaves the other waiters as they are."""
        waiter: Deferred[None] = Deferred(self._cancelled)
        self._waiting.append(waiter)
        return waiter

    def _cancelled(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def fire(self, failure: Failure | None = None) -> None:
        """Fire the Deferreds of all callers that wait now.

        :param failure: why the event will not come; None if it came.
        """
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:  # another waiter's callback may have cancelled it
                # Each waiter gets a Failure of its own: an errback changes the Failure that it handles.
                waiter.callback(None if failure is None else Failure(failure.value))
