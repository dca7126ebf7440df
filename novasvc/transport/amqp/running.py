"""Requests that run for longer than the broker lets a delivery be unacknowledged: queues of this process's own."""

from collections.abc import Coroutine
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import BrokerUnavailableError
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import ClosedError
from novasvc.transport.amqp.consumer import NOT_FOUND, Consumers
from novasvc.transport.amqp.consumption import Consumption, Owner
from novasvc.transport.amqp.protocol import AMQPProtocol

_log = Logger()

_PREFETCH = 65_535
"""Only what this process holds comes here; none of it may wait, as it would expire."""


class _Listener(Owner, Protocol):
    """Whose requests they are."""

    consumers: Consumers

    @property
    def is_silent(self) -> bool:
        """Whether the broker did not answer in time."""

    async def ask(self, change: Coroutine[Deferred[Any], Any, None]) -> None:
        """Wait for a change of consumers, but not for long."""

    async def moved(self) -> None:
        """Wait until what is given back is where it belongs."""

    def held_changed(self) -> None:
        """Hear that another number of requests is in such queues."""


@attrs.define(eq=False)
class RunningRequests:
    """A process's queue for requests that it runs, consumed by the process itself; made when it is first needed.

    See Note [Running requests] in :mod:`novasvc.transport.amqp.topology`.

    :param origin: the queue that the requests came from.
    """

    _listener: _Listener
    origin: str
    name: str = attrs.field(init=False)
    _consumption: Consumption | None = attrs.field(default=None, init=False)
    _waiting: list[Deferred[None]] = attrs.field(factory=list, init=False)
    _told: str = attrs.field(default="", init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.name = topology.new_running_queue(self.origin)

    def __len__(self) -> int:
        """Return how many requests are in it, all of them in our hands."""
        return 0 if self._consumption is None else len(self._consumption)

    def __str__(self) -> str:
        return f"the queue of running requests {self.name}"

    def ready(self) -> Deferred[None]:
        """Wait until it is consumed; what is sent there before would expire.

        :return: Deferred[None]; fails with a BrokerError.
        """
        consumers = self._listener.consumers
        if self._consumption is not None:
            return succeed(None)
        if consumers.keeps(self):
            # It was lost, and is established again by itself.
            return fail(BrokerUnavailableError(consumers.connection.address.shown(), f"{self.name} is not consumed"))
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            Deferred.fromCoroutine(consumers.add(self)).addCallbacks(lambda _: self._tell(None), self._tell)
        return waiter

    def _tell(self, failure: Failure | None) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            # Each gets a Failure of its own: handling one must not clean another's.
            waiter.callback(None if failure is None else Failure(failure.value))

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare the queue and consume from it; see _Subscription."""
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
                # The broker's node that has the queue is down; what is in it comes back with that.
                self.name = topology.new_running_queue(self.origin)
            consumption.end("it cannot be set up")
            raise
        if self._is_closed():  # meanwhile
            consumption.end("it is not wanted any more")
            return
        self._consumption = consumption
        self._told = ""

    def refused(self, failure: Failure) -> None:
        """Say why a request cannot be kept, once for each reason: it will be tried again and again."""
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
        """Do nothing: the channel has said so."""

    def _ended(self, consumption: Consumption, reason: ClosedError) -> None:
        """Begin again, unless the connection has ended: then its successor restores it."""
        if consumption is not self._consumption:
            return
        self._consumption = None
        self._listener.held_changed()
        self._listener.consumers.learn_limit(reason)
        if not consumption.channel.client.closed and not self._closed:
            _log.warn("{queue} lost its channel: {reason}", queue=str(self), reason=reason)
            self._listener.consumers.repair(self)

    async def close(self) -> None:
        """Give up the queue; what is still in it goes back to where it came from."""
        self._closed = True
        self._listener.consumers.remove(self)
        consumption, self._consumption = self._consumption, None
        if consumption is None:
            return
        if not self._listener.is_silent:
            # What is still on its way to us comes before the answer; with it, the queue must not be deleted.
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
