"""Publish messages with publisher confirms; buffer them while the broker cannot take them."""

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import takewhile
from math import inf
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc import identifiers
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.reactor.coalesce import CoalescedCalls
from novasvc.rpc.errors import TransportClosedError, TransportFullError, UnconfirmedError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.confirm_timeout import ConfirmTimeout
from novasvc.transport.amqp.connection import Connection, ConnectionHandler
from novasvc.transport.amqp.content import PLAIN, write_properties
from novasvc.transport.amqp.existing import declare_or_accept
from novasvc.transport.amqp.frames import pack_content, pack_publish
from novasvc.transport.amqp.isolated_channels import FANOUTS, PROBES, IsolatedChannels
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.reply_codes import broker_error
from novasvc.transport.amqp.restoring import log_unless_cancelled, restore
from novasvc.transport.amqp.send_buffer import SendBuffer
from novasvc.transport.amqp.topology import (
    count,
    declare_exchange,
    declare_fanout_exchange,
    declare_request_queue,
    fanout_exchange,
)
from novasvc.transport.errors import BrokerBlockedError, BrokerError, BrokerUnavailableError

_log = Logger()

_T = TypeVar("_T")
Prepare = Callable[[Channel], Awaitable[Any]]
"""Makes declarations on a channel."""

_TOO_LARGE = "message size"
"""Prefix of RabbitMQ's reply text for a message over its own size limit; the size in bytes follows."""
FLOW_CHECK_AGE = 1.0
"""Seconds for which a publisher confirm proves that the broker reads from this connection."""
FLOW_CHECK_KEY = "novasvc.probe"
"""Routing key of the empty message that asks for such a proof. No queue is bound to it."""
_FLOW_CHECK_TTL = 0.001
"""Seconds. A queue bound to every key, such as a tracing queue, drops the probe at once."""
UNROUTABLE_RETRY_WINDOW = 5.0
"""Seconds after our reconnect during which an unroutable request or event is sent again."""


@attrs.define(eq=False)
class Message:
    """A message to publish, and its outcome.

    :param ttl: seconds after which the message is void, counted from :meth:`Publisher.publish`; None is never.
    :param mandatory: at least one queue has to be bound; see basic.publish, AMQP 0-9-1 1.8.3.7.
    :param target: where the message goes, as shown in errors.
    :param max_wait: seconds for which it may be buffered if it has no ttl; None means the operation timeout.
    :param request: a request or an event: it is addressed to services, whose queues may come back shortly after an
        outage.
    :param done: fires when the broker has confirmed the message; the sender may cancel it.
    :param on_cancelled: called if ``done`` is cancelled while the message waits for a declaration, or after it was
        written and before its confirm.
    :param expires_at: seconds on the clock after which the message is void, or None.
    :param sent_at: seconds on the clock when the message was written.
    :param returned: basic.return came for the last attempt.
    :param returns: how often it was returned.
    """

    exchange: str
    routing_key: str
    body: bytes
    ttl: float | None
    mandatory: bool
    target: Target | str
    headers: dict[str, Any] | None = None
    max_wait: float | None = None
    request: bool = attrs.field(default=False, kw_only=True)
    done: Deferred[None] = attrs.field(init=False)
    on_cancelled: Callable[[], None] | None = attrs.field(default=None, init=False)
    expires_at: float | None = attrs.field(default=None, init=False)
    sent_at: float = attrs.field(default=0.0, init=False)
    returned: bool = attrs.field(default=False, init=False)
    returns: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.done = Deferred(self._cancelled)

    def needs_reading_broker(self, now: float) -> bool:
        """Return whether it is written only while the broker is known to read: see Note [Flow check]."""
        return self.request or (self.expires_at is not None and self.expires_at > now)

    def _cancelled(self, _: object) -> None:
        """No-op canceller: the Deferred fails by itself, and a late confirm is ignored."""
        if self.on_cancelled is not None:
            self.on_cancelled()


