"""Proof that messages reach a listener: it sends itself a probe as a caller would, and binds its queues again."""

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
from novasvc.transport.amqp.verification import NoConsumerError, Plan, ProbeTimeoutError, Verification
from novasvc.transport.errors import BrokerBlockedError

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

_PROBE_FRACTION = 0.8
"""Fraction of a verification's timeout in which the probe has to return; the rest is for the diagnosis."""
_TIMEOUTS_TOLERATED = 2
"""Consecutive overdue probes after which the listener resubscribes."""
_SHORTEST_TTL = 0.1
_FORWARD_TTL = 10.0
"""Seconds."""
_ANSWER_LIMIT = 65_536
"""Largest answer of a peer to a probe, in bytes."""


@attrs.define(eq=False)
class Loopback:
    """Verifies the route to one listener; see :meth:`novasvc.interfaces.IListener.verify`.

    :param address: the listener's own fanout queue, to which probes return; None if it has none.
    :ivar server_binding: binding of the server's queue.
    :ivar topic_binding: binding of the topic's queue.
    :ivar fanout_binding: binding of the listener's fanout queue.
    """

    # Note [Loopback probe]
    #
    # A broker can lose a binding and keep the queue and its consumer. Nothing on the consuming
    # connection reports that; only a message proves the route. The probe leaves by the publishing
    # connection, which in a cluster may lead to another host than the consuming one. It goes to the
    # control exchange, with the routing key of topic and server. It is mandatory, so a missing binding
    # shows at once as basic.return.
    #
    # The processes of one host share its queue, and any of them may receive the probe. Each recognises
    # the probe by its header and forwards it to the sender's fanout queue by the default exchange. A
    # peer that does not know the header sees a call of baseapi.ping, and replies to that same queue.
    # Either proves that the host can be reached.
    #
    # A probe to the topic would reach another node, and a fanout all nodes. So those bindings are made
    # again instead, one of the two in each verification; the broker does not say whether a binding
    # existed. It does say that a queue or an exchange does not exist, and a fanout exchange is deleted
    # with its last binding. A node that is the only consumer of its topic also sends a probe to the
    # topic. So a node on its own detects every loss, and among others a lost binding is restored
    # within two intervals.
    #
    # Declarations and probes use a channel of their own: a refusal closes it, and no other message is
    # lost.

    listener: "Listener"
    address: str | None
    options: BrokerOptions
    server_binding: Binding = attrs.field(init=False)
    topic_binding: Binding = attrs.field(init=False)
    fanout_binding: Binding = attrs.field(init=False)
    _token_prefix: bytes = attrs.field(factory=lambda: os.urandom(12).hex().encode(), init=False)
    _probe_count: int = attrs.field(default=0, init=False)
    _verifications: int = attrs.field(default=0, init=False)
    _timeouts_in_a_row: int = attrs.field(default=0, init=False)
    _requests_seen: int = attrs.field(default=0, init=False)
    _token: bytes = attrs.field(default=b"", init=False)
    _returned: Deferred[None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        target, exchange = self.listener.target, self.listener.exchange
        topic, server = target.topic, topology.request_address(target)
        self.server_binding = Binding(server, exchange, server)
        self.topic_binding = Binding(topic, exchange, topic)
        self.fanout_binding = Binding(self.address or "", topology.fanout_exchange(topic), topic)

    # -- deliveries ----------------------------------------------------------------------------

    def watches(self, queue: str) -> bool:
        """Return whether :meth:`consume_probe` has to see all messages of a queue."""
        return queue in {self.server_binding.queue, self.address}

    def consume_probe(self, queue: str, body: bytes, probe: str | None) -> bool:
        """Consume a delivery if it is a probe, or a peer's answer to one; return whether it was.

        Called for all messages of the watched queues, and for all probes.

        :param probe: the probe header: the queue of its sender; None without the header.
        """
        if probe is None:
            if queue == self.server_binding.queue:
                self._requests_seen += 1
            if queue != self.address or len(body) > _ANSWER_LIMIT or self._token_prefix not in body:
                return False
            self._probe_returned(body)
        elif probe == self.address:
            self._probe_returned(body)
        elif queue != self.address and probe.startswith(f"{self.fanout_binding.exchange}_"):
            self._forward(probe, body)
        return True

    def _probe_returned(self, body: bytes) -> None:
        if self._returned is not None and self._token in body:
            returned, self._returned = self._returned, None
            returned.callback(None)

    def _forward(self, address: str, body: bytes) -> None:
        """Forward a probe to its sender, another process of this host."""
        message = Message("", address, body, _FORWARD_TTL, mandatory=False, target=address, headers={PROBE: address})
        forwarding = self.listener.publish(message)
        forwarding.addErrback(
            lambda failure: _log.debug("probe to {queue} not forwarded: {error}", queue=address, error=failure.value)
        )

    # -- verifications -------------------------------------------------------------------------

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Send a probe and wait for it, restoring what is missing; see IListener."""
        listener = self.listener
        if self.address is None or listener.target.server is None:
            return succeed(Reachability())
        self._verifications += 1
        clock = listener.clock
        verification = Verification(self, write, clock.seconds() + timeout * _PROBE_FRACTION, self.routine_plan())
        verifying = Deferred.fromCoroutine(verification.run())
        silent = Reachability(f"the broker did not answer within {timeout:g} s")
        return verifying.addTimeout(timeout, clock, onTimeoutCancel=lambda *_: self._unless_blocked(silent))

    def _unless_blocked(self, found: Reachability) -> Reachability:
        """Return the finding, unless the broker blocks publishing.

        :raises BrokerBlockedError: it does.
        """
        connection = self.listener.publisher.connection
        if connection.state == "blocked":
            raise BrokerBlockedError(connection.address.shown(), f"it blocks publishing: {connection.blocked_by}")
        return found

    def routine_plan(self) -> Plan:
        """Return the plan of a verification: check the topic's and the fanout's binding in turns."""
        return Plan(count_consumers=True) if self._verifications % 2 else Plan(bindings=[self.fanout_binding])

    async def send_and_wait(self, plan: Plan, write: WriteProbe, deadline: float) -> None:
        """Declare, send a probe, and wait until it is back or known to queue behind other messages.

        :param deadline: seconds on the clock.
        :raises UndeliverableError: a binding is missing.
        :raises BrokerError: the broker refuses a declaration, or takes no message.
        :raises NoConsumerError: the queue has no consumer.
        :raises ProbeTimeoutError: the probe was confirmed and is not back.
        """
        listener, clock, seen_before = self.listener, self.listener.clock, self._requests_seen
        returned: Deferred[None] = Deferred()
        self._returned = returned
        await self._send(self.server_binding, plan, write, deadline)
        if plan.to_topic:
            await self._send(self.topic_binding, Plan(), write, deadline)
        try:
            await returned.addTimeout(max(0.0, deadline - clock.seconds()), clock)
        except DeferredTimeoutError:
            self._returned = None
        else:
            self._timeouts_in_a_row = 0
            return
        messages, consumers = await listener.publisher.count(self.server_binding.queue)
        if not consumers and not self.options.quorum_queue:
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

    def timed_out(self, problem: str) -> Reachability:
        """Report an overdue probe; resubscribe the second time in a row, when load is no longer the likely cause."""
        found = self._unless_blocked(Reachability(problem))
        self._timeouts_in_a_row += 1
        if self._timeouts_in_a_row == _TIMEOUTS_TOLERATED:
            self.listener.resubscribe(problem)
        return found

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
            # A full node has cancelled its consumer, and starts another when it has room.
            consumed = self.listener.consumes_from(self.topic_binding.queue)
            _, consumers = await topology.count(channel, self.topic_binding.queue)
            consumes = consumed and self.listener.consumes_from(self.topic_binding.queue)
            if consumes and not consumers and not self.options.quorum_queue:
                raise NoConsumerError(self.topic_binding.queue)
            plan.to_topic = consumes and consumers == 1
            bindings = [] if plan.to_topic else [self.topic_binding]
        for binding in bindings:
            if binding in plan.stale:
                # After a network partition a cluster may keep a binding that routes nowhere; unbind it first.
                await topology.unbind(channel, binding)
            await topology.bind(channel, binding)
