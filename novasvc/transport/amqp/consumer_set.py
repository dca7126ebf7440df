"""The consumers of one channel: started, replaced with another prefetch, and cancelled."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import attrs
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from novasvc.transport.amqp.channel import Channel


class Origin(NamedTuple):
    """Where the messages of one consumer come from.

    :param queue: the queue's name; for a holding queue, the queue that its messages came from first.
    :param sent_to: see IDelivery.
    :param watched: see :meth:`novasvc.transport.amqp.loopback.Loopback.watches`.
    """

    queue: str
    sent_to: str
    watched: bool


class _Consumer(NamedTuple):
    """A consumer, or one that is being replaced.

    :param tag: its consumer tag; "" while it is being replaced, or if it has no prefetch.
    :param prefetch: unacknowledged messages.
    """

    tag: str
    prefetch: int


_NO_CONSUMER = _Consumer("", 0)


@attrs.define(eq=False)
class ConsumerSet:
    """Starts and stops the consumers of a channel. All methods raise AMQPClosedError if the channel was closed.

    basic.qos applies to the consumers that are started after it (RabbitMQ, "Consumer Prefetch"), so each basic.consume
    with another prefetch follows its basic.qos without a pause.

    :param channel: their channel.
    :param prefetch: unacknowledged messages for each consumer, as told to the broker.
    :param origin: takes the name of a queue, returns where its messages come from.
    :ivar origins: by consumer tag, for the deliveries.
    :ivar lowest_prefetch: of the consumers; with fewer unsettled deliveries none of them is out of room.
    """

    _channel: Channel
    prefetch: int
    _origin: Callable[[str], Origin]
    origins: dict[bytes, Origin] = attrs.field(factory=dict, init=False)
    lowest_prefetch: int = attrs.field(default=0, init=False)
    _consumers: dict[str, _Consumer] = attrs.field(factory=dict, init=False)  # by queue
    _cancelled: bool = attrs.field(default=False, init=False)
    _narrowed: bool = attrs.field(default=False, init=False)
    _next_tag: "count[int]" = attrs.field(factory=partial(count, 1), init=False)

    async def consume(self, queue: str, origin: str | None = None, *, low_priority: bool = False) -> None:
        """Start a consumer on a queue.

        :param origin: the queue that its messages came from first; the queue itself by default.
        :param low_priority: other consumers are served first, as long as they have room (RabbitMQ, "Consumer
            Priorities").
        """
        await self._consume(queue, origin or queue, self.prefetch, low_priority=low_priority)

    def _consume(self, queue: str, origin: str, prefetch: int, *, low_priority: bool = False) -> Deferred[Any]:
        tag = str(next(self._next_tag))
        self.origins[tag.encode()] = self._origin(origin)
        self._consumers[queue] = _Consumer(tag, prefetch)
        self.lowest_prefetch = min(each.prefetch for each in self._consumers.values() if each.prefetch)
        arguments = {"x-priority": -1} if low_priority else {}
        return self._channel.basic_consume(queue=queue, consumer_tag=tag, arguments=arguments)  # type: ignore[no-any-return]

    def consumes_from(self, queue: str) -> bool:
        """Return whether a queue has our consumer: not cancelled, not being replaced, and with a prefetch above 0."""
        return bool(self._consumers.get(queue, _NO_CONSUMER).tag)

    def is_draining(self) -> bool:
        """Return whether the consumers of all shared queues were cancelled."""
        return self._cancelled or self._narrowed

    async def narrow(self, queue: str | None, prefetch: int, keep: str | None = None) -> None:
        """Consume from one queue only, at a lower consumer priority; cancel the other consumers.

        :param queue: None cancels all consumers.
        :param prefetch: unacknowledged messages from now on.
        :param keep: a queue whose consumer stays as it is.
        """
        self._narrowed = True
        before = [tag for tag, origin in self.origins.items() if origin.queue != keep]
        self._consumers = {name: consumer for name, consumer in self._consumers.items() if name == keep}
        self.prefetch = prefetch
        if queue is not None:
            # Start the new consumer before the old ones are cancelled, so that the queue always has one.
            qos = self._channel.basic_qos(prefetch_count=prefetch)
            await _both(qos, self._consume(queue, queue, prefetch, low_priority=True))
        await self._cancel(before)

    async def resize(self, queue: str, prefetch: int) -> None:
        """Change a consumer's prefetch, which replaces the consumer; 0 cancels it.

        It does nothing once the consumers are narrowed or cancelled.
        """
        if self.is_draining() or queue not in self._consumers:
            return
        tag, present = self._consumers[queue]
        if prefetch == present:
            return
        self._consumers[queue] = _Consumer("", prefetch)
        if present:
            await self._channel.basic_cancel(consumer_tag=tag)
            self.origins.pop(tag.encode(), None)
        if prefetch and not self.is_draining() and queue in self._consumers:
            qos = self._channel.basic_qos(prefetch_count=prefetch)
            started = self._consume(queue, queue, prefetch)
            # Not shown as a consumer before the broker has confirmed it.
            consumer, self._consumers[queue] = self._consumers[queue], _Consumer("", prefetch)
            await _both(qos, started)
            if not self.is_draining():
                self._consumers[queue] = consumer

    async def stop(self, queue: str) -> None:
        """Cancel the consumer of one queue, if it has one."""
        tag = self._consumers.pop(queue, _NO_CONSUMER).tag
        if tag:
            await self._channel.basic_cancel(consumer_tag=tag)
            self.origins.pop(tag.encode(), None)

    def forget(self, queue: str) -> None:
        """Forget a consumer that the broker has cancelled."""
        tag = self._consumers.pop(queue, _NO_CONSUMER).tag
        self.origins.pop(tag.encode(), None)

    def has(self, queue: str) -> bool:
        """Return whether a queue has our consumer, or one that is being replaced or waits for room."""
        return queue in self._consumers

    async def cancel(self) -> None:
        """Cancel all consumers; unsettled deliveries can still be settled."""
        self._cancelled = True
        self._consumers.clear()
        await self._cancel(list(self.origins))

    async def _cancel(self, tags: Sequence[bytes]) -> None:
        for tag in tags:
            await self._channel.basic_cancel(consumer_tag=tag.decode())
            self.origins.pop(tag, None)


def _both(*steps: Deferred[Any]) -> Deferred[Any]:
    """Wait for methods that were sent without a pause; fails with the first error."""
    return gatherResults(steps, consumeErrors=True).addErrback(_first_error)


def _first_error(failure: Failure) -> Any:
    failure.trap(FirstError)
    return failure.value.subFailure  # type: ignore[union-attr]
