"""Proof that messages reach a listener: it sends itself one, as a caller would, and makes its bindings again."""

import os
import re
from functools import partial
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger

from novasvc.errors import (
    BrokerBlockedError,
    BrokerError,
    BrokerUnavailableError,
    RPCError,
    UndeliverableError,
)
from novasvc.interfaces import WriteProbe
from novasvc.reachability import Reachability
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import Channel
from novasvc.transport.amqp.content import PROBE
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.publisher import Message
from novasvc.transport.amqp.topology import Binding

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

_ABSENT = re.compile(r"(?:no|of durable) (exchange|queue) '([^']*)'")
"""What RabbitMQ says of a name that does not exist, or that is on a host which it cannot reach."""
_WAITING = 0.8
"""Part of the time of a verification that the message has to come back; the rest is for finding out why it did not."""
_POLL = 0.25
"""Seconds between two looks whether what was lost is there again."""
_TOO_OFTEN = 2
"""Verifications in a row whose message did not arrive, before the listener consumes anew."""
_SHORTEST_TTL = 0.1
_FORWARD_TTL = 10.0
"""Seconds."""
_ANSWER_LIMIT = 65_536
"""Bytes of a peer's answer to a probe, at the most."""


class _GoneError(Exception):
    """A queue of the listener has no consumer."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"the queue {queue} has no consumer")
        self.queue = queue


class _OverdueError(Exception):
    """A message was confirmed and has not come back."""


@attrs.define
class _Plan:
    """What one attempt declares before it sends.

    :param exchanges: to be declared.
    :param bindings: to be made.
    :param broken: those of them that lead nowhere; they are removed first.
    :param count_consumers: see whether others consume from the topic's queue.
    :param to_topic: send to the topic as well.
    """

    exchanges: set[str] = attrs.field(factory=set)
    bindings: list[Binding] = attrs.field(factory=list)
    broken: set[Binding] = attrs.field(factory=set)
    count_consumers: bool = False
    to_topic: bool = False


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
    # All this happens on the publisher's channel that may be lost: a refusal ends it, and no other message with it.

    listener: "Listener"
    address: str | None
    options: BrokerOptions
    host: Binding = attrs.field(init=False)
    topic: Binding = attrs.field(init=False)
    fanout: Binding = attrs.field(init=False)
    _mark: str = attrs.field(factory=lambda: os.urandom(12).hex(), init=False)
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

    def take(self, queue: str, body: bytes, probe: str | None) -> bool:
        """Take a delivery if it is a probe, or a peer's answer to one; return whether it was.

        :param probe: what its header says.
        """
        if probe is None:
            if queue == self.host.queue:
                self._taken += 1
            if queue != self.address or len(body) > _ANSWER_LIMIT or self._mark.encode() not in body:
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
        verification = _Verification(self, write, clock.seconds() + timeout * _WAITING, self.regular())
        verifying = Deferred.fromCoroutine(verification.run())
        silent = Reachability(f"the broker did not answer within {timeout:g} s")
        return verifying.addTimeout(timeout, clock, onTimeoutCancel=lambda *_: self._judged(silent))

    def _judged(self, found: Reachability) -> Reachability:
        """Return what was found, unless a broker in alarm is to blame.

        :raises BrokerBlockedError: it is.
        """
        connection = self.listener.publisher.connection
        if connection.state == "blocked":
            raise BrokerBlockedError(connection.address.shown(), f"it takes no messages: {connection.blocked_by}")
        return found

    def regular(self) -> _Plan:
        """Look after one of the two bindings that the message itself does not need, in turns."""
        return _Plan(count_consumers=True) if self._rounds % 2 else _Plan(bindings=[self.fanout])

    async def arrives(self, plan: _Plan, write: WriteProbe, until: float) -> None:
        """Declare, send, and wait until the message is back, or waits its turn.

        :raises UndeliverableError: a binding is missing.
        :raises BrokerError: the broker refuses a declaration, or takes no message.
        :raises _GoneError: the consumer is gone.
        :raises _OverdueError: the message is not back.
        """
        listener, clock, taken = self.listener, self.listener.clock, self._taken
        back: Deferred[None] = Deferred()
        self._back = back
        await self._send(self.host, plan, write, until)
        if plan.to_topic:
            await self._send(self.topic, _Plan(), write, until)
        try:
            await back.addTimeout(max(0.0, until - clock.seconds()), clock)
        except DeferredTimeoutError:
            self._back = None
        else:
            self._overdue = 0
            return
        messages, consumers = await listener.publisher.count(self.host.queue)
        if not consumers and not self.options.quorum_queue:
            raise _GoneError(self.host.queue)
        if listener.is_full or (messages and self._taken != taken):
            return  # It waits its turn: what is before it is being worked on.
        detail = f"{messages} messages wait there, for {consumers} consumers"
        raise _OverdueError(f"a message to {self.host.queue} was confirmed and did not arrive; {detail}")

    def late(self, problem: str) -> Reachability:
        """Consume anew when it is late for the second time: then it was not the broker's load."""
        found = self._judged(Reachability(problem))
        self._overdue += 1
        if self._overdue == _TOO_OFTEN:
            self.listener.consume_anew(problem)
        return found

    async def _send(self, binding: Binding, plan: _Plan, write: WriteProbe, until: float) -> None:
        self._probes += 1
        token = f"{self._mark}{self._probes:08x}"
        if binding is self.host:
            self._token = token.encode()
        message = Message(
            binding.exchange,
            binding.routing_key,
            write(token, self.address or ""),
            max(_SHORTEST_TTL, until - self.listener.clock.seconds()),
            mandatory=True,
            target=binding.routing_key,
            headers={PROBE: self.address},
        )
        await self.listener.publisher.publish_apart(message, partial(self._declare, plan))

    async def _declare(self, plan: _Plan, channel: Channel) -> None:
        if self.host.exchange in plan.exchanges:
            await topology.declare_exchange(channel, self.host.exchange, self.options)
        if self.fanout.exchange in plan.exchanges:
            await topology.declare_fanout_exchange(channel, self.topic.queue, self.options)
        bindings = plan.bindings
        if plan.count_consumers:
            _, consumers = await topology.count(channel, self.topic.queue)
            if not consumers and not self.options.quorum_queue:
                raise _GoneError(self.topic.queue)
            plan.to_topic = consumers == 1
            bindings = [] if plan.to_topic else [self.topic]
        for binding in bindings:
            if binding in plan.broken:
                # A cluster that was split may have a binding that leads nowhere.
                await topology.unbind(channel, binding)
            await topology.bind(channel, binding)