@attrs.define(eq=False)
class ConfirmChannel(ChannelReceiver):
    """A channel in confirm mode, with its unconfirmed messages by delivery tag.

    :param to_error: turns the reason for which the channel closed into an error.
    :param on_closed: called when the channel has closed, before its unconfirmed messages fail.
    :param unroutable: called with a message that was returned, when its confirm arrives.
    :param on_cancelled: called when the sender cancels an unconfirmed message.
    :param sender: said in each message with a TTL; see Note [Time in the queue].
    :param confirmed_at: seconds on the clock of the last confirm; -inf before the first.
    """

    channel: Channel
    _clock: IReactorTime
    _to_error: Callable[[AMQPClosedError], BrokerError]
    _on_closed: Callable[[AMQPClosedError], None]
    _unroutable: Callable[[Message], None]
    _message_cancelled: Callable[[], None]
    _sender: bytes
    confirmed_at: float = attrs.field(default=-inf, init=False)
    _last_tag: int = attrs.field(default=0, init=False)
    _unconfirmed: dict[int, Message] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._unconfirmed)

    def publish(self, message: Message, now: float) -> None:
        """Write a message to the socket; its ``done`` fires when the broker confirms it.

        ``done`` fails with a BrokerError at once if the message cannot be encoded.

        :param now: seconds on the clock.
        """
        channel = self.channel
        # Send the remaining time: the broker counts the expiration from when it reads the message.
        ttl = None if message.expires_at is None else message.expires_at - now
        try:
            if ttl is not None:
                properties = write_properties(ttl, message.headers, self._sender, now)
            else:
                properties = write_properties(None, message.headers) if message.headers else PLAIN
            method = pack_publish(channel.id, message.exchange, message.routing_key, message.mandatory)
        except ValueError as error:
            message.done.errback(BrokerError(str(message.target), str(error)))
            return
        message.sent_at, message.on_cancelled = now, self._message_cancelled
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = message
        # Method, header and body of a message must not be interleaved with other frames of the channel (AMQP 0-9-1
        # 4.2.6), so they are one write.
        client = channel.client
        client.write(method + pack_content(channel.id, properties, message.body, client.frame_max))

    def oldest(self) -> float | None:
        """Return when the oldest unconfirmed message was sent, in seconds on the clock, or None."""
        return next(iter(self._unconfirmed.values())).sent_at if self._unconfirmed else None

    def fail_overdue(self, before: float, reason: str) -> None:
        """Fail overdue messages with UnconfirmedError.

        A message with a TTL is overdue when it has expired, any other when it was sent by ``before``.

        :param before: seconds on the clock.
        :param reason: why the broker does not read, for the error.
        """
        now = self._clock.seconds()
        overdue = [
            tag
            for tag, message in self._unconfirmed.items()
            if (message.sent_at <= before if message.expires_at is None else message.expires_at <= now)
        ]
        for message in [self._unconfirmed.pop(tag) for tag in overdue]:
            if not message.done.called:
                message.done.errback(UnconfirmedError(str(message.target), f"the broker blocks publishing: {reason}"))

    # -- ChannelReceiver -----------------------------------------------------------------------

    def confirmed(self, delivery_tag: int, multiple: bool, acked: bool) -> None:  # noqa: FBT001 - as ChannelReceiver
        """Settle the messages that basic.ack or basic.nack names; see ChannelReceiver."""
        self.confirmed_at = self._clock.seconds()
        unconfirmed = self._unconfirmed
        # The broker counts the messages of a channel from 1, and so do we; it may confirm several at once with
        # "multiple" (RabbitMQ, "Publisher Confirms"). The tags ascend, so takewhile is enough. Remove all of them
        # first: a callback may publish again.
        tags = takewhile(delivery_tag.__ge__, unconfirmed) if multiple else (delivery_tag,)
        for message in [unconfirmed.pop(tag) for tag in list(tags) if tag in unconfirmed]:
            done = message.done
            if done.called:  # its sender has cancelled it
                continue
            if message.returned:
                # basic.return came first, and the broker confirms an unroutable message, too (RabbitMQ, "When Will
                # Published Messages Be Confirmed by the Broker?").
                self._unroutable(message)
            elif acked:
                done.callback(None)
            else:
                done.errback(BrokerError(str(message.target), "the broker rejected the message (basic.nack)"))

    def returned(self, args: tuple[Any, ...], body: bytes | None) -> None:
        """Handle basic.return: no queue was bound; see ChannelReceiver."""
        # basic.return carries no delivery tag. The body identifies the message: each body has an id of its own,
        # and is never in flight twice.
        for message in self._unconfirmed.values():
            if message.mandatory and not message.returned and message.body == body:
                message.returned = True
                return

    def channel_closed(self, reason: AMQPClosedError) -> None:
        """Fail the unconfirmed messages; see ChannelReceiver."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        self._on_closed(reason)  # before the callbacks, which may publish again
        for message in unconfirmed.values():
            if message.done.called:
                continue
            # A channel-level error (AMQP 0-9-1 1.2): one message closed the channel. The reply text names its exchange
            # or its size, and so identifies the messages that were refused. Any other message may have been taken, or
            # not.
            named = message.exchange and f"'{message.exchange}'" in reason.problem
            too_large = _TOO_LARGE in reason.problem and f"{_TOO_LARGE} {len(message.body)} " in reason.problem
            if reason.code and (named or too_large):
                error: Exception = self._to_error(reason)
            else:
                error = UnconfirmedError(str(message.target), str(reason))
            message.done.errback(error)


@attrs.define(eq=False)
class Publisher:
    """Publishes over a connection of its own, on which nothing is consumed.

    :param exchange: the control exchange.
    :param connect: makes the connection for its user; the caller opens and closes it.
    :param flow_check_age: see FLOW_CHECK_AGE.
    :param unroutable_backoff: backoff before an unroutable message is sent again, by the number of its returns.
    :ivar sender: 8 characters for this publisher, said in each message with a TTL; see Note [Time in the queue] in
        :mod:`novasvc.transport.amqp.time_in_queue`.
    """

    # Note [Two connections]
    #
    # A broker that runs short of memory or disk stops reading from the connections that publish.
    # It would not read an acknowledgement on such a connection either, so back-pressure on
    # publishing would stop consuming as well. Therefore one connection publishes, and another one
    # consumes.

    # Note [Flow check]
    #
    # A message that was written to the socket cannot be taken back. A broker in alarm does not read
    # it. It sends connection.blocked only when it meets the first message after the alarm began, and
    # reads on when the alarm is over, perhaps an hour later. The expiration counts from that moment,
    # so the broker would deliver a request whose caller timed out long before.
    #
    # So a request or event, and any other message with a TTL, is written only while the broker is known to
    # read: it has confirmed something within FLOW_CHECK_AGE. Otherwise an empty probe goes first, to a key
    # that no queue is bound to, and the message waits for the probe's confirm. In an alarm the probe
    # stays in the socket, and the caller's message is buffered in this process, where it can still be
    # cancelled.
    #
    # One window remains: the messages that a busy sender wrote in the round trip between the begin of
    # an alarm and connection.blocked. When the sender cancels the first of them, and the broker is
    # still blocked, the connection is dropped. The broker notices the loss at its next heartbeat at
    # the latest, and discards what it had not read.
    #
    # Replies need no proof: a late reply does no harm.

    _exchange: str
    _options: BrokerOptions
    _clock: IReactorTime
    _connect: Callable[[ConnectionHandler], Connection]
    _flow_check_age: float = FLOW_CHECK_AGE
    _unroutable_backoff: RetryPolicy = attrs.field(factory=lambda: jittered_backoff(first=0.1, longest=1.0))
    connection: Connection = attrs.field(init=False)
    sender: bytes = attrs.field(init=False)
    _main: ConfirmChannel | None = attrs.field(default=None, init=False)
    _isolated: IsolatedChannels = attrs.field(init=False)
    _adding: CoalescedCalls[str, None] = attrs.field(init=False)
    _fanout_exchanges: CoalescedCalls[tuple[Channel, str], Any] = attrs.field(init=False)
    _exchanges: set[str] = attrs.field(factory=set, init=False)
    _send_buffer: SendBuffer = attrs.field(init=False)
    _confirm_timeout: ConfirmTimeout = attrs.field(init=False)
    _checking_flow: bool = attrs.field(default=False, init=False)
    _dropping: IDelayedCall | None = attrs.field(default=None, init=False)
    _reconnects: int = attrs.field(default=0, init=False)
    _reconnected_at: float = attrs.field(default=-inf, init=False)
    _reopening: Deferred[None] | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        timeout = self._options.operation_timeout
        self.sender = identifiers.random_bytes(4).hex().encode()
        self.connection = self._connect(self)
        self._isolated = IsolatedChannels(self._open_channel)
        self._adding = CoalescedCalls(lambda exchange: Deferred.fromCoroutine(self._add_exchange(exchange)))
        self._fanout_exchanges = CoalescedCalls(lambda key: declare_fanout_exchange(*key, self._options))
        self._send_buffer = SendBuffer(self._clock, timeout, self._expired)
        self._confirm_timeout = ConfirmTimeout(self._clock, timeout, self.connection, self._channels)

    def __len__(self) -> int:
        return len(self._send_buffer) + sum(map(len, self._channels()))

    def _channels(self) -> list[ConfirmChannel]:
        return [*(() if self._main is None else (self._main,)), *self._isolated]

    @property
    def seconds_since_reconnect(self) -> float:
        """Seconds since the last reconnect; infinite if the connection was never lost."""
        return self._clock.seconds() - self._reconnected_at

    # -- publishing ----------------------------------------------------------------------------

    def publish(self, message: Message) -> Deferred[None]:
        """Publish a message now, or buffer it until the broker takes messages.

        :return: Deferred[None], fired when the broker has confirmed it. Cancelling it drops a message that is still
            buffered; a message that was written may still be delivered.
        :raises UndeliverableError: mandatory, and no queue is bound.
        :raises BrokerError: the message was not sent, or the broker refused it.
        :raises UnconfirmedError: the broker may have taken it, or not.
        :raises TransportFullError: too many messages, or bytes, are buffered already.
        :raises TransportClosedError: the publisher is closed, and the message cannot be written at once.
        """
        now, main = self._clock.seconds(), self._main
        if message.ttl is not None and message.expires_at is None:
            message.expires_at = now + message.ttl
        if (
            main is None
            or self._send_buffer.buffered
            or not self.connection.is_writable
            or message.exchange not in self._exchanges
        ):
            return self._publish_or_buffer(message)
        if now - main.confirmed_at > self._flow_check_age and message.needs_reading_broker(now):
            return self._publish_or_buffer(message)
        main.publish(message, now)
        if self._confirm_timeout.timer is None:
            self._confirm_timeout.start()
        return message.done

    @property
    def _can_send(self) -> bool:
        return not self._send_buffer.buffered and self.connection.is_writable

    def _needs_flow_check(self, message: Message, now: float) -> bool:
        """Return whether a message waits for a confirm first; see Note [Flow check]."""
        main = self._main
        if main is not None and now - main.confirmed_at <= self._flow_check_age:
            return False
        return message.needs_reading_broker(now)

    def _publish_or_buffer(self, message: Message) -> Deferred[None]:
        if self._closed:
            return fail(TransportClosedError("sending"))
        if not self._can_send or self._main is None or message.exchange in self._exchanges:
            return self._buffer(partial(self._publish_buffered, message), message)
        if not self._send_buffer.has_room(message):
            return self._full(message)
        self._send_after(self._adding.get(message.exchange), message, lambda _: self._publish_buffered(message))
        return message.done

    def _send_after(
        self, declaring: Deferred[_T], message: Message, send: Callable[[_T], None], *, hold: bool = True
    ) -> None:
        """Send a message after a declaration.

        :param send: takes the result of the declaration.
        :param hold: count it as buffered meanwhile, and let it expire.
        """
        if hold:
            # What waits for the declaration has the message, which must not outlive its place in the buffer.
            self._send_buffer.hold(message, declaring.cancel)
            message.on_cancelled = declaring.cancel

        def declared(result: _T) -> None:
            self._send_buffer.release(message)
            if not message.done.called:
                send(result)

        def not_declared(failure: Failure) -> None:
            self._send_buffer.release(message)
            self._fail(message, failure)

        declaring.addCallback(declared).addErrback(not_declared)

    def _publish_buffered(self, message: Message) -> None:
        if message.done.called:
            return
        if message.expires_at is not None and message.expires_at <= self._clock.seconds():
            message.done.errback(self._unsent_error())
            return
        # The sender has ``message.done``, so a failure to buffer the message again has to fail that one.
        published = self.publish(message)
        if published is not message.done:
            published.addErrback(partial(self._fail, message))

    def fanout(self, topic: str, body: bytes, ttl: float | None, target: str) -> Deferred[None]:
        """Publish a copy to every server of a topic; otherwise as :meth:`publish`."""
        message = Message(fanout_exchange(topic), "", body, ttl, mandatory=False, target=target, request=True)
        # The fanout exchange is auto-delete: it goes with the last server, and a publish then closes the channel. So it
        # is declared each time, once for all fanouts that wait for the answer.
        return self._publish_isolated(FANOUTS, message, lambda channel: self._fanout_exchanges.get((channel, topic)))

    def publish_probe(self, message: Message, prepare: Prepare) -> Deferred[None]:
        """Publish a probe on a channel whose loss costs no other sender's message; otherwise as :meth:`publish`.

        :param prepare: makes declarations on that channel first; its exception fails the publishing.
        """
        return self._publish_isolated(PROBES, message, prepare)

    def _publish_isolated(self, purpose: str, message: Message, prepare: Prepare) -> Deferred[None]:
        now = self._clock.seconds()
        message.expires_at = None if message.ttl is None else now + message.ttl
        if self._closed:
            return fail(TransportClosedError("sending"))
        if not self._can_send or self._needs_flow_check(message, now):
            return self._buffer(partial(self._start_isolated, purpose, prepare, message), message)
        if purpose == FANOUTS and not self._send_buffer.has_room(message):
            return self._full(message)
        self._start_isolated(purpose, prepare, message)
        return message.done

    def _start_isolated(self, purpose: str, prepare: Prepare, message: Message) -> None:
        preparing = Deferred.fromCoroutine(self._prepare_isolated(purpose, prepare))
        # There are few probes, and their sender has a deadline of its own.
        self._send_after(preparing, message, partial(self._publish_prepared, message), hold=purpose == FANOUTS)

    async def _prepare_isolated(self, purpose: str, prepare: Prepare) -> ConfirmChannel:
        confirming = await self._isolated.get(purpose)
        await prepare(confirming.channel)
        return confirming

    def _publish_prepared(self, message: Message, confirming: ConfirmChannel) -> None:
        confirming.publish(message, self._clock.seconds())
        self._confirm_timeout.start()

    async def count(self, queue: str) -> tuple[int, int]:
        """Return a queue's number of ready messages and of consumers.

        :raises BrokerError: the queue does not exist, or the broker cannot be asked now.
        """
        try:
            confirming = await self._isolated.get(PROBES)
            return await count(confirming.channel, queue)
        except AMQPClosedError as reason:
            raise self._broker_error(reason) from reason

    # -- buffering -------------------------------------------------------------------------------

    def _buffer(self, send: Callable[[], None], message: Message) -> Deferred[None]:
        if not self._send_buffer.has_room(message):
            return self._full(message)
        self._send_buffer.add(message, send)
        self._check_flow()
        return message.done

    def _full(self, message: Message) -> Deferred[None]:
        why = self.connection.problem or "the broker confirms too slowly"
        return fail(TransportFullError(str(message.target), len(self._send_buffer), why))

    def _expired(self, message: Message) -> None:
        self._fail(message, Failure(self._unsent_error()))

    def _unsent_error(self) -> Exception:
        connection = self.connection
        shown = connection.address.shown()
        if connection.state == "blocked":
            return BrokerBlockedError(shown, f"it blocks publishing: {connection.blocked_by}")
        if connection.last_error is not None:
            return connection.last_error
        problem = f"the connection is {connection.state}"
        if connection.state == "ready":
            # Name the limit rather than the elapsed time: a caller that retries logs every change of the text.
            silent = f"no publisher confirm for over {self._flow_check_age:g} s"
            problem = silent if self._checking_flow else "it answers or reads too slowly"
        return BrokerUnavailableError(shown, f"{problem}, so the message was not sent")

    def _check_flow(self) -> None:
        """Publish a probe if a buffered message waits for one; see Note [Flow check]."""
        main = self._main
        if main is None or self._checking_flow or not self.connection.is_writable:
            return
        now = self._clock.seconds()
        if now - main.confirmed_at <= self._flow_check_age:
            return  # Without a look at the messages: there may be thousands, and this is asked for each of them.
        buffered = (each.message for each in self._send_buffer.buffered)
        waiting = next((message for message in buffered if message.needs_reading_broker(now)), None)
        if waiting is None:
            return
        # Use the message's own exchange: the user may lack the write permission for another one.
        exchange = waiting.exchange if waiting.exchange in self._exchanges else self._exchange
        probe = Message(exchange, FLOW_CHECK_KEY, b"", _FLOW_CHECK_TTL, mandatory=False, target=FLOW_CHECK_KEY)
        probe.expires_at = now + _FLOW_CHECK_TTL
        self._checking_flow = True
        main.publish(probe, now)
        probe.done.addCallbacks(self._flow_confirmed, self._flow_check_failed, errbackArgs=(exchange,))
        self._confirm_timeout.start()

    def _flow_confirmed(self, _: None) -> None:
        self._checking_flow = False
        self._send_buffered()

    def _flow_check_failed(self, failure: Failure, exchange: str) -> None:
        """Fail the messages to a refused exchange; retry after a lost channel.

        A BrokerError applies to the messages too. After a lost channel the next channel is probed again.
        """
        self._checking_flow = False
        if failure.check(BrokerError):
            for buffered in [each for each in self._send_buffer.buffered if each.message.exchange == exchange]:
                self._send_buffer.remove(buffered)
                self._fail(buffered.message, Failure(failure.value))
        self._check_flow()  # for messages to other exchanges

    # -- unroutable requests and events --------------------------------------------------------

    # Note [Unroutable after a reconnect]
    #
    # After a broker's crash its clients reconnect one after the other, within seconds. A queue that is
    # not durable exists again when the first of its servers has declared it. A caller that reconnects
    # before that server would get UndeliverableError, and an event would be dropped as one without
    # subscribers. So for UNROUTABLE_RETRY_WINDOW seconds after our own reconnect an unroutable request or
    # event is sent again, with short pauses, as long as its TTL lasts.

    def _unroutable(self, message: Message) -> None:
        """Send an unroutable request or event again, or fail it; see Note [Unroutable after a reconnect]."""
        message.returns += 1
        message.on_cancelled = None
        if message.request and self._send_buffer.has_room(message):
            pause = self._unroutable_backoff(message.returns)
            until = self._reconnected_at + UNROUTABLE_RETRY_WINDOW
            if message.expires_at is not None:
                until = min(until, message.expires_at)
            if self._clock.seconds() + pause < until:
                self._send_buffer.delay(message, pause, partial(self._retry_unroutable, message))
                return
        message.done.errback(UndeliverableError(str(message.target)))

    def _retry_unroutable(self, message: Message) -> None:
        message.returned = False
        self._publish_buffered(message)

    # -- ConnectionHandler ---------------------------------------------------------------------

    async def prepare(self, protocol: AMQPProtocol) -> None:
        """Open the publishing channel and declare the control exchange; see ConnectionHandler."""
        self._exchanges = {""}

        async def declare() -> None:
            self._main = await self._open_channel(self._main_closed, protocol)
            await declare_exchange(self._main.channel, self._exchange, self._options)

        try:
            await declare_or_accept(protocol, self._exchange, self._options, declare)
        except AMQPClosedError as reason:
            raise broker_error(self.connection.address.shown(), reason) from reason
        self._exchanges.add(self._exchange)

    def ready(self) -> None:
        """Send the buffered messages; see ConnectionHandler."""
        if self._reconnects != self.connection.reconnects:
            self._reconnects, self._reconnected_at = self.connection.reconnects, self._clock.seconds()
        self._send_buffered()

    def _send_buffered(self) -> None:
        """Send the buffered messages in order, once the broker is known to read."""
        self._check_flow()
        if self._checking_flow:
            return
        self._send_buffer.send_buffered(lambda: self._can_send)

    def lost(self, reason: AMQPClosedError) -> None:
        """Forget the channels, which have failed their messages already; see ConnectionHandler."""
        self._main = None
        self._isolated.forget()
        self._confirm_timeout.stop()
        self._end_reopening()  # the next connection opens its own channel

    def close(self) -> None:
        """Fail all buffered messages with TransportClosedError, and buffer no more.

        What can be written at once is still published until the caller closes the connection: the listeners move
        messages while they are closed.
        """
        self._closed = True
        self._confirm_timeout.stop()
        if self._dropping is not None:
            self._dropping.cancel()
            self._dropping = None
        self._end_reopening()
        for message in self._send_buffer.clear():
            self._fail(message, Failure(TransportClosedError("sending")))

    # -- channels ------------------------------------------------------------------------------

    async def _open_channel(
        self, ended: Callable[[AMQPClosedError], None], protocol: AMQPProtocol | None = None
    ) -> ConfirmChannel:
        protocol = protocol or self.connection.protocol
        if protocol is None:
            raise BrokerUnavailableError(self.connection.address.shown(), "the connection is lost")
        channel = await protocol.open_channel()
        try:
            await channel.confirm_select()
        except BaseException:
            channel.close(AMQPClosedError("set-up failed"))
            raise
        confirming = ConfirmChannel(
            channel,
            self._clock,
            self._broker_error,
            ended,
            self._unroutable,
            self._message_cancelled,
            self.sender,
        )
        channel.receiver = confirming
        return confirming

    def _broker_error(self, reason: AMQPClosedError) -> BrokerError:
        return broker_error(self.connection.address.shown(), reason)

    def _main_closed(self, reason: AMQPClosedError) -> None:
        """Reopen the publishing channel with backoff unless the connection is lost; messages are buffered meanwhile."""
        self._main = None
        protocol = self.connection.protocol
        # A channel that closes while prepare() runs is retried by the caller of prepare().
        if reason.code and self._reopening is None and protocol is not None and not protocol.closed:
            _log.warn("the broker closed the publishing channel; opening another: {reason}", reason=reason)
            self._reopening = Deferred.fromCoroutine(self._reopen(protocol))
            self._reopening.addErrback(log_unless_cancelled, "reopening the publishing channel failed")
            self._reopening.addBoth(self._reopened)

    def _reopened(self, _: object) -> None:
        self._reopening = None

    def _end_reopening(self) -> None:
        reopening, self._reopening = self._reopening, None
        if reopening is not None:
            reopening.cancel()

    async def _reopen(self, protocol: AMQPProtocol) -> None:
        async def reopen() -> None:
            try:
                await self.prepare(protocol)
            except (BrokerError, AMQPClosedError):
                self._main = None
                raise

        if await restore(
            reopen,
            lambda: not protocol.closed and not self._closed,
            lambda error: _log.warn("cannot open a publishing channel; retrying: {error}", error=error),
            clock=self._clock,
            backoff=jittered_backoff(first=0.2, longest=10.0),
        ):
            self.ready()

    async def add_queue(self, queue: str) -> None:
        """Declare a request queue and bind it to the control exchange.

        :raises BrokerError: the broker refused, or was lost.
        """
        await self._declare(lambda channel: declare_request_queue(channel, self._exchange, queue, self._options))

    async def _add_exchange(self, exchange: str) -> None:
        await self._declare(lambda channel: declare_exchange(channel, exchange, self._options))
        self._exchanges.add(exchange)

    async def _declare(self, declare: Prepare) -> None:
        """Make a declaration on a channel of its own, because a refusal closes the channel."""
        protocol = self.connection.protocol
        if protocol is None:
            raise BrokerUnavailableError(self.connection.address.shown(), "the connection is lost")
        try:
            await declare_or_accept(protocol, self._exchange, self._options, lambda: protocol.on_new_channel(declare))
        except AMQPClosedError as reason:
            raise self._broker_error(reason) from reason

    def _fail(self, message: Message, failure: Failure) -> None:
        """Fail a message's Deferred with the reason, unless it has fired."""
        if not message.done.called:
            error = failure.value
            message.done.errback(self._broker_error(error) if isinstance(error, AMQPClosedError) else failure)

    def _message_cancelled(self) -> None:
        """Drop a blocked connection after a sender has cancelled a message that was written to it.

        See Note [Flow check].
        """
        if self.connection.state == "blocked" and self._dropping is None:
            # In the next turn: a caller that cancels one message may be about to cancel others.
            self._dropping = self._clock.callLater(0, self._drop)

    def _drop(self) -> None:
        self._dropping = None
        protocol, reason = self.connection.protocol, self.connection.blocked_by
        if protocol is not None and self.connection.state == "blocked":
            protocol.end(AMQPClosedError(f"closed, to discard messages that the broker had not read: {reason}"))
