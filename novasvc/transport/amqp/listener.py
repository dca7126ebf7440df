"""The listener: a server's consumers on its topic, its own and its fanout queue."""

from collections.abc import Callable, Coroutine
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IDelivery, IListener, Reachability, WriteProbe
from novasvc.rpc.target import Target
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import ClosedError
from novasvc.transport.amqp.connection import Connection
from novasvc.transport.amqp.consumer import NOT_FOUND, Consumers
from novasvc.transport.amqp.consumption import Consumption, Delivery
from novasvc.transport.amqp.loopback import Loopback
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.publisher import Message, Publisher
from novasvc.transport.amqp.running import RunningRequests

_log = Logger()

Receiver = Callable[[IDelivery], None]
_ANSWER_PATIENCE = 2.0
"""Seconds to wait for basic.cancel-ok; the connection may be half open without our knowing yet."""
_LARGEST_PREFETCH = 65_535
_SOON = 0.2
"""Seconds between a change of the number of held requests and the resize, so that several changes share one."""
_HOLD_AFTER = 1 / 3
"""Fraction of the consumer_timeout after which a delivery is to be held; the caller may be late by half of that."""

# Note [Delivery limit]
#
# From RabbitMQ 4.0 on a quorum queue drops a message that was returned more than 20 times, unless
# another limit is set. It counts every message that was unacknowledged when a process died, whether
# its request had begun or not. So that no message is lost that never began, one that was returned
# half as often is published anew: that restarts the broker's count, and keeps ours. A limit that
# the operator has set is respected.
_RETURNS_BORNE = 10


