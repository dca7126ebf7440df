"""What a server that drains takes in: the calls of operations under way, and nothing else."""

from collections import deque
from collections.abc import Callable, Collection
from itertools import chain
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.errors import RPCError, ServiceDrainingError
from novasvc.interfaces import IDelivery
from novasvc.rpc.call import Call
from novasvc.rpc.message import Request

HELD = 1000
"""Casts that are held until the end of the drain, at the most."""

HELD_BYTES = 64 * 2**20
"""Bytes of the bodies of these, at the most."""

ROOM = 2 * HELD
"""Deliveries that a draining server takes beside those of its concurrency: what it holds must block no call."""

PAUSE = 0.5
"""Seconds for which a message is kept that comes back to this server at once when it is given back."""

READY, UNDER_WAY, NOBODY = "ready", "under way", "nobody"
"""What is known of the other workers of a node: one is ready for any call; one runs the operation; neither."""

Siblings = Callable[[str], Deferred[str]]
"""Takes a request id, returns a Deferred of READY, UNDER_WAY or NOBODY that never fails. It has a deadline."""


@attrs.define(eq=False)
class Arrival:
    """A request that a draining server was sent.

    :param delivery: by which it came last.
    :param deliveries: what it is given back with; see :meth:`novasvc.interfaces.IDelivery.requeue`.
    :param call: what it had become before; None if it came during the drain.
    """

    delivery: IDelivery
    deliveries: int
    request: Request
    call: Call | None = None


class Decisions(Protocol):
    """Carry out what was decided about a request; a draining server does."""

    def take_in(self, arrival: Arrival) -> None:
        """Run it."""

    def give_back(self, arrival: Arrival) -> None:
        """Have its message delivered again, here or elsewhere."""

    def refuse(self, arrival: Arrival, error: RPCError) -> None:
        """Settle it, and answer its caller with an error."""


class Admission:
    """Decides about each request that reaches a server while it drains.

    :param target: topic and server, as text, for errors.
    :param decisions: carries out what is decided here.
    :param clock: measures the pauses.
    :param operations: returns the request ids of what is under way here.
    :param siblings: asks the other workers of this node; None if it has none.
    """

    # Note [Which operation a request belongs to]
    #
    # A method that is under way may depend on calls that come back to its own node: A calls B, and
    # B calls A. They bear the request id of the operation, which travels in the context of every
    # call; oslo.messaging's services pass it on as well. So a request belongs to an operation if
    # its request id is that of a method or a periodic task that runs here, or of a call that waits
    # here for its reply. Such a request begins even if as many methods run as may: it is what
    # those wait for.
    #
    # Everything else is settled at once, so that nothing new begins:
    #
    # - What was sent to the topic goes back to its queue for the other servers, when this one
    #   does not consume from it any more, or it would come here again. It waits there if there is
    #   no other.
    # - A fanout is dropped: each server gets a copy of its own, and this one leaves.
    # - A call to this server itself is refused with ServiceDrainingError.
    # - A cast to this server itself is for the next process that serves it, so it is held, and
    #   given back at the end. It is not given back before: nobody else consumes from the queue,
    #   and it would come here again, for ever. If there is more than may be held, the rest is
    #   given back after a pause, behind what waits in the queue, so that the calls in the queue
    #   get their turn.
    #
    # A node with workers has one queue for all of them, and the operation may run in another one.
    # So before this worker refuses or holds anything, it asks the others, by way of the
    # supervisor. If one of them is ready, the node goes on, and the request goes back to the
    # queue; consumers that do not drain come first there. If all drain and the operation runs in
    # one of them, this one takes the call in: it is the same node.

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
        self._narrowed = self._over = False
        self._aside: list[Arrival] = []
        self._undecided: dict[Arrival, None] = {}
        self._paused: dict[Arrival, IDelayedCall] = {}
        self._held: deque[Arrival] = deque()
        self._held_bytes = 0

    def belongs(self, request: Request) -> bool:
        """Tell whether a request belongs to an operation that is under way here."""
        request_id = request.context.get("request_id")
        return not self._over and isinstance(request_id, str) and request_id in self._operations()

    def add(self, arrival: Arrival) -> None:
        """Settle a request that belongs to no operation under way here."""
        sent_to = arrival.delivery.sent_to
        if sent_to == "fanout":
            arrival.delivery.ack()
        elif sent_to == "topic":
            if self._narrowed:
                self._decisions.give_back(arrival)
            else:
                self._aside.append(arrival)
        elif self._siblings is None or self._over:
            self._settle(arrival)
        else:
            self._undecided[arrival] = None
            request_id = arrival.request.context.get("request_id")
            asked = self._siblings(request_id if isinstance(request_id, str) else "")
            asked.addCallback(self._told, arrival, at_once=not self._narrowed)

    def replace(self, unique_id: str | None, delivery: IDelivery) -> bool:
        """Let a delivery take the place of the one by which a request came that is still here, if it is.

        The connection was lost, and the broker delivers it again, marked; but it has not begun.
        """
        for arrival in chain(self._aside, self._undecided, self._paused, self._held):
            if unique_id is not None and arrival.request.unique_id == unique_id:
                arrival.delivery.ack()  # It may be a second message with the same id.
                arrival.delivery = delivery
                return True
        return False

    def narrowed(self) -> None:
        """See that nothing comes any more but what is sent to this server itself."""
        self._narrowed = True
        aside, self._aside = self._aside, []
        for arrival in aside:
            self._decisions.give_back(arrival)

    def end_operations(self) -> None:
        """Let nothing belong any more: what is under way is cut short."""
        self._over = True

    def close(self) -> None:
        """Give back what is still here. Called when the server consumes no more."""
        self._over = True
        for call in self._paused.values():
            call.cancel()
        left = [*self._aside, *self._undecided, *self._paused, *self._held]
        self._aside, self._undecided, self._paused, self._held = [], {}, {}, deque()
        for arrival in left:
            self._decisions.give_back(arrival)

    def _told(self, answer: str, arrival: Arrival, *, at_once: bool) -> None:
        if arrival not in self._undecided:
            return  # It went back meanwhile.
        del self._undecided[arrival]
        if self.belongs(arrival.request) or (answer == UNDER_WAY and not self._over):
            self._decisions.take_in(arrival)
        elif answer == READY and at_once:
            self._decisions.give_back(arrival)
        elif answer == READY:
            # They have no room for it now, or it would not have come here.
            self._pause(arrival)
        else:
            self._settle(arrival)

    def _settle(self, arrival: Arrival) -> None:
        """Settle a request to this server that nobody else can have now."""
        if arrival.request.back is not None:
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
