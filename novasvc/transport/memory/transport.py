"""ITransport over an in-memory broker."""

from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IDelivery, IListener, ISession, ITransport, Reachability, WriteProbe
from novasvc.rpc.errors import TransportClosedError, TransportFullError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.memory.broker import MemoryBroker, Message, Queue, QueueName

_log = Logger()

Receiver = Callable[[IDelivery], None]


@implementer(ISession)
@attrs.define(eq=False)
class _Session:
    """What a listener's deliveries arrive on, until it is closed or loses its connection; see ISession."""

    ended: bool = attrs.field(default=False, init=False)
    redelivers: bool = attrs.field(default=True, init=False)


@implementer(IDelivery)
@attrs.define(eq=False)
class _Delivery:
    """A message delivered to a listener and not settled yet; see IDelivery."""

    _message: Message
    _queue: Queue
    _listener: "_Listener"
    body: bytes
    deliveries: int
    sent_to: str
    session: _Session
    counts_death: bool = attrs.field(default=True, init=False)

    @property
    def deaths(self) -> int:
        # A listener in this process loses an unsettled message by its own end, which counts as a death, or by
        # MemoryTransport.disconnect.
        return self.deliveries - min(self._message.losses, self.deliveries)

    @property
    def expires_at(self) -> float | None:
        return self._message.expires_at

    @property
    def expires_in(self) -> float | None:
        expires_at = self._message.expires_at
        return None if expires_at is None else expires_at - self._listener.broker.seconds()

    def ack(self) -> None:
        self._listener.settle(self)

    def reject(self) -> None:
        self._listener.settle(self)

    def hold(self) -> None:
        """Do nothing: there is no consumer_timeout."""

    def requeue(self, deliveries: int) -> None:
        if self._listener.settle(self):
            self._queue.requeue_at_tail(self._message, deliveries)

    def requeue_here(self, deliveries: int) -> None:
        if self._listener.settle(self):
            self._message.set_deliveries(deliveries)
            self._listener.redeliver(self._message, self._queue, self.sent_to)

    def quarantine(self, reason: str) -> None:
        if self._listener.settle(self):
            self._listener.broker.quarantine.append((self.body, reason))

    def requeue_at_head(self, *, lost: bool) -> None:
        self._queue.requeue_at_head(self._message, lost=lost)


