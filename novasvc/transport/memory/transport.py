"""ITransport over an in-memory broker."""

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from novasvc.interfaces import IListener, ITransport
from novasvc.rpc.errors import TransportClosedError, TransportFullError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.memory.broker import MemoryBroker, Message, Queue, QueueName
from novasvc.transport.memory.listener import MemoryListener, Receiver


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
    _listeners: list[MemoryListener] = attrs.field(factory=list, init=False)
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
        return self._begin(MemoryListener(broker, target.topic, receiver, prefetch, queues, fanout))

    def consume(self, queue: str, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from one queue only; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        queues: dict[QueueName, Queue] = {
            (self._exchange, queue, None): self._broker.queue(self._exchange, queue, None)
        }
        return self._begin(MemoryListener(self._broker, queue, receiver, prefetch, queues, None))

    def _begin(self, listener: MemoryListener) -> Deferred[IListener]:
        self._listeners = [*(known for known in self._listeners if not known.ended), listener]
        listening: Deferred[IListener] = succeed(listener)
        return listening

    def post(self, queue: str, body: bytes) -> Deferred[None]:
        """Append a message to a queue, which is created if it does not exist; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        taken = self._broker.queue(self._exchange, queue, None).put(Message(body, None))
        return succeed(None) if taken else fail(TransportFullError(queue, self._broker.bound))

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
