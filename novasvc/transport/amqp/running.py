"""Private queues for requests that run for longer than the broker's consumer_timeout."""

from collections.abc import Coroutine
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.reactor.coalesce import Waiters
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import ClosedError
from novasvc.transport.amqp.consumer import NOT_FOUND, Consumers
from novasvc.transport.amqp.consumption import Consumption, Owner
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.errors import BrokerUnavailableError

_log = Logger()

_PREFETCH = 65_535
"""The largest prefetch: the queue holds only what this process runs, and a message that waited would expire."""


class _Listener(Owner, Protocol):
    """The listener whose requests are held."""

    consumers: Consumers

    @property
    def is_silent(self) -> bool:
        """Whether the broker did not answer basic.cancel in time."""

    async def ask(self, change: Coroutine[Deferred[Any], Any, None]) -> None:
        """Wait briefly for a change of consumers."""

    async def moved(self) -> None:
        """Wait until the moves under way are done."""

    def held_changed(self) -> None:
        """Handle a change of the number of held requests."""


@attrs.define(eq=False)
class RunningRequests:
    """One process's queue for the requests that it runs; only that process consumes it. Declared on first use.

    See Note [Running requests] in :mod:`novasvc.transport.amqp.topology`.

    :param origin: the queue that the requests came from.
    :ivar name: the queue's private name; a new one if the queue's node is down.
    """

    _listener: _Listener
    origin: str
    name: str = attrs.field(init=False)
    _consumption: Consumption | None = attrs.field(default=None, init=False)
    _waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _adding: bool = attrs.field(default=False, init=False)
    _told: str = attrs.field(default="", init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.name = topology.new_running_queue(self.origin)

    def __len__(self) -> int:
        """Return how many requests the queue holds; all of them are unacknowledged deliveries of this process."""
        return 0 if self._consumption is None else len(self._consumption)

    def __str__(self) -> str:
        return f"the queue of running requests {self.name}"

    def ready(self) -> Deferred[None]:
        """Wait until the queue has its consumer; a message sent before would expire.

        :return: Deferred[None]; fails with a BrokerError.
        """
        consumers = self._listener.consumers
        if self._consumption is not None:
            return succeed(None)
        if consumers.keeps(self):
            # It was lost; Consumers re-establishes it.
            return fail(BrokerUnavailableError(consumers.connection.address.shown(), f"{self.name} is not consumed"))
        waiter = self._waiters.wait()
        if not self._adding:
            self._adding = True
            Deferred.fromCoroutine(consumers.add(self)).addBoth(self._added)
        return waiter

    def _added(self, outcome: Failure | None) -> None:
        self._adding = False
        self._waiters.fire(outcome)

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare both queues and consume from them; see _Subscription."""
        if self._closed:
            return
        channel = await protocol.open_channel()
        changed = self._listener.held_changed
        consumption = Consumption(self._listener, channel, _PREFETCH, self._ended, private=True, resized=changed)
        try:
            await channel.basic_qos(prefetch_count=_PREFETCH)
            await topology.declare_running_queues(channel, self.name, self.origin, self._listener.consumers.options)
            channel.receiver = consumption
            await consumption.consume(self.name, self.origin)
            await consumption.consume(topology.unclaimed_queue(self.name), self.origin)
        except BaseException as problem:
            if isinstance(problem, ClosedError) and problem.code == NOT_FOUND:
                # The node that hosts the queue is down, and its messages return with it. Use a new queue meanwhile.
                self.name = topology.new_running_queue(self.origin)
            consumption.end("it cannot be set up")
            raise
        if self._is_closed():  # close() was called while the queues were declared
            consumption.end("it is not wanted any more")
            return
        self._consumption = consumption
        self._told = ""

    def refused(self, failure: Failure) -> None:
        """Log why a request cannot be held, once for each distinct reason: the attempt is repeated."""
        told, self._told = self._told, str(failure.value)
        if self._told != told:
            _log.warn(
                "long-running requests from {queue} cannot be held beyond the broker's consumer_timeout: {error}",
                queue=self.origin,
                error=failure.value,
            )

    def _is_closed(self) -> bool:
        return self._closed

    def connection_lost(self) -> None:
        """Do nothing: channel_closed has handled it."""

    def _ended(self, consumption: Consumption, reason: ClosedError) -> None:
        """Repair the consumers after a lost channel; after a lost connection the next one restores them."""
        if consumption is not self._consumption:
            return
        self._consumption = None
        self._listener.held_changed()
        self._listener.consumers.learn_limit(reason)
        if not consumption.channel.client.closed and not self._closed:
            _log.warn("{queue} lost its channel: {reason}", queue=str(self), reason=reason)
            self._listener.consumers.repair(self)

    async def close(self) -> None:
        """Cancel the consumers and delete the queues if they are empty.

        Requests that are still in them return to their origin by dead-lettering; see Note [Running requests].
        """
        self._closed = True
        self._listener.consumers.remove(self)
        consumption, self._consumption = self._consumption, None
        if consumption is None:
            return
        if not self._listener.is_silent:
            # Deliveries that are on their way arrive before cancel-ok. If one did, the queue must not be deleted.
            await self._listener.ask(consumption.cancel())
        if self._listener.is_silent:
            consumption.end("the broker does not answer")
            return
        try:
            await self._listener.moved()
            consumption.flush()
            if not len(consumption):
                for queue in (self.name, topology.unclaimed_queue(self.name)):
                    await topology.delete_queue(consumption.channel, queue, self._listener.clock, if_empty=True)
        except ClosedError:
            return
        consumption.end("done")
