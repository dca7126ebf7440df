"""Move a delivered message to another queue: publish a copy, and acknowledge the original after its confirm."""

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.reactor.abandon import completion
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.errors import BrokerBlockedError, BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from novasvc.transport.amqp.consumer_channel import ConsumerChannel, Delivery
    from novasvc.transport.amqp.publisher import Message

_log = Logger()

_REQUEUE_DELAY = 30.0
"""Seconds before a message is requeued after moving it has failed."""
_TEMPORARY_ERRORS = (BrokerUnavailableError, BrokerBlockedError)
"""Errors that mean the broker takes no message at all now. Compared by exact type: a subclass may concern one queue."""

# Note [Copies of moved messages]
#
# A message is moved by publishing a copy and acknowledging the original. The copy may be delivered
# before the acknowledgement has left. If running it killed this process at that moment, the broker
# would redeliver both, and twice as many after each death. So a copy that arrives during a move
# waits until the broker has read the acknowledgement. A basic.qos proves that: the broker handles
# the methods of a channel in order. The copy may arrive on another channel, so the copies of all
# channels of a listener wait.


class Original(Enum):
    """State of the original at the end of its move."""

    UNSETTLED = auto()
    ACKNOWLEDGED = auto()
    """The receiver acknowledged it during the move."""
    VOID = auto()
    """The channel has ended, so the broker redelivers it."""


@attrs.define(eq=False)
class MoveTracker:
    """The moves of one listener, on all of its channels, and the copies that wait for their end.

    :param clock: measures the timeout of :meth:`wait`.
    """

    _clock: IReactorTime
    _moving: list[Deferred[Any]] = attrs.field(factory=list, init=False)
    _copies: "list[Delivery]" = attrs.field(factory=list, init=False)

    def add(self, moving: Deferred[Any]) -> None:
        """Track a move until it is done."""
        self._moving.append(moving)
        moving.addBoth(self._done, moving)

    def _done(self, _: object, moving: Deferred[Any]) -> None:
        """Dispatch the copies that waited, after the last of the moves; see Note [Copies of moved messages]."""
        self._moving.remove(moving)
        if not self._moving:
            copies, self._copies = self._copies, []
            for delivery in copies:
                delivery.dispatch()

    def defer_copy(self, copy: "Delivery") -> bool:
        """Keep a copy while a message is being moved; return whether one is. See Note [Copies of moved messages]."""
        if self._moving:
            self._copies.append(copy)
        return bool(self._moving)

    def wait(self, timeout: float) -> Deferred[Any]:
        """Wait for the moves under way, for a timeout in seconds at most."""
        # Not the DeferredList itself: it succeeds when it is cancelled, and cancels the moves.
        moves = completion(DeferredList(self._moving))
        return moves.addTimeout(timeout, self._clock, onTimeoutCancel=lambda *_: None)


