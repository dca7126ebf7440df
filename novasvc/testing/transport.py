"""A transport in memory that remembers what is sent, injects faults, and can be disconnected."""

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from novasvc.interfaces import IDelivery, IListener
from novasvc.rpc.errors import RPCError, TransportFullError
from novasvc.rpc.target import Target
from novasvc.testing.clock import SteppedClock
from novasvc.testing.faults import BROKER, Faults
from novasvc.testing.traffic import SentMessage, Traffic
from novasvc.transport.buffering import REPLY, longest_wait
from novasvc.transport.errors import BrokerUnavailableError
from novasvc.transport.memory import QUEUE_BOUND, MemoryBroker, MemoryTransport
from novasvc.transport.memory.broker import Message


@attrs.define(eq=False)
class Network:
    """What the transports of a fleet share.

    :ivar disconnected: the hosts without a connection to the broker.
    :ivar transports: all open transports.
    :ivar delayed: messages that a fault delays.
    """

    clock: SteppedClock
    broker: MemoryBroker = attrs.field(factory=MemoryBroker)
    faults: Faults = attrs.field(factory=Faults)
    traffic: Traffic = attrs.field(init=False)
    disconnected: set[str] = attrs.field(factory=set, init=False)
    transports: list["FleetTransport"] = attrs.field(factory=list, init=False)
    delayed: dict[Deferred[None], SentMessage] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.traffic = Traffic(self.clock.seconds)

    def delay(self, seconds: float, message: SentMessage, do: Callable[[], Any]) -> None:
        """Call a function later, which delivers this message."""

        def end(_: object) -> None:
            del self.delayed[waiting]

        waiting: Deferred[None] = deferLater(self.clock, seconds, lambda: None)
        self.delayed[waiting] = message
        waiting.addCallback(end)
        waiting.addCallback(lambda _: do()).addErrback(_lose)


