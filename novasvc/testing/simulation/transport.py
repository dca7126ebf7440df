"""ITransport of one process of a simulation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.rpc.errors import TransportClosedError, UnconfirmedError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.testing.simulation.broker import SimulatedBroker
from novasvc.testing.simulation.clock import ProcessClock
from novasvc.testing.simulation.link import Link
from novasvc.testing.simulation.receiving import Listener, Receiver
from novasvc.testing.simulation.sending import BROKER, Sender
from novasvc.transport.errors import BrokerUnavailableError
from novasvc.transport.memory import QUEUE_BOUND, MemoryTransport

_REPLY_PATIENCE = 60.0
"""Seconds for which a reply is kept if nobody knows how long its caller waits."""
_REPLY_PAUSE = 0.5
"""Seconds after which an unconfirmed reply is sent again."""


@implementer(ITransport)
class SimulatedTransport:
    """ITransport of one process, over a link to the broker that all share.

    :param broker: shared by all processes.
    :param clock: the clock of the process.
    :param connect: makes the link; takes the three functions that :class:`Link` calls.
    :param name: of the process.
    """

    def __init__(
        self,
        broker: SimulatedBroker,
        clock: ProcessClock,
        connect: Callable[[Callable[[], None], Callable[[], None], Callable[[], None]], Link],
        name: str,
        exchange: str,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._name = name
        self._inner = MemoryTransport(broker.queues, clock=broker.clock, exchange=exchange)
        self._exchange = exchange
        self._listeners: list[Listener] = []
        self._requests: dict[Deferred[Any], None] = {}
        self._inbox: list[tuple[Callable[[bytes], None], bytes]] = []
        self._open_to_process = True
        self._made = 0
        self.dead = False
        self.link = connect(self._lost, self._lost_by_broker, self._restored)
        self._sender = Sender(self.link, clock, partial(broker.refusal, name))

    # -- the connection ------------------------------------------------------------------------

    def _ask(self, do: Callable[[], Deferred[Any]], stream: str, *, after: tuple[str, ...] = ()) -> Deferred[Any]:
        if not self.link.connected:
            return fail(BrokerUnavailableError(BROKER, "the connection is lost"))
        waiting: Deferred[Any] = Deferred()
        self._requests[waiting] = None

        def answer(result: Any) -> None:
            self._requests.pop(waiting, None)
            if not waiting.called:
                waiting.callback(result)

        def arrive() -> None:
            maybeDeferred(do).addBoth(
                lambda result: self.link.to_process("answers", partial(answer, result), after=after)
            )

        self.link.to_broker(stream, arrive)
        return waiting

    def _lost(self) -> None:
        self._broker.trace.note("lost", self._name, "its connection to the broker")
        for listener in self._listeners:
            listener.lost()
        self._sender.lost()
        requests, self._requests = self._requests, {}
        for waiting in requests:
            if not waiting.called:
                waiting.errback(BrokerUnavailableError(BROKER, "the connection was lost"))

    def _lost_by_broker(self) -> None:
        self._open_to_process = False
        if self.dead:
            self._inner.close()
        else:
            self._inner.disconnect()

    def _restored(self) -> None:
        self._broker.trace.note("connected", self._name, "")
        self._open_to_process = True
        for listener in self._listeners:
            listener.restored()
        self._inner.reconnect()
        self._sender.flush()
        inbox, self._inbox = self._inbox, []
        for receiver, body in inbox:
            self.link.to_process("replies", partial(receiver, body))

    def open(self) -> Deferred[None]:
        """Connect; see ITransport for this and the other methods."""
        return self._ask(lambda: succeed(None), "publish")

    def close(self) -> Deferred[None]:
        """Disconnect."""
        if self._sender.closed:
            return succeed(None)
        self._sender.close()
        for listener in self._listeners:
            listener.session.ended = True
        requests, self._requests = self._requests, {}
        for waiting in requests:
            if not waiting.called:
                waiting.errback(TransportClosedError("asking the broker"))
        if not self.link.connected:
            return self._inner.close()
        closing = self._ask(self._inner.close, "settle")
        return closing.addErrback(lambda _: self._inner.close())

    def problem(self) -> str | None:
        """Return what keeps messages from moving, or None."""
        if self._sender.closed:
            return "the transport is closed"
        return None if self.link.connected else "the connection to the broker is lost"

    @property
    def unsettled(self) -> int:
        """The number of deliveries to its listeners that the broker takes for unsettled."""
        return self._inner.unsettled

    # -- what is sent --------------------------------------------------------------------------

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:  # noqa: FBT001 - the interface's signature
        """Send a request."""
        self._broker.note("send", self._name, str(target), body)
        queues = self._broker.queues

        def put(left: float | None) -> Deferred[None]:
            if left is not None and left <= 0:
                return succeed(None)  # as the broker, which drops what has expired
            # A queue without consumers is still bound.
            if mandatory and not target.internal and not queues.route(target.exchange or self._exchange, target):
                return fail(UndeliverableError(str(target)))
            return self._inner.send(target, body, left, False)

        return self._sender.send(str(target), put, ttl)

    def post(self, queue: str, body: bytes) -> Deferred[None]:
        """Send a message to a queue."""
        self._broker.note("post", self._name, queue, body)
        return self._sender.send(queue, lambda _: self._inner.post(queue, body), None)

    def publish(self, key: str, body: bytes) -> Deferred[None]:
        """Send a message to the queues that are bound with a routing key."""
        self._broker.note("publish", self._name, key, body)
        return self._sender.send(key, lambda _: self._inner.publish(key, body), None)

    def reply(self, address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        """Send a reply; one that was not confirmed is sent again while its caller waits."""
        patience = _REPLY_PATIENCE if timeout is None else timeout
        until = self._clock.seconds() + patience
        self._broker.note("reply", self._name, address, body)

        def send() -> Deferred[None]:
            left = until - self._clock.seconds()
            sending = self._sender.send(address, lambda _: self._inner.reply(address, body), None, max(0.0, left))
            return sending.addErrback(again)

        def again(failure: Failure) -> Any:
            failure.trap(UnconfirmedError)
            if self._sender.closed or self._clock.seconds() + _REPLY_PAUSE >= until:
                return failure
            return deferLater(self._clock, _REPLY_PAUSE, send)

        return send()

    # -- what is received ----------------------------------------------------------------------

    def listen(self, target: Target, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume a target's messages."""
        return self._begin(receiver, lambda deliver: self._inner.listen(target, deliver, prefetch))

    def consume(self, queue: str, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from one queue."""
        return self._begin(receiver, lambda deliver: self._inner.consume(queue, deliver, prefetch))

    def subscribe(self, queue: str, keys: Sequence[str], receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from a queue that gets a copy of what is published to the keys."""
        return self._begin(receiver, lambda deliver: self._inner.subscribe(queue, keys, deliver, prefetch))

    def _begin(self, receiver: Receiver, begin: Callable[[Receiver], Deferred[IListener]]) -> Deferred[IListener]:
        if self._sender.closed:
            return fail(TransportClosedError("listening"))
        self._made += 1
        name = f"listener{self._made}"

        def receive(delivery: IDelivery) -> None:
            self._broker.note("deliver", self._name, f"deliveries={delivery.deliveries}", delivery.body)
            receiver(delivery)

        listener = Listener(name, receive, self.link, self._clock, self._ask)

        def start() -> Deferred[IListener]:
            if listener.abandoned:
                return fail(BrokerUnavailableError(BROKER, "the connection was lost"))
            return begin(listener.deliver).addCallback(started)

        def started(inner: Any) -> IListener:
            listener.inner = inner
            self._listeners.append(listener)
            return listener

        def lost(failure: Failure) -> Failure:
            # The broker may have made it, and told nobody; a lost connection takes its consumers along.
            listener.abandoned = True
            if listener.inner is not None:
                listener.inner.close()
                self._listeners.remove(listener)
            return failure

        asking: Deferred[IListener] = self._ask(start, "publish")
        return asking.addErrback(lost)

    def open_replies(self, receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Create a reply address."""
        if self._sender.closed:
            return fail(TransportClosedError("receiving replies"))

        def arrive(body: bytes) -> None:
            if self._open_to_process:
                self.link.to_process("replies", partial(receiver, body))
            elif len(self._inbox) < QUEUE_BOUND:
                self._inbox.append((receiver, body))

        return self._ask(lambda: self._inner.open_replies(arrive), "publish")

    def close_replies(self, address: str) -> Deferred[None]:
        """Delete a reply address."""
        if not self.link.connected:
            return self._inner.close_replies(address)
        closing = self._ask(lambda: self._inner.close_replies(address), "publish")
        return closing.addErrback(lambda _: self._inner.close_replies(address))
