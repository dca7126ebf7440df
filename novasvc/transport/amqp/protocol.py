"""A RabbitMQ connection as a Twisted protocol: txamqp's client with its codec and queues replaced.

txamqp provides the spec's methods, the channels and the order of the handshake. This module and
those beside it provide what txamqp lacks: a correct codec, bodies as bytes, deadlines, negotiation
of limits, and bounds. Each defect of txamqp that is avoided here has a test in
``tests/unit/transport/amqp``.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from txamqp.protocol import AMQClient
from zope.interface import implementer

from novasvc.transport.amqp.channel import AMQPClosedError, Channel
from novasvc.transport.amqp.codec import CodecError
from novasvc.transport.amqp.delegate import Delegate, Login
from novasvc.transport.amqp.frames import (
    HEARTBEAT_FRAME,
    PROTOCOL_HEADER,
    SMALLEST_FRAME,
    FrameError,
    FrameReader,
)
from novasvc.transport.amqp.heartbeat import Heartbeat
from novasvc.transport.amqp.spec import SPEC

FRAME_MAX = 131_072
"""Largest frame, in bytes, that we offer to read and write; the broker may negotiate a smaller one."""
CHANNEL_MAX = 2047
BODY_LIMIT = 16 * 2**20
"""Largest message body in bytes; a longer one is reported as None and not kept."""
_CLOSE_TIMEOUT = 3.0
"""Seconds to wait for connection.close-ok."""
_TLS_ALERT = b"\x15\x03"

_T = TypeVar("_T")


class ConnectionObserver(Protocol):
    """The owner of a connection. Its methods must not raise."""

    def lost(self, reason: AMQPClosedError) -> None:
        """Handle the end of the connection; called once."""

    def blocked(self, reason: str) -> None:
        """Handle connection.blocked: the broker reads no messages from publishing connections."""

    def unblocked(self) -> None:
        """Handle connection.unblocked: the broker reads messages again."""

    def congested(self, congested: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Handle the socket's back-pressure: its buffer is full (True), or has room again (False)."""


@implementer(IPushProducer)
@attrs.frozen(eq=False)
class _BackPressure:
    """Reports the transport's back-pressure to the owner, as a push producer."""

    _observer: ConnectionObserver

    def pauseProducing(self) -> None:
        self._observer.congested(True)

    def resumeProducing(self) -> None:
        self._observer.congested(False)

    def stopProducing(self) -> None:
        """Do nothing: connectionLost follows."""