class FleetTransport(MemoryTransport):
    """ITransport of one host of a fleet.

    :param network: shared by the hosts.
    :param host: the host's name.
    :param exchange: the control exchange of targets that name none.
    """

    # Note [A host without a connection]
    #
    # As over AMQP: the host's consumers are gone, what it had not settled is delivered again, and what it sends is
    # buffered until there is a connection. Its queues stay, with what arrives there meanwhile, and so does its reply
    # address.

    def __init__(self, network: Network, host: str, exchange: str) -> None:
        super().__init__(network.broker, clock=network.clock, exchange=exchange)
        self._network = network
        self.host = host
        self._outbox: dict[Deferred[None], Callable[[], Deferred[None]]] = {}
        self._copies: Counter[bytes] = Counter()
        self._inbox: deque[tuple[Callable[[bytes], None], bytes]] = deque()

    @property
    def connected(self) -> bool:
        """Whether its host has a connection to the broker."""
        return self.host not in self._network.disconnected

    def open(self) -> Deferred[None]:
        """Connect; see ITransport."""
        if not self.connected:
            return fail(self._lost())
        self._network.transports.append(self)
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Disconnect; see ITransport."""
        if self in self._network.transports:
            self._network.transports.remove(self)
        closed = super().close()
        self._flush()  # each fails now: the transport is closed
        return closed

    def problem(self) -> str | None:
        """Return what keeps messages from moving, or None; see ITransport."""
        return super().problem() or (None if self.connected else str(self._lost()))

    def _lost(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(BROKER, f"the test has disconnected {self.host}")

    # -- the connection ------------------------------------------------------------------------

    def reconnect(self) -> None:
        """Consume again, send what was buffered, and receive the replies that have arrived meanwhile."""
        super().reconnect()
        self._flush()
        while self._inbox and self.connected:
            receiver, body = self._inbox.popleft()
            receiver(body)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for waiter, send in outbox.items():
            if not waiter.called:
                send().chainDeferred(waiter)

    def _when_connected(self, name: str, send: Callable[[], Deferred[None]], patience: float) -> Deferred[None]:
        """Send a message now, or when there is a connection.

        :param patience: seconds for which it is buffered.
        """
        if self.connected or self._closed:
            return send()
        if len(self._outbox) >= QUEUE_BOUND:
            return fail(TransportFullError(name, QUEUE_BOUND))

        def lost(*_: object) -> None:
            raise self._lost()

        def done(result: Any) -> Any:
            self._outbox.pop(waiter, None)
            return result

        waiter: Deferred[None] = Deferred()
        self._outbox[waiter] = send
        return waiter.addTimeout(patience, self._clock, onTimeoutCancel=lost).addBoth(done)

    # -- what is sent --------------------------------------------------------------------------

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:  # noqa: FBT001 - the interface's signature
        """Send a request; see ITransport."""
        if target.internal:  # the framework's own, such as a cancellation: no message of the test's
            send = partial(super().send, target, body, ttl, mandatory)
            return self._when_connected(str(target), send, longest_wait(ttl))
        expires_at = None if ttl is None else self._clock.seconds() + ttl
        if self._broker.route(target.exchange or self._exchange, target):
            mandatory = False  # a queue is still bound if its servers have stopped, or have lost their connection
        message = self._network.traffic.note_request(self.host, target, body)

        def put() -> Deferred[None]:
            left = None if expires_at is None else expires_at - self._clock.seconds()
            if left is not None and left <= 0:
                return succeed(None)  # as the broker, which drops what has expired
            return MemoryTransport.send(self, target, body, left, mandatory)

        return self._when_connected(str(target), partial(self._send, message, put), longest_wait(ttl))

    def post(self, queue: str, body: bytes) -> Deferred[None]:
        """Send a message to a queue; see ITransport."""
        message = self._network.traffic.note_event(self.host, queue, body)
        send = partial(self._send, message, partial(super().post, queue, body))
        return self._when_connected(queue, send, longest_wait(None))

    def publish(self, key: str, body: bytes) -> Deferred[None]:
        """Publish a message to the queues that are bound with a routing key; see ITransport."""
        message = self._network.traffic.note_event(self.host, key, body)
        send = partial(self._send, message, partial(super().publish, key, body))
        return self._when_connected(key, send, longest_wait(None))

    def reply(self, address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        """Send a reply; see ITransport."""
        message = self._network.traffic.note_reply(self.host, body)
        send = partial(super().reply, address, body, timeout)
        if message is not None:
            send = partial(self._send, message, send, reply=True)
        return self._when_connected(address, send, longest_wait(None, REPLY if timeout is None else timeout))

    def _send(self, message: SentMessage, send: Callable[[], Deferred[None]], *, reply: bool = False) -> Deferred[None]:
        """Send a message, or do to it what a fault says."""
        fault = self._network.faults.find(message, self.host if reply else None, reply=reply)
        match fault and fault.kind:
            case "drop":
                return succeed(None)
            case "delay":
                assert fault is not None
                self._network.delay(fault.seconds, message, send)
                return succeed(None)
            case "duplicate":
                return send().addCallback(lambda _: send())
            case "refuse":
                assert fault is not None
                return fail(fault.error)
            case _:
                return send()

    # -- what is received ----------------------------------------------------------------------

    def listen(self, target: Target, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume a target's messages; see ITransport."""
        if not self.connected:
            return fail(self._lost())
        return super().listen(target, partial(self._receive, receiver, None), prefetch)

    def consume(self, queue: str, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume from one queue; see ITransport."""
        if not self.connected:
            return fail(self._lost())
        return super().consume(queue, partial(self._receive, receiver, queue), prefetch)

    def open_replies(self, receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Create a reply address; see ITransport."""

        def receive(body: bytes) -> None:
            if self.connected:
                receiver(body)
            elif len(self._inbox) < QUEUE_BOUND:
                self._inbox.append((receiver, body))

        return super().open_replies(receive)

    def _receive(self, receiver: Callable[[IDelivery], None], queue: str | None, delivery: IDelivery) -> None:
        """Receive a delivery, or do to it what a fault says.

        :param queue: that it was consumed from; None for those of a server.
        """
        message = self._network.traffic.find(delivery.body)
        fault = None
        if self._copies[delivery.body]:
            self._copies[delivery.body] -= 1  # the copy that a fault has made: no fault is applied to it
        elif message is not None:
            fault = self._network.faults.find(message, self.host)
        if message is None or fault is None or fault.kind == "duplicate":
            self._hand_over(receiver, delivery, message)
        if fault is None or message is None:
            return
        if fault.kind == "drop":
            delivery.ack()
        elif fault.kind == "delay":
            self._network.delay(fault.seconds, message, partial(self._hand_over, receiver, delivery, message))
        elif fault.kind == "duplicate":
            # To the queue of this host, or to the one that it was consumed from. If that is full, the copy is lost.
            names = (message.topic, self.host) if queue is None else (queue, None)
            if self._broker.queue(self._exchange, *names).put(Message(delivery.body, delivery.expires_at)):
                self._copies[delivery.body] += 1

    def _hand_over(
        self, receiver: Callable[[IDelivery], None], delivery: IDelivery, message: SentMessage | None
    ) -> None:
        expires_in = delivery.expires_in
        if delivery.session.ended:
            return  # delayed, and given back meanwhile
        if expires_in is not None and expires_in <= 0:
            delivery.ack()
            return
        if message is not None:
            message.received_by.append(self.host)
        receiver(delivery)


def _lose(failure: Failure) -> None:
    """Lose a message that was delayed: its queue is full, or its host has stopped meanwhile."""
    failure.trap(RPCError)
