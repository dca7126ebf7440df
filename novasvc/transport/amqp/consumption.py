"""Requests in the hands of this process: what comes by one channel, and how each message of it is settled."""

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

from novasvc.errors import BrokerBlockedError, BrokerError, BrokerUnavailableError
from novasvc.interfaces import IDelivery, ISession
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import Channel, ChannelReceiver, ClosedError
from novasvc.transport.amqp.consumer import NOT_FOUND
from novasvc.transport.amqp.content import DEATHS, DELIVERIES, EXPIRES_IN, Properties, read_content
from novasvc.transport.amqp.frames import MULTIPLE, SINGLE, Deliver, ack_packer, pack_reject
from novasvc.transport.amqp.protocol import BODY_LIMIT
from novasvc.transport.amqp.publisher import Message

_log = Logger()

_REASON_CHARACTERS = 500
_PAUSE = 30.0
"""Seconds after which a message is given back that could not be moved."""
_PASSING = (BrokerUnavailableError, BrokerBlockedError)
"""Why the broker takes nothing at all now; what is a kind of them may be said of one queue."""
_IN_HAND, _MOVING, _TAKEN = range(3)
"""An unsettled message; one of which a copy is being sent; one of those that was acknowledged meanwhile."""


@implementer(IDelivery)
class Delivery:
    """A message in the hands of a server; see IDelivery."""

    __slots__ = (
        "_consumption",
        "_queue",
        "_tag",
        "body",
        "counted",
        "deaths",
        "deliveries",
        "expires_at",
        "sent_to",
        "session",
    )

    def __init__(
        self,
        consumption: "Consumption",
        tag: int,
        origin: "Origin",
        body: bytes,
        properties: Properties,
        *,
        redelivered: bool,
    ) -> None:
        self.body = body
        # The broker says only that it was not the first time. A quorum queue has a count, but of all that was in the
        # hands of who died, begun or not: see Note [Finding the poison message] in novasvc.rpc.redelivery. What comes
        # from our own queues comes again because a channel was lost, or because we sent it there.
        again = not consumption.private and (redelivered or properties.unclaimed)
        self.deliveries = properties.deliveries + again
        self.deaths = properties.deaths + (properties.unclaimed and not consumption.private)
        # Where we may have no queue of our own, each delivery was taken for a death, and is counted by that.
        self.counted = consumption.private or (not again and self.deaths >= self.deliveries)
        self.session = consumption.session
        self.sent_to = origin.sent_to
        self._consumption = consumption
        self._tag = tag
        self._queue = origin.queue
        expires_in = properties.expires_in
        self.expires_at = None if expires_in is None else consumption.clock.seconds() + expires_in

    @property
    def expires_in(self) -> float | None:
        """What is left now; see IDelivery."""
        if self.expires_at is None:
            return None
        return max(0.0, self.expires_at - self._consumption.clock.seconds())

    def hand_on(self) -> None:
        """Give it to the receiver, unless it has become void: then it comes again."""
        if self.session.ended:
            return
        try:
            self._consumption.listener.receiver(self)
        except Exception:  # noqa: BLE001 - it must not end the connection, which is everybody's
            _log.failure("a message receiver raised an exception, which it must not")

    def ack(self) -> None:
        """Take it; see IDelivery."""
        self._consumption.ack(self._tag)

    def reject(self) -> None:
        """Drop it; see IDelivery."""
        self._consumption.reject(self._tag, requeue=False)

    def hold(self) -> None:
        """Keep it for longer than the broker lets us; see IDelivery."""
        self._consumption.hold(self._tag, self._queue, self._copy_for_us(self.deliveries))

    def requeue(self, deliveries: int) -> None:
        """Give it back; see IDelivery."""
        if not deliveries and self._consumption.hands_back(self._queue):
            self._consumption.reject(self._tag, requeue=True)
            return
        # Sent anew, because the broker would mark it as redelivered, which it was not, or not count how often.
        self._consumption.move(self._tag, self._copy(deliveries, self.deaths))

    def requeue_here(self, deliveries: int) -> None:
        """Have it come again, by a queue of our own; see IDelivery."""
        # Where we may not have one, nobody knows who died, and what may have been a death is taken for one.
        otherwise = self._copy(deliveries, max(deliveries, self.deaths))
        self._consumption.bring_here(self._tag, self._queue, self._copy_for_us(deliveries), otherwise)

    def _copy(self, deliveries: int, deaths: int) -> Message:
        """Write it for the queue that it came from."""
        counts = {name: count for name, count in ((DELIVERIES, deliveries), (DEATHS, deaths)) if count}
        queue, ttl = self._queue, self.expires_in
        return Message("", queue, self.body, ttl, mandatory=True, target=queue, headers=counts or None)

    def _copy_for_us(self, deliveries: int) -> Message:
        """Write it for a queue of our own, whose name is still to be filled in."""
        headers = {DELIVERIES: deliveries, DEATHS: self.deaths}
        left = self.expires_in
        if left is not None:
            # The property would have the broker drop it, and is gone from a message that was dead-lettered.
            headers[EXPIRES_IN] = max(1, int(left * 1000))
        return Message("", "", self.body, None, mandatory=True, target="", headers=headers)

    def quarantine(self, reason: str) -> None:
        """Put it aside; see IDelivery."""
        listener = self._consumption.listener
        queue = topology.quarantine_queue(listener.topic)
        headers = {
            DELIVERIES: self.deliveries,
            DEATHS: self.deaths,
            "x-novasvc-queue": self._queue,
            "x-novasvc-reason": reason[:_REASON_CHARACTERS],
        }
        message = Message("", queue, self.body, None, mandatory=True, target=queue, headers=headers)
        self._consumption.move(self._tag, message, prepare=self._consumption.declare_quarantine)


