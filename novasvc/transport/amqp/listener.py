"""The listener: a server's consumers on its topic, its own and its fanout queue."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IDelivery, IListener, Reachability, WriteProbe
from novasvc.reactor.abandon import completion
from novasvc.rpc.target import Target
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError, Channel
from novasvc.transport.amqp.connection import Connection
from novasvc.transport.amqp.consumer_channel import ConsumerChannel
from novasvc.transport.amqp.existing import declare_or_accept
from novasvc.transport.amqp.holding_queue import HoldingQueue
from novasvc.transport.amqp.interim import InterimConsumers
from novasvc.transport.amqp.loopback import Loopback
from novasvc.transport.amqp.moves import MoveTracker
from novasvc.transport.amqp.private_names import random_name
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.publisher import Message, Publisher
from novasvc.transport.amqp.reply_codes import NOT_FOUND
from novasvc.transport.amqp.subscriptions import Subscriptions
from novasvc.transport.amqp.topic_prefetch import TopicPrefetch

_log = Logger()

Receiver = Callable[[IDelivery], None]
_ANSWER_TIMEOUT = 2.0
"""Seconds to wait for basic.cancel-ok; the connection may be half open without our knowing yet."""
_LARGEST_PREFETCH = 65_535
_HOLD_AFTER = 1 / 3
"""Fraction of the consumer_timeout after which a delivery is to be held; the caller may be late by half of that."""

# Note [Delivery limit]
#
# From RabbitMQ 4.0 on a quorum queue drops a message that was returned more than 20 times, unless
# another limit is set. It counts every message that was unacknowledged when a process died, whether
# its request had begun or not. So that no message is lost that never began, one that was returned
# half as often is published anew: that restarts the broker's count, and keeps ours. A limit that
# the operator has set is respected.
_RETURNS_TOLERATED = 10


@implementer(IListener)
@attrs.define(eq=False)
class Listener:
    """Consumes what is sent to a topic, to one server of it, and to all its servers; see IListener.

    :param subscriptions: keeps it established on the consuming connection.
    :param exchange: the control exchange.
    :param receiver: called with each delivery.
    :param prefetch: unsettled deliveries for each queue; at most 65535 (a short, AMQP 0-9-1 1.8.3.1).
    :param publisher: publishes the copies of requeued, held and quarantined messages.
    :param single_queue: consume from the topic's queue only; see ITransport.consume.
    :param keys: further routing keys that the topic's queue is bound with; see ITransport.subscribe.
    :ivar unreadable: messages that were rejected because they could not be decoded.
    :ivar interim: consumes from interim queues, while queues are replaced.
    """

    subscriptions: Subscriptions
    target: Target
    exchange: str
    receiver: Receiver
    prefetch: int
    publisher: Publisher
    single_queue: bool = attrs.field(default=False, kw_only=True)
    keys: Sequence[str] = attrs.field(default=(), kw_only=True)
    unreadable: int = attrs.field(default=0, init=False)
    loopback: Loopback = attrs.field(init=False)
    _fanout_queue: str | None = attrs.field(init=False)
    _consuming: ConsumerChannel | None = attrs.field(default=None, init=False)
    _establishing: ConsumerChannel | None = attrs.field(default=None, init=False)
    _holding_queues: dict[str, HoldingQueue] = attrs.field(factory=dict, init=False)
    _cancelled: bool = attrs.field(default=False, init=False)
    _narrowed: bool = attrs.field(default=False, init=False)
    _unresponsive: bool = attrs.field(default=False, init=False)
    move_tracker: MoveTracker = attrs.field(init=False)
    _topic_prefetch: TopicPrefetch = attrs.field(init=False)
    interim: InterimConsumers = attrs.field(init=False)
    _claimed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.prefetch = min(self.prefetch, _LARGEST_PREFETCH)
        options = self.subscriptions.options
        self._fanout_queue = None if self.single_queue else topology.new_fanout_queue(self.target.topic, options)
        self.move_tracker = MoveTracker(self.clock)
        self._topic_prefetch = TopicPrefetch(self.clock, self._held_count, self._resize_topic)
        self.interim = InterimConsumers(self)
        self.loopback = Loopback(self, self._fanout_queue, self.subscriptions.options)

    def __str__(self) -> str:
        return f"the listener of {self.target}"

    @property
    def clock(self) -> IReactorTime:
        """Measures pauses."""
        return self.subscriptions.clock

    def publish(self, message: Message) -> Deferred[None]:
        """Publish a message; see :meth:`novasvc.transport.amqp.publisher.Publisher.publish`."""
        return self.publisher.publish(message)

    @property
    def can_publish(self) -> bool:
        """Whether the publishing connection is ready: connected and not blocked."""
        return self.publisher.connection.state == "ready"

    @property
    def is_full(self) -> bool:
        """Whether a queue may be out of prefetch: at least one queue's worth of deliveries is unsettled."""
        return self._consuming is not None and len(self._consuming) >= self.prefetch

    @property
    def live(self) -> bool:
        """Whether messages reach the receiver now; see IListener."""
        return self._consuming is not None and not self._cancelled

    @property
    def hold_after(self) -> float | None:
        """Seconds after which a delivery has to be settled or held; None without a limit. See IListener."""
        limit = self.subscriptions.consumer_timeout
        return limit * _HOLD_AFTER if limit else None

    @property
    def topic(self) -> str:
        """The topic whose quarantine queue is used."""
        return self.target.topic

    @property
    def durable(self) -> bool:
        """Whether the request queues survive a restart of the broker."""
        options = self.subscriptions.options
        return options.durable_queues or self.is_quorum(self.topic)

    def is_quorum(self, queue: str) -> bool:
        """Return whether a queue of requests is a quorum queue, which may count neither messages nor consumers."""
        options = self.subscriptions.options
        return options.accepted.get(queue, "quorum" if options.quorum_queue else "") == "quorum"

    def sent_to(self, queue: str) -> str:
        """Return how the messages of one of our queues were addressed; see IDelivery."""
        if queue == self.target.topic:
            return "topic"
        return "fanout" if queue == self._fanout_queue else "server"

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare the queues and consume from them, unless cancelled; see Subscription."""
        subscriptions = self.subscriptions
        durable = subscriptions.options.durable_private_queues

        def establish() -> Coroutine[Deferred[Any], Any, None]:
            return self._establish(protocol)

        try:
            await declare_or_accept(protocol, self.exchange, subscriptions.options, establish)
        except AMQPClosedError as reason:
            subscriptions.replacements.adapt(reason)
            if not self._adapt_fanout_queue(reason, durable=durable) or protocol.closed:
                raise
            await declare_or_accept(protocol, self.exchange, subscriptions.options, establish)
        subscriptions.replacements.add(self)

    async def _establish(self, protocol: AMQPProtocol) -> None:
        if self._cancelled or (self._narrowed and self.target.server is None):
            return
        options, narrowed = self.subscriptions.options, self._narrowed
        channel = await protocol.open_channel()
        consuming = self._establishing = ConsumerChannel(self, channel, self.prefetch, self._channel_closed)
        consuming.requeue_all = self._is_cancelled()  # it may have been cancelled while the channel was opened
        try:
            # "global" stays false, a limit for each consumer: quorum queues support no other.
            await channel.basic_qos(prefetch_count=self.prefetch)
            await topology.declare_exchange(channel, self.exchange, options)
            queues = self._queues(narrowed=narrowed)
            await self._declare_queues(channel, queues)
            if self._fanout_queue is not None:  # also if it is narrowed, for orders; see _narrow()
                queues.append(await self._declare_fanout_queue(channel, self._fanout_queue))
            channel.receiver = consuming
            # The shared topic queue last. If one of our own queues cannot be consumed, this attempt fails, and each
            # retry would otherwise take requests of the topic and requeue them as redelivered.
            for queue in reversed(queues):
                if not self.subscriptions.replacements.is_released(queue):
                    await consuming.consumers.consume(queue, low_priority=narrowed)
                if queue == self._fanout_queue and not self._claimed:
                    await self._claim_fanout_queue(channel, consuming, queue)
            if not consuming.requeue_all:
                self._consuming, self._establishing = consuming, None
                if self._narrowed and not narrowed:
                    await self._narrow(consuming)
                self.held_count_changed()
                return
            # It was cancelled meanwhile, when there were no consumers to cancel. Deliveries are requeued unchanged.
            await self.wait_for_moves()
        except BaseException:
            if self._consuming is consuming:
                self._consuming = None
            consuming.close("set-up failed")
            raise
        consuming.close("cancelled during set-up")

    async def _declare_queues(self, channel: Channel, queues: Sequence[str]) -> None:
        for queue in queues:
            if self.subscriptions.replacements.stage(queue) is not None:
                continue  # its declaration and its bindings are the operator's now
            await topology.declare_request_queue(channel, self.exchange, queue, self.subscriptions.options)
            if queue == self.topic:
                for key in self.keys:
                    await topology.bind(channel, topology.Binding(queue, self.exchange, key))

    async def _declare_fanout_queue(self, channel: Channel, name: str) -> str:
        """Declare and bind the fanout queue; return its name, which is another one if the queue is in use."""
        topic, options = self.topic, self.subscriptions.options
        messages, consumers = await topology.declare_fanout_queue(channel, topic, name, options)
        if not self._claimed and not await topology.claim(channel, name, consumers, messages, options):
            name = self._rename_fanout_queue()
            await topology.declare_fanout_queue(channel, topic, name, options)
        for binding in topology.cancellation_bindings(self.exchange, self.target, name):
            await topology.bind(channel, binding)
        return name

    async def _claim_fanout_queue(self, channel: Channel, consuming: ConsumerChannel, name: str) -> None:
        """Use another queue if another process has begun to consume from this one at the same time."""
        if await topology.is_shared(channel, name, self.subscriptions.options):
            await consuming.consumers.stop(name)
            name = await self._declare_fanout_queue(channel, self._rename_fanout_queue())
            await consuming.consumers.consume(name)
        self._claimed = True

    def give_back_name(self) -> None:
        """Allow another listener of this process to have the name of the fanout queue."""
        if self._fanout_queue is not None:
            self.subscriptions.options.private_names.give_back(self._fanout_queue)

    def _rename_fanout_queue(self, name: str | None = None) -> str:
        """Give the fanout queue another name, by default a random one; return it."""
        self._fanout_queue = name = name or random_name(f"{topology.fanout_exchange(self.topic)}_")
        self.loopback = Loopback(self, name, self.subscriptions.options)
        return name

    def _adapt_fanout_queue(self, reason: AMQPClosedError, *, durable: bool) -> bool:
        """Adapt to a fanout queue that a predecessor has left; return whether to declare it again."""
        if self._claimed or self._fanout_queue is None:
            return False
        prefix = f"{topology.fanout_exchange(self.topic)}_"
        name = self.subscriptions.name_instead(self._fanout_queue, prefix, reason, durable=durable)
        return name is not None and bool(self._rename_fanout_queue(name))

    def _queues(self, *, narrowed: bool) -> list[str]:
        own = [] if self.target.server is None else [topology.request_address(self.target)]
        return own if narrowed else [self.topic, *own]

    def request_queues(self) -> list[str]:
        """Return the queues of requests: those that other programs declare, too.

        A draining listener may have unsettled deliveries also of those that it does not consume any more.
        """
        return self._queues(narrowed=False)

    def consumed_queues(self) -> list[str]:
        """Return the queues of requests that are consumed, unless an operator replaces them."""
        return [] if self._cancelled else self._queues(narrowed=self._narrowed)

    @property
    def consuming(self) -> ConsumerChannel | None:
        """The channel of the consumers, if they are established."""
        return self._consuming

    @property
    def is_narrowed(self) -> bool:
        """Whether of the queues of requests only the server's own is consumed, at a lower priority."""
        return self._narrowed

    def routing_keys(self, queue: str) -> Sequence[str]:
        """Return the keys by which a queue of requests is bound to the control exchange."""
        return (queue, *self.keys) if queue == self.topic else (queue,)

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Publish a probe to itself, and redeclare lost bindings; see IListener."""
        return self.loopback.verify(write, timeout)

    @property
    def connections(self) -> tuple[Connection, Connection]:
        """The publishing and the consuming connection."""
        return self.publisher.connection, self.subscriptions.connection

    async def count_consumers(self, queue: str) -> int:
        """Return a queue's consumer count, as the consuming connection's broker node sees it; 0 without a queue."""
        protocol = self.subscriptions.connection.protocol
        if protocol is None:
            return 0
        try:
            _, consumers = await protocol.on_new_channel(lambda channel: topology.count(channel, queue))
        except AMQPClosedError:
            return 0
        return consumers

    def consumes_from(self, queue: str) -> bool:
        """Return whether the listener has a consumer on a queue now; a full listener may have cancelled it."""
        return self._consuming is not None and self._consuming.consumers.consumes_from(queue)

    def resubscribe(self, problem: str) -> None:
        """Close the channel; the queues are declared and consumed again on another.

        :param problem: why, for the log.
        """
        if self._consuming is not None:
            self._consuming.channel.close(AMQPClosedError(problem, code=NOT_FOUND))

    def nears_delivery_limit(self, returns: int) -> bool:
        """Return whether a message nears the delivery limit and has to be published anew; see Note [Delivery limit]."""
        return returns >= _RETURNS_TOLERATED and not self.subscriptions.options.quorum_delivery_limit

    def _channel_closed(self, consuming: ConsumerChannel, reason: AMQPClosedError) -> None:
        """Restore the consumers after a lost channel; after a lost connection the next one restores them."""
        if consuming is not self._consuming:
            return
        self._consuming = None
        self.subscriptions.adopt_consumer_timeout(reason)
        if not consuming.channel.client.closed and not self._cancelled:
            _log.warn("{listener} lost its channel; resubscribing: {reason}", listener=str(self), reason=reason)
            self.subscriptions.retry(self)

    def connection_lost(self) -> None:
        """Do nothing: channel_closed has handled it."""

    def holding_queue(self, queue: str) -> HoldingQueue:
        """Return the holding queue for the requests that came from a queue; see HoldingQueue."""
        return self._holding_queues.setdefault(queue, HoldingQueue(self, queue))

    def held_count_changed(self) -> None:
        """Resize the topic's prefetch soon; see Note [Topic prefetch and held requests]."""
        # A resize cancels the consumer, and an auto-delete queue is deleted with its last one.
        if self._holding_queues and not self.subscriptions.options.auto_delete:
            self._topic_prefetch.held_changed()

    def _resize_topic(self, held: int) -> Deferred[None] | None:
        if self._consuming is None:
            return None
        return Deferred.fromCoroutine(self._consuming.consumers.resize(self.topic, max(0, self.prefetch - held)))

    def _held_count(self) -> int:
        return sum(map(len, self._holding_queues.values()))

    def cancel_topic(self, prefetch: int) -> Deferred[None]:
        """Stop the deliveries of the topic and of fanouts; see IListener."""
        self._narrowed, self.prefetch = True, min(prefetch, _LARGEST_PREFETCH)
        self._topic_prefetch.stop()
        return Deferred.fromCoroutine(self._stop_interim(self.topic, self._narrow))

    def _narrow(self, consuming: ConsumerChannel) -> Coroutine[Deferred[Any], Any, None]:
        own = None if self.target.server is None else topology.request_address(self.target)
        # Orders to replace queues arrive by the fanout queue: until what came from a queue is settled, the operator's
        # command must not delete it.
        return consuming.consumers.narrow(own, self.prefetch, self._fanout_queue)

    def cancel(self) -> Deferred[None]:
        """Stop all deliveries; see IListener."""
        self._stop()
        return Deferred.fromCoroutine(self._stop_interim(None, lambda consuming: consuming.consumers.cancel()))

    async def _stop_interim(
        self, queue: str | None, change: Callable[[ConsumerChannel], Coroutine[Deferred[Any], Any, None]]
    ) -> None:
        """Make a change of the consumers, and stop those of interim queues: of one queue, or all."""
        await self._change(change)
        if not self._unresponsive:
            await self.wait_for_change(self.interim.stop(queue))

    def _is_cancelled(self) -> bool:
        return self._cancelled

    def _stop(self) -> None:
        self._cancelled = True
        if self._establishing is not None:
            self._establishing.requeue_all = True
        self._topic_prefetch.stop()

    async def _change(self, change: Callable[[ConsumerChannel], Coroutine[Deferred[Any], Any, None]]) -> None:
        if self._consuming is None or self._unresponsive:
            return  # if it is being established, establish() checks the flags
        # A lost channel delivers nothing more, so wait_for_change() counts its end as success.
        await self.wait_for_change(change(self._consuming))

    @property
    def is_unresponsive(self) -> bool:
        """Whether the broker did not answer basic.cancel in time."""
        return self._unresponsive

    async def wait_for_change(self, change: Coroutine[Deferred[Any], Any, None]) -> None:
        """Wait for a change of consumers or the end of the channel, for 2 s at most; then set is_unresponsive."""
        changing: Deferred[None] = Deferred.fromCoroutine(change)
        changing.addErrback(lambda failure: failure.trap(AMQPClosedError) and None)
        # The change goes on after the timeout: a broker that is only slow still gets all of its methods.
        waiting = completion(changing)
        await waiting.addTimeout(_ANSWER_TIMEOUT, self.clock, onTimeoutCancel=self._mark_unresponsive)

    def _mark_unresponsive(self, _: object, seconds: float) -> None:
        """Stop waiting for this broker's answers: a shutdown has a deadline."""
        self._unresponsive = True
        _log.warn(
            "no reply from the broker to {listener} within {seconds:g} s; shutting down without waiting for it",
            listener=str(self),
            seconds=seconds,
        )

    def close(self) -> Deferred[None]:
        """Delete the fanout queue and close the channel; unsettled deliveries are requeued. See IListener."""
        self._stop()
        return Deferred.fromCoroutine(self._close())

    async def wait_for_moves(self) -> None:
        """Wait for the moves under way: up to the operation timeout, or 2 s if the broker is silent or blocked."""
        unresponsive = self._unresponsive or self.publisher.connection.state == "blocked"
        await self.move_tracker.wait(_ANSWER_TIMEOUT if unresponsive else self.subscriptions.options.operation_timeout)

    async def _close(self) -> None:
        self.subscriptions.remove(self)
        self.subscriptions.replacements.remove(self)
        await self.wait_for_moves()
        await DeferredList([Deferred.fromCoroutine(holding.close()) for holding in self._holding_queues.values()])
        self.interim.close()
        self.give_back_name()
        consuming, self._consuming = self._consuming, None
        if consuming is None:
            return
        consuming.flush()
        consuming.forget_unsettled()
        consuming.channel.receiver = None  # deliveries from now on are requeued when the channel closes
        try:
            if self._fanout_queue is not None and not self._unresponsive:
                await topology.delete_queue(consuming.channel, self._fanout_queue, self.clock)
        except AMQPClosedError:
            return
        consuming.close("done")
