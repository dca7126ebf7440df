"""ITransport over RabbitMQ, for ``amqp:`` and ``rabbit:`` URLs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.config.errors import SettingError
from novasvc.config.transport_url import BrokerAddress
from novasvc.interfaces import IListener, ITransport
from novasvc.reactor.backoff import RetryPolicy
from novasvc.reactor.coalesce import Waiters
from novasvc.rpc.errors import TransportClosedError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.connection import Connection, ConnectionHandler
from novasvc.transport.amqp.content import PLAIN, read_content
from novasvc.transport.amqp.endpoints import check_tls_files
from novasvc.transport.amqp.frames import Deliver
from novasvc.transport.amqp.listener import Listener, Receiver
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.private_names import random_name
from novasvc.transport.amqp.protocol import BODY_LIMIT, AMQPProtocol
from novasvc.transport.amqp.publisher import Message, Publisher
from novasvc.transport.amqp.reconnect import quick_backoff
from novasvc.transport.amqp.reply_codes import NOT_FOUND
from novasvc.transport.amqp.retries import ReplyRetries
from novasvc.transport.amqp.subscriptions import Subscriptions
from novasvc.transport.buffering import REPLY

_log = Logger()

_PREFIX = "reply_"
"""What the names of reply queues begin with."""


@attrs.define(eq=False)
class ReplyQueue(ChannelReceiver):
    """Consumes the reply queue of one client.

    :param receiver: called with the body of each reply.
    :ivar unreadable: replies that were dropped because they could not be decoded.
    """

    _subscriptions: Subscriptions
    _receiver: Callable[[bytes], None]
    name: str = attrs.field(init=False)
    unreadable: int = attrs.field(default=0, init=False)
    _channel: Channel | None = attrs.field(default=None, init=False)
    _claimed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.name = topology.new_reply_queue(self._subscriptions.options)

    def __str__(self) -> str:
        return f"the reply queue {self.name}"

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare the reply queue and consume from it; see Subscription."""
        subscriptions = self._subscriptions
        durable = subscriptions.options.durable_private_queues
        try:
            await self._establish(protocol)
        except AMQPClosedError as reason:
            name = None if self._claimed else subscriptions.name_instead(self.name, _PREFIX, reason, durable=durable)
            if name is None or protocol.closed:
                raise
            self.name = name
            await self._establish(protocol)

    async def _establish(self, protocol: AMQPProtocol) -> None:
        channel = await protocol.open_channel()
        options = self._subscriptions.options
        try:
            await self._declare(channel, options)
            channel.receiver = self
            await self._consume(channel)
            if not self._claimed and await topology.is_shared(channel, self.name, options):
                await channel.basic_cancel(consumer_tag="1")
                self.name = random_name(_PREFIX)
                await self._declare(channel, options)
                await self._consume(channel)
        except BaseException:
            channel.receiver = None
            channel.close(AMQPClosedError("set-up failed"))
            raise
        self._channel, self._claimed = channel, True

    async def _declare(self, channel: Channel, options: BrokerOptions) -> None:
        _, messages, consumers = await topology.declare_reply_queue(channel, self.name, options)
        if not self._claimed and not await topology.claim(channel, self.name, consumers, messages, options):
            self.name = random_name(_PREFIX)
            await topology.declare_reply_queue(channel, self.name, options)

    def _consume(self, channel: Channel) -> Deferred[Any]:
        # No acknowledgements: only this process can use a reply, so redelivery is of no use.
        return channel.basic_consume(queue=self.name, consumer_tag="1", no_ack=True)  # type: ignore[no-any-return]

    def connection_lost(self) -> None:
        """Forget the channel: the next connection calls establish again."""
        self._channel = None

    def give_back_name(self) -> None:
        """Allow another reply queue of this process to have the name."""
        self._subscriptions.options.private_names.give_back(self.name)

    async def close(self) -> None:
        """Delete the queue and close the channel."""
        self._subscriptions.remove(self)
        self.give_back_name()
        channel, self._channel = self._channel, None
        if channel is None or channel.closed:
            return
        channel.receiver = None
        try:
            await topology.delete_queue(channel, self.name, self._subscriptions.clock)
        except AMQPClosedError:
            return
        channel.close(AMQPClosedError("done", clean=True))

    # -- ChannelReceiver -----------------------------------------------------------------------

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Handle basic.deliver: pass the reply to the receiver; see ChannelReceiver."""
        if body is None or properties != PLAIN:
            try:
                body, _ = read_content(body, properties, BODY_LIMIT)
            except ValueError as error:
                self.unreadable += 1
                _log.warn("dropped a reply: {error}", error=error)
                return
        try:
            self._receiver(body)
        except Exception:  # noqa: BLE001 - it must not end the connection, which all consumers share
            _log.failure("unhandled exception in a reply receiver")

    def consumer_cancelled(self, consumer_tag: str) -> None:
        """Handle basic.cancel: close the channel, which declares and consumes again; see ChannelReceiver."""
        if self._channel is not None:
            self._channel.close(AMQPClosedError(f"the consumer of {self.name} was cancelled", code=NOT_FOUND))

    def channel_closed(self, reason: AMQPClosedError) -> None:
        """Re-establish the queue after a lost channel; see ChannelReceiver.

        After a lost connection the next one does that.
        """
        self._channel = None
        if reason.code:
            _log.warn("{replies} lost its channel; resubscribing: {reason}", replies=str(self), reason=reason)
            self._subscriptions.retry(self)


@implementer(ITransport)
@attrs.define(eq=False)
class AMQPTransport:
    """RabbitMQ, as OpenStack's services use it; see ITransport and ``docs/protocol.md``.

    See Note [Two connections] in :mod:`novasvc.transport.amqp.publisher`.

    :param address: hosts, tried in turn, with credentials and the virtual host.
    :param reactor: connects, and measures time.
    :param exchange: the control exchange of targets that name none.
    :param options: how queues are declared, deadlines, heartbeat, TLS.
    :param name: the prefix of both connections' names in the broker's list.
    :param retry: backoff: seconds to wait after the nth failed round of hosts.
    """

    _address: BrokerAddress
    _reactor: Any = attrs.field(kw_only=True)
    _exchange: str = attrs.field(default="nova", kw_only=True)
    _options: BrokerOptions = attrs.field(factory=BrokerOptions, kw_only=True)
    _name: str = attrs.field(default="novasvc", kw_only=True)
    _retry: RetryPolicy = attrs.field(factory=quick_backoff, kw_only=True)
    _publisher: Publisher = attrs.field(init=False)
    _subscriptions: Subscriptions = attrs.field(init=False)
    _connecting: bool = attrs.field(default=False, init=False)
    _connect_waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _listeners: list[Listener] = attrs.field(factory=list, init=False)
    _reply_queues: dict[str, ReplyQueue] = attrs.field(factory=dict, init=False)
    _retries: ReplyRetries = attrs.field(init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        options, clock = self._options, self._reactor
        self._publisher = Publisher(self._exchange, options, clock, partial(self._connection, "publishing"))
        self._subscriptions = Subscriptions(options, clock, partial(self._connection, "consuming"))
        self._retries = ReplyRetries(clock, self._publisher)

    def _connection(self, name: str, handler: ConnectionHandler) -> Connection:
        return Connection(
            name,
            self._address,
            self._options,
            self._reactor,
            handler,
            client_name=f"{self._name} ({name})",
            retry=self._retry,
        )

    @property
    def dropped_replies(self) -> int:
        """Number of replies that were dropped because their callers were gone."""
        return self._retries.dropped

    @property
    def connections(self) -> tuple[Connection, Connection]:
        """The publishing and the consuming connection, in whatever state they are."""
        return self._publisher.connection, self._subscriptions.connection

    def open(self) -> Deferred[None]:
        """Open the publishing connection; the first listener or reply queue opens the consuming one. See ITransport.

        :raises SettingError: a TLS file cannot be used.
        """
        try:
            check_tls_files(self._address, self._options)
        except SettingError as error:
            return fail(error)
        return self._publisher.connection.open()

    def close(self) -> Deferred[None]:
        """Close the listeners and both connections; see ITransport."""
        self._closed = True
        self._retries.close()
        self._publisher.close()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._retries.cancel()
        closing = [listener.close() for listener in self._listeners]
        closing += [Deferred.fromCoroutine(replies.close()) for replies in self._reply_queues.values()]
        self._listeners, self._reply_queues = [], {}
        await DeferredList(closing, consumeErrors=True)  # concurrently, so a silent broker costs one timeout
        await DeferredList([connection.close() for connection in self.connections], consumeErrors=True)
        self._options.private_names.release()

    def problem(self) -> str | None:
        """Return what keeps messages from moving, or None; see ITransport."""
        # The consuming connection is idle until the first listener or reply queue.
        problems = [connection.problem for connection in self.connections if connection.state != "idle"]
        return next((problem for problem in problems if problem is not None), None)

    # -- consuming -----------------------------------------------------------------------------

    def listen(self, target: Target, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume a target's messages; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        return self._listen(target, receiver, prefetch, single_queue=False)

    def consume(self, queue: str, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from one queue only; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        return self._listen(Target(queue), receiver, prefetch, single_queue=True)

    def subscribe(self, queue: str, keys: Sequence[str], receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from a queue that is bound with further routing keys; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        return self._listen(Target(queue), receiver, prefetch, single_queue=True, keys=keys)

    def _listen(
        self, target: Target, receiver: Receiver, prefetch: int, *, single_queue: bool, keys: Sequence[str] = ()
    ) -> Deferred[IListener]:
        exchange = target.exchange or self._exchange
        listener = Listener(
            self._subscriptions,
            target,
            exchange,
            receiver,
            prefetch,
            self._publisher,
            single_queue=single_queue,
            keys=keys,
        )
        return Deferred.fromCoroutine(self._begin(listener))

    async def _begin(self, listener: Listener) -> IListener:
        await self._add(listener)
        self._listeners = [*filter(self._subscriptions.__contains__, self._listeners), listener]
        return listener

    def open_replies(self, receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Open a reply queue and return its address; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("receiving replies"))
        return Deferred.fromCoroutine(self._open_replies(ReplyQueue(self._subscriptions, receiver)))

    async def _open_replies(self, replies: ReplyQueue) -> str:
        await self._add(replies)
        self._reply_queues[replies.name] = replies
        return replies.name

    def close_replies(self, address: str) -> Deferred[None]:
        """Delete a reply queue; see ITransport."""
        replies = self._reply_queues.pop(address, None)
        return succeed(None) if replies is None else Deferred.fromCoroutine(replies.close())

    async def _add(self, subscription: Listener | ReplyQueue) -> None:
        try:
            await self._connect()
            await self._subscriptions.add(subscription)
        except BaseException:
            subscription.give_back_name()
            raise

    def _connect(self) -> Deferred[None]:
        """Open the consuming connection once for all callers.

        :return: Deferred[None] of this caller. Cancelling it leaves the shared connection as it is.
        """
        if self._subscriptions.connection.state == "idle":
            self._connecting = True
            opening = self._subscriptions.connection.open()
            opening.addCallbacks(lambda _: self._connected(None), self._not_connected)
        return self._connect_waiters.wait() if self._connecting else succeed(None)

    def _not_connected(self, failure: Failure) -> None:
        # The next caller opens a new connection: a closed one cannot be opened again.
        self._subscriptions.renew_connection()
        self._connected(failure)

    def _connected(self, failure: Failure | None) -> None:
        self._connecting = False
        self._connect_waiters.fire(failure)

    # -- publishing ----------------------------------------------------------------------------

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:  # noqa: FBT001 - the interface's signature
        """Publish a request to a target; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        if target.fanout:
            if target.internal:
                return self._send_internal(target, body, ttl)
            return self._publisher.fanout(target.topic, body, ttl, str(target))
        exchange = target.exchange or self._exchange
        address = target.topic if target.server is None else topology.request_address(target)
        return self._publisher.publish(Message(exchange, address, body, ttl, mandatory, target, request=True))

    def _send_internal(self, target: Target, body: bytes, ttl: float | None) -> Deferred[None]:
        exchange, key = target.exchange or self._exchange, topology.cancellation_key(target)
        return self._publisher.publish(Message(exchange, key, body, ttl, mandatory=False, target=target, request=True))

    def publish(self, key: str, body: bytes) -> Deferred[None]:
        """Publish a message to the queues that are bound with a routing key; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        message = Message(self._exchange, key, body, None, mandatory=True, target=key, request=True)
        return self._publisher.publish(message)

    def post(self, queue: str, body: bytes) -> Deferred[None]:
        """Publish a message to a queue, which is declared if it does not exist; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        return Deferred.fromCoroutine(self._post(queue, body))

    async def _post(self, queue: str, body: bytes) -> None:
        def message() -> Message:
            return Message(self._exchange, queue, body, None, mandatory=True, target=queue)

        try:
            await self._publisher.publish(message())
        except UndeliverableError:
            # The queue does not exist yet, or was deleted.
            await self._publisher.add_queue(queue)
            await self._publisher.publish(message())

    def reply(self, address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        """Publish a reply; see ITransport.

        A missing reply queue is retried a few times; then the caller counts as gone, and for a while its replies
        are sent once. After our own connection was lost, the caller has more time: its connection was lost as well.
        """
        if self._closed:
            return fail(TransportClosedError("replying"))
        max_wait = REPLY if timeout is None else max(0.0, timeout)
        message = Message("", address, body, None, mandatory=True, target=address, max_wait=max_wait)
        done, until = self._publisher.publish(message), self._reactor.seconds() + max_wait
        if address in self._retries.gone:
            done.addCallback(self._retries.caller_reached, address)
        return done.addErrback(self._retries.retry, address, body, until)