@implementer(ISession)
@attrs.define(eq=False)
class Session:
    """Tells the deliveries of a channel whether they can still be settled; see ISession."""

    ended: bool = False
    kept: bool = True


class RunningQueue(Protocol):
    """Where this process keeps the requests that it runs."""

    name: str

    def ready(self) -> Deferred[None]:
        """Wait until it is consumed; fails with a BrokerError."""

    def refused(self, failure: Failure) -> None:
        """Hear that a request could not be kept there."""


class Probes(Protocol):
    """What takes the messages that a listener sends to itself; see :mod:`novasvc.transport.amqp.loopback`."""

    def watches(self, queue: str) -> bool:
        """Return whether it has to see every message of a queue, not only those with a probe's header."""

    def take(self, queue: str, body: bytes, probe: str | None) -> bool:
        """Take a delivery if it is one of them; return whether it was."""


class Origin(NamedTuple):
    """Where the messages of one consumer come from.

    :param queue: the name; of what comes from a queue of our own, the one that it came from first.
    :param sent_to: see IDelivery.
    :param watched: see :meth:`Probes.watches`.
    """

    queue: str
    sent_to: str
    watched: bool


_NO_ORIGIN = Origin("", "server", watched=False)
"""Of a consumer that is not ours; a broker does not deliver to one."""


class Owner(Protocol):
    """Who consumes, by one channel after another."""

    unreadable: int
    receiver: Callable[[IDelivery], None]

    @property
    def loopback(self) -> Probes:
        """Takes probes before anybody else sees them."""

    @property
    def clock(self) -> IReactorTime:
        """What measures pauses."""

    @property
    def topic(self) -> str:
        """Whose quarantine is used."""

    @property
    def durable(self) -> bool:
        """Whether its queues outlive the broker."""

    @property
    def publishes(self) -> bool:
        """Whether the broker can be reached, and takes messages."""

    def publish(self, message: Message) -> Deferred[None]:
        """Send what is given back, held or put aside."""

    def running(self, queue: str) -> RunningQueue:
        """Return the place for running requests that came from a queue."""

    def keep(self, moving: Deferred[Any]) -> None:
        """Note that a message is being moved, until it is."""

    def puts_off(self, copy: Delivery) -> bool:
        """Keep a copy until the moves under way are done; return whether there are any. See Note [Copies wait]."""

    def sent_to(self, queue: str) -> str:
        """Return what the messages in a queue were sent to; see IDelivery."""

    def is_worn(self, returns: int) -> bool:
        """Tell whether a message has to be sent anew, lest the broker drop it."""


