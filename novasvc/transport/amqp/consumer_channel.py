"""Deliveries of one consuming channel, and how each of them is settled: ack, requeue, hold or quarantine."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol

import attrs
from twisted.internet.defer import Deferred, FirstError, fail, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.interfaces import IDelivery, ISession
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.content import DEATHS, DELIVERIES, EXPIRES_IN, Properties, read_content
from novasvc.transport.amqp.frames import MULTIPLE, SINGLE, Deliver, ack_packer, pack_reject
from novasvc.transport.amqp.protocol import BODY_LIMIT
from novasvc.transport.amqp.publisher import Message
from novasvc.transport.amqp.reply_codes import NOT_FOUND
from novasvc.transport.errors import BrokerBlockedError, BrokerError, BrokerUnavailableError

_log = Logger()

_REASON_CHARACTERS = 500
_REQUEUE_DELAY = 30.0
"""Seconds before a message is requeued after moving it has failed."""
_TEMPORARY_ERRORS = (BrokerUnavailableError, BrokerBlockedError)
"""Errors that mean the broker takes no message at all now. Compared by exact type: a subclass may concern one queue."""
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
        # Note [Finding the poison message] in novasvc.rpc.redelivery. A private queue redelivers because a channel was
        # lost, or because we published a copy to it, and neither is a failed attempt.
        again = not consuming.private and (redelivered or properties.unclaimed)
        self.deliveries = properties.deliveries + again
        self.deaths = properties.deaths + (properties.unclaimed and not consuming.private)
        # Without private queues every redelivery was taken for a death, and is counted as one.
        self.counts_death = consuming.private or (not again and self.deaths >= self.deliveries)
        self.session = consuming.session
        self.sent_to = origin.sent_to
        self._consuming = consuming
        self._tag = tag
        self._queue = origin.queue
        expires_in = properties.expires_in
        self.expires_at = None if expires_in is None else consuming.clock.seconds() + expires_in

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
        """Move the message to a private queue, beyond the broker's consumer_timeout; see IDelivery."""
        self._consuming.hold(self._tag, self._queue, self._private_copy(self.deliveries))

    def requeue(self, deliveries: int) -> None:
        """Return the message to its queue; see IDelivery."""
        if not deliveries and self._consuming.rejects_unstarted(self._queue):
            self._consuming.reject(self._tag, requeue=True)
            return
        # Publish a copy rather than requeue: a requeue would mark a message that never began as redelivered, and would
        # not count the deliveries of one that did.
        self._consuming.move(self._tag, self._copy(deliveries, self.deaths))

    def requeue_here(self, deliveries: int) -> None:
        """Have the message delivered to this process again, by a private queue; see IDelivery."""
        # Without a private queue nothing records which process died, so each delivery that may have been a death counts
        # as one.
        fallback = self._copy(deliveries, max(deliveries, self.deaths))
        self._consuming.move_here(self._tag, self._queue, self._private_copy(deliveries), fallback)

    def _copy(self, deliveries: int, deaths: int) -> Message:
        """Return a copy for the queue that the message came from."""
        counts = {name: count for name, count in ((DELIVERIES, deliveries), (DEATHS, deaths)) if count}
        queue, ttl = self._queue, self.expires_in
        return Message("", queue, self.body, ttl, mandatory=True, target=queue, headers=counts or None)

    def _private_copy(self, deliveries: int) -> Message:
        """Return a copy for a private queue; the caller fills in the queue's name."""
        headers = {DELIVERIES: deliveries, DEATHS: self.deaths}
        left = self.expires_in
        if left is not None:
            # The expiration property would make the broker drop the message, and dead-lettering removes that property.
            # A header survives both.
            headers[EXPIRES_IN] = max(1, int(left * 1000))
        return Message("", "", self.body, None, mandatory=True, target="", headers=headers)

    def quarantine(self, reason: str) -> None:
        """Move the message to its topic's quarantine queue; see IDelivery."""
        listener = self._consuming.listener
        queue = topology.quarantine_queue(listener.topic)
        headers = {
            DELIVERIES: self.deliveries,
            DEATHS: self.deaths,
            "x-novasvc-queue": self._queue,
            "x-novasvc-reason": reason[:_REASON_CHARACTERS],
        }
        message = Message("", queue, self.body, None, mandatory=True, target=queue, headers=headers)
        self._consuming.move(self._tag, message, prepare=self._consuming.declare_quarantine)


