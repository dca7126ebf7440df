"""Redelivered idempotent calls: run again in groups that get smaller with each death of a process.

One of these calls may be a poison message: it killed the process that ran it. Running the calls again in
groups finds it. Calls whose group survives are answered; a group whose process dies is divided.
"""

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.call import Call
from novasvc.rpc.execution import Execution

PATIENCE = 2.0
"""Seconds that a message moved to this process's own queue keeps its place in the group until it is delivered."""

_ROUNDING = 1e-9


class RedeliveredCalls:
    """Queue one server's redelivered calls of idempotent methods, and begin them in groups.

    :param clock: measures PATIENCE.
    :param execution: begins the calls.
    :param concurrency: calls that the server runs at a time; the size of the largest group.
    :param max_deliveries: deaths after which the server quarantines a call instead of adding it here, > 0.
    :param retain: requeues a call's message to this process alone, where a death is counted.
    :param give_back: requeues a call's message for any server of its queue.
    :param go_on: called when there may be room for another call.
    :ivar waiting: calls that wait to begin.
    :ivar retained: messages moved to this process's own queue and not delivered yet, by unique id: the share of
        the room that each takes, and the timer that frees it. Each also takes one of the server's slots.
    """

    # Note [Finding the poison message]
    #
    # A process that dies leaves all its idempotent calls unanswered, and one of them may have killed it.
    # Most deaths have another cause (an operator, the OOM killer), and a lost channel causes the same
    # redeliveries. So redelivered calls run at full concurrency first. A call that was running at a
    # certain death runs again in a smaller group, and in a still smaller one after the next death. It
    # runs alone before it can be quarantined: a call is quarantined only if it killed a process in which
    # no other redelivered call ran.
    #
    #     certain deaths   group size, for concurrency = 64 and max_deliveries = 3
    #           0          64
    #           1           8
    #           2           1
    #           3          quarantine
    #
    # The sizes are a geometric series from the server's concurrency to 1, so max_deliveries sets how
    # fast a group is divided. Calls with different counts may run together: each takes 1/size of the
    # room, and a call that has to run alone takes all of it. New calls run beside them and do not count
    # towards a group.
    #
    # A death is certain only for calls that had begun. The count must outlive the process, so a call is
    # moved to a queue of this process before it begins: see IDelivery.requeue_here. A call that waits
    # here was not moved, so no death is counted for it.
    #
    # A quorum queue has a delivery count too, but it counts every message that the dead process had
    # received, begun or not. That count is not used.

    def __init__(
        self,
        clock: IReactorTime,
        execution: Execution,
        *,
        concurrency: int,
        max_deliveries: int,
        retain: Callable[[Call], None],
        give_back: Callable[[Call], None],
        go_on: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._execution = execution
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries
        self._retain = retain
        self._give_back = give_back
        self._go_on = go_on
        self.waiting: list[Call] = []
        self.retained: dict[Any, tuple[float, IDelayedCall]] = {}
        self._running: list[Call] = []
        self._stopped = False

    def group(self, deaths: int) -> int:
        """Return the size of the group in which a call with this many certain deaths runs; at least 1."""
        steps = self._max_deliveries - 1
        exponent = max(0.0, 1.0 - deaths / steps) if steps else 0.0
        return max(1, round(math.pow(self._concurrency, exponent)))

    def add(self, call: Call) -> None:
        """Queue a call. One that comes back from this process's queue within PATIENCE keeps its place.

        After :meth:`stop`, a call that is not counted is given back.
        """
        if call.delivery.counts_death:
            call.placed = self._forget(_key(call))
        elif self._stopped:
            self._give_back(call)
            return
        self.waiting.append(call)

    def remove(self, call: Call) -> bool:
        """Remove a waiting call; return whether it was waiting."""
        if call not in self.waiting:
            return False
        self.waiting.remove(call)
        return True

    def begin(self) -> bool:
        """Begin the next call, or move its message to this process's queue first, if there is room.

        :return: whether a call was begun or moved.
        """
        while self.waiting:
            call = min(self.waiting, key=_order)
            if not call.placed and not self._has_room(call):
                return False
            self.waiting.remove(call)
            if self._execution.drop_stale(call):
                continue
            if call.delivery.counts_death:
                self._running.append(call)
                self._execution.begin(call)
            else:
                key = _key(call)
                self._forget(key)  # Redelivered while it was being moved: its channel was lost. Take one place only.
                later = self._clock.callLater(PATIENCE, self._not_come, key)
                self.retained[key] = (self._weight(call), later)
                self._retain(call)
            return True
        return False

    def stop(self) -> None:
        """Give back the waiting calls that are not counted. Called when the server stops consuming.

        Counting a call needs another delivery, and none will arrive.
        """
        self._stopped = True
        for call in [call for call in self.waiting if not call.delivery.counts_death]:
            self.waiting.remove(call)
            self._give_back(call)

    def withdraw(self) -> list[Call]:
        """Remove and return the waiting calls, and free the places of retained ones."""
        for key in list(self.retained):
            self._forget(key)
        waiting, self.waiting = self.waiting, []
        return waiting

    def _has_room(self, call: Call) -> bool:
        self._running = [running for running in self._running if not running.answered]
        taken = sum(weight for weight, _ in self.retained.values()) + sum(map(self._weight, self._running))
        return not taken or taken + self._weight(call) <= 1.0 + _ROUNDING

    def _weight(self, call: Call) -> float:
        return 1.0 / self.group(call.delivery.deaths)

    def _not_come(self, key: Any) -> None:
        self.retained.pop(key, None)
        self._go_on()

    def _forget(self, key: Any) -> bool:
        """Free the place of a retained call; return whether it still had one."""
        _, later = self.retained.pop(key, (0.0, None))
        if later is None:
            return False
        later.cancel()
        return True


def _key(call: Call) -> Any:
    return call.request.unique_id or call.delivery.body


def _order(call: Call) -> tuple[bool, int]:
    # Calls that have a place come first, then calls with the fewest deaths.
    return not call.placed, call.delivery.deaths
