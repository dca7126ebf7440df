"""Where messages wait, and the turns in which they are delivered."""

import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from novasvc.rpc.target import Target

_log = Logger()

QUEUE_BOUND = 10_000
"""Messages that a queue holds at the most, those that were delivered not counted."""

QUARANTINE_BOUND = 1000
"""Messages that are kept in quarantine; the oldest go first."""

Name = tuple[str, str, str | None]
"""Exchange, topic and server: what a message is addressed by."""

_TURN = 128
"""Messages that are delivered in one turn of the reactor at the most; others want it too."""
_SHARE = 16
"""Messages that one queue delivers before the next queue's turn comes."""


@attrs.define(eq=False)
class Message:
    """A request that waits.

    :param expires_at: seconds on the clock; None is "never".
    :param deliveries: how often it was in a listener's hands, and not settled.
    :param probe: called by the listener that takes it, instead of its receiver; None of a request.
    """

    body: bytes
    expires_at: float | None
    deliveries: int = 0
    probe: Callable[[], None] | None = None


class Consumer(Protocol):
    """What takes messages out of queues."""

    def has_room(self) -> bool:
        """Tell whether it takes one more now."""

    def take(self, message: Message, queue: "Queue") -> None:
        """Take a message; never raises."""


class _Source(Protocol):
    """What the broker drains: a queue, or a box of replies."""

    awake: bool

    def ready(self) -> bool: ...

    def deliver(self, limit: int) -> int: ...


@attrs.define(eq=False)
class Queue:
    """Messages in order, and the consumers that share them.

    :param bound: messages that it holds at the most.
    :param awake: the broker has it on its list.
    """

    _broker: "MemoryBroker"
    bound: int
    messages: deque[Message] = attrs.field(factory=deque, init=False)
    consumers: deque[Consumer] = attrs.field(factory=deque, init=False)
    awake: bool = attrs.field(default=False, init=False)

    def put(self, message: Message) -> bool:
        """Take a message; False if there is no room for it, what expired at the head not counted."""
        messages = self.messages
        while len(messages) >= self.bound:
            expires_at = messages[0].expires_at
            if expires_at is None or expires_at > self._broker.seconds():
                return False
            messages.popleft()
        messages.append(message)
        self._broker.wake(self)
        return True

    def put_back(self, message: Message) -> None:
        """Take back what its listener left; it comes next, and may exceed the bound by a prefetch."""
        message.deliveries += 1
        self.messages.appendleft(message)
        self._broker.wake(self)

    def put_anew(self, message: Message, deliveries: int) -> None:
        """Take back what was given back; it comes last, as with the peers, and may exceed the bound as well."""
        message.deliveries = deliveries
        self.messages.append(message)
        self._broker.wake(self)

    def ready(self) -> bool:
        """Tell whether there is a message, and somebody who takes it."""
        return bool(self.messages) and any(consumer.has_room() for consumer in self.consumers)

    def deliver(self, limit: int) -> int:
        """Hand out messages, one to each consumer in turn; return how many were handled."""
        handled = 0
        while handled < limit and self.messages:
            consumer = self._next_consumer()
            if consumer is None:
                break
            handled += 1
            message = self.messages.popleft()
            if message.expires_at is None or message.expires_at > self._broker.seconds():
                consumer.take(message, self)
        return handled

    def _next_consumer(self) -> Consumer | None:
        consumers = self.consumers
        for _ in range(len(consumers)):
            consumer = consumers[0]
            consumers.rotate(-1)
            if consumer.has_room():
                return consumer
        return None


@attrs.define(eq=False)
class _ReplyBox:
    """Replies on their way to a caller, who waits for so many and no more."""

    _receiver: Callable[[bytes], None]
    bodies: deque[bytes] = attrs.field(factory=lambda: deque(maxlen=QUEUE_BOUND), init=False)
    awake: bool = attrs.field(default=False, init=False)

    def ready(self) -> bool:
        return bool(self.bodies)

    def deliver(self, limit: int) -> int:
        handled = 0
        while handled < limit and self.bodies:
            handled += 1
            try:
                self._receiver(self.bodies.popleft())
            except Exception:  # noqa: BLE001 - it must not keep the others' messages
                _log.failure("a reply receiver raised an exception, which it must not")
        return handled


