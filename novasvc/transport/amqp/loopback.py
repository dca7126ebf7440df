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
from novasvc.transport.amqp.verification import GoneError, OverdueError, Plan, Verification
from novasvc.transport.errors import BrokerBlockedError

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

_WAITING = 0.8
"""Fraction of a verification's timeout in which the probe has to return; the rest is for the diagnosis."""
_TOO_OFTEN = 2
"""Consecutive overdue probes after which the listener consumes anew."""
_SHORTEST_TTL = 0.1
_FORWARD_TTL = 10.0
"""Seconds."""
_ANSWER_LIMIT = 65_536
"""Largest answer of a peer to a probe, in bytes."""


@attrs.define(eq=False)
class Loopback:
    """Verifies the route to one listener; see :meth:`novasvc.interfaces.IListener.verify`.

    :param address: the listener's own fanout queue, to which probes return; None if it has none.
    :ivar host: binding of the server's queue.
    :ivar topic: binding of the topic's queue.
    :ivar fanout: binding of the listener's fanout queue.
    """

    # Note [The way to oneself]
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
    host: Binding = attrs.field(init=False)
    topic: Binding = attrs.field(init=False)
    fanout: Binding = attrs.field(init=False)
    _mark: bytes = attrs.field(factory=lambda: os.urandom(12).hex().encode(), init=False)
    _probes: int = attrs.field(default=0, init=False)
    _rounds: int = attrs.field(default=0, init=False)
    _overdue: int = attrs.field(default=0, init=False)
    _taken: int = attrs.field(default=0, init=False)
    _token: bytes = attrs.field(default=b"", init=False)
    _back: Deferred[None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        target, exchange = self.listener.target, self.listener.exchange
        topic, host = target.topic, topology.request_address(target)
        self.host = Binding(host, exchange, host)
        self.topic = Binding(topic, exchange, topic)
        self.fanout = Binding(self.address or "", topology.fanout_exchange(topic), topic)

    # -- deliveries ----------------------------------------------------------------------------

    def watches(self, queue: str) -> bool:
        """Return whether :meth:`take` has to see all messages of a queue: the server's, and the one for answers."""
        return queue in {self.host.queue, self.address}

    def take(self, queue: str, body: bytes, probe: str | None) -> bool:
        """Consume a delivery if it is a probe, or a peer's answer to one; return whether it was.

        Called for all messages of the watched queues, and for all probes.

        :param probe: the probe header: the queue of its sender; None without the header.
        """
        if probe is None:
            if queue == self.host.queue:
                self._taken += 1
            if queue != self.address or len(body) > _ANSWER_LIMIT or self._mark not in body:
                return False
            self._came_back(body)
        elif probe == self.address:
            self._came_back(body)
        elif queue != self.address and probe.startswith(f"{self.fanout.exchange}_"):
            self._pass_on(probe, body)
        return True

    def _came_back(self, body: bytes) -> None:
        if self._back is not None and self._token in body:
            back, self._back = self._back, None
            back.callback(None)

    def _pass_on(self, address: str, body: bytes) -> None:
        """Forward a probe to its sender, another process of this host."""
        message = Message("", address, body, _FORWARD_TTL, mandatory=False, target=address, headers={PROBE: address})
        passing = self.listener.publish(message)
        passing.addErrback(lambda failure: _log.debug("a probe was not passed on: {error}", error=failure.value))

    # -- verifications -------------------------------------------------------------------------

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Send a probe and wait for it, restoring what is missing; see IListener."""
        listener = self.listener
        if self.address is None or listener.target.server is None:
            return succeed(Reachability())
        self._rounds += 1
        clock = listener.clock
        verification = Verification(self, write, clock.seconds() + timeout * _WAITING, self.regular())
        verifying = Deferred.fromCoroutine(verification.run())
        silent = Reachability(f"the broker did not answer within {timeout:g} s")
        return verifying.addTimeout(timeout, clock, onTimeoutCancel=lambda *_: self._judged(silent))

    def _judged(self, found: Reachability) -> Reachability:
        """Return the finding, unless the broker blocks publishing.

        :raises BrokerBlockedError: it does.
        """
        connection = self.listener.publisher.connection
        if connection.state == "blocked":
            raise BrokerBlockedError(connection.address.shown(), f"it blocks publishing: {connection.blocked_by}")
        return found

    def regular(self) -> Plan:
        """Return the plan of a verification: check the topic's and the fanout's binding in turns."""
        return Plan(count_consumers=True) if self._rounds % 2 else Plan(bindings=[self.fanout])

    async def arrives(self, plan: Plan, write: WriteProbe, until: float) -> None:
        """Declare, send a probe, and wait until it is back or known to queue behind other messages.

        :param until: seconds on the clock.
        :raises UndeliverableError: a binding is missing.
        :raises BrokerError: the broker refuses a declaration, or takes no message.
        :raises GoneError: the queue has no consumer.
        :raises OverdueError: the probe was confirmed and is not back.
        """
        listener, clock, taken = self.listener, self.listener.clock, self._taken
        back: Deferred[None] = Deferred()
        self._back = back
        await self._send(self.host, plan, write, until)
        if plan.to_topic:
            await self._send(self.topic, Plan(), write, until)
        try:
            await back.addTimeout(max(0.0, until - clock.seconds()), clock)
        except DeferredTimeoutError:
            self._back = None
        else:
            self._overdue = 0
            return
        messages, consumers = await listener.publisher.count(self.host.queue)
        if not consumers and not self.options.quorum_queue:
            raise GoneError(self.host.queue)
        if listener.is_full or (messages and self._taken != taken):
            return  # It queues behind messages that are being processed.
        # Kept out of the error's text: the caller logs each change of that text.
        _log.debug(
            "{queue} has {messages} messages that wait, and {consumers} consumers",
            queue=self.host.queue,
            messages=messages,
            consumers=consumers,
        )
        raise OverdueError(f"a message to {self.host.queue} was confirmed and did not arrive")

    def late(self, problem: str) -> Reachability:
        """Report an overdue probe; consume anew the second time in a row, when load is no longer the likely cause."""
        found = self._judged(Reachability(problem))
        self._overdue += 1
        if self._overdue == _TOO_OFTEN:
            self.listener.consume_anew(problem)
        return found

    async def _send(self, binding: Binding, plan: Plan, write: WriteProbe, until: float) -> None:
        self._probes += 1
        token = b"%b%08x" % (self._mark, self._probes)
        if binding is self.host:
            self._token = token
        message = Message(
            binding.exchange,
            binding.routing_key,
            write(token.decode(), self.address or ""),
            max(_SHORTEST_TTL, until - self.listener.clock.seconds()),
            mandatory=True,
            target=binding.routing_key,
            headers={PROBE: self.address},
        )
        await self.listener.publisher.publish_probe(message, partial(self._declare, plan))

    async def _declare(self, plan: Plan, channel: Channel) -> None:
        if self.host.exchange in plan.exchanges:
            await topology.declare_exchange(channel, self.host.exchange, self.options)
        if self.fanout.exchange in plan.exchanges:
            await topology.declare_fanout_exchange(channel, self.topic.queue, self.options)
        bindings = plan.bindings
        if plan.count_consumers:
            # A full node has cancelled its consumer, and starts another when it has room.
            took = self.listener.takes(self.topic.queue)
            _, consumers = await topology.count(channel, self.topic.queue)
            takes = took and self.listener.takes(self.topic.queue)
            if takes and not consumers and not self.options.quorum_queue:
                raise GoneError(self.topic.queue)
            plan.to_topic = takes and consumers == 1
            bindings = [] if plan.to_topic else [self.topic]
        for binding in bindings:
            if binding in plan.broken:
                # After a network partition a cluster may keep a binding that routes nowhere; unbind it first.
                await topology.unbind(channel, binding)
            await topology.bind(channel, binding)
