"""A channel on which messages are published and confirmed, and the message with its outcome."""

from collections.abc import Callable
from itertools import takewhile
from math import inf
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.rpc.errors import UnconfirmedError
from novasvc.rpc.target import Target
from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.content import PLAIN, write_properties
from novasvc.transport.amqp.frames import pack_content, pack_publish
from novasvc.transport.errors import BrokerError

_TOO_LARGE = "message size"
"""Prefix of RabbitMQ's reply text for a message over its own size limit; the size in bytes follows."""


@attrs.define(eq=False)
class Message:
    """A message to publish, and its outcome.

    :param ttl: seconds after which the message is void, from when it was given to the publisher; None is never.
    :param mandatory: at least one queue has to be bound; see basic.publish, AMQP 0-9-1 1.8.3.7.
    :param target: where the message goes, as shown in errors.
    :param max_wait: seconds for which it may be buffered if it has no ttl; None means the operation timeout.
    :param request: it is addressed to a service, whose queue may come back shortly after an outage.
    :param done: fires when the broker has confirmed the message; the sender may cancel it.
    :param on_cancelled: called if ``done`` is cancelled after the message was written and before its confirm.
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
    :param confirmed_at: seconds on the clock of the last confirm; -inf before the first.
    """

    channel: Channel
    _clock: IReactorTime
    _to_error: Callable[[AMQPClosedError], BrokerError]
    _on_closed: Callable[[AMQPClosedError], None]
    _unroutable: Callable[[Message], None]
    _message_cancelled: Callable[[], None]
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
            properties = PLAIN if ttl is None and not message.headers else write_properties(ttl, message.headers)
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
