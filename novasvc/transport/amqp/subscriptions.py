"""Subscriptions that survive the loss of their channel, queue or connection."""

import re
from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.reactor.backoff import jittered_backoff
from novasvc.reactor.coalesce import Waiters
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.connection import Connection, ConnectionHandler
from novasvc.transport.amqp.existing import mismatch
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.private_names import random_name
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.replacement import Replacements
from novasvc.transport.amqp.reply_codes import broker_error, denies_feature
from novasvc.transport.amqp.restoring import log_unless_cancelled, restore
from novasvc.transport.amqp.time_in_queue import TimesInQueue
from novasvc.transport.errors import BrokerUnavailableError, DeclarationDeniedError

_log = Logger()

_TIMED_OUT = re.compile(r"acknowledgement .*timed out.*?(\d+) ms")
"""RabbitMQ's reply text when it closes a channel whose delivery exceeded the consumer_timeout."""


class Subscription(Protocol):
    """Queues and consumers to keep established on the consuming connection."""

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Open a channel, declare the queues and start the consumers.

        :raises AMQPClosedError: the channel or the connection was lost meanwhile.
        """

    def connection_lost(self) -> None:
        """Forget the channel; the next connection calls establish again."""


@attrs.define(eq=False)
class Subscriptions:
    """Keeps a transport's subscriptions established on one shared connection.

    :param options: how queues are declared.
    :param clock: measures the pauses between attempts.
    :param connect: makes a connection for its user; the caller opens it.
    :ivar consumer_timeout: seconds, see BrokerOptions; the broker's own limit if that turned out to be shorter.
    :ivar replacements: the queues that an operator is replacing.
    :ivar times_in_queue: tells for how long a delivery has waited.
    """

    # Note [Transient queues]
    #
    # RabbitMQ 4.3 denies queues that are neither durable nor exclusive, and older versions can be
    # configured to; the broker closes the connection with 541. The names of reply and fanout queues
    # are private, so those queues can be declared durable; they still expire when unused. They cannot
    # be exclusive: an exclusive queue is deleted with its connection, and the replies in it are lost
    # (AMQP 0-9-1 1.7.2.1). The broker does not say which queue it denied. If it was one that other
    # programs declare as well, the second attempt fails, and its error names the settings to change.
    #
    # A durable queue costs disk writes, as our messages are persistent. So the queues become durable
    # only after the broker has denied transient ones.
    #
    # A process that was killed leaves durable queues there, and its successor takes their names again
    # (see Note [Stable names of private queues]). It begins with transient ones, and is told that the
    # queue is durable, not that transient queues are denied: for an existing queue the broker compares
    # first. So that counts as a denial, unless this process has a queue already, which proves that
    # there is none.

    options: BrokerOptions
    clock: IReactorTime
    _connect: Callable[[ConnectionHandler], Connection]
    connection: Connection = attrs.field(init=False)
    consumer_timeout: float = attrs.field(init=False)
    replacements: Replacements = attrs.field(init=False)
    times_in_queue: TimesInQueue = attrs.field(factory=TimesInQueue, init=False)
    _subscriptions: list[Subscription] = attrs.field(factory=list, init=False)
    _failed: list[Subscription] = attrs.field(factory=list, init=False)
    _retries: dict[Subscription, Deferred[None]] = attrs.field(factory=dict, init=False)
    _reconnect_waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)

    def __attrs_post_init__(self) -> None:
        self.consumer_timeout = self.options.consumer_timeout
        self.replacements = Replacements(self.options.accepted)
        self.renew_connection()

    def renew_connection(self) -> None:
        """Replace a connection that failed to open with a new, idle one."""
        self.connection = self._connect(self)

    def adopt_consumer_timeout(self, reason: AMQPClosedError) -> None:
        """Adopt the broker's consumer_timeout if a channel was closed because it is shorter than configured."""
        found = _TIMED_OUT.search(reason.problem)
        limit = int(found[1]) / 1000 if found else 0.0
        if limit and not 0 < self.consumer_timeout <= limit:
            self.consumer_timeout, ours = limit, self.options.consumer_timeout
            _log.error(
                "the broker's consumer_timeout is {limit:g} s, {ours}; set rabbit_consumer_timeout to the same value",
                limit=limit,
                ours=f"not {ours:g} s" if ours else "and none is set here",
            )

    async def add(self, subscription: Subscription) -> None:
        """Establish a subscription and keep it established.

        :raises BrokerError: it cannot be established; it is not kept.
        """
        adapted = self.options.durable_private_queues
        try:
            await self._establish(subscription)
        except DeclarationDeniedError:
            if adapted:
                raise
            await self._wait_for_reconnect()
            await self._establish(subscription)
        self._subscriptions.append(subscription)

    def name_instead(self, name: str, prefix: str, reason: AMQPClosedError, *, durable: bool) -> str | None:
        """Return the name with which to declare a private queue again that exists with other properties.

        See Note [Transient queues].

        :param name: a stable name that this process has not used yet.
        :param prefix: what the names of such queues begin with.
        :param reason: of the refusal.
        :param durable: how it was declared; another subscription may have changed the options since.
        :return: the same name, if private queues are durable from now on; another one; None if it was refused for
            something else.
        """
        refused = mismatch(reason)
        if refused is None or refused[1:] != ("queue", name) or not self.options.private_names.is_stable(name):
            return None
        if refused[0] == "durable" and not durable:
            if not self._subscriptions and not self.options.durable_private_queues:
                self.options = attrs.evolve(self.options, durable_private_queues=True)
            if self.options.durable_private_queues:
                return name
        return random_name(prefix)

    def _wait_for_reconnect(self) -> Deferred[None]:
        """Wait for the reconnect after the broker has closed the connection.

        :return: Deferred[None]; fails with BrokerUnavailableError after the connect timeout.
        """

        def late(_result: object, seconds: float) -> Failure:
            problem = f"it closed the connection, and reconnecting took longer than {seconds:g} s"
            return Failure(BrokerUnavailableError(self.connection.address.shown(), problem))

        reconnected = self._reconnect_waiters.wait()
        return reconnected.addTimeout(self.options.connect_timeout, self.clock, onTimeoutCancel=late)

    def __contains__(self, subscription: Subscription) -> bool:
        """Return whether a subscription was added and not removed."""
        return subscription in self._subscriptions

    def remove(self, subscription: Subscription) -> None:
        """Stop keeping a subscription established; its channel is the caller's to close."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        self._cancel_retry(subscription)

    async def _establish(self, subscription: Subscription) -> None:
        broker = self.connection.address.shown()
        protocol = self.connection.protocol
        if protocol is None:
            raise self.connection.last_error or broker_error(broker, AMQPClosedError("the connection is lost"))
        try:
            await subscription.establish(protocol)
        except AMQPClosedError as reason:
            raise broker_error(broker, reason) from reason

    def retry(self, subscription: Subscription) -> None:
        """Re-establish a subscription that lost its channel or queue; retry with backoff until it succeeds."""
        self._cancel_retry(subscription)
        if self.connection.protocol is None:
            # The connection is not ready yet: other subscriptions are being established. ready() repairs this one.
            self._failed.append(subscription)
            return
        retrying = self._retries[subscription] = Deferred.fromCoroutine(self._retry(subscription))
        retrying.addErrback(log_unless_cancelled, "re-establishing a subscription failed")

    def _cancel_retry(self, subscription: Subscription) -> None:
        retrying = self._retries.pop(subscription, None)
        if retrying is not None:
            retrying.cancel()

    async def _retry(self, subscription: Subscription) -> None:
        protocol = self.connection.protocol

        def wanted() -> bool:
            # A new connection restores it by prepare().
            same = protocol is self.connection.protocol and protocol is not None and not protocol.closed
            return same and subscription in self._subscriptions

        def log(error: Exception) -> None:
            _log.error("{subscription} cannot consume; retrying: {error}", subscription=str(subscription), error=error)

        def establish() -> Deferred[None]:
            return Deferred.fromCoroutine(self._establish(subscription))

        backoff = jittered_backoff(first=0.2, longest=4.0)
        if await restore(establish, wanted, log, clock=self.clock, backoff=backoff):
            _log.info("{subscription} consumes again", subscription=str(subscription))

    # -- ConnectionHandler ---------------------------------------------------------------------

    async def prepare(self, protocol: AMQPProtocol) -> None:
        """Establish all subscriptions; see ConnectionHandler."""
        self._failed = []
        for subscription in list(self._subscriptions):
            if subscription not in self._subscriptions:
                continue
            try:
                await subscription.establish(protocol)
            except AMQPClosedError as reason:
                # A reply code on an open connection is a channel-level error: other subscriptions are not affected.
                if not reason.code or protocol.closed:
                    raise broker_error(self.connection.address.shown(), reason) from reason
                self._failed.append(subscription)  # a refusal closed this subscription's channel only

    def ready(self) -> None:
        """Retry the subscriptions that the broker refused; see ConnectionHandler."""
        failed, self._failed = self._failed, []
        for subscription in failed:
            self.retry(subscription)
        self._reconnect_waiters.fire(None)

    def lost(self, reason: AMQPClosedError) -> bool:
        """Switch to durable private queues if transient ones were denied; see ConnectionHandler.

        See Note [Transient queues].

        :return: whether that switch was made: the connection is then retried at once.
        """
        for subscription in list(self._subscriptions):
            subscription.connection_lost()
        if not denies_feature(reason) or self.options.durable_private_queues:
            return False
        self.options = attrs.evolve(self.options, durable_private_queues=True)
        _log.warn(
            "the broker denies queues that are neither durable nor exclusive; reply and fanout queues are "
            "declared durable from now on: {reason}",
            reason=reason,
        )
        return True
