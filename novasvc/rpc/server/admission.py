"""Admission during a graceful shutdown: a draining server runs only calls of operations under way."""

from collections.abc import Callable, Collection
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.interfaces import IDelivery
from novasvc.rpc.errors import RPCError, ServiceDrainingError
from novasvc.rpc.message import Request
from novasvc.rpc.server.call import Call

MAX_DEFERRED_CASTS = 1000
"""The most casts that are deferred until the end of the drain."""

MAX_DEFERRED_BYTES = 64 * 2**20
"""The most bytes of deferred casts' bodies together."""

EXTRA_ROOM = 2 * MAX_DEFERRED_CASTS
"""Prefetch and room of a draining server beyond its concurrency, so that deferred casts do not block calls."""

REQUEUE_DELAY = 0.5
"""Seconds before a message is requeued that the broker would redeliver to this server at once."""

READY, UNDER_WAY, NOBODY = "ready", "under way", "nobody"
"""State of the node's other workers: one is ready for any call; one runs the operation; neither is the case."""

Siblings = Callable[[str], Deferred[str]]
"""Ask the other workers about a request id.

The Deferred fires with READY, UNDER_WAY or NOBODY within a deadline of its own, and never fails.
"""


@attrs.define(eq=False)
class UnstartedRequest:
    """A request that a draining server received and has not begun.

    :param delivery: its latest delivery.
    :param call: the call that it had become; None for a request that never became one.
    :ivar deliveries: the count to requeue it with, see :meth:`novasvc.interfaces.IDelivery.requeue`: that of its first
        delivery, because a redelivery due to a lost connection is no death.
    """

    delivery: IDelivery
    request: Request
    call: Call | None = None
    deliveries: int = attrs.field(init=False)

    @deliveries.default
    def _first_count(self) -> int:
        return self.delivery.deliveries if self.call is None else self.call.deliveries


class Decisions(Protocol):
    """Carry out the admission's decisions; implemented by the draining server's dispatcher."""

    def run(self, unstarted: UnstartedRequest) -> None:
        """Run the request."""

    def requeue(self, unstarted: UnstartedRequest) -> None:
        """Requeue the request's message for any server of its target."""

    def refuse(self, unstarted: UnstartedRequest, error: RPCError) -> None:
        """Settle the request, and reply with an error."""


