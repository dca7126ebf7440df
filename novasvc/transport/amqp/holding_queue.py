"""Holding queues: for requests that run for longer than the broker's consumer_timeout."""

from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.reactor.coalesce import Waiters
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.consumer_channel import ConsumerChannel
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.reply_codes import NOT_FOUND
from novasvc.transport.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener

_log = Logger()

_PREFETCH = 65_535
"""The largest prefetch: the queue holds only what this process runs, and a message that waited would expire."""


@attrs.define(eq=False)
class HoldingQueue:
    """One process's queue for the requests that it runs; only that process consumes it. Declared on first use.

    See Note [Holding queues] in :mod:`novasvc.transport.amqp.topology`.

    :param origin: the queue that the requests came from.
    :ivar name: the queue's unique name; a new one if the queue's broker node is down.
    """

    _listener: "Listener"
    origin: str
    name: str = attrs.field(init=False)
    _consuming: ConsumerChannel | None = attrs.field(default=None, init=False)
    _waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _adding: bool = attrs.field(default=False, init=False)
    _logged: str = attrs.field(default="", init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.name = topology.new_holding_queue(self.origin)

    def __len__(self) -> int:
        """Return how many requests the queue holds; all of them are unacknowledged deliveries of this process."""
        return 0 if self._consuming is None else len(self._consuming)

    def __str__(self) -> str:
        return f"the holding queue {self.name}"

    def ready(self) -> Deferred[None]:
        """Wait until the queue has its consumer; a message sent before would expire.

        :return: Deferred[None]; fails with a BrokerError.
        """
        subscriptions = self._listener.subscriptions
        if self._consuming is not None:
            return succeed(None)
        if self in subscriptions:
            # It was lost; Subscriptions re-establishes it.
            return fail(
                BrokerUnavailableError(subscriptions.connection.address.shown(), f"{self.name} is not consumed")
            )
        waiter = self._waiters.wait()
        if not self._adding:
            self._adding = True
            Deferred.fromCoroutine(subscriptions.add(self)).addBoth(self._added)
        return waiter

    def _added(self, outcome: Failure | None) -> None:
        self._adding = False
        self._waiters.fire(outcome)

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare both queues and consume from them; see Subscription."""
        if self._closed:
            return
        channel = await protocol.open_channel()
        changed = self._listener.held_count_changed
        consuming = ConsumerChannel(
            self._listener, channel, _PREFETCH, self._channel_closed, holding=True, on_count_changed=changed
        )
        try:
            await channel.basic_qos(prefetch_count=_PREFETCH)
            await topology.declare_holding_queues(channel, self.name, self.origin, self._listener.subscriptions.options)
            channel.receiver = consuming
            await consuming.consumers.consume(self.name, self.origin)
            await consuming.consumers.consume(topology.unclaimed_queue(self.name), self.origin)
        except BaseException as problem:
            if isinstance(problem, AMQPClosedError) and problem.code == NOT_FOUND:
                # The queue's broker node is down, and its messages return with it. Use a new queue meanwhile.
                self.name = topology.new_holding_queue(self.origin)
            consuming.close("set-up failed")
            raise
        if self._is_closed():  # close() was called while the queues were declared
            consuming.close("cancelled during set-up")
            return
        self._consuming = consuming
        self._logged = ""

    def log_refusal(self, failure: Failure) -> None:
        """Log why a request cannot be held, once for each distinct reason: the attempt is repeated."""
        logged, self._logged = self._logged, str(failure.value)
        if self._logged != logged:
            _log.warn(
                "no holding queue for {queue}: the broker will redeliver requests that run longer than its "
                "consumer_timeout: {error}",
                queue=self.origin,
                error=failure.value,
            )

    def _is_closed(self) -> bool:
        return self._closed

    def connection_lost(self) -> None:
        """Do nothing: channel_closed has handled it."""

    def _channel_closed(self, consuming: ConsumerChannel, reason: AMQPClosedError) -> None:
        """Restore the consumers after a lost channel; after a lost connection the next one restores them."""
        if consuming is not self._consuming:
            return
        self._consuming = None
        self._listener.held_count_changed()
        self._listener.subscriptions.adopt_consumer_timeout(reason)
        if not consuming.channel.client.closed and not self._closed:
            _log.warn("{queue} lost its channel; resubscribing: {reason}", queue=str(self), reason=reason)
            self._listener.subscriptions.retry(self)

    async def close(self) -> None:
        """Cancel the subscriptions and delete the queues if they are empty.

        Requests that are still in them return to their origin by dead-lettering; see Note [Holding queues].
        """
        self._closed = True
        self._listener.subscriptions.remove(self)
        consuming, self._consuming = self._consuming, None
        if consuming is None:
            return
        if not self._listener.is_unresponsive:
            # Deliveries that are on their way arrive before cancel-ok. If one did, the queue must not be deleted.
            await self._listener.wait_for_change(consuming.consumers.cancel())
        if self._listener.is_unresponsive:
            consuming.close("the broker does not answer")
            return
        try:
            await self._listener.wait_for_moves()
            consuming.flush()
            if not len(consuming):
                for queue in (self.name, topology.unclaimed_queue(self.name)):
                    await topology.delete_queue(consuming.channel, queue, self._listener.clock, if_empty=True)
        except AMQPClosedError:
            return
        consuming.close("done")
