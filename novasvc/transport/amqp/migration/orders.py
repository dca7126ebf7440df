"""Orders to the processes that consume from the queues of a topic, and their answers."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from novasvc.rpc.target import Target
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.content import PROBE, write_properties
from novasvc.transport.amqp.frames import Deliver, pack_content, pack_publish
from novasvc.transport.amqp.migration.session import Session
from novasvc.transport.amqp.private_names import random_name
from novasvc.transport.amqp.replacement import REPORT, Order

REPEAT = 1.0
"""Seconds after which an order is repeated; a process that has started meanwhile gets it, too."""
GONE_AFTER = 30.0
"""Seconds without an answer after which a process counts as gone: the broker has missed its heartbeats by then."""

Answer = Mapping[str, Any]
"""What a process says about one queue; see :class:`novasvc.transport.amqp.replacement.Replacements`."""


@attrs.define(eq=False)
class Process:
    """A process that has answered.

    :ivar seen_at: seconds on the clock of its last answer.
    :ivar number: of the order that it answered last.
    :ivar queues: its last answer about each of its queues.
    """

    seen_at: float = 0.0
    number: int = 0
    queues: dict[str, Answer] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Orders(ChannelReceiver):
    """Sends orders to all processes of a topic, and knows their answers.

    :param exchange: the control exchange.
    :param topic: whose processes get them.
    :ivar processes: those that have answered, by their own random ids.
    """

    _session: Session
    _exchange: str
    topic: str
    processes: dict[str, Process] = attrs.field(factory=lambda: defaultdict(Process), init=False)
    _channel: Channel | None = attrs.field(default=None, init=False)
    _address: str = attrs.field(factory=lambda: random_name("reply_"), init=False)
    _number: int = attrs.field(default=0, init=False)
    _answered: Deferred[None] | None = attrs.field(default=None, init=False)

    async def open(self) -> None:
        """Make the queue for the answers, which ends with the connection."""
        self._channel = channel = await self._session.open_channel()
        await channel.queue_declare(queue=self._address, exclusive=True)
        channel.receiver = self
        await channel.basic_consume(queue=self._address, consumer_tag="1", no_ack=True)

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Note an answer; see ChannelReceiver."""
        try:
            answer = json.loads(body or b"")
            process = self.processes[str(answer["process"])]
            process.number = max(process.number, int(answer["number"]))
            process.queues.update(answer["queues"])
            process.seen_at = self._session.reactor.seconds()
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # no answer of ours: anybody may publish to this queue
        self._wake()

    def channel_closed(self, reason: AMQPClosedError) -> None:
        """Stop waiting for answers; see ChannelReceiver."""
        self._wake()

    def _wake(self) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered.callback(None)

    def _publish(self, order: Order) -> None:
        channel = self._open_channel()
        key = topology.cancellation_key(Target(self.topic))
        properties = write_properties(REPEAT * 10, {PROBE: self._address})
        head = pack_publish(channel.id, self._exchange, key, False)
        channel.client.write(head + pack_content(channel.id, properties, order.encode(), channel.client.frame_max))

    async def ask(self, seconds: float) -> None:
        """Ask all processes what they consume, and wait so long for their answers.

        :raises BrokerError: the broker was lost.
        """
        until = self._session.reactor.seconds() + seconds
        self._number += 1
        self._publish(Order(do=REPORT, number=self._number))
        while (left := until - self._session.reactor.seconds()) > 0:
            await self._next_answer(left)

    async def tell(self, do: str, queues: Collection[str], kind: str, done: Callable[[Answer], bool]) -> bool:
        """Send an order once, and wait until all processes have answered, or for the time of a repetition.

        :param queues: what it is about.
        :param done: whether an answer says that the order is carried out.
        :return: whether it is, by all processes that consume from one of the queues and are not gone.
        :raises BrokerError: the broker was lost.
        """
        clock = self._session.reactor
        self._number += 1
        number, until = self._number, clock.seconds() + REPEAT
        self._publish(Order(do=do, queues=tuple(queues), kind=kind, number=number))
        while not self._is_done(queues, number, done):
            left = until - clock.seconds()
            if left <= 0:
                return False
            await self._next_answer(left)
        return True

    def _is_done(self, queues: Collection[str], number: int, done: Callable[[Answer], bool]) -> bool:
        now = self._session.reactor.seconds()
        for name, process in list(self.processes.items()):
            mine = [queue for queue in process.queues if queue in queues]
            if mine and process.number < number and now - process.seen_at > GONE_AFTER:
                del self.processes[name]
            elif mine and (process.number < number or not all(done(process.queues[queue]) for queue in mine)):
                return False
        return True

    def _open_channel(self) -> Channel:
        """Return the channel.

        :raises BrokerError: it was closed, or the connection was lost.
        """
        channel = self._channel
        if channel is None or channel.closed:
            reason = None if channel is None else channel.reason
            raise self._session.error(reason or AMQPClosedError("the channel for answers is not open"))
        return channel

    async def _next_answer(self, seconds: float) -> None:
        self._open_channel()
        answered: Deferred[None] = Deferred()
        self._answered = answered
        await answered.addTimeout(max(0.0, seconds), self._session.reactor, onTimeoutCancel=lambda *_: None)

    def answers(self, queue: str) -> list[Answer]:
        """Return what the processes say about a queue."""
        return [process.queues[queue] for process in self.processes.values() if queue in process.queues]

    def left(self, queues: Collection[str]) -> int:
        """Return how many requests from some queues are in progress, at most."""
        # A process counts for each queue what it has of all of them.
        return sum(
            max((answer["left"] for queue, answer in process.queues.items() if queue in queues), default=0)
            for process in self.processes.values()
        )

    def queues(self) -> dict[str, tuple[str, ...]]:
        """Return all queues that processes consume, with their routing keys."""
        return {
            queue: tuple(answer["keys"])
            for process in self.processes.values()
            for queue, answer in process.queues.items()
        }
