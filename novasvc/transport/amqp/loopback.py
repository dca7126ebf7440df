"""Loopback check: a listener publishes a probe to itself and redeclares lost bindings."""

import os
from functools import partial
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.logger import Logger

from novasvc.interfaces import Reachability, WriteProbe
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import Channel
from novasvc.transport.amqp.content import PROBE
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.publisher import Message
from novasvc.transport.amqp.topology import Binding
from novasvc.transport.amqp.verification import NoConsumerError, Plan, ProbeRun, ProbeTimeoutError
from novasvc.transport.errors import BrokerBlockedError

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

_PROBE_FRACTION = 0.8
"""Fraction of a check's timeout in which the probe has to arrive; the rest is for the diagnosis."""
_RESUBSCRIBE_AT_TIMEOUT = 2
"""Number of the timeout within a streak at which the listener resubscribes."""
_SHORTEST_TTL = 0.1
_FORWARD_TTL = 10.0
"""Seconds."""
_ANSWER_LIMIT = 65_536
"""Largest answer of a peer to a probe, in bytes."""


@attrs.define(eq=False)
class Loopback:
    """Checks that messages reach one listener; see :meth:`novasvc.interfaces.IListener.verify`.

    :param address: the listener's own fanout queue, to which probes are forwarded; None if it has none.
    :ivar server_binding: binding of the server's queue.
    :ivar topic_binding: binding of the topic's queue.
    :ivar fanout_binding: binding of the listener's fanout queue.
    :ivar cancellation_bindings: further bindings of it, for internal messages.
    """

    # Note [Loopback probe]
    #
    # A broker can lose a binding and keep the queue and its consumer. Nothing on the consuming
    # connection reports that; only a message proves the route. The probe leaves by the publishing
    # connection, which in a cluster may lead to another broker node than the consuming one. It goes to
    # the control exchange, with the routing key of topic and server. It is mandatory, so a missing
    # binding shows at once as basic.return.
    #
    # The processes of one service share its queue, and any of them may receive the probe. Each
    # recognises the probe by its header and forwards it to the sender's fanout queue by the default
    # exchange. A peer that does not know the header sees a call of baseapi.ping, and replies to that
    # same queue. Either proves that the service can be reached.
    #
    # The topic and fanout bindings are not probed, because other services would receive the probe.
    # Each check redeclares one of them, in alternation; the broker does not say whether a binding
    # existed. It does say that a queue or an exchange does not exist, and a fanout exchange is deleted
    # with its last binding. The sole consumer of a topic also probes the topic. So a service that is
    # alone on its topic detects every loss, and among several a lost binding is restored within two
    # intervals.
    #
    # Declarations and probes use a channel of their own: a channel error closes it, and no other
    # message is lost.

    listener: "Listener"
    address: str | None
    options: BrokerOptions
    server_binding: Binding = attrs.field(init=False)
    topic_binding: Binding = attrs.field(init=False)
    fanout_binding: Binding = attrs.field(init=False)
    cancellation_bindings: list[Binding] = attrs.field(init=False)
    _token_prefix: bytes = attrs.field(factory=lambda: os.urandom(12).hex().encode(), init=False)
    _probe_count: int = attrs.field(default=0, init=False)
    _checks: int = attrs.field(default=0, init=False)
    _timeout_streak: int = attrs.field(default=0, init=False)
    _requests_seen: int = attrs.field(default=0, init=False)
    _token: bytes = attrs.field(default=b"", init=False)
    _arrival: Deferred[None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        target, exchange = self.listener.target, self.listener.exchange
        topic, server = target.topic, topology.request_address(target)
        self.server_binding = Binding(server, exchange, server)
        self.topic_binding = Binding(topic, exchange, topic)
        self.fanout_binding = Binding(self.address or "", topology.fanout_exchange(topic), topic)
        self.cancellation_bindings = topology.cancellation_bindings(exchange, target, self.address or "")

    # -- deliveries ----------------------------------------------------------------------------

    def watches(self, queue: str) -> bool:
        """Return whether :meth:`handle_probe` has to see all messages of a queue."""
        return queue in {self.server_binding.queue, self.address}

    def handle_probe(self, queue: str, body: bytes, probe: str | None) -> bool:
        """Handle a delivery if it is a probe, or a peer's answer to one; return whether it was.

        Called for all messages of the watched queues, and for all probes.

        :param probe: the probe header: the queue of its sender; None without the header.
        """
        if probe is None:
            if queue == self.server_binding.queue:
                self._requests_seen += 1
            if queue != self.address or len(body) > _ANSWER_LIMIT or self._token_prefix not in body:
                return False
            self._probe_arrived(body)
        elif probe == self.address:
            self._probe_arrived(body)
        elif queue == self.address:
            self._receive_order(probe, body)
        elif probe.startswith(f"{self.fanout_binding.exchange}_"):
            self._forward(probe, body)
        return True

    def _probe_arrived(self, body: bytes) -> None:
        if self._arrival is not None and self._token in body:
            arrival, self._arrival = self._arrival, None
            arrival.callback(None)

    def _receive_order(self, address: str, body: bytes) -> None:
        """Carry out an order to replace queues: another process's message in our own queue. Answer it."""

        def answer(text: bytes | None) -> Deferred[None] | None:
            if text is None:
                return None
            return self.listener.publish(Message("", address, text, _FORWARD_TTL, mandatory=False, target=address))

        answering = self.listener.subscriptions.replacements.receive(body).addCallback(answer)
        answering.addErrback(
            lambda failure: _log.warn("order to replace queues not answered: {error}", error=failure.value)
        )

    def _forward(self, address: str, body: bytes) -> None:
        """Forward a probe to its sender, another process of this service."""
        message = Message("", address, body, _FORWARD_TTL, mandatory=False, target=address, headers={PROBE: address})
        forwarding = self.listener.publish(message)
        forwarding.addErrback(
            lambda failure: _log.debug("probe to {queue} not forwarded: {error}", queue=address, error=failure.value)
        )

    # -- checks --------------------------------------------------------------------------------

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Send a probe and wait for it, restoring what is missing; see IListener."""
        listener = self.listener
        if self.address is None or listener.target.server is None:
            return succeed(Reachability())
        if listener.subscriptions.replacements:
            return self._check_replacements(timeout)
        self._checks += 1
        clock = listener.clock
        run = ProbeRun(self, write, clock.seconds() + timeout * _PROBE_FRACTION, self.routine_plan())
        verifying = Deferred.fromCoroutine(run.run())

        def no_answer(*_: object) -> Reachability:
            self._raise_if_blocked()
            return Reachability(f"the broker did not answer within {timeout:g} s")

        return verifying.addTimeout(timeout, clock, onTimeoutCancel=no_answer)

    def _check_replacements(self, timeout: float) -> Deferred[Reachability]:
        """Make no binding, and send no probe: while queues are replaced, that is the operator's to do."""
        listener = self.listener
        checking = Deferred.fromCoroutine(listener.subscriptions.replacements.check(listener.publisher))
        checking.addTimeout(timeout, listener.clock, onTimeoutCancel=lambda *_: None)
        return checking.addCallback(lambda _: Reachability())

    def _raise_if_blocked(self) -> None:
        """Raise BrokerBlockedError if the broker blocks publishing: the probe's absence then proves nothing."""
        connection = self.listener.publisher.connection
        if connection.state == "blocked":
            raise BrokerBlockedError(connection.address.shown(), f"it blocks publishing: {connection.blocked_by}")

    def routine_plan(self) -> Plan:
        """Return the plan of a check: redeclare the topic's binding and the fanout queue's in alternation."""
        if self._checks % 2:
            return Plan(count_consumers=True)
        return Plan(bindings=[self.fanout_binding, *self.cancellation_bindings])

    async def send_and_wait(self, plan: Plan, write: WriteProbe, deadline: float) -> None:
        """Declare, send a probe, and wait until it arrives or is known to queue behind other messages.

        :param deadline: seconds on the clock.
        :raises UndeliverableError: a binding is missing.
        :raises BrokerError: the broker refuses a declaration, or takes no message.
        :raises NoConsumerError: the queue has no consumer.
        :raises ProbeTimeoutError: the probe was confirmed and did not arrive.
        """
        listener, clock, seen_before = self.listener, self.listener.clock, self._requests_seen
        arrival: Deferred[None] = Deferred()
        self._arrival = arrival
        await self._send(self.server_binding, plan, write, deadline)
        if plan.to_topic:
            await self._send(self.topic_binding, Plan(), write, deadline)
        try:
            await arrival.addTimeout(max(0.0, deadline - clock.seconds()), clock)
        except DeferredTimeoutError:
            self._arrival = None
        else:
            self._timeout_streak = 0
            return
        messages, consumers = await listener.publisher.count(self.server_binding.queue)
        if not consumers and not listener.is_quorum(self.server_binding.queue):
            raise NoConsumerError(self.server_binding.queue)
        if listener.is_full or (messages and self._requests_seen != seen_before):
            return  # It queues behind messages that are being processed.
        # Kept out of the error's text: the caller logs each change of that text.
        _log.debug(
            "probe overdue: {queue} has {messages} ready messages and {consumers} consumers",
            queue=self.server_binding.queue,
            messages=messages,
            consumers=consumers,
        )
        raise ProbeTimeoutError(f"a message to {self.server_binding.queue} was confirmed and did not arrive")

    def handle_timeout(self, problem: str) -> Reachability:
        """Report an overdue probe; resubscribe at the second of a streak, when load is no longer the likely cause.

        :raises BrokerBlockedError: the broker blocks publishing.
        """
        self._raise_if_blocked()
        self._timeout_streak += 1
        # "==", not ">=": one resubscribe per streak. If it did not help, another would not either.
        if self._timeout_streak == _RESUBSCRIBE_AT_TIMEOUT:
            self.listener.resubscribe(problem)
        return Reachability(problem)

    async def _send(self, binding: Binding, plan: Plan, write: WriteProbe, deadline: float) -> None:
        self._probe_count += 1
        token = b"%b%08x" % (self._token_prefix, self._probe_count)
        if binding is self.server_binding:
            self._token = token
        message = Message(
            binding.exchange,
            binding.routing_key,
            write(token.decode(), self.address or ""),
            max(_SHORTEST_TTL, deadline - self.listener.clock.seconds()),
            mandatory=True,
            target=binding.routing_key,
            headers={PROBE: self.address},
        )
        await self.listener.publisher.publish_probe(message, partial(self._declare, plan))

    async def _declare(self, plan: Plan, channel: Channel) -> None:
        if self.server_binding.exchange in plan.exchanges:
            await topology.declare_exchange(channel, self.server_binding.exchange, self.options)
        if self.fanout_binding.exchange in plan.exchanges:
            await topology.declare_fanout_exchange(channel, self.topic_binding.queue, self.options)
        bindings = plan.bindings
        if plan.count_consumers:
            # A full listener has cancelled its consumer, and starts another when it has room.
            before = self.listener.consumes_from(self.topic_binding.queue)
            _, consumers = await topology.count(channel, self.topic_binding.queue)
            still_consuming = before and self.listener.consumes_from(self.topic_binding.queue)
            if still_consuming and not consumers and not self.listener.is_quorum(self.topic_binding.queue):
                raise NoConsumerError(self.topic_binding.queue)
            plan.to_topic = still_consuming and consumers == 1
            bindings = [] if plan.to_topic else [self.topic_binding]
        for binding in bindings:
            if binding in plan.stale:
                # After a network partition a cluster may keep a binding that routes nowhere; unbind it first.
                await topology.unbind(channel, binding)
            await topology.bind(channel, binding)
