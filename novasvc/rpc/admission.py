"""Admission during a graceful shutdown: a draining server runs only calls of operations under way."""

from collections import deque
from collections.abc import Callable, Collection
from itertools import chain
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.interfaces import IDelivery
from novasvc.rpc.call import Call
from novasvc.rpc.errors import RPCError, ServiceDrainingError
from novasvc.rpc.message import Request

HELD = 1000
"""The most casts that are held until the end of the drain."""

HELD_BYTES = 64 * 2**20
"""The most bytes of held casts' bodies together."""

ROOM = 2 * HELD
"""Prefetch of a draining server beyond its concurrency, so that held casts do not block the delivery of calls."""

PAUSE = 0.5
"""Seconds to keep a message that the broker would redeliver to this server at once."""

READY, UNDER_WAY, NOBODY = "ready", "under way", "nobody"
"""State of the node's other workers: one is ready for any call; one runs the operation; neither is the case."""

Siblings = Callable[[str], Deferred[str]]
"""Ask the other workers about a request id.

The Deferred fires with READY, UNDER_WAY or NOBODY within a deadline of its own, and never fails.
"""


@attrs.define(eq=False)
class Arrival:
    """A request that a draining server received and has not begun.

    :param delivery: its latest delivery.
    :param deliveries: the count to requeue it with; see :meth:`novasvc.interfaces.IDelivery.requeue`.
    :param call: the call that it had become; None for a request that never became one.
    """

    delivery: IDelivery
    deliveries: int
    request: Request
    call: Call | None = None


class Decisions(Protocol):
    """Carry out the admission's decisions; implemented by the draining server."""

    def take_in(self, arrival: Arrival) -> None:
        """Run the request."""

    def give_back(self, arrival: Arrival) -> None:
        """Requeue the request's message for any server of its target."""

    def refuse(self, arrival: Arrival, error: RPCError) -> None:
        """Settle the request, and reply with an error."""


