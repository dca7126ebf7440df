"""Idempotent calls that were delivered before: run again in groups that get smaller with each death.

The process that had them before may have died of one of them. Which one is found by running them again
in groups: whatever does not kill its group is answered, and a group that kills again is divided.
"""

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.call import Call
from novasvc.rpc.execution import Execution

PATIENCE = 2.0
"""Seconds to wait for a message that was moved to this process's own queue, before its place is given to another."""

_ROUNDING = 1e-9


class RedeliveredCalls:
    """Calls of idempotent methods that were delivered before, in the hands of one server.

    :param clock: measures the patience.
    :param execution: begins them.
    :param concurrency: calls that the server runs at a time; the size of the largest group.
    :param max_deliveries: deaths after which a call is quarantined instead of being added here.
    :param retain: has a call's message delivered again, counted, to this process alone.
    :param give_back: has a call's message delivered again to any server of its queue.
    :param go_on: called when there is room for another.
    :ivar waiting: those that wait for their turn.
    :ivar retained: of those that were moved to this process's own queue and are on their way back, by what they are
        recognised: the room that each takes, and the timer that ends the waiting. Each needs a place.
    """

    # Note [Finding the poison message]
    #
    # A process that dies leaves all its idempotent calls unanswered, and one of them may have killed it.
    # Most deaths have another reason (an operator, the OOM killer), and a lost channel looks the same, so
    # everything that is delivered again runs at full concurrency first. A call that was running at a certain
    # death is run again in a smaller group, after the next one in a smaller one still, and alone before it
    # can be quarantined: only a call that killed a process while no other redelivered call ran there is put
    # aside.
    #
    #     certain deaths   group, for 64 calls at a time and max_deliveries = 3
    #           0          64
    #           1           8
    #           2           1
    #           3          quarantine
    #
    # The sizes are a geometric series from the server's concurrency to 1, so max_deliveries decides how
    # fast a group is divided. Calls of different levels may run together: each takes 1/size of the room, and
    # a call that has to be alone takes all of it. New calls run beside them, and are not counted as suspects.
    #
    # A death is certain only for calls that had begun. The count has to outlive the process, so a call is
    # moved to a queue of this process before it begins: see IDelivery.requeue_here. What waits here for its
    # turn was not moved, and no death is counted for it.
    #
    # A quorum queue counts deliveries, but of all that was in a dead process's hands, begun or not. That
    # count is not used.

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
        """Return how many calls that were running at so many deaths may run at a time; at least 1."""
        steps = self._max_deliveries - 1
        exponent = max(0.0, 1.0 - deaths / steps) if steps else 0.0
        return max(1, round(math.pow(self._concurrency, exponent)))

    def add(self, call: Call) -> None:
        """Have a call wait for its turn; one that was retained in time has had it."""
        if call.delivery.counted:
            call.placed = self._forget(_key(call))
        elif self._stopped:
            self._give_back(call)
            return
        self.waiting.append(call)

    def remove(self, call: Call) -> bool:
        """Forget a call that waits for its turn; return whether it did."""
        if call not in self.waiting:
            return False
        self.waiting.remove(call)
        return True

    def begin(self) -> bool:
        """Begin the next call, or have it counted first, if there is room for it.

        :return: whether there was one.
        """
        while self.waiting:
            call = min(self.waiting, key=_order)
            if not call.placed and not self._has_room(call):
                return False
            self.waiting.remove(call)
            if self._execution.drop_stale(call):
                continue
            if call.delivery.counted:
                self._running.append(call)
                self._execution.begin(call)
            else:
                key = _key(call)
                self._forget(key)  # It may have come twice: its channel was lost while it was being moved.
                later = self._clock.callLater(PATIENCE, self._not_come, key)
                self.retained[key] = (self._weight(call), later)
                self._retain(call)
            return True
        return False

    def stop(self) -> None:
        """Give back what is still to be counted: the server takes in nothing more."""
        self._stopped = True
        for call in [call for call in self.waiting if not call.delivery.counted]:
            self.waiting.remove(call)
            self._give_back(call)

    def withdraw(self) -> list[Call]:
        """Return what waits, and forget it."""
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
        """Give a place up; return whether it was kept until now."""
        _, later = self.retained.pop(key, (0.0, None))
        if later is None:
            return False
        later.cancel()
        return True


def _key(call: Call) -> Any:
    return call.request.unique_id or call.delivery.body


def _order(call: Call) -> tuple[bool, int]:
    # What has its place comes first, then what was near the fewest deaths.
    return not call.placed, call.delivery.deaths
