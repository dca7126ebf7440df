"""Requests that others left unanswered, begun one at a time: one of them may have been the reason."""

from collections.abc import Callable, Iterator

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.execution import Call, Execution

PATIENCE = 0.5
"""Seconds to wait for a request that was given back to be counted, before the next one's turn."""


class Suspects:
    """Calls of idempotent methods that were delivered before, in the hands of one server.

    :param clock: measures the patience.
    :param execution: begins them.
    :param give_back: has a call's message delivered again, with its count.
    :param go_on: called when it is the next one's turn.
    """

    # Note [Who is to blame]
    #
    # A process that dies leaves all its idempotent requests unanswered, and one of them may have
    # killed it. The broker marks them all as redelivered, and does not tell the guilty from those
    # that were near it. If they ran side by side again, and each death counted for all of them, the
    # innocent ones would reach the bound of max_deliveries together with the guilty one.
    #
    # So they run one at a time, and a delivery is counted when its turn comes: the request is given
    # back with its count, and runs when it comes again with that. What waits for its turn was not
    # given back: if the process dies, the broker marks it anew, and its count is what it was. A
    # mark counts for one, however often it was set.
    #
    # Until the one that was given back is here, no other's turn comes; or it would wait here too,
    # counted, while another one runs. It may never come, as another server may have it, or come
    # late, if the queue is long: then the next one has its turn after all. What is counted and
    # finds another one running, waits; if that kills us, it is counted once too often. Among those
    # that wait, the ones with the lowest count are first, as they are the least suspect.
    #
    # They run beside new requests, which are no suspects, and a new one may be what kills.
    #
    # A quorum queue counts for itself, but all that was in our hands, begun or not: of no use here.

    def __init__(
        self,
        clock: IReactorTime,
        execution: Execution,
        *,
        give_back: Callable[[Call], None],
        go_on: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._execution = execution
        self._give_back = give_back
        self._go_on = go_on
        self._waiting: list[Call] = []
        self._begun: Call | None = None
        self._coming: IDelayedCall | None = None
        self._stopped = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._waiting)

    def add(self, call: Call) -> None:
        """Have a call wait for its turn."""
        if call.delivery.counted:
            self._expect_none()
        elif self._stopped:
            self._give_back(call)
            return
        self._waiting.append(call)

    def begin(self) -> None:
        """Begin the next one, or have it counted, if it is its turn."""
        while self._waiting and self._coming is None and (self._begun is None or self._begun.answered):
            call = min(self._waiting, key=_suspicion)
            self._waiting.remove(call)
            if self._execution.drop_stale(call):
                continue
            if call.delivery.counted:
                self._begun = call
                self._execution.begin(call)
            else:
                self._coming = self._clock.callLater(PATIENCE, self._not_come)
                self._give_back(call)

    def stop(self) -> None:
        """Give back what is still to be counted: it would not come here again."""
        self._stopped = True
        self._expect_none()
        for call in [call for call in self._waiting if not call.delivery.counted]:
            self._waiting.remove(call)
            self._give_back(call)

    def withdraw(self) -> list[Call]:
        """Return what waits, and forget it."""
        self._expect_none()
        waiting, self._waiting = self._waiting, []
        return waiting

    def _not_come(self) -> None:
        self._coming = None
        self._go_on()

    def _expect_none(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None


def _suspicion(call: Call) -> tuple[bool, int]:
    # What is counted for this turn already comes before what is not.
    return not call.delivery.counted, call.deliveries