@implementer(ISession)
@attrs.define(eq=False)
class Session:
    """Tells whether the deliveries of a channel can still be settled; see ISession."""

    ended: bool = False
    redelivers: bool = True


class RequestHolder(Protocol):
    """The private queue in which this process keeps the requests that it runs."""

    name: str

    def ready(self) -> Deferred[None]:
        """Wait until the queue has a consumer.

        :return: Deferred[None]; fails with a BrokerError.
        """

    def log_refusal(self, failure: Failure) -> None:
        """Note that a request could not be kept there."""


class Probes(Protocol):
    """Takes the messages that a listener sends to itself; see :mod:`novasvc.transport.amqp.loopback`."""

    def watches(self, queue: str) -> bool:
        """Return whether :meth:`consume_probe` has to see every message of a queue, not only probes."""

    def consume_probe(self, queue: str, body: bytes, probe: str | None) -> bool:
        """Consume a delivery if it is a probe, or an answer to one; return whether it was."""


class Origin(NamedTuple):
    """Where the messages of one consumer come from.

    :param queue: the queue's name; for a private queue, the queue that its messages came from first.
    :param sent_to: see IDelivery.
    :param watched: see :meth:`Probes.watches`.
    """

    queue: str
    sent_to: str
    watched: bool


_NO_ORIGIN = Origin("", "server", watched=False)
"""Origin for an unknown consumer tag; a broker does not deliver to one."""


class Owner(Protocol):
    """The listener that consumes, on one channel after another."""

    unreadable: int
    receiver: Callable[[IDelivery], None]

    @property
    def loopback(self) -> Probes:
        """Takes probes before the receiver sees them."""

    @property
    def clock(self) -> IReactorTime:
        """Measures pauses."""

    @property
    def topic(self) -> str:
        """The topic whose quarantine queue is used."""

    @property
    def durable(self) -> bool:
        """Whether the request queues survive a restart of the broker."""

    @property
    def can_publish(self) -> bool:
        """Whether the publishing connection is ready: connected and not blocked."""

    def publish(self, message: Message) -> Deferred[None]:
        """Publish a copy of a message that is requeued, held or quarantined."""

    def holding_queue(self, queue: str) -> RequestHolder:
        """Return the private queue for running requests that came from a queue."""

    def track_move(self, moving: Deferred[Any]) -> None:
        """Track a move until it is done; cancelling and closing wait for it."""

    def postpone(self, copy: Delivery) -> bool:
        """Keep a copy until the moves under way are done; return whether there are any. See Note [Copies wait]."""

    def sent_to(self, queue: str) -> str:
        """Return how the messages of a queue were addressed; see IDelivery."""

    def nears_delivery_limit(self, returns: int) -> bool:
        """Return whether a message has to be published anew, before it reaches the queue's delivery limit."""


