"""What is consumed is kept up: subscriptions that outlive channels, queues and connections."""

import re
from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import BrokerError, BrokerUnavailableError, DeclarationDeniedError
from novasvc.reactor.backoff import jittered_backoff
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import ClosedError
from novasvc.transport.amqp.connection import Connection, ConnectionUser
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.protocol import AMQPProtocol

_log = Logger()

NOT_FOUND = 404
"""The reply code for a queue that is gone."""
_TIMED_OUT = re.compile(r"acknowledgement .*timed out.*?(\d+) ms")
"""What the broker says when it closes a channel because a delivery was unacknowledged for too long."""


class _Subscription(Protocol):
    """What is kept up on the consuming connection."""

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Open a channel, declare, consume.

        :raises ClosedError: the channel or the connection was lost on the way.
        """

    def connection_lost(self) -> None:
        """Give up what came by the connection."""


@attrs.define(eq=False)
class Consumers:
    """The subscriptions of a transport, and the connection that they share.

    :param options: how queues are declared.
    :param clock: for the pauses between attempts.
    :param connect: makes a connection for its user; it is not opened here.
    :ivar consumer_timeout: seconds, see BrokerOptions; the broker's own, if that turned out to be shorter.
    """

    # Note [Transient queues]
    #
    # RabbitMQ 4.3 does not permit queues that are neither durable nor exclusive, nor do older ones if they are told
    # so; it closes the connection with 541. Queues of replies and fanouts have names that nobody else declares, so
    # they can be durable; they expire as before. Exclusive they cannot be: they would be gone with the connection,
    # and the replies in them. Which queue the broker did not permit, it does not say. If it was one that others
    # declare, too, the second attempt fails, and its error names the settings.
    #
    # It costs writes to the disk, for messages are persistent; so it is done only where it has to be.

    options: BrokerOptions
    clock: IReactorTime
    _connect: Callable[[ConnectionUser], Connection]
    connection: Connection = attrs.field(init=False)
    consumer_timeout: float = attrs.field(init=False)
    _subscriptions: list[_Subscription] = attrs.field(factory=list, init=False)
    _refused: list[_Subscription] = attrs.field(factory=list, init=False)
    _repairs: dict[_Subscription, Deferred[None]] = attrs.field(factory=dict, init=False)
    _waiting: list[Deferred[None]] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.consumer_timeout = self.options.consumer_timeout
        self.renew_connection()

    def renew_connection(self) -> None:
        """Make a connection that was never opened, in place of one that could not be."""
        self.connection = self._connect(self)

    def learn_limit(self, reason: ClosedError) -> None:
        """Go by the broker's own limit, if a channel ended because that is shorter than we were told."""
        found = _TIMED_OUT.search(reason.problem)
        limit = int(found[1]) / 1000 if found else 0.0
        if limit and not 0 < self.consumer_timeout <= limit:
            self.consumer_timeout, ours = limit, self.options.consumer_timeout
            _log.error(
                "the broker's consumer_timeout is {limit:g} s, {ours}; set rabbit_consumer_timeout to that",
                limit=limit,
                ours=f"not {ours:g} s" if ours else "and none is set here",
            )

    async def add(self, subscription: _Subscription) -> None:
        """Keep one more subscription up.

        :raises BrokerError: it cannot be established.
        """
        adapted = self.options.durable_private_queues
        try:
            await self._establish(subscription)
        except DeclarationDeniedError:
            if adapted:
                raise
            await self._next_connection()
            await self._establish(subscription)
        self._subscriptions.append(subscription)

    def _next_connection(self) -> Deferred[None]:
        """Wait until the connection that the broker has closed is there again; fails with BrokerUnavailableError."""
        back: Deferred[None] = Deferred()
        self._waiting.append(back)

        def late(_result: object, seconds: float) -> Failure:
            self._waiting.remove(back)
            problem = f"it closed the connection, and no other one is there after {seconds:g} s"
            return Failure(BrokerUnavailableError(self.connection.address.shown(), problem))

        return back.addTimeout(self.options.connect_timeout, self.clock, onTimeoutCancel=late)

    def keeps(self, subscription: _Subscription) -> bool:
        """Tell whether it is one that was added, and not removed."""
        return subscription in self._subscriptions

    def remove(self, subscription: _Subscription) -> None:
        """Keep it up no longer."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        self._end_repair(subscription)

    async def _establish(self, subscription: _Subscription) -> None:
        broker = self.connection.address.shown()
        protocol = self.connection.protocol
        if protocol is None:
            raise self.connection.problem or topology.refusal(broker, ClosedError("the connection is lost"))
        try:
            await subscription.establish(protocol)
        except ClosedError as reason:
            raise topology.refusal(broker, reason) from reason

    def repair(self, subscription: _Subscription) -> None:
        """Establish a subscription again that lost its channel or its queue; try until it is there."""
        self._end_repair(subscription)
        if self.connection.protocol is None:
            # Lost while others are still being established: its turn comes when all are.
            self._refused.append(subscription)
            return
        repairing = self._repairs[subscription] = Deferred.fromCoroutine(self._repair(subscription))
        repairing.addErrback(_note)

    def _end_repair(self, subscription: _Subscription) -> None:
        repairing = self._repairs.pop(subscription, None)
        if repairing is not None:
            repairing.cancel()

    async def _repair(self, subscription: _Subscription) -> None:
        protocol = self.connection.protocol
        wait = jittered_backoff(first=0.2, longest=4.0)
        told: str | None = None
        attempt = 0
        while protocol is not None and not protocol.closed and subscription in self._subscriptions:
            attempt += 1
            await deferLater(self.clock, wait(attempt), lambda: None)
            if protocol is not self.connection.protocol or subscription not in self._subscriptions:
                return  # A new connection restores it.
            try:
                await self._establish(subscription)
            except BrokerError as error:
                if told != str(error):
                    told = str(error)
                    _log.error(
                        "{subscription} cannot consume; retrying: {error}",
                        subscription=str(subscription),
                        error=error,
                    )
            else:
                _log.info("{subscription} consumes again", subscription=str(subscription))
                return

    # -- ConnectionUser ------------------------------------------------------------------------

    async def prepare(self, protocol: AMQPProtocol) -> None:
        """Establish all subscriptions; see ConnectionUser."""
        self._refused = []
        for subscription in list(self._subscriptions):
            if subscription not in self._subscriptions:
                continue
            try:
                await subscription.establish(protocol)
            except ClosedError as reason:
                if not reason.code or protocol.closed:
                    raise topology.refusal(self.connection.address.shown(), reason) from reason
                self._refused.append(subscription)  # only this one, by its own channel

    def ready(self) -> None:
        """Go on trying what the broker has refused; see ConnectionUser."""
        refused, self._refused = self._refused, []
        for subscription in refused:
            self.repair(subscription)
        waiting, self._waiting = self._waiting, []
        for back in waiting:
            back.callback(None)

    def lost(self, reason: ClosedError) -> bool:
        """Give up what came by the connection; see ConnectionUser.

        See Note [Transient queues].
        """
        for subscription in list(self._subscriptions):
            subscription.connection_lost()
        if not topology.is_denial(reason) or self.options.durable_private_queues:
            return False
        self.options = attrs.evolve(self.options, durable_private_queues=True)
        _log.warn(
            "the broker permits no queues that are neither durable nor exclusive: those of replies and fanouts are "
            "declared durable from now on ({reason})",
            reason=reason,
        )
        return True


def _note(failure: Failure) -> None:
    """Log what ended otherwise than by being given up."""
    if not failure.check(CancelledError):
        _log.failure("a subscription cannot be repaired", failure)