@attrs.define(eq=False)
class _Verification:
    """One proof: sends until the message is back, and repairs before each attempt what the last one found missing.

    :param until: seconds on the clock.
    :ivar found: what stood in the way of the attempts, in order; what comes twice cannot be repaired.
    :ivar missing: the last of that which is not there.
    """

    _loopback: Loopback
    _write: WriteProbe
    _until: float
    _plan: _Plan
    _found: list[str] = attrs.field(factory=list, init=False)
    _missing: str | None = attrs.field(default=None, init=False)
    _repaired: list[str] = attrs.field(factory=list, init=False)

    async def run(self) -> Reachability:
        """Return what it has found out.

        :raises BrokerBlockedError: the broker takes no messages.
        """
        while True:
            if not await self._consumes():
                return Reachability(self._found[-1] if self._found else "its consumers are not live")
            try:
                await self._loopback.arrives(self._plan, self._write, self._until)
            except BrokerBlockedError:
                raise
            except _OverdueError as overdue:
                return self._loopback.late(str(overdue))
            except (_GoneError, RPCError) as error:
                what = await self._learn(error)
            else:
                return Reachability(repaired=tuple(self._repaired))
            if what in self._found:
                return Reachability(f"{what}, though it was declared again" if what == self._missing else what)
            self._found.append(what)

    async def _consumes(self) -> bool:
        """Wait until the listener consumes; return whether it does."""
        listener, clock = self._loopback.listener, self._loopback.listener.clock
        while not listener.live and clock.seconds() < self._until:
            await deferLater(clock, _POLL, lambda: None)
        return listener.live and clock.seconds() < self._until

    async def _learn(self, error: Exception) -> str:
        """Plan the next attempt; return what stood in the way of the last one."""
        if isinstance(error, _GoneError):
            return await self._without(error.queue, str(error))
        if isinstance(error, UndeliverableError):
            loopback = self._loopback
            binding = loopback.topic if error.target == loopback.topic.routing_key else loopback.host
            self._plan.broken.add(binding)
            return self._make_again(str(binding))
        if isinstance(error, BrokerError):
            return await self._learn_from_broker(error)
        return await self._pause(f"no message can be sent to it: {error}")

    async def _learn_from_broker(self, error: BrokerError) -> str:
        absent = _ABSENT.search(error.problem)
        if absent is not None and absent[1] == "queue":
            return await self._without(absent[2], f"the queue {absent[2]} is missing")
        if absent is not None:
            self._plan.exchanges.add(absent[2])
            return self._make_again(f"the exchange {absent[2]}")
        if type(error) is BrokerUnavailableError:
            return await self._pause(f"no message can be sent to it: {error.problem}")
        if self._missing is not None:
            return f"{self._missing}, and the broker refuses to restore it: {error.problem}"
        # Nothing is known to be missing, and what is there need not be declared.
        self._plan = _Plan()
        return f"the broker refuses: {error.problem}"

    async def _pause(self, problem: str) -> str:
        """Let a connection come back, and try as long as there is time."""
        await deferLater(self._loopback.listener.clock, _POLL, lambda: None)
        if problem in self._found:
            self._found.remove(problem)
        return problem

    def _make_again(self, what: str) -> str:
        """Plan to make that, and whatever may have gone with it."""
        loopback = self._loopback
        self._plan = _Plan(self._plan.exchanges, [loopback.host, loopback.topic, loopback.fanout], self._plan.broken)
        self._repaired.append(what)
        self._missing = f"{what} is missing"
        return self._missing

    async def _without(self, queue: str, problem: str) -> str:
        """Have the listener declare and consume again, which logs the problem; unless its own host knows better."""
        listener = self._loopback.listener
        self._plan = self._loopback.regular()
        if await listener.count_consumers(queue):
            publishing, consuming = (connection.host_shown for connection in listener.connections)
            return f"the broker's hosts disagree: it consumes at {consuming}, and {publishing} does not know its queues"
        listener.consume_anew(problem)
        return problem
