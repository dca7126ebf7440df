"""A channel with consumers, and its deliveries until each is settled: ack, requeue, hold or quarantine."""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IDelivery, ISession
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.consumer_set import ConsumerSet, Origin
from novasvc.transport.amqp.content import DEATHS, DELIVERIES, EXPIRES_IN, SENT, Properties, read_content, sent_value
from novasvc.transport.amqp.frames import MULTIPLE, SINGLE, Deliver, ack_packer, pack_reject
from novasvc.transport.amqp.moves import MessageMover, Original
from novasvc.transport.amqp.protocol import BODY_LIMIT
from novasvc.transport.amqp.publisher import Message
from novasvc.transport.amqp.reply_codes import NOT_FOUND
from novasvc.transport.amqp.time_in_queue import TOLERANCE

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

_REASON_CHARACTERS = 500
_LULL = 0.5
"""Seconds for which a consumer must have had room, and received nothing, to be sure that a message has not waited."""
_PENDING, _MOVING, _ACKED_WHILE_MOVING = range(3)
"""States of an unsettled delivery: with the receiver; being moved; acknowledged while it was being moved."""


@implementer(IDelivery)
class Delivery:
    """A message delivered to a server and not settled yet; see IDelivery."""

    __slots__ = (
        "_consuming",
        "_queue",
        "_tag",
        "body",
        "counts_death",
        "deaths",
        "deliveries",
        "expires_at",
        "sent_to",
        "session",
    )

    def __init__(
        self,
        consuming: "ConsumerChannel",
        tag: int,
        origin: "Origin",
        body: bytes,
        properties: Properties,
        *,
        redelivered: bool,
    ) -> None:
        self.body = body
        # "redelivered" does not count (AMQP 0-9-1 1.8.3.9). A quorum queue has a count, but it includes every message
        # that was unacknowledged when a process died, whether it had begun or not: see
        # Note [Finding the poison message] in novasvc.rpc.server.redelivery. A holding queue redelivers because a
        # channel was lost, or because we published a copy to it, and neither is a failed attempt.
        again = not consuming.holding and (redelivered or properties.unclaimed)
        self.deliveries = properties.deliveries + again
        self.deaths = properties.deaths + (properties.unclaimed and not consuming.holding)
        # Without holding queues every redelivery was taken for a death, and is counted as one.
        self.counts_death = consuming.holding or (not again and self.deaths >= self.deliveries)
        self.session = consuming.session
        self.sent_to = origin.sent_to
        self._consuming = consuming
        self._tag = tag
        self._queue = origin.queue
        again = bool(again or consuming.holding or properties.deliveries)
        self.expires_at = None if properties.expires_in is None else consuming.expires_at(properties, again=again)

    @property
    def expires_in(self) -> float | None:
        """Seconds left until the message expires, 0 at the least; see IDelivery."""
        if self.expires_at is None:
            return None
        return max(0.0, self.expires_at - self._consuming.clock.seconds())

    def dispatch(self) -> None:
        """Call the receiver, unless the channel has ended: then the broker redelivers the message."""
        if self.session.ended:
            return
        try:
            self._consuming.listener.receiver(self)
        except Exception:  # noqa: BLE001 - it must not end the connection, which all consumers share
            _log.failure("unhandled exception in a message receiver")

    def ack(self) -> None:
        """Acknowledge the message; see IDelivery."""
        self._consuming.ack(self._tag)

    def reject(self) -> None:
        """Reject the message without requeue: the broker drops it; see IDelivery."""
        self._consuming.reject(self._tag, requeue=False)

    def hold(self) -> None:
        """Move the message to a holding queue, beyond the broker's consumer_timeout; see IDelivery."""
        self._consuming.mover.hold(self._tag, self._queue, self._holding_copy(self.deliveries))

    def requeue(self, deliveries: int) -> None:
        """Return the message to its queue; see IDelivery."""
        if not deliveries and self._consuming.rejects_unstarted(self._queue):
            self._consuming.reject(self._tag, requeue=True)
            return
        # Publish a copy rather than requeue: a requeue would mark a message that never began as redelivered, and would
        # not count the deliveries of one that did.
        self._consuming.mover.move(self._tag, self._copy(deliveries, self.deaths))

    def requeue_here(self, deliveries: int) -> None:
        """Have the message delivered to this process again, by a holding queue; see IDelivery."""
        # Without a holding queue nothing records which process died, so each delivery that may have been a death counts
        # as one.
        fallback = self._copy(deliveries, max(deliveries, self.deaths))
        self._consuming.mover.requeue_here(self._tag, self._queue, self._holding_copy(deliveries), fallback)

    def _copy(self, deliveries: int, deaths: int) -> Message:
        """Return a copy for the queue that the message came from."""
        counts = {name: count for name, count in ((DELIVERIES, deliveries), (DEATHS, deaths)) if count}
        replacements = self._consuming.listener.subscriptions.replacements
        queue, ttl = replacements.destination(self._queue), self.expires_in
        return Message("", queue, self.body, ttl, mandatory=True, target=queue, headers=counts or None)

    def _holding_copy(self, deliveries: int) -> Message:
        """Return a copy for a holding queue; the caller fills in the queue's name."""
        headers: dict[str, int | str] = {DELIVERIES: deliveries, DEATHS: self.deaths}
        left = self.expires_in
        if left is not None:
            # The expiration property would make the broker drop the message, and dead-lettering removes that property.
            # A header survives both.
            headers[EXPIRES_IN] = max(1, int(left * 1000))
            listener = self._consuming.listener
            headers[SENT] = sent_value(listener.publisher.sender, listener.clock.seconds()).decode()
        return Message("", "", self.body, None, mandatory=True, target="", headers=headers)

    def quarantine(self, reason: str) -> None:
        """Move the message to its topic's quarantine queue; see IDelivery."""
        listener = self._consuming.listener
        queue = topology.quarantine_queue(listener.topic)
        # Without the counts: an operator who moves the message back, headers and all, gives it a new start.
        headers = {"x-novasvc-queue": self._queue, "x-novasvc-reason": reason[:_REASON_CHARACTERS]}
        message = Message("", queue, self.body, None, mandatory=True, target=queue, headers=headers)
        self._consuming.mover.quarantine(self._tag, message)


