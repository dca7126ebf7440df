"""Replies on their way in: the queue of one client."""

from collections.abc import Callable

import attrs
from twisted.logger import Logger

from novasvc.transport.amqp import topology
from novasvc.transport.amqp.channel import Channel, ChannelReceiver, ClosedError
from novasvc.transport.amqp.consumer import NOT_FOUND, Consumers
from novasvc.transport.amqp.content import read_content
from novasvc.transport.amqp.frames import Deliver
from novasvc.transport.amqp.protocol import BODY_LIMIT, AMQPProtocol

_log = Logger()


@attrs.define(eq=False)
class ReplyBox(ChannelReceiver):
    """Consumes the replies to one client.

    :param receiver: gets the bytes of each.
    """

    _consumers: Consumers
    _receiver: Callable[[bytes], None]
    name: str = attrs.field(factory=topology.new_reply_queue, init=False)
    unreadable: int = attrs.field(default=0, init=False)
    _channel: Channel | None = attrs.field(default=None, init=False)

    def __str__(self) -> str:
        return f"the replies at {self.name}"

    async def establish(self, protocol: AMQPProtocol) -> None:
        """Declare the queue and consume from it; see _Subscription."""
        channel = await protocol.open_channel()
        try:
            await topology.declare_reply_queue(channel, self.name, self._consumers.options)
            channel.receiver = self
            # Nobody else is to get a reply, and one that is lost with us is of no use: no acknowledgements.
            await channel.basic_consume(queue=self.name, consumer_tag="1", no_ack=True)
        except BaseException:
            channel.receiver = None
            channel.abandon(ClosedError("it cannot be set up"))
            raise
        self._channel = channel

    def connection_lost(self) -> None:
        """Do nothing: the successor restores it."""
        self._channel = None

    async def close(self) -> None:
        """Give up the queue."""
        self._consumers.remove(self)
        channel, self._channel = self._channel, None
        if channel is None or channel.closed:
            return
        channel.receiver = None
        try:
            await topology.delete_queue(channel, self.name, self._consumers.clock)
        except ClosedError:
            return
        channel.abandon(ClosedError("done", clean=True))

    # -- ChannelReceiver -----------------------------------------------------------------------

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Hand a reply on; see ChannelReceiver."""
        try:
            plain, _ = read_content(body, properties, BODY_LIMIT)
        except ValueError as error:
            self.unreadable += 1
            _log.warn("a reply was dropped: {error}", error=error)
            return
        try:
            self._receiver(plain)
        except Exception:  # noqa: BLE001 - it must not end the connection, which is everybody's
            _log.failure("a receiver of replies raised, which it must not")

    def consumer_cancelled(self, consumer_tag: str) -> None:
        """Declare and consume again: the queue is gone; see ChannelReceiver."""
        if self._channel is not None:
            self._channel.abandon(ClosedError(f"the queue {self.name} is gone", code=NOT_FOUND))

    def channel_closed(self, reason: ClosedError) -> None:
        """Begin again, unless the connection has ended; see ChannelReceiver."""
        self._channel = None
        if reason.code:
            _log.warn("{replies} lost their channel: {reason}", replies=str(self), reason=reason)
            self._consumers.repair(self)
