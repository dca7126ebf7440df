"""Move the messages of a queue that no node consumes to another one."""

from typing import Any

import attrs

from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.codec import CodecError, decode_properties, encode_properties
from novasvc.transport.amqp.content import DELIVERIES, read_properties
from novasvc.transport.amqp.frames import MULTIPLE, SINGLE, Deliver, ack_packer, pack_content, pack_publish
from novasvc.transport.amqp.migration.session import Session

_PREFETCH = 100
_IDLE = 0.5
"""Seconds without a message after which a queue counts as empty."""
_DONE = AMQPClosedError("done", clean=True)


@attrs.define(eq=False)
class _Mover(ChannelReceiver):
    """Copies each message on the same channel, in confirm mode, and acknowledges it after the copy's confirm.

    :ivar copied: messages that were published.
    :ivar unconfirmed: the delivery tags of those that are not confirmed.
    """

    _channel: Channel
    _to: str
    failed: AMQPClosedError | None = attrs.field(default=None, init=False)
    copied: int = attrs.field(default=0, init=False)
    unconfirmed: set[int] = attrs.field(factory=set, init=False)
    _ack: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._ack = ack_packer(self._channel.id)

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Publish the copy; see ChannelReceiver."""
        channel = self._channel
        if body is None:
            channel.close(AMQPClosedError(f"a message for {self._to} is too large to be moved"))
            return
        if deliver.redelivered:
            # The copy is new to the broker. Its request may have begun, which the receiver has to know.
            properties = mark_redelivered(properties)
        # Copies and confirms are counted alike: the delivery tags of both begin at 1 on a channel, and ascend.
        self.copied += 1
        self.unconfirmed.add(self.copied)
        head = pack_publish(channel.id, "", self._to, True)
        channel.client.write(head + pack_content(channel.id, properties, body, channel.client.frame_max))

    def returned(self, args: tuple[Any, ...], body: bytes | None) -> None:
        """End with an error: there is no such queue; see ChannelReceiver."""
        self._channel.close(AMQPClosedError(f"no queue {self._to}"))

    def confirmed(self, delivery_tag: int, multiple: bool, acked: bool) -> None:  # noqa: FBT001 - as ChannelReceiver
        """Acknowledge what is confirmed; see ChannelReceiver."""
        if not acked:
            self._channel.close(AMQPClosedError(f"the broker rejected a message to {self._to} (basic.nack)"))
            return
        settled = {tag for tag in self.unconfirmed if tag <= delivery_tag} if multiple else {delivery_tag}
        self.unconfirmed -= settled
        self._channel.client.write(self._ack(delivery_tag, MULTIPLE if multiple else SINGLE))

    def channel_closed(self, reason: AMQPClosedError) -> None:
        """Note the reason; see ChannelReceiver."""
        self.failed = reason


def mark_redelivered(properties: bytes) -> bytes:
    """Return a message's properties with a header that counts one delivery at least.

    Properties that cannot be read or written are returned unchanged: one strange message must not end the migration.
    """
    try:
        values = decode_properties(properties)
        headers = {**(values.get("headers") or {}), DELIVERIES: max(1, read_properties(properties).deliveries)}
        return encode_properties({**values, "headers": headers})
    except CodecError:
        return properties


async def move_leftovers(session: Session, queue: str, to: str) -> int:
    """Move all messages of a queue to another one, by the default exchange; return their number.

    A message is never lost. If this process dies at the wrong moment, messages that were on their way may be in both
    queues; those in the first are marked as redelivered then.

    :raises BrokerError: the broker refused, or was lost.
    """
    try:
        channel = await session.open_channel()
        mover = _Mover(channel, to)
        await channel.confirm_select()
        await channel.basic_qos(prefetch_count=_PREFETCH)
        channel.receiver = mover
        await channel.basic_consume(queue=queue, consumer_tag="1")
        before = -1
        while mover.unconfirmed or mover.copied != before:
            before = mover.copied
            await session.wait(_IDLE)
            if mover.failed is not None:
                raise mover.failed
        await channel.basic_cancel(consumer_tag="1")
        channel.receiver = None
        channel.close(_DONE)
    except AMQPClosedError as reason:
        raise session.error(reason) from reason
    return mover.copied