@attrs.define(eq=False)
class MemoryBroker:
    """What a broker is to a cluster, for the nodes of one process.

    Queues come with their first listener and stay, so that casts wait while a service restarts.
    They are as many as there were different targets.

    :param bound: messages that each queue holds at the most.
    :param quarantine: bodies that are not to be run again, with the reasons.
    :ivar clock: of its transports; see :meth:`attach`.
    """

    bound: int = QUEUE_BOUND
    quarantine: deque[tuple[bytes, str]] = attrs.field(factory=lambda: deque(maxlen=QUARANTINE_BOUND), init=False)
    clock: IReactorTime = attrs.field(init=False)
    _queues: dict[Name, Queue] = attrs.field(factory=dict, init=False)
    _fanouts: dict[str, dict[Queue, None]] = attrs.field(factory=dict, init=False)
    _boxes: dict[str, _ReplyBox] = attrs.field(factory=dict, init=False)
    _awake: deque[_Source] = attrs.field(factory=deque, init=False)
    _turning: bool = attrs.field(default=False, init=False)

    def attach(self, clock: IReactorTime) -> None:
        """Take the clock of a transport; all transports of a broker have the same.

        :raises ValueError: this one has another.
        """
        if getattr(self, "clock", clock) is not clock:
            problem = "the transports of a MemoryBroker live in one process, on one clock"
            raise ValueError(problem)
        self.clock = clock

    def seconds(self) -> float:
        """Read the clock."""
        return self.clock.seconds()

    # -- addresses -----------------------------------------------------------------------------

    def queue(self, exchange: str, topic: str, server: str | None) -> Queue:
        """Return a queue, made if it is new."""
        return self._queues.setdefault((exchange, topic, server), Queue(self, self.bound))

    def add_fanout(self, topic: str) -> Queue:
        """Make one more queue that gets a copy of each fanout. As with the peers, exchanges share them."""
        queue = Queue(self, self.bound)
        self._fanouts.setdefault(topic, {})[queue] = None
        return queue

    def restore(self, name: Name, queue: Queue) -> Queue:
        """Return the queue that has a name; that is the given one, if none has it any more."""
        return self._queues.setdefault(name, queue)

    def has(self, name: Name) -> bool:
        """Tell whether messages with a name find a queue."""
        return name in self._queues

    def restore_fanout(self, topic: str, queue: Queue) -> bool:
        """Have a queue get the topic's fanouts; return whether it did not."""
        queues = self._fanouts.setdefault(topic, {})
        missing = queue not in queues
        queues[queue] = None
        return missing

    def drop_fanout(self, topic: str, queue: Queue) -> None:
        """Give up such a queue and what is in it."""
        queues = self._fanouts.get(topic, {})
        queues.pop(queue, None)
        if not queues:
            self._fanouts.pop(topic, None)

    def route(self, exchange: str, target: Target) -> tuple[Queue, ...]:
        """Return the queues that a message for the target goes to; none if there never was a listener."""
        if target.fanout:
            return tuple(self._fanouts.get(target.topic, ()))
        queue = self._queues.get((exchange, target.topic, target.server))
        return () if queue is None else (queue,)

    def add_replies(self, receiver: Callable[[bytes], None]) -> str:
        """Make an address for replies."""
        address = f"reply_{os.urandom(16).hex()}"
        self._boxes[address] = _ReplyBox(receiver)
        return address

    def drop_replies(self, address: str) -> None:
        """Give up an address; replies to it are dropped from now on."""
        box = self._boxes.pop(address, None)
        if box is not None:
            box.bodies.clear()

    def reply(self, address: str, body: bytes) -> None:
        """Put a reply into its box, if there is one."""
        box = self._boxes.get(address)
        if box is not None:
            box.bodies.append(body)
            self.wake(box)

    # -- turns ---------------------------------------------------------------------------------

    def later(self, do: Callable[[], object]) -> None:
        """Call something in a turn of its own, as a delivery would come."""
        self.clock.callLater(0, do)

    def wake(self, source: _Source) -> None:
        """Deliver from a source in a turn to come, if it has anything for anybody."""
        if source.awake:
            return
        source.awake = True
        self._awake.append(source)
        if not self._turning:
            self._next_turn()

    def _next_turn(self) -> None:
        self._turning = True
        self.clock.callLater(0, self._turn)

    def _turn(self) -> None:
        left = _TURN
        while self._awake and left > 0:
            source = self._awake.popleft()
            source.awake = False
            left -= source.deliver(min(left, _SHARE))
            if source.ready():
                self.wake(source)
        self._turning = False
        if self._awake:
            self._next_turn()
