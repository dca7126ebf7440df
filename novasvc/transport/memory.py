"""Messages within one process: the transport of ``memory:``.

For a node on its own, for several nodes in one process, and for tests. It keeps the promises of
a broker (queues, prefetch, redelivery, expiry), and what it delivers it delivers later: never
from within the call that sent it.
"""

import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.errors import TransportClosedError, TransportFullError, UndeliverableError
from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.target import Target

_log = Logger()

QUEUE_BOUND = 10_000
"""Messages that a queue holds at the most, those that were delivered not counted."""

_TURN = 128
"""Messages that are delivered in one turn of the reactor at the most; others want it too."""
_SHARE = 16
"""Messages that one queue delivers before the next queue's turn comes."""

Receiver = Callable[[IDelivery], None]
ReplyReceiver = Callable[[bytes], None]


class _Source(Protocol):
    """What the broker drains: a queue, or a box of replies."""

    awake: bool

    def ready(self) -> bool: ...

    def deliver(self, limit: int) -> int: ...


@attrs.define(eq=False)
class _Message:
    """A request that waits.

    :param expires_at: seconds on the clock; None is "never".
    """

    body: bytes
    expires_at: float | None
    redelivered: bool = False


@attrs.define(eq=False)
class _Queue:
    """Messages in order, and the listeners that share them."""

    _broker: "MemoryBroker"
    bound: int
    messages: deque[_Message] = attrs.field(factory=deque, init=False)
    consumers: deque["_Listener"] = attrs.field(factory=deque, init=False)
    awake: bool = attrs.field(default=False, init=False)

    def full(self) -> bool:
        """Tell whether it is at its bound, once what expired is gone from its head."""
        while len(self.messages) >= self.bound:
            expires_at = self.messages[0].expires_at
            if expires_at is None or expires_at > self._broker.seconds():
                return True
            self.messages.popleft()
        return False

    def put(self, message: _Message) -> None:
        self.messages.append(message)
        self._broker.wake(self)

    def put_back(self, message: _Message) -> None:
        """Take back what was delivered; it comes next, and may exceed the bound by a prefetch."""
        message.redelivered = True
        self.messages.appendleft(message)
        self._broker.wake(self)

    def ready(self) -> bool:
        return bool(self.messages) and any(listener.has_room() for listener in self.consumers)

    def deliver(self, limit: int) -> int:
        """Hand out messages, one to each listener in turn; return how many were handled."""
        handled = 0
        while handled < limit and self.messages:
            listener = self._next_listener()
            if listener is None:
                break
            handled += 1
            message = self.messages.popleft()
            if message.expires_at is None or message.expires_at > self._broker.seconds():
                listener.take(message, self)
        return handled

    def _next_listener(self) -> "_Listener | None":
        for _ in range(len(self.consumers)):
            listener = self.consumers[0]
            self.consumers.rotate(-1)
            if listener.has_room():
                return listener
        return None


@attrs.define(eq=False)
class _ReplyBox:
    """Replies on their way to one caller's process."""

    receiver: ReplyReceiver
    bodies: deque[bytes] = attrs.field(factory=lambda: deque(maxlen=QUEUE_BOUND), init=False)
    awake: bool = attrs.field(default=False, init=False)

    def ready(self) -> bool:
        return bool(self.bodies)

    def deliver(self, limit: int) -> int:
        handled = 0
        while handled < limit and self.bodies:
            handled += 1
            _guarded(self.receiver, self.bodies.popleft())
        return handled


@attrs.define(eq=False)
class MemoryBroker:
    """What a broker is to a cluster, for the nodes of one process.

    Queues come with their first listener and stay, so that casts wait while a service restarts.
    They are as many as there were different targets.

    :param bound: messages that each queue holds at the most.
    """

    bound: int = QUEUE_BOUND
    _clock: IReactorTime | None = attrs.field(default=None, init=False)
    _queues: dict[tuple[str, str, str | None], _Queue] = attrs.field(factory=dict, init=False)
    _fanouts: dict[str, dict[_Queue, None]] = attrs.field(factory=dict, init=False)
    _boxes: dict[str, _ReplyBox] = attrs.field(factory=dict, init=False)
    _awake: deque[_Source] = attrs.field(factory=deque, init=False)
    _turning: bool = attrs.field(default=False, init=False)

    def attach(self, clock: IReactorTime) -> None:
        """Take the clock of a transport; all transports of a broker have the same.

        :raises ValueError: this one has another.
        """
        if self._clock not in (None, clock):
            problem = "the transports of a MemoryBroker live in one process, on one clock"
            raise ValueError(problem)
        self._clock = clock

    def seconds(self) -> float:
        """Read the clock."""
        assert self._clock is not None
        return self._clock.seconds()

    def queue(self, exchange: str, topic: str, server: str | None) -> _Queue:
        """Return a queue, made if it is new."""
        name = (exchange, topic, server)
        return self._queues.setdefault(name, _Queue(self, self.bound))

    def add_fanout(self, topic: str) -> _Queue:
        """Make one more queue that gets a copy of each fanout. As with the peers, exchanges share them."""
        queue = _Queue(self, self.bound)
        self._fanouts.setdefault(topic, {})[queue] = None
        return queue

    def drop_fanout(self, topic: str, queue: _Queue) -> None:
        """Give up such a queue and what is in it."""
        queues = self._fanouts.get(topic, {})
        queues.pop(queue, None)
        if not queues:
            self._fanouts.pop(topic, None)

    def route(self, exchange: str, target: Target) -> list[_Queue]:
        """Return the queues that a message for the target goes to; none if there never was a listener."""
        if target.fanout:
            return list(self._fanouts.get(target.topic, ()))
        queue = self._queues.get((exchange, target.topic, target.server))
        return [] if queue is None else [queue]

    def add_replies(self, receiver: ReplyReceiver) -> str:
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

    def wake(self, source: _Source) -> None:
        """Deliver from a source in the next turn, if it has anything for anybody."""
        if source.awake:
            return
        source.awake = True
        self._awake.append(source)
        if not self._turning:
            self._next_turn()

    def _next_turn(self) -> None:
        assert self._clock is not None
        self._turning = True
        self._clock.callLater(0, self._turn)

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