@implementer(ISession)
@attrs.define(eq=False)
class Session:
    """Tells whether the deliveries of a channel can still be settled; see ISession."""

    ended: bool = False
    redelivers: bool = True


_NO_ORIGIN = Origin("", "server", watched=False)
"""Origin for an unknown consumer tag; a broker does not deliver to one."""


@attrs.define(eq=False)
class ConsumerChannel(ChannelReceiver):
    """The consumers of one channel, and its unsettled deliveries.

    It ends with its channel; the listener outlives it.

    :param listener: consumes, on one channel after another.
    :param prefetch: unacknowledged messages for each consumer at first, as told to the broker.
    :param on_closed: called with this object and the reason when the channel has closed by itself.
    :param holding: its queues are holding queues, which only this process consumes.
    :param on_count_changed: called when the number of unsettled messages has changed.
    :ivar clock: the listener's.
    :ivar consumers: starts and stops the consumers.
    :ivar mover: moves deliveries to other queues.
    :ivar session: tells the deliveries when they can no longer be settled.
    :ivar requeue_all: requeue every delivery: the listener was cancelled while this channel was being set up.
    """

    listener: "Listener"
    channel: Channel
    _prefetch: int
    on_closed: Callable[["ConsumerChannel", AMQPClosedError], None]
    clock: IReactorTime = attrs.field(init=False)
    requeue_all: bool = attrs.field(default=False, init=False)
    holding: bool = attrs.field(default=False, kw_only=True)
    on_count_changed: Callable[[], None] | None = attrs.field(default=None, kw_only=True)
    session: Session = attrs.field(factory=Session, init=False)
    _unsettled: dict[int, int] = attrs.field(factory=dict, init=False)
    _pack_ack: Callable[[int, int], bytes] = attrs.field(init=False)
    _acks: list[int] = attrs.field(factory=list, init=False)
    consumers: ConsumerSet = attrs.field(init=False)
    _stopped: dict[str, set[int]] = attrs.field(factory=dict, init=False)
    _lull_since: float = attrs.field(init=False)  # infinite while the consumers have no room
    _after_lull: bool = attrs.field(default=False, init=False)  # the present delivery
    _kept: set[str] = attrs.field(factory=set, init=False)
    mover: MessageMover = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.clock = self.listener.clock
        self._lull_since = self.clock.seconds()
        self._pack_ack = ack_packer(self.channel.id)
        self.consumers = ConsumerSet(self.channel, self._prefetch, self._origin)
        self.mover = MessageMover(self)

    def _origin(self, queue: str) -> Origin:
        # Called when a consumer starts: what its queue had by then has waited.
        listener, self._lull_since = self.listener, self.clock.seconds()
        return Origin(queue, listener.sent_to(queue), listener.loopback.watches(queue))

    def __len__(self) -> int:
        return len(self._unsettled)

    # -- replaced queues -----------------------------------------------------------------------

    async def release(self, queue: str, *, keep: bool) -> None:
        """Stop the consumer of a queue that is being replaced; :meth:`left_of` then tells what is unsettled.

        :param keep: the queue may be a quorum queue: leave the consumer until the queue is deleted. If it was cancelled
            before, RabbitMQ would keep the queue's type with this channel, and end the connection when the channel
            consumes from a classic queue of the same name. Nothing more comes from the queue, which is empty.
        """
        consumers = self.consumers
        if queue in self._stopped:
            return
        if keep and consumers.consumes_from(queue):
            self._kept.add(queue)
        else:
            await consumers.stop(queue)
            # The broker answers in order, so a consumer that was being resized is cancelled by now, too.
            await self.channel.basic_qos(prefetch_count=consumers.prefetch)
        self._stopped[queue] = set(self._unsettled)

    async def resume(self, queue: str, *, old: bool) -> None:
        """Consume from a queue again that was released, unless the listener drains.

        :param old: it is the same queue, not a new one of the same name.
        """
        listener = self.listener
        self._stopped.pop(queue, None)
        if old:
            self._kept.discard(queue)
        if queue in listener.consumed_queues() and not self.consumers.has(queue):
            await self.consumers.consume(queue, low_priority=listener.is_narrowed)

    def left_of(self, queue: str) -> int:
        """Return how many of the deliveries that were unsettled when a queue was released still are.

        They are counted whatever queue they came from: a delivery does not remember its consumer.
        """
        return len(self._stopped.get(queue, set()).intersection(self._unsettled))

    def waits_for_end_of(self, queue: str) -> bool:
        """Return whether a kept consumer was not ended yet by the deletion of its queue."""
        # A drain cancels the kept consumer, and the broker reports the end of a queue to its consumers only.
        return queue in self._kept and self.consumers.has(queue)

    # -- settling ------------------------------------------------------------------------------

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery at the end of the reactor turn, batched with the others of that turn."""
        state = self._unsettled.get(tag)
        if state == _MOVING:
            self._unsettled[tag] = _ACKED_WHILE_MOVING
        if state != _PENDING:
            return
        del self._unsettled[tag]
        if self.on_count_changed is not None:
            self.on_count_changed()
        self._acks.append(tag)
        if len(self._acks) > 1:
            return
        client = self.channel.client
        if client.reading:  # as a rule: the message arrived in this read
            client.turn_end.append(self.flush)
        else:
            client.at_turn_end(self.flush)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Send basic.reject, with or without requeue, unless the delivery is settled or being moved."""
        if self._unsettled.get(tag) == _PENDING:
            del self._unsettled[tag]
            if self.on_count_changed is not None:
                self.on_count_changed()
            self.channel.client.write(pack_reject(self.channel.id, tag, requeue))

    def expires_at(self, properties: Properties, *, again: bool) -> float:
        """Return when a message that was delivered now expires, in seconds on the clock; it has a TTL.

        See Note [Time in the queue] in :mod:`novasvc.transport.amqp.time_in_queue`.

        :param again: it was delivered or held before.
        """
        ttl, now, sender = properties.expires_in or 0.0, self.clock.seconds(), properties.sender
        if not sender:
            return now + ttl
        times = self.listener.subscriptions.times_in_queue
        seconds = now - properties.sent_at
        if 0.0 <= seconds < TOLERANCE and sender not in times.differences:
            return now + ttl  # The common case. Inlined: every call passes here.
        return now + ttl - times.waited(sender, seconds, ttl, at_once=self._after_lull, again=again)

    def flush(self) -> None:
        """Write the pending acknowledgements, with "multiple" for the tags below the first unsettled one.

        "multiple" settles all tags up to its own (AMQP 0-9-1 1.8.3.13), and tags ascend in the order of delivery. So
        one frame is enough for the tags that no unsettled delivery precedes; the others need a frame each.
        """
        acks, self._acks = self._acks, []
        if not acks or self.channel.closed:
            return
        pack, write = self._pack_ack, self.channel.client.write
        first_unsettled = next(iter(self._unsettled), None)
        if first_unsettled is None:
            write(pack(max(acks), MULTIPLE))
            return
        before = [tag for tag in acks if tag < first_unsettled]
        frames = [pack(max(before), MULTIPLE)] if before else []
        frames += [pack(tag, SINGLE) for tag in acks if tag > first_unsettled]
        write(b"".join(frames))

    def rejects_unstarted(self, queue: str) -> bool:
        """Return whether an unstarted message is requeued by basic.reject, because no copy of it can be published now.

        A requeue marks it as redelivered. That is better than a shutdown that waits for the broker and then loses the
        channel, with the same mark. Never while we consume from the queue: the message would come again at once.
        """
        return (
            self.consumers.is_draining()
            and not self.holding
            and not self.consumers.consumes_from(queue)
            and not self.listener.can_publish
        )

    def begin_move(self, tag: int) -> bool:
        """Mark a delivery as being moved; return False if it is settled or being moved already."""
        if self._unsettled.get(tag) != _PENDING:
            return False
        self._unsettled[tag] = _MOVING
        return True

    def end_move(self, tag: int) -> Original:
        """Make a delivery that was being moved pending again, unless the channel has ended; return its state before."""
        state = self._unsettled.get(tag)
        if state is None:
            return Original.VOID
        self._unsettled[tag] = _PENDING
        return Original.ACKNOWLEDGED if state == _ACKED_WHILE_MOVING else Original.UNSETTLED

    # -- ChannelReceiver -----------------------------------------------------------------------

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Handle basic.deliver: pass the message to the receiver; see ChannelReceiver.

        An unreadable message is rejected and counted. A probe goes to the loopback.
        """
        tag, now = deliver.delivery_tag, self.clock.seconds()
        self._unsettled[tag] = _PENDING
        self._after_lull = now - self._lull_since >= _LULL
        self._lull_since = now if len(self._unsettled) < self.consumers.lowest_prefetch else inf
        if self.on_count_changed is not None:
            self.on_count_changed()
        listener, origin = self.listener, self.consumers.origins.get(deliver.consumer_tag, _NO_ORIGIN)
        try:
            body, read = read_content(body, properties, BODY_LIMIT)
        except ValueError as error:
            listener.unreadable += 1
            _log.warn("dropped a message from {queue}: {error}", queue=origin.queue, error=error)
            self.reject(tag, requeue=False)
            return
        if (read.probe or origin.watched) and (
            listener.loopback.handle_probe(origin.queue, body, read.probe)
            # A draining server reads only orders from its fanout queue; each other server has its own copy of a fanout.
            or (origin.sent_to == "fanout" and listener.is_narrowed)
        ):
            self.ack(tag)
            return
        delivery = Delivery(self, tag, origin, body, read, redelivered=deliver.redelivered)
        if self.requeue_all or (read.returns and not self.holding and listener.nears_delivery_limit(read.returns)):
            delivery.requeue(delivery.deliveries)
        elif not ((self.holding or read.deliveries) and listener.move_tracker.defer_copy(delivery)):
            delivery.dispatch()
            # What came while the method ran is not after a lull.
            self._lull_since = max(self._lull_since, self.clock.seconds())

    def consumer_cancelled(self, consumer_tag: str) -> None:
        """Handle basic.cancel: close the channel; the listener declares and consumes again. See ChannelReceiver."""
        # RabbitMQ, "Consumer Cancel Notification": only clients that announce consumer_cancel_notify get basic.cancel.
        # The channel stays open, but it is simplest to restore all of its consumers in the one way there is.
        queue = self.consumers.origins.get(consumer_tag.encode(), _NO_ORIGIN).queue
        if queue in self._kept:
            # The queue was deleted, to be replaced.
            self._kept.discard(queue)
            self.consumers.forget(queue)
            return
        queue = f"the holding queue for {queue}" if self.holding else queue
        _log.warn(
            "the broker cancelled the consumer of {queue}: the queue was deleted, its broker node is down, or a "
            "delivery exceeded the consumer_timeout",
            queue=queue,
        )
        self.channel.close(AMQPClosedError(f"the consumer of {queue} was cancelled", code=NOT_FOUND))

    def channel_closed(self, reason: AMQPClosedError) -> None:
        """Forget the unsettled deliveries, which the broker requeues; see ChannelReceiver."""
        self._acks.clear()
        # If the connection is lost, the broker may have restarted, and transient queues are lost with it.
        self.session.redelivers = self.holding or self.listener.durable or not self.channel.client.closed
        self.forget_unsettled()
        self.on_closed(self, reason)

    def close(self, problem: str) -> None:
        """Close the channel; the broker requeues the unsettled deliveries."""
        self.forget_unsettled()
        self.channel.receiver = None
        self.channel.close(AMQPClosedError(problem, clean=True))

    def forget_unsettled(self) -> None:
        """Void the unsettled deliveries, which the broker requeues when the channel closes."""
        self.session.ended = True
        self._unsettled.clear()
        self.mover.cancel_requeues()
