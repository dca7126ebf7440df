"""Messages on their way out: each is confirmed by the broker, or its sender hears why not."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.backoff import jittered_backoff
from novasvc.errors import (
    BrokerBlockedError,
    BrokerError,
    BrokerUnavailableError,
    TransportClosedError,
    TransportFullError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.transport.amqp.channel import Channel, ChannelReceiver, ClosedError
from novasvc.transport.amqp.connection import Connection
from novasvc.transport.amqp.content import write_properties
from novasvc.transport.amqp.frames import pack_content, pack_publish
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.protocol import AMQPProtocol
from novasvc.transport.amqp.topology import (
    count,
    declare_exchange,
    declare_fanout_exchange,
    declare_request_queue,
    fanout_exchange,
    refusal,
)

_log = Logger()

Prepare = Callable[[Channel], Awaitable[Any]]
"""Makes declarations on a channel."""

HELD_MESSAGES = 10_000
HELD_BYTES = 64 * 2**20
"""What waits at the most while the broker cannot be reached or takes no messages."""
_TOO_LARGE = "message size"
"""What the broker's reason begins with, before the bytes, if a message is over its own limit."""
_LEAST_WAIT = 1.0
"""Seconds between two looks at what was not confirmed, at the least."""
_BEFORE_THE_END = 0.95
"""Part of a message's time that it is held: its sender is to hear the reason, not only that time is up."""


@attrs.define(eq=False)
class Message:
    """A message and what becomes of it.

    :param ttl: seconds from now after which nobody wants it, or None.
    :param mandatory: somebody has to be there.
    :param target: as text, for errors.
    :param patience: seconds that it may be held, if it has no ttl; None is the time for an operation.
    :param done: fires when the broker has it; cancelled by who does not want to know any more.
    :param returned: nobody was there.
    """

    exchange: str
    routing_key: str
    body: bytes
    ttl: float | None
    mandatory: bool
    target: str
    headers: dict[str, Any] | None = None
    patience: float | None = None
    done: Deferred[None] = attrs.field(factory=lambda: Deferred(_let_go))
    sent_at: float = attrs.field(default=0.0, init=False)
    returned: bool = attrs.field(default=False, init=False)


def _let_go(done: Deferred[None]) -> None:
    """Let a cancelled Deferred fail by itself; the broker's word still comes, and is passed over."""