@attrs.define(eq=False)
class ConsumerChannel(ChannelReceiver):
    """The consumers of one channel, and its unsettled deliveries.

    It ends with its channel; the listener outlives it.

    :param prefetch: unacknowledged messages for each consumer, as told to the broker.
    :param on_closed: called with this object and the reason when the channel has closed by itself.
    :param private: its queues are this process's own.
    :param on_count_changed: called when the number of unsettled messages has changed.
    :ivar clock: the listener's.
    :ivar origins: origins by consumer tag.
    :ivar requeue_all: requeue every delivery: the listener was cancelled while this channel was being set up.
    """

    listener: Owner
    channel: Channel
    prefetch: int
    on_closed: Callable[["ConsumerChannel", AMQPClosedError], None]
    clock: IReactorTime = attrs.field(init=False)
    origins: dict[bytes, Origin] = attrs.field(factory=dict, init=False)
    requeue_all: bool = attrs.field(default=False, init=False)
    private: bool = attrs.field(default=False, kw_only=True)
    on_count_changed: Callable[[], None] | None = attrs.field(default=None, kw_only=True)
    session: Session = attrs.field(factory=Session, init=False)
    _unsettled: dict[int, int] = attrs.field(factory=dict, init=False)
    _pack_ack: Callable[[int, int], bytes] = attrs.field(init=False)
    _acks: list[int] = attrs.field(factory=list, init=False)
    _delayed_requeues: list[IDelayedCall] = attrs.field(factory=list, init=False)
    _consumers: dict[str, tuple[str, int]] = attrs.field(factory=dict, init=False)  # consumer tag and prefetch by queue
    _cancelled: bool = attrs.field(default=False, init=False)
    _narrowed: bool = attrs.field(default=False, init=False)
    _logged: dict[str, str] = attrs.field(factory=dict, init=False)  # last logged reason, by target of a move
    _next_tag: "count[int]" = attrs.field(factory=partial(count, 1), init=False)

    def __attrs_post_init__(self) -> None:
        self.clock = self.listener.clock
        self._pack_ack = ack_packer(self.channel.id)

    # Note [Copies wait]
    #
    # A message is moved by publishing a copy and acknowledging the original. The copy may be delivered
    # before the acknowledgement has left. If running it killed this process at that moment, the broker
    # would redeliver both, and twice as many after each death. So a copy that arrives during a move
    # waits until the broker has read the acknowledgement. A basic.qos proves that: the broker handles
    # the methods of a channel in order. The copy may arrive on another channel, so the copies of all
    # channels of a listener wait.

    def __len__(self) -> int:
        return len(self._unsettled)

    # -- consumers -----------------------------------------------------------------------------

    async def consume(self, queue: str, origin: str | None = None, *, low_priority: bool = False) -> None:
        """Start a consumer on a queue.

        :param origin: the queue that its messages came from first; the queue itself by default.
        :param low_priority: lower consumer priority: other consumers are served first, as long as they have room.
        :raises AMQPClosedError: the channel was closed.
        """
        await self._consume(queue, origin or queue, self.prefetch, low_priority=low_priority)

    def _consume(self, queue: str, origin: str, prefetch: int, *, low_priority: bool = False) -> Deferred[Any]:
        tag = str(next(self._next_tag))
        listener = self.listener
        self.origins[tag.encode()] = Origin(origin, listener.sent_to(origin), listener.loopback.watches(origin))
        self._consumers[queue] = (tag, prefetch)
        arguments = {"x-priority": -1} if low_priority else {}
        return self.channel.basic_consume(queue=queue, consumer_tag=tag, arguments=arguments)  # type: ignore[no-any-return]

    async def narrow(self, queue: str | None, prefetch: int) -> None:
        """Consume from one queue only, at a lower consumer priority; cancel the other consumers.

        :param queue: None cancels all consumers.
        :param prefetch: unacknowledged messages from now on.
        :raises AMQPClosedError: the channel was closed.
        """
        self._narrowed = True
        before = list(self.origins)
        self._consumers.clear()
        self.prefetch = prefetch
        if queue is not None:
            # Start the new consumer before the old ones are cancelled, so that the queue always has one. Send basic.qos
            # and basic.consume back to back: a prefetch applies to the consumers that are started after it.
            asked = (
                self.channel.basic_qos(prefetch_count=prefetch),
                self._consume(queue, queue, prefetch, low_priority=True),
            )
            await gatherResults(asked, consumeErrors=True).addErrback(_first_error)
        await self._cancel(before)

    def consumes_from(self, queue: str) -> bool:
        """Return whether a queue has our consumer: not cancelled, not being replaced, and with a prefetch above 0."""
        return bool(self._consumers.get(queue, ("", 0))[0])

    async def resize(self, queue: str, prefetch: int) -> None:
        """Change a consumer's prefetch, which replaces the consumer; 0 cancels it.

        It does nothing once the consumers are narrowed or cancelled.

        :raises AMQPClosedError: the channel was closed.
        """
        if self._is_draining():
            return
        tag, present = self._consumers[queue]
        if prefetch == present:
            return
        self._consumers[queue] = ("", prefetch)
        if present:
            await self.channel.basic_cancel(consumer_tag=tag)
            self.origins.pop(tag.encode(), None)
        if prefetch and not self._is_draining():
            # Back to back: a prefetch applies to the consumers that are started after it.
            asked = self.channel.basic_qos(prefetch_count=prefetch), self._consume(queue, queue, prefetch)
            consumer, self._consumers[queue] = self._consumers[queue], ("", prefetch)
            await gatherResults(asked, consumeErrors=True).addErrback(_first_error)
            if not self._is_draining():
                self._consumers[queue] = consumer

    def _is_draining(self) -> bool:
        return self._cancelled or self._narrowed

    async def cancel(self) -> None:
        """Cancel all consumers; unsettled deliveries can still be settled.

        :raises AMQPClosedError: the channel was closed.
        """
        self._cancelled = True
        self._consumers.clear()
        await self._cancel(list(self.origins))

    async def _cancel(self, tags: Sequence[bytes]) -> None:
        for tag in tags:
            await self.channel.basic_cancel(consumer_tag=tag.decode())
            self.origins.pop(tag, None)

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

    def flush(self) -> None:
        """Write the pending acknowledgements, with "multiple" for the tags below the first unsettled one."""
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
            self._is_draining() and not self.private and not self.consumes_from(queue) and not self.listener.can_publish
        )

    def move(self, tag: int, message: Message, prepare: Callable[[], Deferred[Any]] | None = None) -> None:
        """Publish a message elsewhere, and acknowledge the delivery after its confirm.

        If that fails, the delivery is requeued after a pause.

        :param prepare: declares the destination first.
        """
        if self._unsettled.get(tag) == _PENDING:
            sending = self._publish(message, prepare or _no_declaration)
            self._move(tag, sending, partial(self._not_moved, tag, message.routing_key))

    def hold(self, tag: int, queue: str, message: Message) -> None:
        """Publish a copy to the private queue and acknowledge the delivery; if that fails, keep it unsettled.

        :param queue: the queue that it came from.
        """
        if self._unsettled.get(tag) == _PENDING:
            self._move(tag, self._publish_privately(queue, message), partial(self._not_held, tag, queue))

    def move_here(self, tag: int, queue: str, message: Message, fallback: Message) -> None:
        """Publish a copy to the private queue, and acknowledge the delivery.

        :param queue: the queue that it came from.
        :param fallback: the copy for that queue, if the broker refuses us a private one.
        """
        if self._unsettled.get(tag) == _PENDING:
            holding = self.listener.holding_queue(queue)
            targets = [holding.name]

            def send_fallback(failure: Failure) -> Deferred[None]:
                failure.trap(BrokerError)
                if type(failure.value) in _TEMPORARY_ERRORS:
                    return fail(failure)
                holding.log_refusal(failure)
                targets.append(fallback.routing_key)
                return self.listener.publish(fallback)

            sending = self._publish_privately(queue, message).addErrback(send_fallback)
            self._move(tag, sending, lambda failure: self._not_moved(tag, targets[-1], failure))

    def _publish(self, message: Message, prepare: Callable[[], Deferred[Any]]) -> Deferred[None]:
        return prepare().addCallback(lambda _: self.listener.publish(message))

    def _publish_privately(self, queue: str, message: Message) -> Deferred[None]:
        holding = self.listener.holding_queue(queue)

        def send(_: None) -> Deferred[None]:
            message.routing_key = message.target = holding.name
            return self.listener.publish(message)

        return holding.ready().addCallback(send)

    def _move(self, tag: int, sending: Deferred[None], failed: Callable[[Failure], None]) -> None:
        self._unsettled[tag] = _MOVING
        self.listener.track_move(sending.addCallbacks(lambda _: self._moved(tag), failed))

    def declare_quarantine(self) -> Deferred[None]:
        """Declare the quarantine queue of the listener's topic.

        :return: Deferred[None]; fails with AMQPClosedError.
        """
        return Deferred.fromCoroutine(self._declare_quarantine())

    async def _declare_quarantine(self) -> None:
        # On a channel of its own: a refused declaration closes the channel, and must not stop the consumers.
        channel = await self.channel.client.open_channel()
        await topology.declare_quarantine(channel, self.listener.topic)
        channel.close(AMQPClosedError("done", clean=True))

    def _moved(self, tag: int) -> Deferred[Any]:
        """Acknowledge the original, and wait until the broker has read that; see Note [Copies wait]."""
        if tag in self._unsettled:
            self._unsettled[tag] = _PENDING
            self.ack(tag)
            self.flush()
        self._logged.clear()  # A failure after a success is logged again.
        read: Deferred[Any] = self.channel.basic_qos(prefetch_count=self.prefetch)
        return read.addErrback(lambda failure: failure.trap(AMQPClosedError) and None)

    def _not_moved(self, tag: int, target: str, failure: Failure) -> None:
        """Requeue a message that could not be moved, after a pause.

        The broker marks it as redelivered; its delivery count is not raised.
        """
        logged, self._logged[target] = self._logged.get(target), str(failure.value)
        if logged != self._logged[target]:
            _log.warn("cannot move messages to {target}; requeueing them: {error}", target=target, error=failure.value)
        if tag in self._unsettled:
            self._unsettled[tag] = _PENDING
            # Not at once: the message may be redelivered to us, and fail for the same reason, in a busy loop.
            self._delayed_requeues.append(self.clock.callLater(_REQUEUE_DELAY, self.reject, tag, requeue=True))
            self._delayed_requeues = [call for call in self._delayed_requeues if call.active()]

    def _not_held(self, tag: int, queue: str, failure: Failure) -> None:
        """Leave the delivery unsettled, since its request runs; acknowledge it if the request finished meanwhile."""
        self.listener.holding_queue(queue).log_refusal(failure)
        state = self._unsettled.get(tag)
        if state is not None:
            self._unsettled[tag] = _PENDING
        if state == _ACKED_WHILE_MOVING:
            self.ack(tag)

    # -- ChannelReceiver -----------------------------------------------------------------------

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Handle basic.deliver: pass the message to the receiver; see ChannelReceiver.

        An unreadable message is rejected and counted. A probe goes to the loopback.
        """
        tag = deliver.delivery_tag
        self._unsettled[tag] = _PENDING
        if self.on_count_changed is not None:
            self.on_count_changed()
        listener, origin = self.listener, self.origins.get(deliver.consumer_tag, _NO_ORIGIN)
        try:
            body, read = read_content(body, properties, BODY_LIMIT)
        except ValueError as error:
            listener.unreadable += 1
            _log.warn("dropped a message from {queue}: {error}", queue=origin.queue, error=error)
            self.reject(tag, requeue=False)
            return
        if (read.probe or origin.watched) and listener.loopback.consume_probe(origin.queue, body, read.probe):
            self.ack(tag)
            return
        delivery = Delivery(self, tag, origin, body, read, redelivered=deliver.redelivered)
        if self.requeue_all or (read.returns and not self.private and listener.nears_delivery_limit(read.returns)):
            delivery.requeue(delivery.deliveries)
        elif not ((self.private or read.deliveries) and listener.postpone(delivery)):
            delivery.dispatch()

    def consumer_cancelled(self, consumer_tag: str) -> None:
        """Handle basic.cancel: close the channel; the listener declares and consumes again. See ChannelReceiver."""
        queue = self.origins.get(consumer_tag.encode(), _NO_ORIGIN).queue
        queue = f"the holding queue for {queue}" if self.private else queue
        _log.warn(
            "the broker cancelled the consumer of {queue}: the queue was deleted, its cluster node is down, or a "
            "delivery exceeded the consumer_timeout",
            queue=queue,
        )
        self.channel.close(AMQPClosedError(f"the consumer of {queue} was cancelled", code=NOT_FOUND))

    def channel_closed(self, reason: AMQPClosedError) -> None:
        """Forget the unsettled deliveries, which the broker requeues; see ChannelReceiver."""
        self._acks.clear()
        # If the connection is lost, the broker may have restarted, and transient queues are lost with it.
        self.session.redelivers = self.private or self.listener.durable or not self.channel.client.closed
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
        for call in self._delayed_requeues:
            if call.active():
                call.cancel()
        self._delayed_requeues.clear()


def _first_error(failure: Failure) -> Any:
    failure.trap(FirstError)
    return failure.value.subFailure  # type: ignore[union-attr]


def _no_declaration() -> Deferred[None]:
    return succeed(None)