class Admission:
    """Decide about each request that reaches a draining server.

    :param target: topic and server, as text, for errors.
    :param decisions: carries the decisions out.
    :param clock: measures REQUEUE_DELAY.
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
    # - A message to the topic is requeued for the other servers, once this server has stopped
    #   consuming from that queue; before that, the broker would redeliver it here. Without another
    #   server it waits in the queue.
    # - A fanout is dropped: each server has its own copy, and this server is leaving.
    # - A call to this server itself is refused with ServiceDrainingError.
    # - A cast to this server itself is for the next process that serves the target, so it is deferred,
    #   and requeued at the end of the drain. If it were requeued earlier, the broker would redeliver it
    #   here at once, for ever, because nothing else consumes from the queue. Casts beyond the bounds are
    #   requeued after REQUEUE_DELAY, to the end of the queue, so that calls in the queue are delivered.
    #
    # All workers of a node share one queue, and the operation may run in another worker. So before a
    # worker refuses or defers a request, it asks the others through the supervisor. If one of them is
    # ready, the node goes on serving, and the request is requeued: the broker
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
        self._topic_cancelled = self._operations_ended = False
        # Invariant: a request is in exactly one of these four until it is run, requeued or refused, and in
        # _by_id, if it has a unique id.
        self._topic_requests: list[UnstartedRequest] = []
        self._undecided: dict[UnstartedRequest, None] = {}
        self._delayed: dict[UnstartedRequest, float] = {}
        self._deferred_casts: list[UnstartedRequest] = []
        self._by_id: dict[str, UnstartedRequest] = {}
        self._deferred_bytes = 0
        self._timer: IDelayedCall | None = None

    def belongs(self, request: Request) -> bool:
        """Return whether a request belongs to an operation under way in this process."""
        request_id = request.context.get("request_id")
        return not self._operations_ended and isinstance(request_id, str) and request_id in self._operations()

    def add(self, unstarted: UnstartedRequest) -> None:
        """Decide about a request that belongs to no operation under way in this process.

        The decision may come later: when the topic's consumer has stopped, or when the other workers have answered.
        """
        sent_to, unique_id = unstarted.delivery.sent_to, unstarted.request.unique_id
        if sent_to == "fanout":
            unstarted.delivery.ack()
            return
        if unique_id is not None:
            self._by_id[unique_id] = unstarted
        if sent_to == "topic":
            if self._topic_cancelled:
                self._requeue(unstarted)
            else:
                self._topic_requests.append(unstarted)
        elif self._siblings is None or self._operations_ended:
            self._refuse_or_defer(unstarted)
        else:
            self._undecided[unstarted] = None
            request_id = unstarted.request.context.get("request_id")
            asking = self._siblings(request_id if isinstance(request_id, str) else "")
            asking.addCallback(self._siblings_answered, unstarted, at_once=not self._topic_cancelled)

    def replace_delivery(self, unique_id: str | None, delivery: IDelivery) -> bool:
        """Replace the delivery of an undecided or deferred request by its redelivery; return whether there was one.

        The redelivery is due to a lost connection, not to a death: the request has not begun.
        """
        unstarted = None if unique_id is None else self._by_id.get(unique_id)
        if unstarted is None:
            return False
        # Has no effect on a void delivery. If the new delivery is a duplicate message, both must be acknowledged.
        unstarted.delivery.ack()
        unstarted.delivery = delivery
        return True

    def topic_cancelled(self) -> None:
        """Requeue the topic's requests. Called when only messages to this server itself are still delivered."""
        self._topic_cancelled = True
        requests, self._topic_requests = self._topic_requests, []
        for unstarted in requests:
            self._requeue(unstarted)

    def end_operations(self) -> None:
        """Admit no further request. Called when the operations under way are cut short."""
        self._operations_ended = True

    def close(self) -> None:
        """Requeue the undecided, delayed and deferred requests. Called when the server has stopped consuming."""
        self._operations_ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = [*self._topic_requests, *self._undecided, *self._delayed, *self._deferred_casts]
        self._topic_requests, self._undecided, self._delayed, self._deferred_casts = [], {}, {}, []
        for unstarted in left:
            self._requeue(unstarted)

    def _siblings_answered(self, answer: str, unstarted: UnstartedRequest, *, at_once: bool) -> None:
        if unstarted not in self._undecided:
            return  # close() has requeued it already.
        del self._undecided[unstarted]
        # Ask again whether it belongs: an operation may have begun its call here in the meantime.
        if self.belongs(unstarted.request) or (answer == UNDER_WAY and not self._operations_ended):
            self._forget(unstarted)
            self._decisions.run(unstarted)
        elif answer == READY and at_once:
            self._requeue(unstarted)
        elif answer == READY:
            # The broker prefers the ready workers, so a delivery here means that they have no room now.
            self._requeue_later(unstarted)
        else:
            self._refuse_or_defer(unstarted)

    def _refuse_or_defer(self, unstarted: UnstartedRequest) -> None:
        """Refuse a call, or defer a cast, that no other worker can run now."""
        if unstarted.request.reply_to is not None:
            self._forget(unstarted)
            self._decisions.refuse(unstarted, ServiceDrainingError(self._target))
        else:
            self._defer(unstarted)

    def _defer(self, unstarted: UnstartedRequest) -> None:
        size = len(unstarted.delivery.body)
        if len(self._deferred_casts) >= MAX_DEFERRED_CASTS or self._deferred_bytes + size > MAX_DEFERRED_BYTES:
            self._requeue_later(unstarted)
            return
        self._deferred_casts.append(unstarted)
        self._deferred_bytes += size

    def _requeue_later(self, unstarted: UnstartedRequest) -> None:
        self._delayed[unstarted] = self._clock.seconds() + REQUEUE_DELAY
        if self._timer is None:
            self._timer = self._clock.callLater(REQUEUE_DELAY, self._requeue_due)

    def _requeue_due(self) -> None:
        """Requeue the requests whose delay has passed. All delays are equal, so they are due in order."""
        now = self._clock.seconds()
        due = [unstarted for unstarted, when in self._delayed.items() if when <= now]
        for unstarted in due:
            del self._delayed[unstarted]
        self._timer = None
        if self._delayed:
            delay = next(iter(self._delayed.values())) - now
            self._timer = self._clock.callLater(delay, self._requeue_due)
        for unstarted in due:
            self._requeue(unstarted)

    def _requeue(self, unstarted: UnstartedRequest) -> None:
        self._forget(unstarted)
        self._decisions.requeue(unstarted)

    def _forget(self, unstarted: UnstartedRequest) -> None:
        if unstarted.request.unique_id is not None:
            self._by_id.pop(unstarted.request.unique_id, None)