@attrs.define(eq=False)
class Lane(ChannelReceiver):
    """A channel in confirm mode, and the messages that the broker has not answered for.

    :param explain: makes an error of what ended the channel.
    :param ended: called when the channel has ended.
    """

    channel: Channel
    _clock: IReactorTime
    _explain: Callable[[ClosedError], BrokerError]
    _ended: Callable[[ClosedError], None]
    _last_tag: int = attrs.field(default=0, init=False)
    _unconfirmed: dict[int, Message] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._unconfirmed)

    def publish(self, message: Message) -> None:
        """Send a message; its ``done`` fires in time."""
        channel = self.channel
        try:
            properties = write_properties(message.ttl, message.headers)
            method = pack_publish(channel.id, message.exchange, message.routing_key, message.mandatory)
        except ValueError as error:
            message.done.errback(BrokerError(message.target, str(error)))
            return
        message.sent_at = self._clock.seconds()
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = message
        client = channel.client
        client.write(method + pack_content(channel.id, properties, message.body, client.frame_max))

    def oldest(self) -> float | None:
        """Return when the message was sent that has waited longest, or None."""
        return next(iter(self._unconfirmed.values())).sent_at if self._unconfirmed else None

    def give_up(self, before: float, reason: str) -> None:
        """Wait no longer for the broker's word on what was sent before a moment."""
        overdue = [tag for tag, message in self._unconfirmed.items() if message.sent_at <= before]
        for message in [self._unconfirmed.pop(tag) for tag in overdue]:
            if not message.done.called:
                message.done.errback(UnconfirmedError(message.target, f"the broker has stopped reading: {reason}"))

    # -- ChannelReceiver -----------------------------------------------------------------------

    def confirmed(self, delivery_tag: int, multiple: bool, taken: bool) -> None:  # noqa: FBT001 - as ChannelReceiver
        """Take the broker's word; see ChannelReceiver."""
        unconfirmed = self._unconfirmed
        if not multiple:
            message = unconfirmed.pop(delivery_tag, None)
            if message is not None:
                self._conclude(message, taken=taken)
            return
        tags = []
        for tag in unconfirmed:
            if tag > delivery_tag:
                break
            tags.append(tag)
        for message in [unconfirmed.pop(tag) for tag in tags]:
            self._conclude(message, taken=taken)

    def _conclude(self, message: Message, *, taken: bool) -> None:
        done = message.done
        if done.called:
            return
        if message.returned:
            done.errback(UndeliverableError(message.target))
        elif taken:
            done.callback(None)
        else:
            done.errback(BrokerError(message.target, "the broker could not take the message"))

    def returned(self, args: tuple[Any, ...], body: bytes | None) -> None:
        """Note that nobody was there; see ChannelReceiver."""
        # The broker does not say which it was. A body has an id of its own, and is not sent twice at a time.
        for message in self._unconfirmed.values():
            if message.mandatory and not message.returned and message.body == body:
                message.returned = True
                return

    def channel_closed(self, reason: ClosedError) -> None:
        """Fail what was not confirmed; see ChannelReceiver."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        self._ended(reason)  # before the senders hear of it, who may send again at once
        for message in unconfirmed.values():
            if message.done.called:
                continue
            # The channel ended by one message. Whose exchange it names, is refused with it; of the others we
            # do not know.
            named = message.exchange and f"'{message.exchange}'" in reason.problem
            too_large = _TOO_LARGE in reason.problem and f"{_TOO_LARGE} {len(message.body)} " in reason.problem
            if reason.code and (named or too_large):
                error: Exception = self._explain(reason)
            else:
                error = UnconfirmedError(message.target, str(reason))
            message.done.errback(error)


@attrs.define(eq=False)
class _Held:
    """A message that cannot be sent yet.

    :param send: sends it; takes the seconds that it was held.
    """

    send: Callable[[float], None]
    done: Deferred[None]
    size: int
    since: float
    timer: IDelayedCall = attrs.field(init=False)


@attrs.define(eq=False)
class Publisher:
    """Sends messages over one connection, which nothing is consumed from.

    :param exchange: the control exchange.
    """

    # Note [Two connections]
    #
    # A broker that runs short of memory or disk stops reading from the connections that publish.
    # An acknowledgement on such a connection would not be read either, and consuming would stop
    # with publishing. So messages go out by one connection, and come in by another.

    _exchange: str
    _options: BrokerOptions
    _clock: IReactorTime
    connection: Connection = attrs.field(init=False)
    _direct: Lane | None = attrs.field(default=None, init=False)
    _fanouts: Lane | None = attrs.field(default=None, init=False)
    _opening_lane: DeferredLock = attrs.field(factory=DeferredLock, init=False)
    _adding: DeferredLock = attrs.field(factory=DeferredLock, init=False)
    _exchanges: set[str] = attrs.field(factory=set, init=False)
    _held: dict[_Held, None] = attrs.field(factory=dict, init=False)
    _held_bytes: int = attrs.field(default=0, init=False)
    _watch: IDelayedCall | None = attrs.field(default=None, init=False)
    _reopening: Deferred[None] | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __len__(self) -> int:
        lanes = [len(lane) for lane in (self._direct, self._fanouts) if lane is not None]
        return len(self._held) + sum(lanes)

    # -- sending -------------------------------------------------------------------------------

    def publish(self, message: Message) -> Deferred[None]:
        """Send a message, now or as soon as the broker takes it.

        :return: Deferred[None], fired when the broker has it. Cancelling it forgets what becomes of it.
        :raises UndeliverableError: mandatory, and nobody is there.
        :raises BrokerError: it was not sent, and why.
        :raises UnconfirmedError: it may have been taken, or not.
        :raises TransportFullError: too much waits already.
        """
        lane = self._direct
        if lane is None or not self._flows or message.exchange not in self._exchanges:
            return self._publish_slowly(message)
        lane.publish(message)
        if self._watch is None:
            self._arm()
        return message.done

    @property
    def _flows(self) -> bool:
        connection = self.connection
        return connection.state == "ready" and not connection.is_congested and not self._held

    def _publish_slowly(self, message: Message) -> Deferred[None]:
        if self._closed:
            return fail(TransportClosedError("sending"))
        if not self._flows or self._direct is None:
            return self._hold(partial(self._publish_held, message), message)
        asking = Deferred.fromCoroutine(self._add_exchange(message.exchange))
        asking.addCallbacks(lambda _: self._publish_held(message, 0.0), partial(self._fail, message))
        return message.done

    def _publish_held(self, message: Message, held: float) -> None:
        if message.done.called:
            return
        if message.ttl is not None:
            message.ttl -= held
        # The sender has the message's own Deferred already.
        published = self.publish(message)
        if published is not message.done:
            published.addErrback(partial(self._fail, message))

    def fanout(self, topic: str, body: bytes, ttl: float | None, target: str) -> Deferred[None]:
        """Send a copy to every server of a topic; otherwise as :meth:`publish`."""
        message = Message(fanout_exchange(topic), "", body, ttl, mandatory=False, target=target)
        # Its exchange goes with the last server, and takes the channel with it.
        return self.publish_apart(message, lambda channel: declare_fanout_exchange(channel, topic, self._options))

    def publish_apart(self, message: Message, prepare: Prepare) -> Deferred[None]:
        """Send a message on the channel whose loss costs no other sender's message; otherwise as :meth:`publish`.

        :param prepare: makes declarations on that channel before; what it raises fails the sending.
        """
        if self._closed:
            return fail(TransportClosedError("sending"))
        if not self._flows:
            return self._hold(partial(self._publish_apart, prepare, message), message)
        self._publish_apart(prepare, message, 0.0)
        return message.done

    def _publish_apart(self, prepare: Prepare, message: Message, held: float) -> None:
        if message.ttl is not None:
            message.ttl -= held
        sending = Deferred.fromCoroutine(self._prepare_and_publish(prepare, message))
        sending.addErrback(partial(self._fail, message))

    async def _prepare_and_publish(self, prepare: Prepare, message: Message) -> None:
        lane = await self._expendable()
        try:
            await prepare(lane.channel)
        except ClosedError as reason:
            raise self._explained(reason) from reason
        if not message.done.called:
            lane.publish(message)
            self._arm()

    async def _expendable(self) -> Lane:
        await self._opening_lane.acquire()
        try:
            if self._fanouts is None or self._fanouts.channel.closed:
                self._fanouts = await self._open_lane(self._fanouts_ended)
            return self._fanouts
        finally:
            self._opening_lane.release()

    async def count(self, queue: str) -> tuple[int, int]:
        """Return how many messages wait in a queue, and how many consumers it has.

        :raises BrokerError: it is not there, or cannot be asked for now.
        """
        try:
            lane = await self._expendable()
            return await count(lane.channel, queue)
        except ClosedError as reason:
            raise self._explained(reason) from reason

    # -- holding -------------------------------------------------------------------------------

    def _hold(self, send: Callable[[float], None], message: Message) -> Deferred[None]:
        size = len(message.body)
        if len(self._held) >= HELD_MESSAGES or self._held_bytes + size > HELD_BYTES:
            return fail(TransportFullError(message.target, len(self._held)))
        patience = message.patience or self._options.operation_timeout
        if message.ttl is not None:
            patience = message.ttl * _BEFORE_THE_END
        held = _Held(send, message.done, size, self._clock.seconds())
        held.timer = self._clock.callLater(patience, self._give_up, held)
        self._held[held] = None
        self._held_bytes += size
        return message.done

    def _give_up(self, held: _Held) -> None:
        self._release(held)
        if not held.done.called:
            held.done.errback(self._why_not())

    def _why_not(self) -> Exception:
        connection = self.connection
        shown = connection.address.shown()
        if connection.state == "blocked":
            return BrokerBlockedError(shown, f"it takes no messages: {connection.blocked_by}")
        if connection.problem is not None:
            return connection.problem
        return BrokerUnavailableError(shown, f"the connection is {connection.state}, and the message was not sent")

    def _release(self, held: _Held) -> None:
        del self._held[held]
        self._held_bytes -= held.size
        if held.timer.active():
            held.timer.cancel()

    # -- ConnectionUser ------------------------------------------------------------------------

    async def prepare(self, protocol: AMQPProtocol) -> None:
        """Open the channel, and declare what messages are sent to; see ConnectionUser."""
        self._exchanges = {""}
        self._direct = await self._open_lane(self._direct_ended, protocol)
        try:
            await declare_exchange(self._direct.channel, self._exchange, self._options)
        except ClosedError as reason:
            raise refusal(self.connection.address.shown(), reason) from reason
        self._exchanges.add(self._exchange)

    def ready(self) -> None:
        """Send what was held; see ConnectionUser."""
        held, self._held = self._held, {}
        now = self._clock.seconds()
        waiting = list(held)
        for number, one in enumerate(waiting):
            if not self._flows:
                # The rest goes on waiting, before what has come meanwhile.
                self._held = {**dict.fromkeys(waiting[number:]), **self._held}
                return
            self._held_bytes -= one.size
            one.timer.cancel()
            if not one.done.called:
                one.send(now - one.since)

    def lost(self, reason: ClosedError) -> None:
        """Forget the channels; they have said so to their senders; see ConnectionUser."""
        self._direct = self._fanouts = None
        self._end_reopening()  # the next connection brings its own channel

    def close(self) -> None:
        """Fail what waits, and take no more."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._end_reopening()
        for held in list(self._held):
            self._release(held)
            if not held.done.called:
                held.done.errback(TransportClosedError("sending"))

    # -- channels ------------------------------------------------------------------------------

    async def _open_lane(self, ended: Callable[[ClosedError], None], protocol: AMQPProtocol | None = None) -> Lane:
        protocol = protocol or self.connection.protocol
        if protocol is None:
            raise BrokerUnavailableError(self.connection.address.shown(), "the connection is lost")
        channel = await protocol.open_channel()
        await channel.confirm_select()
        lane = Lane(channel, self._clock, self._explained, ended)
        channel.receiver = lane
        return lane

    def _explained(self, reason: ClosedError) -> BrokerError:
        return refusal(self.connection.address.shown(), reason)

    def _fanouts_ended(self, reason: ClosedError) -> None:
        self._fanouts = None

    def _direct_ended(self, reason: ClosedError) -> None:
        """Open another channel, unless the connection has ended; what is sent meanwhile is held."""
        self._direct = None
        protocol = self.connection.protocol
        # One that is closed while it is prepared is tried again by who prepares it.
        if reason.code and self._reopening is None and protocol is not None and not protocol.closed:
            _log.warn("the broker closed the channel for publishing: {reason}", reason=reason)
            self._reopening = Deferred.fromCoroutine(self._reopen(protocol))
            self._reopening.addErrback(_note, "no channel for publishing")
            self._reopening.addBoth(self._reopened)

    def _reopened(self, _: object) -> None:
        self._reopening = None

    def _end_reopening(self) -> None:
        reopening, self._reopening = self._reopening, None
        if reopening is not None:
            reopening.cancel()

    async def _reopen(self, protocol: AMQPProtocol) -> None:
        wait = jittered_backoff(first=0.2, longest=10.0)
        attempt = 0
        while not protocol.closed and not self._closed:
            attempt += 1
            await deferLater(self._clock, wait(attempt), lambda: None)
            try:
                await self.prepare(protocol)
            except (BrokerError, ClosedError) as error:
                self._direct = None
                if attempt == 1:
                    _log.warn("no channel for publishing, trying until there is: {error}", error=error)
            else:
                self.ready()
                return

    async def add_queue(self, queue: str) -> None:
        """Declare a queue that messages wait in, bound to the control exchange.

        :raises BrokerError: it cannot be declared.
        """
        await self._declare(lambda channel: declare_request_queue(channel, self._exchange, queue, self._options))

    async def _add_exchange(self, exchange: str) -> None:
        await self._adding.acquire()
        try:
            if exchange not in self._exchanges:
                await self._declare(lambda channel: declare_exchange(channel, exchange, self._options))
                self._exchanges.add(exchange)
        finally:
            self._adding.release()

    async def _declare(self, declare: Prepare) -> None:
        """Declare one thing more, on a channel that may be lost by it."""
        protocol = self.connection.protocol
        if protocol is None:
            raise BrokerUnavailableError(self.connection.address.shown(), "the connection is lost")
        try:
            channel = await protocol.open_channel()
            await declare(channel)
        except ClosedError as reason:
            raise self._explained(reason) from reason
        channel.abandon(ClosedError("done", clean=True))

    def _fail(self, message: Message, failure: Failure) -> None:
        """Tell the sender why it was not sent."""
        if not message.done.called:
            error = failure.value
            message.done.errback(self._explained(error) if isinstance(error, ClosedError) else failure)

    # -- the broker's silence ------------------------------------------------------------------

    def _arm(self) -> None:
        if self._watch is None:
            self._watch = self._clock.callLater(self._options.operation_timeout, self._look)

    def _look(self) -> None:
        """See that the broker answers for messages; one that does not, while it takes them, is as good as gone."""
        self._watch = None
        lanes = [lane for lane in (self._direct, self._fanouts) if lane]
        oldest = min((sent for lane in lanes if (sent := lane.oldest()) is not None), default=None)
        if oldest is None:
            return
        now, timeout = self._clock.seconds(), self._options.operation_timeout
        waited = now - oldest
        if waited >= timeout:
            if self.connection.state == "blocked":
                # It reads nothing more from us, and a new connection would be no better off.
                for lane in lanes:
                    lane.give_up(now - timeout, self.connection.blocked_by)
            elif self.connection.protocol is not None:
                self.connection.protocol.end(ClosedError(f"a message was not confirmed within {waited:.0f} s"))
                return
        self._watch = self._clock.callLater(max(timeout - waited, _LEAST_WAIT), self._look)


def _note(failure: Failure, what: str) -> None:
    """Log what ended otherwise than by being closed."""
    if not failure.check(CancelledError):
        _log.failure("{what}", failure, what=what)