@implementer(IListener)
@attrs.define(eq=False)
class _Listener:
    """The consumers of one server, with one prefetch for all of its queues; see IListener."""

    broker: MemoryBroker
    _topic: str
    _receiver: Receiver
    _prefetch: int
    _named: dict[QueueName, Queue]
    _fanout: Queue | None
    live: bool = attrs.field(default=True, init=False)
    hold_after: None = attrs.field(default=None, init=False)
    _narrowed: bool = attrs.field(default=False, init=False)
    _cut_off: bool = attrs.field(default=False, init=False)
    _session: _Session = attrs.field(factory=_Session, init=False)
    _unsettled: dict[_Delivery, None] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        for queue in self._queues:
            self._consume(queue)

    @property
    def _queues(self) -> tuple[Queue, ...]:
        """The queues that it consumes from."""
        fanout = () if self._fanout is None or self._narrowed else (self._fanout,)
        return (*self._named.values(), *fanout)

    def _consume(self, queue: Queue) -> None:
        queue.consumers.append(self)
        self.broker.consumers_changed()
        self.broker.schedule(queue)

    def _sent_to(self, queue: Queue) -> str:
        if queue is self._fanout:
            return "fanout"
        return next(
            ("topic" if name[2] is None else "server" for name, own in self._named.items() if own is queue), "topic"
        )

    def has_room(self) -> bool:
        return len(self._unsettled) < self._prefetch

    def receive(self, message: Message, queue: Queue) -> None:
        if message.probe is not None:
            message.probe()
            return
        self._dispatch(self._deliver(message, queue, self._sent_to(queue)))

    def _deliver(self, message: Message, queue: Queue, sent_to: str) -> _Delivery:
        delivery = _Delivery(message, queue, self, message.body, message.deliveries, sent_to, self._session)
        self._unsettled[delivery] = None
        return delivery

    def redeliver(self, message: Message, queue: Queue, sent_to: str) -> None:
        """Redeliver a message to this listener, in a later turn of the reactor."""
        delivery = self._deliver(message, queue, sent_to)
        self.broker.call_later(lambda: self._dispatch(delivery) if delivery in self._unsettled else None)

    def _dispatch(self, delivery: _Delivery) -> None:
        try:
            self._receiver(delivery)
        except Exception:  # noqa: BLE001 - it must not stop the delivery of other messages
            _log.failure("unhandled exception in a message receiver")

    def settle(self, delivery: _Delivery) -> bool:
        """Mark a delivery as settled; return False if it was settled or requeued before."""
        if delivery not in self._unsettled:
            return False
        had_room = self.has_room()
        del self._unsettled[delivery]
        if self.live and not had_room:
            for queue in self._queues:
                self.broker.schedule(queue)
        return True

    def cancel_topic(self, prefetch: int) -> Deferred[None]:
        if self.live or self._cut_off:
            self._prefetch = prefetch
            for queue in self._queues if self.live else ():
                if self._sent_to(queue) != "server":
                    queue.consumers.remove(self)
            self.broker.consumers_changed()
            self._named = {name: queue for name, queue in self._named.items() if name[2] is not None}
            self._narrowed = True
            for queue in self._queues:
                self.broker.schedule(queue)
        return succeed(None)

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        if not self.live or self._narrowed:
            return succeed(Reachability("the listener is not consuming"))
        repaired = self._repair()
        name, queue = next(reversed(self._named.items()))  # the server's queue, if it has one
        arrived: Deferred[None] = Deferred()

        def arrive() -> None:
            if not arrived.called:
                arrived.callback(None)

        probe = Message(write("", ""), self.broker.seconds() + timeout, probe=arrive)
        if not queue.put(probe):
            return succeed(Reachability(repaired=repaired))  # a full queue exists, and its messages are being processed

        def give_up(*_: object) -> Reachability:
            if not self.has_room():
                return Reachability(repaired=repaired)
            return Reachability(f"a message to {_describe(name)} did not arrive within {timeout:g} s")

        verifying = arrived.addCallback(lambda _: Reachability(repaired=repaired))
        return verifying.addTimeout(timeout, self.broker.clock, onTimeoutCancel=give_up)

    def _repair(self) -> tuple[str, ...]:
        """Register missing queues at the broker and consume from them again; return what was missing."""
        repaired = []
        for name, queue in self._named.items():
            known = self.broker.has(name)
            current = self._named[name] = self.broker.restore(name, queue)
            consumes = self in current.consumers
            if not consumes:
                self._consume(current)
            if not (known and consumes):
                repaired.append(f"the queue {_describe(name)}")
        if self._fanout is not None and self.broker.restore_fanout(self._topic, self._fanout):
            repaired.append(f"the queue for fanouts of {self._topic}")
        return tuple(repaired)

    def cancel(self) -> Deferred[None]:
        self._cut_off = False
        self._stop_consuming()
        return succeed(None)

    def _stop_consuming(self) -> None:
        if self.live:
            self.live = False
            for queue in self._queues:
                queue.consumers.remove(self)
            self.broker.consumers_changed()

    def close(self) -> Deferred[None]:
        self.cancel()
        if self._fanout is not None:
            self.broker.delete_fanout(self._topic, self._fanout)
        self._end_session(lost=False)
        return succeed(None)

    @property
    def ended(self) -> bool:
        """Whether it was closed."""
        return self._session.ended

    @property
    def unsettled(self) -> int:
        """The number of deliveries that are not settled."""
        return len(self._unsettled)

    def disconnect(self) -> None:
        """Stop consuming, and give unsettled deliveries back, as if the connection were lost; its queues stay."""
        self._cut_off = self._cut_off or self.live
        self._stop_consuming()
        if not self.ended:
            self._end_session(lost=True)
            self._session = _Session()

    def reconnect(self) -> None:
        """Consume again after :meth:`disconnect`, unless it was cancelled or closed meanwhile."""
        if self._cut_off:
            self._cut_off, self.live = False, True
            for queue in self._queues:
                self._consume(queue)

    def _end_session(self, *, lost: bool) -> None:
        self._session.ended = True
        unsettled, self._unsettled = list(self._unsettled), {}
        for delivery in reversed(unsettled):  # each goes to the head, so the oldest comes last
            delivery.requeue_at_head(lost=lost)


def _describe(name: QueueName) -> str:
    _, topic, server = name
    return topic if server is None else f"{topic}.{server}"