class AMQPProtocol(AMQClient):  # type: ignore[misc]
    """One AMQP connection, from the protocol header to the end of the socket.

    :param login: credentials, virtual host and name.
    :param clock: measures heartbeats and deadlines.
    :param heartbeat: seconds; the broker may negotiate a shorter interval. 0 disables heartbeats.
    :param operation_timeout: seconds that the broker has to answer each method.
    :param observer: the owner.
    :ivar reading: true while the bytes of one read are handled.
    :ivar turn_end: called once after the bytes of one read are handled; see :meth:`at_turn_end`.
    :ivar tuned: the limits are negotiated.
    :ivar closed: the connection has ended; ``reason`` says why.
    """

    def __init__(
        self,
        login: Login,
        *,
        clock: IReactorTime,
        heartbeat: float,
        operation_timeout: float,
        observer: ConnectionObserver,
    ) -> None:
        super().__init__(Delegate(), login.vhost, SPEC, heartbeat=0, clock=clock)
        self.login = login
        self.operation_timeout = operation_timeout
        self.observer = observer
        self.frame_max = FRAME_MAX
        self.channel_max = CHANNEL_MAX
        self.heartbeat = heartbeat
        self.closed = False
        self.reason: AMQPClosedError | None = None
        self.channels: dict[int, Channel] = {0: Channel(0, None, self)}
        self._reader = FrameReader(self, frame_max=FRAME_MAX, body_limit=BODY_LIMIT, channels=self.channels)
        self._heartbeats = Heartbeat(clock, self._send_heartbeat, self._silent)
        self._first_bytes_checked = False
        self.tuned = False
        self.reading = False
        self.turn_end: list[Callable[[], None]] = []
        self._closing: IDelayedCall | None = None

    # -- handshake and end ---------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Send the protocol header (AMQP 0-9-1 4.2.2); the broker answers with connection.start."""
        for option in ("setTcpNoDelay", "setTcpKeepAlive"):
            getattr(self.transport, option)(True)
        self.transport.registerProducer(_BackPressure(self.observer), True)
        self.transport.write(PROTOCOL_HEADER)

    async def handshake(self) -> None:
        """Wait until the virtual host is open.

        :return: None, when connection.open-ok has arrived.
        :raises AMQPClosedError: the broker refused, or the connection was lost.
        """
        await self.started.wait()
        await self.channels[0].connection_open(self.vhost)

    def tune(self, channel_max: int, frame_max: int, heartbeat: int) -> None:
        """Apply the smaller of the broker's limits and ours, and send connection.tune-ok.

        For the broker's channel_max and frame_max, 0 means no limit. Heartbeats are off if ours is 0; a broker's 0
        leaves ours.
        """
        self.tuned = True
        self.channel_max = min(channel_max or CHANNEL_MAX, CHANNEL_MAX)
        self.frame_max = self._reader.frame_max = max(SMALLEST_FRAME, min(frame_max or FRAME_MAX, FRAME_MAX))
        # The wire format is whole seconds. A shorter interval is kept on our side only.
        self.heartbeat = min(heartbeat or self.heartbeat, self.heartbeat) if self.heartbeat else 0
        announced = max(1, round(self.heartbeat)) if self.heartbeat else 0
        self.channels[0].connection_tune_ok(self.channel_max, self.frame_max, announced)
        if self.heartbeat:
            self._heartbeats.start(self.heartbeat)

    def close(self, reason: object = None, within: float = _CLOSE_TIMEOUT) -> Deferred[None]:
        """Send connection.close and disconnect.

        :param within: seconds to wait for connection.close-ok; the socket is aborted after that.
        :return: Deferred[None], fired when the socket is closed; never fails.
        """
        if self.closed:
            return succeed(None)
        # The peer must answer with close-ok, and frames that arrive before it are discarded (AMQP 0-9-1 1.4.2.9).
        closing = self.channels[0].connection_close(200, "closed by the client", 0, 0)
        closing.addTimeout(within, self.clock)
        closing.addBoth(self._close_confirmed)
        return closing  # type: ignore[no-any-return]

    def _close_confirmed(self, answer: object) -> Deferred[None]:
        self.end(AMQPClosedError("closed by this process", clean=True))
        if isinstance(answer, Failure):
            self.transport.abortConnection()  # a silent peer would not finish TLS's closure, either
        gone: Deferred[None] = self.disconnected.wait()
        return gone.addCallback(lambda _: None)

    def end(self, reason: AMQPClosedError) -> None:
        """Close all channels, disconnect, and tell the owner; it does nothing the second time.

        The socket is flushed if the broker gave a reply code or we closed on purpose, and aborted otherwise.
        """
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._heartbeats.stop()
        for channel in list(self.channels.values()):
            channel.do_close(reason)
        self.started.fail_if_not_fired(Failure(reason))
        if self.transport is not None:
            self.transport.unregisterProducer()
            if reason.code or reason.clean:
                self.transport.loseConnection()  # flushes what is buffered
                self._closing = self.clock.callLater(_CLOSE_TIMEOUT, self.transport.abortConnection)
            else:
                self.transport.abortConnection()
        self.observer.lost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the socket."""
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        self.end(AMQPClosedError(reason.getErrorMessage(), cause=reason))
        self.disconnected.fire()

    # -- bytes ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write whole frames; they are dropped after the end."""
        if not self.closed:
            self._heartbeats.bytes_sent = True
            self.transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        """Parse and dispatch the received bytes; malformed ones end the connection."""
        self._heartbeats.bytes_received = True
        if self.reason is not None:
            return
        self.reading = True
        try:
            foreign = None if self._first_bytes_checked else self._foreign_protocol(data)
            self._first_bytes_checked = True
            if foreign:
                self.end(AMQPClosedError(foreign))
            else:
                self._reader.feed(data)
        except (FrameError, CodecError) as error:
            self.end(AMQPClosedError(f"it sent invalid AMQP: {error}"))
        finally:
            self.reading = False
            if self.turn_end:
                self._end_turn()

    @staticmethod
    def _foreign_protocol(data: bytes) -> str | None:
        """Recognise a wrong port by the first bytes of the answer; return the problem, or None if it may be AMQP."""
        if data.startswith(_TLS_ALERT):
            return "the port speaks TLS; use amqps://"
        if data.startswith(b"AMQP"):
            return f"it speaks another version of AMQP: {data[4:8].hex(' ')}"
        return None

    def at_turn_end(self, flush: Callable[[], None]) -> None:
        """Call something once after the bytes of this read are handled; in the next turn if there is no read."""
        self.turn_end.append(flush)
        if not self.reading and len(self.turn_end) == 1:
            self.clock.callLater(0, self._end_turn)

    def _end_turn(self) -> None:
        turn_end, self.turn_end = self.turn_end, []
        for flush in turn_end:
            flush()

    # -- channels ------------------------------------------------------------------------------

    def open_channel(self) -> Deferred[Channel]:
        """Open a channel with the lowest free number.

        :return: Deferred[Channel], fired at channel.open-ok. Cancelling it closes the channel.
        :raises AMQPClosedError: the connection is closed, or has no free channel number.
        """
        if self.closed:
            return fail(self.reason or AMQPClosedError("the connection is closed"))
        number = next((n for n in range(1, self.channel_max + 1) if n not in self.channels), None)
        if number is None:
            return fail(AMQPClosedError(f"all {self.channel_max} channels of the connection are in use"))
        channel = self.channels[number] = Channel(number, None, self)
        opening: Deferred[Channel] = channel.channel_open()
        opening.addCallback(lambda _: channel)
        opening.addErrback(self._not_opened, channel)
        return opening

    async def on_new_channel(self, step: Callable[[Channel], Awaitable[_T]]) -> _T:
        """Take a step on a channel of its own, which is closed when the step has ended, however it ends.

        :raises AMQPClosedError: as :meth:`open_channel`, or the step failed with it.
        """
        channel = await self.open_channel()
        try:
            return await step(channel)
        finally:
            channel.close(AMQPClosedError("done", clean=True))

    @staticmethod
    def _not_opened(failure: Failure, channel: Channel) -> Failure:
        """Close the channel: a caller that has cancelled has no reference to it."""
        channel.close(AMQPClosedError("opening was cancelled", clean=True))
        return failure

    def release_channel(self, channel: Channel) -> None:
        """Free a channel's number, after channel.close and close-ok."""
        self.channels.pop(channel.id, None)
        self._reader.forget_channel(channel.id)

    def method_received(self, channel: int, payload: bytes) -> None:
        """Dispatch a method to its channel; see FrameReceiver.

        :raises FrameError: the channel is not open.
        """
        if self.closed:
            return
        if channel not in self.channels:
            raise FrameError(f"a method on channel {channel}, which is not open")
        self.channels[channel].method_received(payload)

    def content_received(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        """Dispatch a message to its channel; see FrameReceiver.

        :raises FrameError: the channel is not open.
        """
        if self.closed:
            return
        if channel not in self.channels:
            raise FrameError(f"a message on channel {channel}, which is not open")
        self.channels[channel].content_received(payload, properties, body)

    # -- heartbeats ----------------------------------------------------------------------------

    def heartbeat_received(self) -> None:
        """Do nothing: every byte counts as a heartbeat (AMQP 0-9-1 4.2.7)."""

    def _send_heartbeat(self) -> None:
        self.transport.write(HEARTBEAT_FRAME)

    def _silent(self, seconds: float) -> None:
        self.end(AMQPClosedError(f"no data received for {seconds:g} s"))
