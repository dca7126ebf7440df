"""The consumer of an interim queue, on a channel of its own, while a queue is replaced."""

from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.consumer_channel import ConsumerChannel
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.replacement import Stage, interim_queue
from novasvc.transport.amqp.reply_codes import NOT_FOUND
from novasvc.transport.errors import BrokerError

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

# Note [A channel for each interim queue]
#
# An interim queue of a later replacement has the same name, and maybe another type. RabbitMQ keeps
# what it knows of a queue, its type included, as long as the channel that has consumed from it, and
# ends the connection with 541 when the same channel consumes from another queue of that name. So this
# channel is closed with the interim queue. It also counts what is unsettled of this queue alone.


@attrs.define(eq=False)
class InterimConsumer:
    """Consumes from an interim queue; a subscription. See Note [A channel for each interim queue].

    :param queue: the queue that is replaced, which the messages count as coming from.
    :param name: the interim queue.
    """

    _listener: "Listener"
    queue: str
    name: str
    _consuming: ConsumerChannel | None = attrs.field(default=None, init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    def __str__(self) -> str:
        return f"the consumer of {self.name}"

    def __len__(self) -> int:
        """Return the number of unsettled deliveries."""
        return 0 if self._consuming is None else len(self._consuming)

    async def start(self) -> None:
        """Consume, unless it does.

        :raises BrokerError: the broker refused, or was lost.
        """
        subscriptions = self._listener.subscriptions
        if self not in subscriptions:
            await subscriptions.add(self)
        elif self._stopped and self._consuming is not None:
            self._stopped = False
            await self._consuming.consumers.consume(self.name, self.queue)
        self._stopped = False

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Open a channel and consume; see Subscription."""
        channel = await protocol.open_channel()
        prefetch = self._listener.prefetch
        consuming = ConsumerChannel(self._listener, channel, prefetch, self._channel_closed)
        try:
            await channel.basic_qos(prefetch_count=prefetch)
            await topology.count(channel, self.name)
            channel.receiver = consuming
            if not self._stopped:
                await consuming.consumers.consume(self.name, self.queue)
        except BaseException as problem:
            consuming.close("set-up failed")
            if isinstance(problem, AMQPClosedError) and problem.code == NOT_FOUND:
                # The replacement is over: do not try it again.
                self._listener.subscriptions.remove(self)
            raise
        self._consuming = consuming

    def connection_lost(self) -> None:
        """Do nothing: channel_closed has handled it."""

    def _channel_closed(self, consuming: ConsumerChannel, reason: AMQPClosedError) -> None:
        """Restore the consumer after a lost channel; after a lost connection the next one restores it."""
        if consuming is not self._consuming:
            return
        self._consuming = None
        if not consuming.channel.client.closed:
            self._listener.subscriptions.retry(self)

    async def stop(self) -> None:
        """Stop the deliveries; unsettled ones can still be settled.

        :raises AMQPClosedError: the channel was lost meanwhile.
        """
        self._stopped = True
        if self._consuming is not None:
            await self._consuming.consumers.stop(self.name)

    def close(self) -> None:
        """Close the channel; the broker requeues what is unsettled."""
        self._listener.subscriptions.remove(self)
        consuming, self._consuming = self._consuming, None
        if consuming is not None:
            consuming.flush()
            consuming.close("done")


@attrs.define(eq=False)
class InterimConsumers:
    """The interim consumers of one listener, by the queue that is replaced."""

    _listener: "Listener"
    _consumers: dict[str, InterimConsumer] = attrs.field(factory=dict, init=False)

    async def apply(self, queue: str, stage: Stage | None, *, keep: bool) -> None:
        """Start and stop the consumers of a queue that is being replaced, and of its interim queue.

        No consumer is started for a queue that the listener no longer consumes, because it drains. :meth:`left_of`
        still counts what is unsettled of it.

        :param stage: None: the replacement is over.
        :param keep: keep the consumer of a released queue until the queue is deleted.
        :raises AMQPClosedError: the channel was lost meanwhile.
        """
        listener = self._listener
        if stage is None:
            self.close(queue)
        elif not stage.with_interim:
            await self.stop(queue)
        elif queue in listener.consumed_queues():
            await self.start(queue, interim_queue(queue))
        if listener.consuming is None:
            return
        if stage is Stage.RELEASED:
            await listener.consuming.release(queue, keep=keep)
        else:
            await listener.consuming.resume(queue, old=stage is Stage.FOLLOWING)
        listener.held_count_changed()

    def left_of(self, queue: str) -> int:
        """Return how many deliveries are unsettled that may be from a consumer that a stage has stopped."""
        if self._listener.subscriptions.replacements.stage(queue) is Stage.FINISHING:
            return len(self._consumers.get(queue, ()))
        consuming = self._listener.consuming
        return 0 if consuming is None else consuming.left_of(queue)

    def waits_for_end_of(self, queue: str) -> bool:
        """Return whether the broker has not said yet that an old queue was deleted, whose consumer was kept."""
        consuming = self._listener.consuming
        return consuming is not None and consuming.waits_for_end_of(queue)

    def start(self, queue: str, name: str) -> Deferred[None]:
        """Consume from an interim queue; a refusal is logged.

        :param queue: the queue that is replaced.
        :param name: the interim queue.
        """
        consumer = self._consumers.get(queue)
        if consumer is None:
            consumer = self._consumers[queue] = InterimConsumer(self._listener, queue, name)

        def refused(failure: object) -> None:
            problem = failure.trap(BrokerError, AMQPClosedError) and failure.value  # type: ignore[attr-defined]
            _log.warn("cannot consume from {name}: {problem}", name=name, problem=problem)

        return Deferred.fromCoroutine(consumer.start()).addErrback(refused)

    async def stop(self, queue: str | None = None) -> None:
        """Stop the deliveries from one interim queue, or from all."""
        for each in [queue] if queue is not None else list(self._consumers):
            if each in self._consumers:
                await self._consumers[each].stop()

    def close(self, queue: str | None = None) -> None:
        """Close the consumer of one interim queue, or all."""
        for each in [queue] if queue is not None else list(self._consumers):
            consumer = self._consumers.pop(each, None)
            if consumer is not None:
                consumer.close()