@attrs.define(eq=False)
class Consumption(ChannelReceiver):
    """What comes by one channel of a listener; it ends with the channel, the listener does not.

    :param prefetch: what the channel was told.
    :param ended: called with it when its channel has ended by itself, and why.
    :param private: its queues are this process's own.
    :param resized: called when the number of messages in hand has changed.
    :ivar clock: the listener's.
    :ivar queues: where messages come from, by consumer tag.
    :ivar unwanted: what comes was never to come, and goes back: it was cancelled while it was established.
    """

    listener: Owner
    channel: Channel
    prefetch: int
    ended: Callable[["Consumption", ClosedError], None]
    clock: IReactorTime = attrs.field(init=False)
    queues: dict[bytes, Origin] = attrs.field(factory=dict, init=False)
    unwanted: bool = attrs.field(default=False, init=False)
    private: bool = attrs.field(default=False, kw_only=True)
    resized: Callable[[], None] | None = attrs.field(default=None, kw_only=True)
    session: Session = attrs.field(factory=Session, init=False)
    _unsettled: dict[int, int] = attrs.field(factory=dict, init=False)
    _pack_ack: Callable[[int, int], bytes] = attrs.field(init=False)
    _acks: list[int] = attrs.field(factory=list, init=False)
    _later: list[IDelayedCall] = attrs.field(factory=list, init=False)
    _consumers: dict[str, tuple[str, int]] = attrs.field(factory=dict, init=False)  # tag and prefetch, by queue
    _cancelled: bool = attrs.field(default=False, init=False)
    _narrowed: bool = attrs.field(default=False, init=False)
    _told: dict[str, str] = attrs.field(factory=dict, init=False)  # why nothing could be moved there, by target
    _tags: "count[int]" = attrs.field(factory=partial(count, 1), init=False)

    def __attrs_post_init__(self) -> None:
        self.clock = self.listener.clock
        self._pack_ack = ack_packer(self.channel.id)

    # Note [Copies wait]
    #
    # A message is moved by sending a copy and acknowledging it, and the copy may be back before
    # the acknowledgement has left. If running it took this process down then, both would be
    # delivered again, and twice as many at each death. So a copy that comes while something is
    # being moved waits until the broker has read the acknowledgement: it answers the questions
    # of a channel in order. The copy may come by another channel, so all of a listener's wait.

    def __len__(self) -> int:
        return len(self._unsettled)

    # -- consumers -----------------------------------------------------------------------------

    async def consume(self, queue: str, origin: str | None = None, *, last: bool = False) -> None:
        """Consume from a queue.

        :param origin: where its messages came from first; the queue itself by default.
        :param last: other consumers come first, as long as they take messages.
        :raises ClosedError: the channel was closed.
        """
        await self._consume(queue, origin or queue, self.prefetch, last=last)

    def _consume(self, queue: str, origin: str, prefetch: int, *, last: bool = False) -> Deferred[Any]:
        tag = str(next(self._tags))
        listener = self.listener
        self.queues[tag.encode()] = Origin(origin, listener.sent_to(origin), listener.loopback.watches(origin))
        self._consumers[queue] = (tag, prefetch)
        arguments = {"x-priority": -1} if last else {}
        return self.channel.basic_consume(queue=queue, consumer_tag=tag, arguments=arguments)  # type: ignore[no-any-return]

    async def narrow(self, queue: str | None, prefetch: int) -> None:
        """Consume from one queue alone, after its other consumers.

        :param queue: None is none.
        :raises ClosedError: the channel was closed.
        """
        self._narrowed = True
        before = list(self.queues)
        self._consumers.clear()
        self.prefetch = prefetch
        if queue is not None:
            # Before the old consumers are cancelled: the queue is to have one all the time. And both are asked before
            # anybody else asks: the prefetch is that of the next consumer.
            asked = self.channel.basic_qos(prefetch_count=prefetch), self._consume(queue, queue, prefetch, last=True)
            await gatherResults(asked, consumeErrors=True).addErrback(_first_error)
        await self._cancel(before)

    def takes(self, queue: str) -> bool:
        """Return whether a queue has a consumer of ours: not after a cancel, nor while it is resized, or is at 0."""
        return bool(self._consumers.get(queue, ("", 0))[0])

    async def resize(self, queue: str, prefetch: int) -> None:
        """Consume with another prefetch, which takes another consumer; or not at all, if it is 0.

        It does nothing once the consumers are narrowed or cancelled.

        :raises ClosedError: the channel was closed.
        """
        if self._is_leaving():
            return
        tag, present = self._consumers[queue]
        if prefetch == present:
            return
        self._consumers[queue] = ("", prefetch)
        if present:
            await self.channel.basic_cancel(consumer_tag=tag)
            self.queues.pop(tag.encode(), None)
        if prefetch and not self._is_leaving():
            # Both are asked before anybody else asks: the prefetch is that of the next consumer.
            asked = self.channel.basic_qos(prefetch_count=prefetch), self._consume(queue, queue, prefetch)
            consumer, self._consumers[queue] = self._consumers[queue], ("", prefetch)
            await gatherResults(asked, consumeErrors=True).addErrback(_first_error)
            if not self._is_leaving():
                self._consumers[queue] = consumer

    def _is_leaving(self) -> bool:
        return self._cancelled or self._narrowed

    async def cancel(self) -> None:
        """Consume no more.

        :raises ClosedError: the channel was closed.
        """
        self._cancelled = True
        self._consumers.clear()
        await self._cancel(list(self.queues))

    async def _cancel(self, tags: Sequence[bytes]) -> None:
        for tag in tags:
            await self.channel.basic_cancel(consumer_tag=tag.decode())
            self.queues.pop(tag, None)

    # -- settling ------------------------------------------------------------------------------

    def ack(self, tag: int) -> None:
        """Acknowledge at the end of the turn, together with what else is acknowledged in it."""
        state = self._unsettled.get(tag)
        if state == _MOVING:
            self._unsettled[tag] = _TAKEN
        if state != _IN_HAND:
            return
        del self._unsettled[tag]
        if self.resized is not None:
            self.resized()
        self._acks.append(tag)
        if len(self._acks) > 1:
            return
        client = self.channel.client
        if client.reading:  # as a rule: the message came by this read
            client.turn_end.append(self.flush)
        else:
            client.at_turn_end(self.flush)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Give a message back to the broker, or away."""
        if self._unsettled.get(tag) == _IN_HAND:
            del self._unsettled[tag]
            if self.resized is not None:
                self.resized()
            self.channel.client.write(pack_reject(self.channel.id, tag, requeue))

    def flush(self) -> None:
        """Write the acknowledgements: one for all that come before what is still unsettled."""
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

    def hands_back(self, queue: str) -> bool:
        """Tell whether the broker gets back by a reject what was not begun, as no copy of it can be sent now.

        That marks it as redelivered. It is better than to keep a process that ends waiting until the same happens.
        Not while we consume from the queue: it would come again at once.
        """
        return self._is_leaving() and not self.private and not self.takes(queue) and not self.listener.publishes

    def move(self, tag: int, message: Message, prepare: Callable[[], Deferred[Any]] | None = None) -> None:
        """Send a message to another place, and acknowledge it here when it is there.

        :param prepare: makes the place.
        """
        if self._unsettled.get(tag) == _IN_HAND:
            sending = self._send(message, prepare or _nothing)
            self._move(tag, sending, partial(self._not_moved, tag, message.routing_key))

    def hold(self, tag: int, queue: str, message: Message) -> None:
        """Send a message to our own queue, and acknowledge it here; if that fails, leave it in hand.

        :param queue: where it came from.
        """
        if self._unsettled.get(tag) == _IN_HAND:
            self._move(tag, self._send_to_us(queue, message), partial(self._not_held, tag, queue))

    def bring_here(self, tag: int, queue: str, message: Message, otherwise: Message) -> None:
        """Send a message to our own queue, and acknowledge it here.

        :param queue: where it came from.
        :param otherwise: what is sent there, if we may not have a queue of our own.
        """
        if self._unsettled.get(tag) == _IN_HAND:
            running = self.listener.running(queue)
            targets = [running.name]

            def send_otherwise(failure: Failure) -> Deferred[None]:
                failure.trap(BrokerError)
                if type(failure.value) in _PASSING:
                    return fail(failure)
                running.refused(failure)
                targets.append(otherwise.routing_key)
                return self.listener.publish(otherwise)

            sending = self._send_to_us(queue, message).addErrback(send_otherwise)
            self._move(tag, sending, lambda failure: self._not_moved(tag, targets[-1], failure))

    def _send(self, message: Message, prepare: Callable[[], Deferred[Any]]) -> Deferred[None]:
        return prepare().addCallback(lambda _: self.listener.publish(message))

    def _send_to_us(self, queue: str, message: Message) -> Deferred[None]:
        running = self.listener.running(queue)

        def send(_: None) -> Deferred[None]:
            message.routing_key = message.target = running.name
            return self.listener.publish(message)

        return running.ready().addCallback(send)

    def _move(self, tag: int, sending: Deferred[None], failed: Callable[[Failure], None]) -> None:
        self._unsettled[tag] = _MOVING
        self.listener.keep(sending.addCallbacks(lambda _: self._moved(tag), failed))

    def declare_quarantine(self) -> Deferred[None]:
        """Make the place for messages that are not to be run again."""
        return Deferred.fromCoroutine(self._declare_quarantine())

    async def _declare_quarantine(self) -> None:
        # On a channel of its own: a broker that refuses it closes that one, and not the one that consumes.
        channel = await self.channel.client.open_channel()
        await topology.declare_quarantine(channel, self.listener.topic)
        channel.abandon(ClosedError("done", clean=True))

    def _moved(self, tag: int) -> Deferred[Any]:
        """Acknowledge, and wait until the broker has read it; see Note [Copies wait]."""
        if tag in self._unsettled:
            self._unsettled[tag] = _IN_HAND
            self.ack(tag)
            self.flush()
        self._told.clear()  # What fails after this is news.
        read: Deferred[Any] = self.channel.basic_qos(prefetch_count=self.prefetch)
        return read.addErrback(lambda failure: failure.trap(ClosedError) and None)

    def _not_moved(self, tag: int, target: str, failure: Failure) -> None:
        """Leave it to the broker, which says "redelivered" of it and does not count."""
        told, self._told[target] = self._told.get(target), str(failure.value)
        if told != self._told[target]:
            _log.warn(
                "messages cannot be moved to {target} and are requeued: {error}", target=target, error=failure.value
            )
        if tag in self._unsettled:
            self._unsettled[tag] = _IN_HAND
            # Not at once: it may well come back to us, and the reason be the same.
            self._later.append(self.clock.callLater(_PAUSE, self.reject, tag, requeue=True))
            self._later = [call for call in self._later if call.active()]

    def _not_held(self, tag: int, queue: str, failure: Failure) -> None:
        """Leave it in hand: it runs."""
        self.listener.running(queue).refused(failure)
        state = self._unsettled.get(tag)
        if state is not None:
            self._unsettled[tag] = _IN_HAND
        if state == _TAKEN:
            self.ack(tag)

    # -- ChannelReceiver -----------------------------------------------------------------------

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Hand a message on; see ChannelReceiver."""
        tag = deliver.delivery_tag
        self._unsettled[tag] = _IN_HAND
        if self.resized is not None:
            self.resized()
        listener, origin = self.listener, self.queues.get(deliver.consumer_tag, _NO_ORIGIN)
        try:
            body, read = read_content(body, properties, BODY_LIMIT)
        except ValueError as error:
            listener.unreadable += 1
            _log.warn("a message from {queue} was dropped: {error}", queue=origin.queue, error=error)
            self.reject(tag, requeue=False)
            return
        if (read.probe or origin.watched) and listener.loopback.take(origin.queue, body, read.probe):
            self.ack(tag)
            return
        delivery = Delivery(self, tag, origin, body, read, redelivered=deliver.redelivered)
        if self.unwanted or (read.returns and not self.private and listener.is_worn(read.returns)):
            delivery.requeue(delivery.deliveries)
        elif not ((self.private or read.deliveries) and listener.puts_off(delivery)):
            delivery.hand_on()

    def consumer_cancelled(self, consumer_tag: str) -> None:
        """Declare and consume again: the queue is gone; see ChannelReceiver."""
        queue = self.queues.get(consumer_tag.encode(), _NO_ORIGIN).queue
        queue = f"of running requests from {queue}" if self.private else queue
        _log.warn(
            "the queue {queue} was deleted, its host in the cluster is gone, or a message was not acknowledged in time",
            queue=queue,
        )
        self.channel.abandon(ClosedError(f"the queue {queue} is gone", code=NOT_FOUND))

    def channel_closed(self, reason: ClosedError) -> None:
        """Forget what came by it; see ChannelReceiver."""
        self._acks.clear()
        # A broker that is gone takes along what is not durable.
        self.session.kept = self.private or self.listener.durable or not self.channel.client.closed
        self.forget_unsettled()
        self.ended(self, reason)

    def end(self, problem: str) -> None:
        """Give up the channel, and leave to the broker what was not settled."""
        self.forget_unsettled()
        self.channel.receiver = None
        self.channel.abandon(ClosedError(problem, clean=True))

    def forget_unsettled(self) -> None:
        """Leave to the broker what was not settled."""
        self.session.ended = True
        self._unsettled.clear()
        for call in self._later:
            if call.active():
                call.cancel()
        self._later.clear()


def _first_error(failure: Failure) -> Any:
    failure.trap(FirstError)
    return failure.value.subFailure  # type: ignore[union-attr]


def _nothing() -> Deferred[None]:
    return succeed(None)