@implementer(IListener)
@attrs.define(eq=False)
class Listener:
    """Consumes what is sent to a topic, to one server of it, and to all its servers; see IListener.

    :param consumers: keeps it established on the consuming connection.
    :param exchange: the control exchange.
    :param receiver: called with each delivery.
    :param prefetch: unsettled deliveries for each queue; at most 65535 (a short, AMQP 0-9-1 1.8.3.1).
    :param publisher: publishes the copies of requeued, held and quarantined messages.
    :param alone: consume from the topic's queue only; see ITransport.consume.
    :ivar unreadable: messages that were rejected because they could not be decoded.
    """

    consumers: Consumers
    target: Target
    exchange: str
    receiver: Receiver
    prefetch: int
    publisher: Publisher
    alone: bool = attrs.field(default=False, kw_only=True)
    unreadable: int = attrs.field(default=0, init=False)
    loopback: Loopback = attrs.field(init=False)
    _fanout_queue: str | None = attrs.field(init=False)
    _consumption: Consumption | None = attrs.field(default=None, init=False)
    _establishing: Consumption | None = attrs.field(default=None, init=False)
    _running: dict[str, RunningRequests] = attrs.field(factory=dict, init=False)
    _cancelled: bool = attrs.field(default=False, init=False)
    _narrowed: bool = attrs.field(default=False, init=False)
    _silent: bool = attrs.field(default=False, init=False)
    _moving: list[Deferred[Any]] = attrs.field(factory=list, init=False)
    _copies: list[Delivery] = attrs.field(factory=list, init=False)
    _soon: IDelayedCall | None = attrs.field(default=None, init=False)
    _resizing: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.prefetch = min(self.prefetch, _LARGEST_PREFETCH)
        self._fanout_queue = None if self.alone else topology.new_fanout_queue(self.target.topic)
        self.loopback = Loopback(self, self._fanout_queue, self.consumers.options)

    def __str__(self) -> str:
        return f"the listener of {self.target}"

    @property
    def clock(self) -> IReactorTime:
        """Measures pauses."""
        return self.consumers.clock

    def publish(self, message: Message) -> Deferred[None]:
        """Publish a message; see :meth:`novasvc.transport.amqp.publisher.Publisher.publish`."""
        return self.publisher.publish(message)

    @property
    def publishes(self) -> bool:
        """Whether the publishing connection is ready: connected and not blocked."""
        return self.publisher.connection.state == "ready"

    @property
    def is_full(self) -> bool:
        """Whether a queue may be out of prefetch: at least one queue's worth of deliveries is unsettled."""
        return self._consumption is not None and len(self._consumption) >= self.prefetch

    @property
    def live(self) -> bool:
        """Whether messages reach the receiver now; see IListener."""
        return self._consumption is not None and not self._cancelled

    @property
    def hold_after(self) -> float | None:
        """Seconds after which a delivery has to be settled or held; None without a limit. See IListener."""
        limit = self.consumers.consumer_timeout
        return limit * _HOLD_AFTER if limit else None

    @property
    def topic(self) -> str:
        """The topic whose quarantine queue is used."""
        return self.target.topic

    @property
    def durable(self) -> bool:
        """Whether the request queues survive a restart of the broker."""
        options = self.consumers.options
        return options.durable_queues or options.quorum_queue

    def sent_to(self, queue: str) -> str:
        """Return how the messages of one of our queues were addressed; see IDelivery."""
        if queue == self.target.topic:
            return "topic"
        return "fanout" if queue == self._fanout_queue else "server"

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare the queues and consume from them, unless cancelled; see _Subscription."""
        if self._cancelled or (self._narrowed and self.target.server is None):
            return
        options, target, narrowed = self.consumers.options, self.target, self._narrowed
        channel = await protocol.open_channel()
        consumption = self._establishing = Consumption(self, channel, self.prefetch, self._ended)
        consumption.unwanted = self._is_cancelled()  # it may have been cancelled while the channel was opened
        try:
            # "global" stays false, a limit for each consumer: quorum queues support no other.
            await channel.basic_qos(prefetch_count=self.prefetch)
            await topology.declare_exchange(channel, self.exchange, options)
            queues = [] if narrowed else [target.topic]
            if target.server is not None:
                queues.append(topology.request_address(target))
            for queue in queues:
                await topology.declare_request_queue(channel, self.exchange, queue, options)
            if self._fanout_queue is not None and not narrowed:
                await topology.declare_fanout_queue(channel, target.topic, self._fanout_queue, options)
                queues.append(self._fanout_queue)
            channel.receiver = consumption
            # The shared topic queue last. If one of our own queues cannot be consumed, this attempt fails, and each
            # retry would otherwise take requests of the topic and requeue them as redelivered.
            for queue in reversed(queues):
                await consumption.consume(queue, last=narrowed)
            if not consumption.unwanted:
                self._consumption, self._establishing = consumption, None
                if self._narrowed and not narrowed:
                    await self._narrow(consumption)
                self.held_changed()
                return
            # It was cancelled meanwhile, when there were no consumers to cancel. Deliveries are requeued unchanged.
            await self.moved()
        except BaseException:
            if self._consumption is consumption:
                self._consumption = None
            consumption.end("it cannot be set up")
            raise
        consumption.end("it is not wanted any more")

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Send a message to itself, and bind its queues again; see IListener."""
        return self.loopback.verify(write, timeout)

    @property
    def connections(self) -> tuple[Connection, Connection]:
        """The publishing and the consuming connection."""
        return self.publisher.connection, self.consumers.connection

    async def count_consumers(self, queue: str) -> int:
        """Return a queue's consumer count, as the host of the consuming connection sees it; 0 without a queue."""
        protocol = self.consumers.connection.protocol
        if protocol is None:
            return 0
        try:
            channel = await protocol.open_channel()
            _, consumers = await topology.count(channel, queue)
        except ClosedError:
            return 0
        channel.abandon(ClosedError("done", clean=True))
        return consumers

    def takes(self, queue: str) -> bool:
        """Return whether the listener has a consumer on a queue now; a full listener may have cancelled it."""
        return self._consumption is not None and self._consumption.takes(queue)

    def consume_anew(self, problem: str) -> None:
        """Abandon the channel; the queues are declared and consumed again on another.

        :param problem: why, for the log.
        """
        if self._consumption is not None:
            self._consumption.channel.abandon(ClosedError(problem, code=NOT_FOUND))

    def is_worn(self, returns: int) -> bool:
        """Return whether a message nears the delivery limit and has to be published anew; see Note [Delivery limit]."""
        return returns >= _RETURNS_BORNE and not self.consumers.options.quorum_delivery_limit

    def _ended(self, consumption: Consumption, reason: ClosedError) -> None:
        """Repair the consumers after a lost channel; after a lost connection the next one restores them."""
        if consumption is not self._consumption:
            return
        self._consumption = None
        self.consumers.learn_limit(reason)
        if not consumption.channel.client.closed and not self._cancelled:
            _log.warn("{listener} lost its channel: {reason}", listener=str(self), reason=reason)
            self.consumers.repair(self)

    def connection_lost(self) -> None:
        """Do nothing: channel_closed has handled it."""

    def running(self, queue: str) -> RunningRequests:
        """Return the private queue for long-running requests that came from a queue; see RunningRequests."""
        return self._running.setdefault(queue, RunningRequests(self, queue))

    # Note [Room for what others could do]
    #
    # A held request no longer counts for the prefetch of the queue that it came from, but it still
    # occupies a place in this process. Other servers may have free places for the requests that would
    # wait here instead. So the prefetch of the topic's queue shrinks by the number of held requests,
    # to nothing if need be. Nobody else serves our own queues, so their prefetch stays.

    def held_changed(self) -> None:
        """Schedule a resize of the topic's prefetch; see Note [Room for what others could do]."""
        # A resize cancels the consumer, and an auto-delete queue is deleted with its last one.
        stays = self._cancelled or self._narrowed or self.consumers.options.auto_delete
        if self._running and self._soon is None and not self._resizing and not stays:
            self._soon = self.clock.callLater(_SOON, self._resize)

    def _resize(self) -> None:
        self._soon = None
        consumption = self._consumption
        if consumption is not None:
            self._resizing = True
            held = self._held()
            resizing = Deferred.fromCoroutine(consumption.resize(self.topic, max(0, self.prefetch - held)))
            resizing.addErrback(lambda failure: failure.trap(ClosedError) and None)
            resizing.addBoth(self._resized, held)

    def _resized(self, _: object, held: int) -> None:
        self._resizing = False
        if held != self._held():
            self.held_changed()

    def _held(self) -> int:
        return sum(map(len, self._running.values()))

    def keep(self, moving: Deferred[Any]) -> None:
        """Track a move: closing, and copies that arrive, wait for it."""
        self._moving.append(moving)
        moving.addBoth(self._kept, moving)

    def _kept(self, _: object, moving: Deferred[Any]) -> None:
        """Hand on the copies that waited, after the last of the moves; see Note [Copies wait]."""
        self._moving.remove(moving)
        if not self._moving:
            copies, self._copies = self._copies, []
            for delivery in copies:
                delivery.hand_on()

    def puts_off(self, copy: Delivery) -> bool:
        """Keep a copy while a message is being moved; see Note [Copies wait] in novasvc.transport.amqp.consumption."""
        if self._moving:
            self._copies.append(copy)
        return bool(self._moving)

    def cancel_topic(self, prefetch: int) -> Deferred[None]:
        """Stop the deliveries of the topic and of fanouts; see IListener."""
        self._narrowed, self.prefetch = True, min(prefetch, _LARGEST_PREFETCH)
        self._resize_no_more()
        return Deferred.fromCoroutine(self._change(self._narrow))

    def _narrow(self, consumption: Consumption) -> Coroutine[Deferred[Any], Any, None]:
        own = None if self.target.server is None else topology.request_address(self.target)
        return consumption.narrow(own, self.prefetch)

    def cancel(self) -> Deferred[None]:
        """Stop all deliveries; see IListener."""
        self._stop()
        return Deferred.fromCoroutine(self._change(Consumption.cancel))

    def _is_cancelled(self) -> bool:
        return self._cancelled

    def _stop(self) -> None:
        self._cancelled = True
        if self._establishing is not None:
            self._establishing.unwanted = True
        self._resize_no_more()

    def _resize_no_more(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    async def _change(self, change: Callable[[Consumption], Coroutine[Deferred[Any], Any, None]]) -> None:
        if self._consumption is None or self._silent:
            return  # if it is being established, establish() checks the flags
        # A lost channel delivers nothing more, so ask() counts its end as success.
        await self.ask(change(self._consumption))

    @property
    def is_silent(self) -> bool:
        """Whether the broker did not answer basic.cancel in time."""
        return self._silent

    async def ask(self, change: Coroutine[Deferred[Any], Any, None]) -> None:
        """Wait for a change of consumers or the end of the channel, but at most 2 s; after that is_silent is set."""
        changing: Deferred[None] = Deferred.fromCoroutine(change)
        changing.addErrback(lambda failure: failure.trap(ClosedError) and None)
        # The change goes on after the timeout: a broker that is only slow still gets all of its methods.
        waiting = _done(changing)
        await waiting.addTimeout(_ANSWER_PATIENCE, self.clock, onTimeoutCancel=self._note_silence)

    def _note_silence(self, _: object, seconds: float) -> None:
        """Stop waiting for this broker's answers: a shutdown has a deadline."""
        self._silent = True
        _log.warn("the broker has not answered {listener} within {seconds:g} s", listener=str(self), seconds=seconds)

    def close(self) -> Deferred[None]:
        """Delete the fanout queue and close the channel; unsettled deliveries are requeued. See IListener."""
        self._stop()
        return Deferred.fromCoroutine(self._close())

    async def moved(self) -> None:
        """Wait for the moves under way: up to the operation timeout, or 2 s if the broker is silent or blocked."""
        moves = DeferredList([_done(moving) for moving in self._moving], consumeErrors=True)
        deaf = self._silent or self.publisher.connection.state == "blocked"
        patience = _ANSWER_PATIENCE if deaf else self.consumers.options.operation_timeout
        await moves.addTimeout(patience, self.clock, onTimeoutCancel=lambda *_: None)

    async def _close(self) -> None:
        self.consumers.remove(self)
        await self.moved()
        await DeferredList([Deferred.fromCoroutine(running.close()) for running in self._running.values()])
        consumption, self._consumption = self._consumption, None
        if consumption is None:
            return
        consumption.flush()
        consumption.forget_unsettled()
        consumption.channel.receiver = None  # deliveries from now on are requeued when the channel closes
        try:
            if self._fanout_queue is not None and not self._silent:
                await topology.delete_queue(consumption.channel, self._fanout_queue, self.clock)
        except ClosedError:
            return
        consumption.end("done")


def _done(moving: Deferred[Any]) -> Deferred[None]:
    """Return a Deferred that fires with None when another has fired, whose result stays unchanged."""
    done: Deferred[None] = Deferred()

    def end(result: Any) -> Any:
        if not done.called:
            done.callback(None)
        return result

    moving.addBoth(end)
    return done