@implementer(IDelivery)
@attrs.define(eq=False)
class _Delivery:
    """A message in the hands of a listener."""

    _message: _Message
    _queue: _Queue
    _listener: "_Listener"
    body: bytes
    redelivered: bool

    @property
    def expires_in(self) -> float | None:
        expires_at = self._message.expires_at
        return None if expires_at is None else expires_at - self._listener.broker.seconds()

    def ack(self) -> None:
        self._listener.settle(self)

    def reject(self, requeue: bool) -> None:  # noqa: FBT001 - the interface's signature
        if self._listener.settle(self) and requeue:
            self.put_back()

    def put_back(self) -> None:
        self._queue.put_back(self._message)


@implementer(IListener)
@attrs.define(eq=False)
class _Listener:
    """A server that listens to three queues with one prefetch."""

    broker: MemoryBroker
    _topic: str
    _receiver: Receiver
    _prefetch: int
    _shared: tuple[_Queue, ...]
    _fanout: _Queue
    live: bool = attrs.field(default=True, init=False)
    closed: bool = attrs.field(default=False, init=False)
    _unsettled: dict[_Delivery, None] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        for queue in (*self._shared, self._fanout):
            queue.consumers.append(self)
            self.broker.wake(queue)

    def has_room(self) -> bool:
        return len(self._unsettled) < self._prefetch

    def take(self, message: _Message, queue: _Queue) -> None:
        delivery = _Delivery(message, queue, self, message.body, message.redelivered)
        self._unsettled[delivery] = None
        _guarded(self._receiver, delivery)

    def settle(self, delivery: _Delivery) -> bool:
        """Note that a delivery was answered for; False if it was before, or went back."""
        if delivery not in self._unsettled:
            return False
        had_room = self.has_room()
        del self._unsettled[delivery]
        if not had_room and self.live:
            for queue in (*self._shared, self._fanout):
                self.broker.wake(queue)
        return True

    def cancel(self) -> Deferred[None]:
        if self.live:
            self.live = False
            for queue in (*self._shared, self._fanout):
                queue.consumers.remove(self)
        return succeed(None)

    def close(self) -> Deferred[None]:
        self.cancel()
        self.closed = True
        self.broker.drop_fanout(self._topic, self._fanout)
        unsettled, self._unsettled = list(self._unsettled), {}
        for delivery in reversed(unsettled):  # the oldest will be the first again
            delivery.put_back()
        return succeed(None)


@implementer(ITransport)
@attrs.define(eq=False)
class MemoryTransport:
    """The way to a :class:`MemoryBroker`.

    :param broker: shared by all that want to reach each other.
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
        """Do nothing: the broker is here."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Close the listeners and give up the addresses; see ITransport."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
        for address in self._addresses:
            self._broker.drop_replies(address)
        self._listeners, self._addresses = [], []
        return succeed(None)

    def listen(self, target: Target, receiver: Receiver, prefetch: int) -> Deferred[_Listener]:
        """Consume; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        exchange, broker = target.exchange or self._exchange, self._broker
        servers = (None,) if target.server is None else (None, target.server)
        shared = tuple(broker.queue(exchange, target.topic, server) for server in servers)
        listener = _Listener(broker, target.topic, receiver, prefetch, shared, broker.add_fanout(target.topic))
        self._listeners = [*(known for known in self._listeners if not known.closed), listener]
        return succeed(listener)

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:  # noqa: FBT001 - the interface's signature
        """Send; see ITransport.

        A fanout reaches all whose queues have room, and fails if one had none.
        """
        if self._closed:
            return fail(TransportClosedError("sending"))
        queues = self._broker.route(target.exchange or self._exchange, target)
        if mandatory and not any(queue.consumers for queue in queues):
            return fail(UndeliverableError(str(target)))
        expires_at = None if ttl is None else self._clock.seconds() + ttl
        room = [queue for queue in queues if not queue.full()]
        for queue in room:
            queue.put(_Message(body, expires_at))
        if len(room) < len(queues):
            return fail(TransportFullError(str(target), self._broker.bound))
        return succeed(None)

    def open_replies(self, receiver: ReplyReceiver) -> Deferred[str]:
        """Receive replies; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("receiving replies"))
        address = self._broker.add_replies(receiver)
        self._addresses.append(address)
        return succeed(address)

    def reply(self, address: str, body: bytes) -> Deferred[None]:
        """Reply; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("replying"))
        self._broker.reply(address, body)
        return succeed(None)


def _guarded(receiver: Callable[..., None], delivered: object) -> None:
    """Call a receiver; one that raises must not keep the others' messages."""
    try:
        receiver(delivered)
    except Exception:
        _log.failure("a receiver of messages raised, which it must not")
