"""An in-memory broker: queues, fanout and replies, delivered in reactor turns of their own."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from novasvc import identifiers
from novasvc.rpc.target import Target

_log = Logger()

QUEUE_BOUND = 10_000
"""Bound on the ready messages of a queue; unsettled deliveries do not count."""

QUARANTINE_BOUND = 1000
"""Bound on the quarantined messages; the oldest are dropped first."""

QueueName = tuple[str, str, str | None]
"""Exchange, topic and server (None for the topic's queue): the address of a message."""

_TURN_LIMIT = 128
"""Most messages delivered in one turn of the reactor, so that other events are served, too."""
_QUEUE_LIMIT = 16
"""Most messages that one queue delivers before the next queue has its turn."""


@attrs.define(eq=False)
class Message:
    """A request in a queue.

    :param expires_at: seconds on the clock; None is never.
    :param deliveries: number of earlier deliveries that were not settled.
    :param losses: how many of them were lost with a connection, and not with their process.
    :param redelivered: whether a consumer has lost the message since its count was last set.
    :param probe: called on delivery in place of the listener's receiver; None for a request.
    """

    body: bytes
    expires_at: float | None
    deliveries: int = 0
    losses: int = 0
    redelivered: bool = False
    probe: Callable[[], None] | None = None

    def set_deliveries(self, deliveries: int) -> None:
        """Set the number of earlier deliveries, as a server that gives the message back says it."""
        self.deliveries = deliveries
        self.losses = min(self.losses, deliveries)
        self.redelivered = False


class Consumer(Protocol):
    """Takes messages from queues."""

    def has_room(self) -> bool:
        """Return whether the prefetch leaves room for one more message."""

    def receive(self, message: Message, queue: "Queue") -> None:
        """Handle a delivery; must not raise."""


class _Source(Protocol):
    """What the broker delivers from: a queue of requests, or of replies."""

    scheduled: bool

    def ready(self) -> bool: ...

    def deliver(self, limit: int) -> int: ...


@attrs.define(eq=False)
class Queue:
    """A FIFO of messages, shared by its consumers in round robin.

    :param bound: most ready messages.
    :ivar scheduled: the broker has scheduled a delivery from it.
    """

    _broker: "MemoryBroker"
    bound: int
    messages: deque[Message] = attrs.field(factory=deque, init=False)
    consumers: deque[Consumer] = attrs.field(factory=deque, init=False)
    scheduled: bool = attrs.field(default=False, init=False)

    def put(self, message: Message) -> bool:
        """Append a message; return False if the queue is full, after expired messages at its head are dropped."""
        messages = self.messages
        while len(messages) >= self.bound:
            expires_at = messages[0].expires_at
            if expires_at is None or expires_at > self._broker.seconds():
                return False
            messages.popleft()
        messages.append(message)
        self._broker.schedule(self)
        return True

    def requeue_at_head(self, message: Message, *, lost: bool) -> None:
        """Requeue an unsettled message at the head; the bound may be exceeded by a prefetch.

        :param lost: whether the connection was lost. It is counted only if the message was not redelivered since its
            count was last set: the field "redelivered" of AMQP is no count, either.
        """
        if not (lost and message.redelivered):
            message.deliveries += 1
            message.losses += lost
        message.redelivered = True
        self.messages.appendleft(message)
        self._broker.schedule(self)

    def requeue_at_tail(self, message: Message, deliveries: int) -> None:
        """Requeue a message at the tail, as the AMQP transport's copy would be; the bound may be exceeded.

        :param deliveries: number of deliveries to record.
        """
        message.set_deliveries(deliveries)
        self.messages.append(message)
        self._broker.schedule(self)

    def ready(self) -> bool:
        """Return whether there is a message, and a consumer with room."""
        return bool(self.messages) and any(consumer.has_room() for consumer in self.consumers)

    def deliver(self, limit: int) -> int:
        """Deliver messages to the consumers in turn; drop expired ones.

        :param limit: most messages to handle.
        :return: number of messages delivered or dropped.
        """
        handled = 0
        while handled < limit and self.messages:
            consumer = self._next_consumer()
            if consumer is None:
                break
            handled += 1
            message = self.messages.popleft()
            if message.expires_at is None or message.expires_at > self._broker.seconds():
                consumer.receive(message, self)
        return handled

    def _next_consumer(self) -> Consumer | None:
        consumers = self.consumers
        for _ in range(len(consumers)):
            consumer = consumers[0]
            consumers.rotate(-1)
            if consumer.has_room():
                return consumer
        return None


def _receive_if_consuming(consumer: Consumer, message: Message, queue: Queue) -> None:
    if consumer in queue.consumers:
        consumer.receive(message, queue)


@attrs.define(eq=False)
class _ReplyQueue:
    """Replies to one caller, in order; beyond QUEUE_BOUND the oldest are dropped."""

    receiver: Callable[[bytes], None]
    bodies: deque[bytes] = attrs.field(factory=lambda: deque(maxlen=QUEUE_BOUND), init=False)
    scheduled: bool = attrs.field(default=False, init=False)

    def ready(self) -> bool:
        return bool(self.bodies)

    def deliver(self, limit: int) -> int:
        handled = 0
        while handled < limit and self.bodies:
            handled += 1
            try:
                self.receiver(self.bodies.popleft())
            except Exception:  # noqa: BLE001 - it must not stop the delivery of other messages
                _log.failure("unhandled exception in a reply receiver")
        return handled


@attrs.define(eq=False)
class MemoryBroker:
    """The broker of the nodes in one process.

    A queue is created by its first listener and is never deleted, so casts wait while a service
    restarts. The number of queues is the number of distinct targets.

    :param bound: most ready messages of each queue.
    :ivar quarantine: quarantined bodies with the reasons, the newest QUARANTINE_BOUND of them.
    :ivar clock: the clock of its transports; see :meth:`attach`.
    """

    bound: int = QUEUE_BOUND
    quarantine: deque[tuple[bytes, str]] = attrs.field(factory=lambda: deque(maxlen=QUARANTINE_BOUND), init=False)
    clock: IReactorTime = attrs.field(init=False)
    _queues: dict[QueueName, Queue] = attrs.field(factory=dict, init=False)
    _fanouts: dict[str, dict[Queue, None]] = attrs.field(factory=dict, init=False)
    _bindings: dict[tuple[str, str], dict[str, None]] = attrs.field(factory=dict, init=False)
    _watchers: list[Callable[[], None]] = attrs.field(factory=list, init=False)
    _change_pending: bool = attrs.field(default=False, init=False)
    _reply_queues: dict[str, _ReplyQueue] = attrs.field(factory=dict, init=False)
    _scheduled: deque[_Source] = attrs.field(factory=deque, init=False)
    _turn_scheduled: bool = attrs.field(default=False, init=False)
    _calls: int = attrs.field(default=0, init=False)

    def attach(self, clock: IReactorTime) -> None:
        """Adopt a transport's clock. All transports of a broker share one clock.

        :raises ValueError: the broker has another clock already.
        """
        if getattr(self, "clock", clock) is not clock:
            problem = "all transports of a MemoryBroker must share one clock"
            raise ValueError(problem)
        self.clock = clock

    def seconds(self) -> float:
        """Return the clock's time in seconds."""
        return self.clock.seconds()

    # -- addresses -----------------------------------------------------------------------------

    def queue(self, exchange: str, topic: str, server: str | None) -> Queue:
        """Return a queue; create it if it does not exist."""
        return self._queues.setdefault((exchange, topic, server), Queue(self, self.bound))

    def add_fanout(self, topic: str) -> Queue:
        """Create a queue that gets a copy of each fanout of a topic; as in OpenStack, from any control exchange."""
        queue = Queue(self, self.bound)
        self._fanouts.setdefault(topic, {})[queue] = None
        return queue

    def restore(self, name: QueueName, queue: Queue) -> Queue:
        """Return the queue of a name; the given one gets the name if no queue has it."""
        return self._queues.setdefault(name, queue)

    def has(self, name: QueueName) -> bool:
        """Return whether a queue of that name exists."""
        return name in self._queues

    def names(self) -> list[QueueName]:
        """Return the names of all queues."""
        return list(self._queues)

    def ready(self, name: QueueName) -> int:
        """Return how many messages wait in a queue."""
        queue = self._queues.get(name)
        return 0 if queue is None else len(queue.messages)

    def delete(self, name: QueueName) -> bool:
        """Delete a queue with its messages, though listeners consume from it, as an operator may; for tests.

        :return: whether there was one.
        """
        queue = self._queues.pop(name, None)
        if queue is None:
            return False
        queue.messages.clear()
        return True

    def restore_fanout(self, topic: str, queue: Queue) -> bool:
        """Add a queue to a topic's fanout; return whether it was missing."""
        queues = self._fanouts.setdefault(topic, {})
        missing = queue not in queues
        queues[queue] = None
        return missing

    def delete_fanout(self, topic: str, queue: Queue) -> None:
        """Delete a fanout queue and its messages."""
        queues = self._fanouts.get(topic, {})
        queues.pop(queue, None)
        if not queues:
            self._fanouts.pop(topic, None)

    def route(self, exchange: str, target: Target) -> tuple[Queue, ...]:
        """Return the queues for a target; none if it never had a listener."""
        if target.fanout:
            return tuple(self._fanouts.get(target.topic, ()))
        queue = self._queues.get((exchange, target.topic, target.server))
        return () if queue is None else (queue,)

    def deliver_internal(self, topic: str, message: Message) -> None:
        """Deliver a message to every listener of a topic in a later turn, whatever its prefetch."""
        for queue in self._fanouts.get(topic, ()):
            for consumer in queue.consumers:
                self.call_later(partial(_receive_if_consuming, consumer, message, queue))

    def bind(self, exchange: str, key: str, queue: str) -> None:
        """Have a queue get a copy of each message that is published to a key."""
        self._bindings.setdefault((exchange, key), {})[queue] = None

    def bound_queues(self, exchange: str, key: str) -> list[str]:
        """Return the names of the queues that a message published to a key goes to."""
        names = list(self._bindings.get((exchange, key), ()))
        return names if key in names or (exchange, key, None) not in self._queues else [key, *names]

    # -- what is consumed ----------------------------------------------------------------------

    def consumed(self) -> tuple[list[QueueName], list[str]]:
        """Return the names of the queues that have consumers, and the topics whose fanouts have.

        :meth:`bindings` has the keys that these queues are subscribed to.
        """
        names = [name for name, queue in self._queues.items() if queue.consumers]
        topics = [topic for topic, queues in self._fanouts.items() if any(queue.consumers for queue in queues)]
        return names, topics

    def bindings(self) -> list[tuple[str, str, str]]:
        """Return exchange, key and queue of each binding of a queue that has consumers."""
        return [
            (exchange, key, queue)
            for (exchange, key), queues in self._bindings.items()
            for queue in queues
            if self.queue(exchange, queue, None).consumers
        ]

    def watch_consumers(self, changed: Callable[[], None]) -> None:
        """Call a function in a turn of its own whenever :meth:`consumed` may have changed."""
        self._watchers.append(changed)

    def consumers_changed(self) -> None:
        """Note that a listener has begun or ended to consume."""
        if self._watchers and not self._change_pending:
            self._change_pending = True
            self.clock.callLater(0, self._tell_watchers)

    def _tell_watchers(self) -> None:
        self._change_pending = False
        for changed in self._watchers:
            changed()

    def add_reply_queue(self, receiver: Callable[[bytes], None], address: str | None = None) -> str:
        """Create a reply address.

        :param address: the address of a client in another process; None makes a new one.
        """
        address = address or f"reply_{identifiers.random_bytes(16).hex()}"
        self._reply_queues[address] = _ReplyQueue(receiver)
        return address

    def delete_reply_queue(self, address: str, receiver: Callable[[bytes], None] | None = None) -> None:
        """Delete a reply address; later replies to it are dropped.

        :param receiver: delete it only if this is its receiver.
        """
        replies = self._reply_queues.get(address)
        if replies is not None and (receiver is None or replies.receiver is receiver):
            del self._reply_queues[address]
            replies.bodies.clear()

    def reply(self, address: str, body: bytes) -> None:
        """Append a reply to the queue of its address; drop it if there is none."""
        replies = self._reply_queues.get(address)
        if replies is not None:
            replies.bodies.append(body)
            self.schedule(replies)

    # -- turns ---------------------------------------------------------------------------------

    def call_later(self, do: Callable[[], object]) -> None:
        """Call a function in a later turn of the reactor, as a delivery would come."""
        self._calls += 1
        self.clock.callLater(0, self._call, do)

    def _call(self, do: Callable[[], object]) -> None:
        self._calls -= 1
        do()

    @property
    def is_delivering(self) -> bool:
        """Whether there are messages or replies that the next turns of the reactor will deliver."""
        return self._turn_scheduled or self._calls > 0

    def schedule(self, source: _Source) -> None:
        """Schedule a delivery from a source, unless it is scheduled already."""
        if source.scheduled:
            return
        source.scheduled = True
        self._scheduled.append(source)
        if not self._turn_scheduled:
            self._schedule_turn()

    def _schedule_turn(self) -> None:
        self._turn_scheduled = True
        self.clock.callLater(0, self._run_turn)

    def _run_turn(self) -> None:
        left = _TURN_LIMIT
        while self._scheduled and left > 0:
            source = self._scheduled.popleft()
            source.scheduled = False
            left -= source.deliver(min(left, _QUEUE_LIMIT))
            if source.ready():
                self.schedule(source)
        self._turn_scheduled = False
        if self._scheduled:
            self._schedule_turn()
