"""Redelivered idempotent calls: run again in groups that get smaller with each death of a process.

One of these calls may be a poison message: it killed the process that ran it. Running the calls again in
groups finds it. Calls whose group survives are answered; a group whose process dies is divided.
"""

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.rpc.server.call import Call
from novasvc.rpc.server.execution import Execution

MOVE_TIMEOUT = 2.0
"""Seconds for which a slot is reserved for a message that was moved to this process's own queue."""

_ROUNDING = 1e-9


class RedeliveredCalls:
    """Queue one server's redelivered calls of idempotent methods, and begin them in groups.

    :param clock: measures MOVE_TIMEOUT.
    :param execution: begins the calls.
    :param concurrency: calls that the server runs at a time; the size of the largest group.
    :param max_deliveries: deaths after which the server quarantines a call instead of adding it here, > 0.
    :param requeue_here: requeues a call's message to this process's own queue, where a death is counted.
    :param requeue: requeues a call's message for any server of its target.
    :param begin_calls: called when there may be room for another call.
    :ivar waiting: calls that wait to begin.
    :ivar moving: messages moved to this process's own queue and not delivered yet, by unique id: the weight of each in
        its group, and the timer of its reservation. Each reserves one of the server's slots.
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
    # fast a group is divided. Calls with different counts may run together: each has a weight of 1/size,
    # and the weights of the calls that run or are being moved never exceed 1. So a call that has to run
    # alone excludes all others. New calls run beside them and have no weight.
    #
    # A death is certain only for calls that had begun. The count must outlive the process, so a call is
    # moved to a queue of this process before it begins: see IDelivery.requeue_here. Its slot is reserved
    # until it is delivered from there. A call that waits here was not moved, so no death is counted for it.
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
        requeue_here: Callable[[Call], None],
        requeue: Callable[[Call], None],
        begin_calls: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._execution = execution
        self._concurrency = concurrency
        self._max_deliveries = max_deliveries
        self._requeue_here = requeue_here
        self._requeue = requeue
        self._begin_calls = begin_calls
        self.waiting: list[Call] = []
        self.moving: dict[Any, tuple[float, IDelayedCall]] = {}
        self._running: list[Call] = []
        self._stopped = False

    def group_size(self, deaths: int) -> int:
        """Return the size of the group in which a call with this many certain deaths runs; at least 1."""
        steps = self._max_deliveries - 1
        exponent = max(0.0, 1.0 - deaths / steps) if steps else 0.0
        return max(1, round(math.pow(self._concurrency, exponent)))

    def add(self, call: Call) -> None:
        """Queue a call. One that comes from this process's own queue within MOVE_TIMEOUT begins at once.

        After :meth:`stop`, a call that would have to be moved first is requeued.
        """
        if call.delivery.counts_death:
            if self._release(_key(call)):
                if not self._execution.drop_stale(call):
                    self._begin(call)
                return
        elif self._stopped:
            self._requeue(call)
            return
        self.waiting.append(call)

    def remove(self, call: Call) -> bool:
        """Remove a waiting call; return whether it was waiting."""
        if call not in self.waiting:
            return False
        self.waiting.remove(call)
        return True

    def begin_next(self) -> bool:
        """Begin the waiting call with the fewest deaths, or move its message to this process's queue first.

        :return: whether a call was begun or moved; False if none waits or there is no room in its group.
        """
        while self.waiting:
            call = min(self.waiting, key=lambda call: call.delivery.deaths)
            if not self._has_room(call):
                return False
            self.waiting.remove(call)
            if self._execution.drop_stale(call):
                continue
            if call.delivery.counts_death:
                self._begin(call)
            else:
                self._move(call)
            return True
        return False

    def stop(self) -> None:
        """Requeue the waiting calls that would have to be moved first. Called when the server stops consuming.

        A moved message needs another delivery, and none will arrive.
        """
        self._stopped = True
        for call in [call for call in self.waiting if not call.delivery.counts_death]:
            self.waiting.remove(call)
            self._requeue(call)

    def withdraw(self) -> list[Call]:
        """Remove and return the waiting calls, and release the slots of moving ones."""
        for key in list(self.moving):
            self._release(key)
        waiting, self.waiting = self.waiting, []
        return waiting

    def _begin(self, call: Call) -> None:
        self._running.append(call)
        self._execution.begin(call)

    def _move(self, call: Call) -> None:
        """Move a call's message to this process's own queue, and reserve a slot for it."""
        key = _key(call)
        # Redelivered while it was being moved, because its channel was lost: it must not reserve a second slot.
        self._release(key)
        timer = self._clock.callLater(MOVE_TIMEOUT, self._move_timed_out, key)
        self.moving[key] = (self._weight(call), timer)
        self._requeue_here(call)

    def _move_timed_out(self, key: Any) -> None:
        self.moving.pop(key, None)
        self._begin_calls()

    def _release(self, key: Any) -> bool:
        """Release the slot of a moving message; return whether it had one."""
        _, timer = self.moving.pop(key, (0.0, None))
        if timer is None:
            return False
        timer.cancel()
        return True

    def _has_room(self, call: Call) -> bool:
        self._running = [running for running in self._running if not running.answered]
        weight = sum(weight for weight, _ in self.moving.values()) + sum(map(self._weight, self._running))
        return not weight or weight + self._weight(call) <= 1.0 + _ROUNDING

    def _weight(self, call: Call) -> float:
        return 1.0 / self.group_size(call.delivery.deaths)


def _key(call: Call) -> Any:
    return call.request.unique_id or call.delivery.body
