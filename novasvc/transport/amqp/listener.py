"""Requests on their way in: what a server consumes, and how each message of it is settled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.interfaces import IDelivery, IListener
from novasvc.target import Target
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import Channel, ChannelReceiver, ClosedError
from novasvc.transport.amqp.consumer import NOT_FOUND, Consumers
from novasvc.transport.amqp.content import DELIVERIES, Properties, readable
from novasvc.transport.amqp.frames import Deliver, pack_ack, pack_reject
from novasvc.transport.amqp.protocol import BODY_LIMIT, AMQPProtocol
from novasvc.transport.amqp.publisher import Message

_log = Logger()

Receiver = Callable[[IDelivery], None]
Publish = Callable[[Message], Deferred[None]]
_REASON_CHARACTERS = 500
_PAUSE = 30.0
"""Seconds after which a message is given back that could not be moved."""
_LARGEST_PREFETCH = 65_535

# Note [Delivery limit]
#
# From RabbitMQ 4.0 on a quorum queue drops a message that came back more than 20 times, if nobody has set another
# limit. It counts whatever was in the hands of a process that died, begun or not. So that nothing is lost that never
# began, a message that came back half as often is sent anew, which begins the broker's count again, and not ours. A
# limit that is set, is kept.
_RETURNS_BORNE = 10


@implementer(IDelivery)
class Delivery:
    """A message in the hands of a server; see IDelivery."""

    __slots__ = ("_consumption", "_queue", "_since", "_tag", "body", "counted", "deliveries", "expires_in")

    def __init__(
        self,
        consumption: "_Consumption",
        tag: int,
        queue: str,
        body: bytes,
        properties: Properties,
        *,
        redelivered: bool,
    ) -> None:
        self.body = body
        self.expires_in = properties.expires_in
        # The broker says only that it was not the first time. A quorum queue has a count, but of all that was in the
        # hands of who died, begun or not: see Note [Who is to blame] in novasvc.rpc.suspects.
        self.deliveries = properties.deliveries + redelivered
        self.counted = not redelivered
        self._consumption = consumption
        self._tag = tag
        self._queue = queue
        self._since = consumption.listener.clock.seconds()

    def ack(self) -> None:
        """Take it; see IDelivery."""
        self._consumption.ack(self._tag)

    def reject(self) -> None:
        """Drop it; see IDelivery."""
        self._consumption.reject(self._tag, requeue=False)

    def requeue(self, deliveries: int) -> None:
        """Give it back; see IDelivery."""
        # Sent anew, because the broker would mark it as redelivered, which it was not, or not count how often.
        headers = {DELIVERIES: deliveries} if deliveries else None
        held = self._consumption.listener.clock.seconds() - self._since
        ttl = None if self.expires_in is None else max(0.0, self.expires_in - held)
        message = Message("", self._queue, self.body, ttl, mandatory=True, target=self._queue, headers=headers)
        self._consumption.move(self._tag, message)

    def quarantine(self, reason: str) -> None:
        """Put it aside; see IDelivery."""
        listener = self._consumption.listener
        queue = topology.quarantine_queue(listener.target.topic)
        headers = {
            DELIVERIES: self.deliveries,
            "x-novasvc-queue": self._queue,
            "x-novasvc-reason": reason[:_REASON_CHARACTERS],
        }
        message = Message("", queue, self.body, None, mandatory=True, target=queue, headers=headers)
        self._consumption.move(self._tag, message, prepare=self._consumption.declare_quarantine)


@attrs.define(eq=False)
class _Consumption(ChannelReceiver):
    """What comes by one channel of a listener; it ends with the channel, the listener does not.

    :param queues: names by consumer tag.
    """

    listener: "Listener"
    channel: Channel
    queues: dict[bytes, str] = attrs.field(factory=dict)
    _unsettled: dict[int, bool] = attrs.field(factory=dict, init=False)  # whether it is being moved
    _acks: list[int] = attrs.field(factory=list, init=False)
    _moves: int = attrs.field(default=0, init=False)
    _held: list[Delivery] = attrs.field(factory=list, init=False)
    _later: list[IDelayedCall] = attrs.field(factory=list, init=False)

    # Note [Copies wait]
    #
    # A message is moved by sending a copy and acknowledging it, and the copy may be back before
    # the acknowledgement has left. If running it took this process down then, both would be
    # delivered again, and twice as many at each death. So a copy that comes while something is
    # being moved waits until the broker has read the acknowledgement: it answers the questions
    # of a channel in order.

    def __len__(self) -> int:
        return len(self._unsettled)

    # -- settling ------------------------------------------------------------------------------

    def ack(self, tag: int) -> None:
        """Acknowledge at the end of the turn, together with what else is acknowledged in it."""
        if self._unsettled.get(tag) is False:
            self._acknowledge(tag)

    def _acknowledge(self, tag: int) -> None:
        del self._unsettled[tag]
        self._acks.append(tag)
        if len(self._acks) == 1:
            self.channel.client.at_turn_end(self.flush)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Give a message back to the broker, or away."""
        if self._unsettled.get(tag) is False:
            del self._unsettled[tag]
            self.channel.client.write(pack_reject(self.channel.id, tag, requeue))

    def flush(self) -> None:
        """Write the acknowledgements: one for all that come before what is still unsettled."""
        acks, self._acks = self._acks, []
        if not acks or self.channel.closed:
            return
        number, write = self.channel.id, self.channel.client.write
        first_unsettled = next(iter(self._unsettled), None)
        if first_unsettled is None:
            write(pack_ack(number, max(acks), True))
            return
        before = [tag for tag in acks if tag < first_unsettled]
        if before:
            write(pack_ack(number, max(before), True))
        write(b"".join([pack_ack(number, tag, False) for tag in acks if tag > first_unsettled]))

    def move(self, tag: int, message: Message, prepare: Callable[[], Deferred[Any]] | None = None) -> None:
        """Send a message to another place, and acknowledge it here when it is there.

        :param prepare: makes the place.
        """
        if self._unsettled.get(tag) is not False:
            return
        self._unsettled[tag] = True
        moving = succeed(None) if prepare is None else prepare()
        moving.addCallback(lambda _: self.listener.publish(message))
        moving.addCallbacks(lambda _: self._moved(tag), partial(self._not_moved, tag, message.target))
        self._moves += 1
        moving.addBoth(self._release)
        self.listener.keep(moving)

    def declare_quarantine(self) -> Deferred[None]:
        """Make the place for messages that are not to be run again."""
        return Deferred.fromCoroutine(self._declare_quarantine())

    async def _declare_quarantine(self) -> None:
        # On a channel of its own: a broker that refuses it closes that one, and not the one that consumes.
        channel = await self.channel.client.open_channel()
        await topology.declare_quarantine(channel, self.listener.target.topic)
        channel.abandon(ClosedError("done", clean=True))

    def _moved(self, tag: int) -> Deferred[Any]:
        """Acknowledge, and wait until the broker has read it; see Note [Copies wait]."""
        if tag in self._unsettled:
            self._acknowledge(tag)
            self.flush()
        read: Deferred[Any] = self.channel.basic_qos(prefetch_count=self.listener.prefetch)
        return read.addErrback(lambda failure: failure.trap(ClosedError) and None)

    def _release(self, result: Any) -> Any:
        """Hand on what waited for the last of the moves."""
        self._moves -= 1
        if not self._moves:
            held, self._held = self._held, []
            for delivery in held:
                self._hand_on(delivery)
        return result

    def _not_moved(self, tag: int, target: str, failure: Failure) -> None:
        """Leave it to the broker, which says "redelivered" of it and does not count."""
        _log.warn("a message could not be moved to {target}, it goes back: {error}", target=target, error=failure.value)
        if tag in self._unsettled:
            self._unsettled[tag] = False
            # Not at once: it may well come back to us, and the reason be the same.
            self._later.append(self.listener.clock.callLater(_PAUSE, self.reject, tag, requeue=True))
            self._later = [call for call in self._later if call.active()]

    # -- ChannelReceiver -----------------------------------------------------------------------

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Hand a message on; see ChannelReceiver."""
        tag = deliver.delivery_tag
        self._unsettled[tag] = False
        queue = self.queues.get(deliver.consumer_tag, "")
        try:
            body, read = readable(body, properties, BODY_LIMIT)
        except ValueError as error:
            self.listener.unreadable += 1
            _log.warn("a message from {queue} was dropped: {error}", queue=queue, error=error)
            self.reject(tag, requeue=False)
            return
        delivery = Delivery(self, tag, queue, body, read, redelivered=deliver.redelivered)
        if self.listener.is_leaving(self) or self.listener.is_worn(read.returns):
            delivery.requeue(delivery.deliveries)
            return
        if self._moves and read.deliveries:
            self._held.append(delivery)
        else:
            self._hand_on(delivery)

    def _hand_on(self, delivery: Delivery) -> None:
        try:
            self.listener.receiver(delivery)
        except Exception:  # noqa: BLE001 - it must not end the connection, which is everybody's
            _log.failure("a receiver of messages raised, which it must not")

    def consumer_cancelled(self, consumer_tag: str) -> None:
        """Declare and consume again: the queue is gone; see ChannelReceiver."""
        queue = self.queues.get(consumer_tag.encode())
        _log.warn(
            "the queue {queue} was deleted, its node is gone, or a message was not acknowledged in time", queue=queue
        )
        self.channel.abandon(ClosedError(f"the queue {queue} is gone", code=NOT_FOUND))

    def channel_closed(self, reason: ClosedError) -> None:
        """Forget what came by it; see ChannelReceiver."""
        self._acks.clear()
        self._held.clear()
        self.forget_unsettled()
        self.listener.consumption_ended(self, reason)

    def end(self, problem: str) -> None:
        """Give up the channel, and leave to the broker what was not settled."""
        self.forget_unsettled()
        self.channel.receiver = None
        self.channel.abandon(ClosedError(problem, clean=True))

    def forget_unsettled(self) -> None:
        """Leave to the broker what was not settled."""
        self._unsettled.clear()
        for call in self._later:
            if call.active():
                call.cancel()
        self._later.clear()


@implementer(IListener)
@attrs.define(eq=False)
class Listener:
    """Consumes what is sent to a topic, to a server of it, and to all its servers; see IListener.

    :param exchange: the control exchange.
    :param publish: sends what is given back or put aside.
    :param alone: it is the topic's own queue alone; see ITransport.consume.
    """

    _consumers: Consumers
    target: Target
    exchange: str
    receiver: Receiver
    prefetch: int
    publish: Publish
    alone: bool = attrs.field(default=False, kw_only=True)
    unreadable: int = attrs.field(default=0, init=False)
    _fanout_queue: str | None = attrs.field(init=False)
    _consumption: _Consumption | None = attrs.field(default=None, init=False)
    _cancelled: bool = attrs.field(default=False, init=False)
    _moving: list[Deferred[Any]] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.prefetch = min(self.prefetch, _LARGEST_PREFETCH)
        self._fanout_queue = None if self.alone else topology.new_fanout_queue(self.target.topic)

    def __str__(self) -> str:
        return f"the listener of {self.target}"

    @property
    def clock(self) -> IReactorTime:
        """What measures pauses."""
        return self._consumers.clock

    @property
    def live(self) -> bool:
        """Whether messages reach the receiver now; see IListener."""
        return self._consumption is not None and not self._cancelled

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare the queues and consume from them, unless it was cancelled; see _Subscription."""
        if self._cancelled:
            return
        options, target = self._consumers.options, self.target
        channel = await protocol.open_channel()
        consumption = _Consumption(self, channel)
        try:
            # For each consumer by itself: quorum queues know no other way.
            await channel.basic_qos(prefetch_count=self.prefetch)
            await topology.declare_exchange(channel, self.exchange, options)
            queues = [target.topic]
            if target.server is not None:
                queues.append(topology.request_address(target))
            for queue in queues:
                await topology.declare_request_queue(channel, self.exchange, queue, options)
            if self._fanout_queue is not None:
                await topology.declare_fanout_queue(channel, target.topic, self._fanout_queue, options)
                queues.append(self._fanout_queue)
            channel.receiver = consumption
            for number, queue in enumerate(queues, 1):
                consumption.queues[b"%d" % number] = queue
                await channel.basic_consume(queue=queue, consumer_tag=str(number))
            if not self.is_leaving(consumption):
                self._consumption = consumption
                return
            # It was cancelled meanwhile, and found nothing to cancel. What came is given back as it was.
            await self._moved()
        except BaseException:
            consumption.end("it cannot be set up")
            raise
        consumption.end("it is not wanted any more")

    def is_leaving(self, consumption: _Consumption) -> bool:
        """Tell whether what comes was never to come: it was cancelled while it was established."""
        return self._cancelled and consumption is not self._consumption

    def is_worn(self, returns: int) -> bool:
        """Tell whether a message has to be sent anew, lest the broker drop it; see Note [Delivery limit]."""
        return returns >= _RETURNS_BORNE and not self._consumers.options.quorum_delivery_limit

    def consumption_ended(self, consumption: _Consumption, reason: ClosedError) -> None:
        """Begin again, unless the connection has ended: then its successor restores it."""
        if consumption is not self._consumption:
            return
        self._consumption = None
        if not consumption.channel.client.closed and not self._cancelled:
            _log.warn("{listener} lost its channel: {reason}", listener=str(self), reason=reason)
            self._consumers.repair(self)

    def connection_lost(self) -> None:
        """Do nothing: the channel has said so."""

    def keep(self, moving: Deferred[Any]) -> None:
        """Wait for it before the channel is closed."""
        self._moving.append(moving)
        moving.addBoth(lambda _: self._moving.remove(moving))

    def cancel(self) -> Deferred[None]:
        """Stop the deliveries; see IListener."""
        self._cancelled = True
        return Deferred.fromCoroutine(self._cancel())

    async def _cancel(self) -> None:
        consumption = self._consumption
        if consumption is None:
            return  # or it is being established, which sees that it is cancelled
        try:
            for tag in list(consumption.queues):
                await consumption.channel.basic_cancel(consumer_tag=tag.decode())
        except ClosedError:
            pass  # It delivers nothing more either way.

    def close(self) -> Deferred[None]:
        """Give up the queue of fanouts, and what is unsettled; see IListener."""
        self._cancelled = True
        return Deferred.fromCoroutine(self._close())

    async def _moved(self) -> None:
        """Wait until what is given back, or put aside, is there; but for a broker that does not answer, not long."""
        moves = DeferredList([_done(moving) for moving in self._moving], consumeErrors=True)
        await moves.addTimeout(self._consumers.options.operation_timeout, self.clock, onTimeoutCancel=lambda *_: None)

    async def _close(self) -> None:
        self._consumers.remove(self)
        await self._moved()
        consumption, self._consumption = self._consumption, None
        if consumption is None:
            return
        consumption.flush()
        consumption.forget_unsettled()
        consumption.channel.receiver = None  # what comes now goes back with the channel
        try:
            if self._fanout_queue is not None:
                await topology.delete_queue(consumption.channel, self._fanout_queue, self.clock)
        except ClosedError:
            return
        consumption.end("done")


def _done(moving: Deferred[Any]) -> Deferred[None]:
    """Wait for a Deferred without having its result."""
    done: Deferred[None] = Deferred()

    def end(result: Any) -> Any:
        done.callback(None)
        return result

    moving.addBoth(end)
    return done
