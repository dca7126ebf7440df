"""Any number of Deferreds that wait for one event."""

from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_Result = TypeVar("_Result")


@attrs.define(eq=False)
class Waiters(Generic[_Result]):
    """Fire many Deferreds with one result.

    :ivar waiting: the Deferreds that have not fired.
    """

    waiting: list[Deferred[_Result]] = attrs.field(factory=list, init=False)

    def wait(self) -> Deferred[_Result]:
        """Return a new Deferred that :meth:`fire` fires. Cancelling it stops only this wait."""
        waiter: Deferred[_Result] = Deferred(self.waiting.remove)
        self.waiting.append(waiter)
        return waiter

    def fire(self, result: Any) -> None:
        """Fire all Deferreds, also those that their callbacks add.

        :param result: the result, or a Failure.
        """
        # One at a time: a callback may cancel another waiter. Each gets its own Failure: an errback changes the
        # Failure that it handles.
        while self.waiting:
            self.waiting.pop(0).callback(Failure(result.value) if isinstance(result, Failure) else result)
