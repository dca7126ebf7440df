"""Proof that messages reach a listener: it sends itself one, as a caller would, and makes its bindings again."""

import os
from functools import partial
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.logger import Logger

from novasvc.errors import BrokerBlockedError
from novasvc.interfaces import Reachability, WriteProbe
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import Channel
from novasvc.transport.amqp.content import PROBE
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.publisher import Message
from novasvc.transport.amqp.topology import Binding
from novasvc.transport.amqp.verification import GoneError, OverdueError, Plan, Verification

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

_WAITING = 0.8
"""Part of the time of a verification that the message has to come back; the rest is for finding out why it did not."""
_TOO_OFTEN = 2
"""Verifications in a row whose message did not arrive, before the listener consumes anew."""
_SHORTEST_TTL = 0.1
_FORWARD_TTL = 10.0
"""Seconds."""
_ANSWER_LIMIT = 65_536
"""Bytes of a peer's answer to a probe, at the most."""


@attrs.define(eq=False)
class Loopback:
    """The test of the way to one listener; see :meth:`novasvc.interfaces.IListener.verify`.

    :param address: the listener's own queue for fanouts, which probes come back by; None if it has none.
    """

    # Note [The way to oneself]
    #
    # A broker can lose a binding and keep the queue and its consumer: nothing on the consuming connection tells.
    # Only a message proves the way. It goes out by the publishing connection, which in a cluster may lead to
    # another host than the consuming one, to the exchange, with the key of topic and server. It is mandatory, so
    # a missing binding is known at once.
    #
    # Processes of one host share its queue, and the message may come to any of them. Each recognises it by its
    # header and passes it on to the queue for fanouts of the sender, by the default exchange. A peer that does
    # not know the header sees a call of baseapi.ping and replies to that same queue. Either proves that the host
    # is reached.
    #
    # A message to the topic would come to another node, and a fanout to all of them. So their bindings are made
    # again instead, one of the two each time; the broker does not say whether a binding was there before. What it
    # does say: that the queue or the exchange is gone. A fanout exchange goes with its last binding, and a node
    # that is the only consumer of its topic sends a message to the topic, too. So a node that is alone misses
    # nothing in silence, and with others a lost binding is back within two intervals.
    #
    # All this happens on a channel of its own: a refusal ends it, and no other message with it.

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

    # -- what comes ----------------------------------------------------------------------------

    def watches(self, queue: str) -> bool:
        """Tell whether :meth:`take` has to see all messages of a queue: the host's, and what peers answer to."""
        return queue in {self.host.queue, self.address}

    def take(self, queue: str, body: bytes, probe: str | None) -> bool:
        """Take a delivery if it is a probe, or a peer's answer to one; return whether it was.

        Called with all messages of the queues that it watches, and with all probes.

        :param probe: what its header says.
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
        """Give a probe to its sender, which shares our queue."""
        message = Message("", address, body, _FORWARD_TTL, mandatory=False, target=address, headers={PROBE: address})
        passing = self.listener.publish(message)
        passing.addErrback(lambda failure: _log.debug("a probe was not passed on: {error}", error=failure.value))

    # -- verifications -------------------------------------------------------------------------

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        """Prove that messages arrive; see IListener."""
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
        """Return what was found, unless a broker in alarm is to blame.

        :raises BrokerBlockedError: it is.
        """
        connection = self.listener.publisher.connection
        if connection.state == "blocked":
            raise BrokerBlockedError(connection.address.shown(), f"it blocks publishing: {connection.blocked_by}")
        return found

    def regular(self) -> Plan:
        """Look after one of the two bindings that the message itself does not need, in turns."""
        return Plan(count_consumers=True) if self._rounds % 2 else Plan(bindings=[self.fanout])

    async def arrives(self, plan: Plan, write: WriteProbe, until: float) -> None:
        """Declare, send, and wait until the message is back, or waits its turn.

        :raises UndeliverableError: a binding is missing.
        :raises BrokerError: the broker refuses a declaration, or takes no message.
        :raises GoneError: the consumer is gone.
        :raises OverdueError: the message is not back.
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
            return  # It waits its turn: what is before it is being worked on.
        # Not in the text, which is logged anew whenever it changes.
        _log.debug(
            "{queue} has {messages} messages that wait, and {consumers} consumers",
            queue=self.host.queue,
            messages=messages,
            consumers=consumers,
        )
        raise OverdueError(f"a message to {self.host.queue} was confirmed and did not arrive")

    def late(self, problem: str) -> Reachability:
        """Consume anew when it is late for the second time: then it was not the broker's load."""
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
            # A node that is full has cancelled its own consumer, and makes another when it has room.
            took = self.listener.takes(self.topic.queue)
            _, consumers = await topology.count(channel, self.topic.queue)
            takes = took and self.listener.takes(self.topic.queue)
            if takes and not consumers and not self.options.quorum_queue:
                raise GoneError(self.topic.queue)
            plan.to_topic = takes and consumers == 1
            bindings = [] if plan.to_topic else [self.topic]
        for binding in bindings:
            if binding in plan.broken:
                # A cluster that was split may have a binding that leads nowhere.
                await topology.unbind(channel, binding)
            await topology.bind(channel, binding)