@implementer(ITransport)
@attrs.define(eq=False)
class MemoryTransport:
    """ITransport over a :class:`MemoryBroker`.

    :param broker: shared by the transports that are to reach each other.
    :param clock: expiry, and the turns in which messages are delivered.
    :param exchange: the control exchange of targets that name none.
    """

    _broker: MemoryBroker
    _clock: IReactorTime = attrs.field(kw_only=True)
    _exchange: str = attrs.field(default="nova", kw_only=True)
    _closed: bool = attrs.field(default=False, init=False)
    _listeners: list[_Listener] = attrs.field(factory=list, init=False)
    _addresses: list[str] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._broker.attach(self._clock)

    def open(self) -> Deferred[None]:
        """Do nothing: the broker is in this process."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Close the listeners and delete the reply addresses; see ITransport."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
        for address in self._addresses:
            self._broker.delete_reply_queue(address)
        self._listeners, self._addresses = [], []
        return succeed(None)

    def problem(self) -> str | None:
        """Return what keeps messages from moving, or None; see ITransport."""
        return "the transport is closed" if self._closed else None

    @property
    def unsettled(self) -> int:
        """The number of deliveries to its listeners that are not settled."""
        return sum(listener.unsettled for listener in self._listeners)

    def disconnect(self) -> None:
        """Have its listeners lose their connection: unsettled deliveries are delivered again. For tests."""
        for listener in self._listeners:
            listener.disconnect()

    def reconnect(self) -> None:
        """Have its listeners consume again."""
        for listener in self._listeners:
            listener.reconnect()

    def listen(self, target: Target, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume a target's messages; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        exchange, broker = target.exchange or self._exchange, self._broker
        fanout = broker.add_fanout(target.topic)
        names: list[QueueName] = [(exchange, target.topic, None)]
        if target.server is not None:
            names.append((exchange, target.topic, target.server))
        queues = {name: broker.queue(*name) for name in names}
        return self._begin(_Listener(broker, target.topic, receiver, prefetch, queues, fanout))

    def consume(self, queue: str, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from one queue only; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        queues: dict[QueueName, Queue] = {
            (self._exchange, queue, None): self._broker.queue(self._exchange, queue, None)
        }
        return self._begin(_Listener(self._broker, queue, receiver, prefetch, queues, None))

    def subscribe(self, queue: str, keys: Sequence[str], receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from a queue that gets a copy of what is published to the keys; see ITransport."""
        if not self._closed:
            for key in keys:
                self._broker.bind(self._exchange, key, queue)
        return self.consume(queue, receiver, prefetch)

    def _begin(self, listener: _Listener) -> Deferred[IListener]:
        self._listeners = [*(known for known in self._listeners if not known.ended), listener]
        listening: Deferred[IListener] = succeed(listener)
        return listening

    def publish(self, key: str, body: bytes) -> Deferred[None]:
        """Append a message to each queue that is subscribed to a key, or has its name; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        names = self._broker.bound_queues(self._exchange, key)
        return self._put(names, body) if names else fail(UndeliverableError(key))

    def post(self, queue: str, body: bytes) -> Deferred[None]:
        """Publish a message to a key; a queue of its name is created if there is no queue for it. See ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        return self._put(self._broker.bound_queues(self._exchange, queue) or [queue], body)

    def _put(self, names: Sequence[str], body: bytes) -> Deferred[None]:
        """Append a message to every queue that has room; fail if one had none."""
        queues = {name: self._broker.queue(self._exchange, name, None) for name in names}
        full = [name for name, queue in queues.items() if not queue.put(Message(body, None))]
        return fail(TransportFullError(full[0], self._broker.bound)) if full else succeed(None)

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:  # noqa: FBT001 - the interface's signature
        """Append a request to the queues of its target; see ITransport.

        A fanout reaches every queue that has room, and fails if one had none.
        """
        if self._closed:
            return fail(TransportClosedError("sending"))
        expires_at = None if ttl is None else self._clock.seconds() + ttl
        if target.internal:
            self._broker.deliver_internal(target.topic, Message(body, expires_at))
            return succeed(None)
        queues = self._broker.route(target.exchange or self._exchange, target)
        if mandatory and not any([queue.consumers for queue in queues]):  # noqa: C419 - shorter than a generator's own cost
            return fail(UndeliverableError(str(target)))
        full = False
        for queue in queues:
            if not queue.put(Message(body, expires_at)):
                full = True
        return fail(TransportFullError(str(target), self._broker.bound)) if full else succeed(None)

    def has_consumer(self, target: Target) -> bool:
        """Return whether a server of this process consumes a target's messages."""
        queues = self._broker.route(target.exchange or self._exchange, target)
        return any([queue.consumers for queue in queues])  # noqa: C419 - shorter than a generator's own cost

    def open_replies(self, receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Create a reply address and return it; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("receiving replies"))
        address = self._broker.add_reply_queue(receiver)
        self._addresses.append(address)
        return succeed(address)

    def close_replies(self, address: str) -> Deferred[None]:
        """Delete a reply address; see ITransport."""
        if address in self._addresses:
            self._addresses.remove(address)
            self._broker.delete_reply_queue(address)
        return succeed(None)

    def reply(self, address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        """Append a reply to its caller's box; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("replying"))
        self._broker.reply(address, body)
        return succeed(None)