class Admission:
    """Decide about each request that reaches a draining server.

    :param target: topic and server, as text, for errors.
    :param decisions: carries the decisions out.
    :param clock: measures PAUSE.
    :param operations: returns the request ids of the operations under way in this process.
    :param siblings: asks the other workers of this node; None without workers.
    """

    # Note [Which operation a request belongs to]
    #
    # A running method may depend on calls that come back to its own node: A calls B, and B calls A.
    # Such calls carry the operation's request id, which travels in the context of every call, also
    # between oslo.messaging's services. So a request belongs to an operation if its request id is that
    # of a method or a periodic task that runs here, or of a call that waits here for its reply. Such a
    # request may begin beyond the server's concurrency: running methods wait for it.
    #
    # Every other request is settled, so that no new operation begins:
    #
    # - A message to the topic is given back for the other servers, once this server has stopped
    #   consuming from that queue; before that, the broker would redeliver it here. Without another
    #   server it waits in the queue.
    # - A fanout is dropped: each server has its own copy, and this server is leaving.
    # - A call to this server itself is refused with ServiceDrainingError.
    # - A cast to this server itself is for the next process that serves the target, so it is held, and
    #   given back at the end of the drain. If it were given back earlier, the broker would redeliver it
    #   here at once, for ever, because nothing else consumes from the queue. Casts beyond the bounds are
    #   given back after a pause, to the end of the queue, so that calls in the queue are delivered.
    #
    # All workers of a node share one queue, and the operation may run in another worker. So before a
    # worker refuses or holds a request, it asks the others through the supervisor. If one of them is
    # ready, the node goes on serving, and the request is given back to the queue, where the broker
    # prefers consumers that do not drain. If all workers drain and one of them runs the operation, this
    # worker runs the call: it is the same node.

    def __init__(
        self,
        target: str,
        decisions: Decisions,
        clock: IReactorTime,
        *,
        operations: Callable[[], Collection[str]],
        siblings: Siblings | None = None,
    ) -> None:
        self._target = target
        self._decisions = decisions
        self._clock = clock
        self._operations = operations
        self._siblings = siblings
        self._topic_cancelled = self._over = False
        self._aside: list[Arrival] = []
        self._undecided: dict[Arrival, None] = {}
        self._paused: dict[Arrival, IDelayedCall] = {}
        self._held: deque[Arrival] = deque()
        self._held_bytes = 0

    def belongs(self, request: Request) -> bool:
        """Return whether a request belongs to an operation under way in this process."""
        request_id = request.context.get("request_id")
        return not self._over and isinstance(request_id, str) and request_id in self._operations()

    def add(self, arrival: Arrival) -> None:
        """Decide about a request that belongs to no operation under way in this process.

        The decision may come later: when the topic's consumer has stopped, or when the other workers have answered.
        """
        sent_to = arrival.delivery.sent_to
        if sent_to == "fanout":
            arrival.delivery.ack()
        elif sent_to == "topic":
            if self._topic_cancelled:
                self._decisions.give_back(arrival)
            else:
                self._aside.append(arrival)
        elif self._siblings is None or self._over:
            self._settle(arrival)
        else:
            self._undecided[arrival] = None
            request_id = arrival.request.context.get("request_id")
            asked = self._siblings(request_id if isinstance(request_id, str) else "")
            asked.addCallback(self._told, arrival, at_once=not self._topic_cancelled)

    def replace(self, unique_id: str | None, delivery: IDelivery) -> bool:
        """Replace the delivery of an undecided or held request by its redelivery; return whether there was one.

        The redelivery is due to a lost connection, not to a death: the request has not begun.
        """
        for arrival in chain(self._aside, self._undecided, self._paused, self._held):
            if unique_id is not None and arrival.request.unique_id == unique_id:
                # Has no effect on a void delivery. If the new delivery is a duplicate message, both must be
                # acknowledged.
                arrival.delivery.ack()
                arrival.delivery = delivery
                return True
        return False

    def topic_cancelled(self) -> None:
        """Give back the topic's requests. Called when only messages to this server itself are still delivered."""
        self._topic_cancelled = True
        aside, self._aside = self._aside, []
        for arrival in aside:
            self._decisions.give_back(arrival)

    def end_operations(self) -> None:
        """Admit no further request. Called when the operations under way are cut short."""
        self._over = True

    def close(self) -> None:
        """Give back the requests that are undecided, paused or held. Called when the server has stopped consuming."""
        self._over = True
        for call in self._paused.values():
            call.cancel()
        left = [*self._aside, *self._undecided, *self._paused, *self._held]
        self._aside, self._undecided, self._paused, self._held = [], {}, {}, deque()
        for arrival in left:
            self._decisions.give_back(arrival)

    def _told(self, answer: str, arrival: Arrival, *, at_once: bool) -> None:
        if arrival not in self._undecided:
            return  # close() has requeued it already.
        del self._undecided[arrival]
        if self.belongs(arrival.request) or (answer == UNDER_WAY and not self._over):
            self._decisions.take_in(arrival)
        elif answer == READY and at_once:
            self._decisions.give_back(arrival)
        elif answer == READY:
            # The broker prefers the ready workers, so a delivery here means that they have no room now.
            self._pause(arrival)
        else:
            self._settle(arrival)

    def _settle(self, arrival: Arrival) -> None:
        """Refuse a call, or hold a cast, that no other worker can run now."""
        if arrival.request.reply_to is not None:
            self._decisions.refuse(arrival, ServiceDrainingError(self._target))
        else:
            self._hold(arrival)

    def _hold(self, arrival: Arrival) -> None:
        size = len(arrival.delivery.body)
        if len(self._held) >= HELD or self._held_bytes + size > HELD_BYTES:
            self._pause(arrival)
            return
        self._held.append(arrival)
        self._held_bytes += size

    def _pause(self, arrival: Arrival) -> None:
        self._paused[arrival] = self._clock.callLater(PAUSE, self._end_pause, arrival)

    def _end_pause(self, arrival: Arrival) -> None:
        del self._paused[arrival]
        self._decisions.give_back(arrival)