@attrs.define(eq=False)
class MessageMover:
    """Moves the deliveries of one channel to other queues.

    :param consuming: settles the originals.
    """

    _consuming: "ConsumerChannel"
    _delayed_requeues: list[IDelayedCall] = attrs.field(factory=list, init=False)
    _logged: dict[str, str] = attrs.field(factory=dict, init=False)  # last logged reason, by target

    def move(self, tag: int, message: "Message", prepare: Callable[[], Deferred[Any]] | None = None) -> None:
        """Publish a message elsewhere, and acknowledge the delivery after its confirm.

        If that fails, the delivery is requeued after a pause.

        :param prepare: declares the destination first.
        """
        if self._consuming.begin_move(tag):
            prepared = succeed(None) if prepare is None else prepare()
            publishing = prepared.addCallback(lambda _: self._consuming.listener.publish(message))
            self._track(tag, publishing, partial(self._not_moved, tag, message.routing_key))

    def hold(self, tag: int, queue: str, message: "Message") -> None:
        """Publish a copy to the holding queue and acknowledge the delivery; if that fails, keep it unsettled.

        :param queue: the queue that it came from.
        """
        if self._consuming.begin_move(tag):
            self._track(tag, self._publish_to_holding_queue(queue, message), partial(self._not_held, tag, queue))

    def requeue_here(self, tag: int, queue: str, message: "Message", fallback: "Message") -> None:
        """Publish a copy to the holding queue, so that a death is counted, and acknowledge the delivery.

        :param queue: the queue that it came from.
        :param fallback: the copy for that queue, if the broker refuses us a holding queue.
        """
        if not self._consuming.begin_move(tag):
            return
        listener = self._consuming.listener
        holding = listener.holding_queue(queue)
        targets = [holding.name]

        def publish_fallback(failure: Failure) -> Deferred[None]:
            failure.trap(BrokerError)
            if type(failure.value) in _TEMPORARY_ERRORS:
                return fail(failure)
            holding.log_refusal(failure)
            targets.append(fallback.routing_key)
            return listener.publish(fallback)

        publishing = self._publish_to_holding_queue(queue, message).addErrback(publish_fallback)
        self._track(tag, publishing, lambda failure: self._not_moved(tag, targets[-1], failure))

    def quarantine(self, tag: int, message: "Message") -> None:
        """Move a delivery to the quarantine queue of the listener's topic."""
        self.move(tag, message, prepare=lambda: Deferred.fromCoroutine(self._declare_quarantine()))

    async def _declare_quarantine(self) -> None:
        # On a channel of its own: a refused declaration closes the channel, and must not stop the consumers.
        protocol, topic = self._consuming.channel.client, self._consuming.listener.topic
        await protocol.on_new_channel(lambda channel: topology.declare_quarantine(channel, topic))

    def _publish_to_holding_queue(self, queue: str, message: "Message") -> Deferred[None]:
        holding = self._consuming.listener.holding_queue(queue)

        def publish(_: None) -> Deferred[None]:
            message.routing_key = message.target = holding.name
            return self._consuming.listener.publish(message)

        return holding.ready().addCallback(publish)

    def _track(self, tag: int, publishing: Deferred[None], failed: Callable[[Failure], None]) -> None:
        self._consuming.listener.move_tracker.add(publishing.addCallbacks(lambda _: self._moved(tag), failed))

    def _moved(self, tag: int) -> Deferred[Any]:
        """Acknowledge the original, and wait until the broker has read that; see Note [Copies of moved messages]."""
        consuming = self._consuming
        if consuming.end_move(tag) is not Original.VOID:
            consuming.ack(tag)
            consuming.flush()
        self._logged.clear()  # A failure after a success is logged again.
        read: Deferred[Any] = consuming.channel.basic_qos(prefetch_count=consuming.consumers.prefetch)
        return read.addErrback(lambda failure: failure.trap(AMQPClosedError) and None)

    def _not_moved(self, tag: int, target: str, failure: Failure) -> None:
        """Requeue a message that could not be moved, after a pause.

        The broker marks it as redelivered; its delivery count is not raised.
        """
        reason = str(failure.value)
        if self._logged.get(target) != reason:
            self._logged[target] = reason
            _log.warn("cannot move messages to {target}; requeueing them: {error}", target=target, error=failure.value)
        if self._consuming.end_move(tag) is not Original.VOID:
            # Not at once: the message may be redelivered to us, and fail for the same reason, in a busy loop.
            requeue = self._consuming.clock.callLater(_REQUEUE_DELAY, self._consuming.reject, tag, requeue=True)
            self._delayed_requeues = [*self._active(), requeue]

    def _not_held(self, tag: int, queue: str, failure: Failure) -> None:
        """Leave the delivery unsettled, since its request runs; acknowledge it if the request finished meanwhile."""
        self._consuming.listener.holding_queue(queue).log_refusal(failure)
        if self._consuming.end_move(tag) is Original.ACKNOWLEDGED:
            self._consuming.ack(tag)

    def _active(self) -> list[IDelayedCall]:
        return [call for call in self._delayed_requeues if call.active()]

    def cancel_requeues(self) -> None:
        """Cancel the delayed requeues: the broker requeues all deliveries when the channel closes."""
        for call in self._active():
            call.cancel()
        self._delayed_requeues.clear()
