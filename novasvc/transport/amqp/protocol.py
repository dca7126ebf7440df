"""A connection to RabbitMQ as a Twisted protocol: txamqp's client, with its codec and its queues replaced.

txamqp gives the spec's methods, the channels and the course of the handshake. What it lacks
(a correct codec, content that is bytes, deadlines, negotiation, bounds) is here and in the
modules beside it; every defect that this mends has a test in ``tests/unit/test_amqp_*.py``.
"""

from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from txamqp.client import TwistedDelegate
from txamqp.protocol import AMQClient
from txamqp.spec import pythonize
from zope.interface import implementer

from novasvc._version import __version__
from novasvc.transport.amqp.channel import Channel, ClosedError, Invocation
from novasvc.transport.amqp.codec import CodecError
from novasvc.transport.amqp.frames import (
    HEARTBEAT_FRAME,
    PROTOCOL_HEADER,
    SMALLEST_FRAME,
    FrameError,
    FrameReader,
)
from novasvc.transport.amqp.spec import SPEC

_log = Logger()

FRAME_MAX = 131_072
"""Bytes of a frame that we take and send, at the most; the broker may want less."""
CHANNEL_MAX = 2047
BODY_LIMIT = 16 * 2**20
"""Bytes of a message's body that we take."""
_CLOSE_TIMEOUT = 3.0
"""Seconds that we wait for the broker's goodbye."""
_BEATS_MISSED = 3
"""Half intervals without a byte after which the broker counts as dead: noticed within two heartbeats."""
_CAPABILITIES = (
    "authentication_failure_close",
    "basic.nack",
    "connection.blocked",
    "consumer_cancel_notify",
    "publisher_confirms",
)
_TLS_ALERT = b"\x15\x03"


class Observer(Protocol):
    """Who owns a connection. None of these raises."""

    def lost(self, reason: ClosedError) -> None:
        """Hear that the connection has ended; said once."""

    def blocked(self, reason: str) -> None:
        """Hear that the broker takes no messages now."""

    def unblocked(self) -> None:
        """Hear that it does again."""

    def congested(self, congested: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Hear that the socket takes no more for now, or does again."""


@attrs.frozen(kw_only=True)
class Login:
    """Who we are to the broker.

    :param vhost: the virtual host.
    :param name: the connection's name, for the operator who looks at the broker's list.
    """

    username: str
    password: str = attrs.field(repr=False)
    vhost: str
    name: str

    def answer(self, mechanisms: str) -> tuple[str, str | dict[str, str]]:
        """Choose a mechanism of those offered.

        :param mechanisms: names, separated by blanks.
        :return: mechanism and response.
        """
        if "PLAIN" in mechanisms.split():
            return "PLAIN", f"\0{self.username}\0{self.password}"
        return "AMQPLAIN", {"LOGIN": self.username, "PASSWORD": self.password}


@implementer(IPushProducer)
@attrs.frozen(eq=False)
class _Valve:
    """Tells the owner when the socket's buffer is full, and when it has room again."""

    _observer: Observer

    def pauseProducing(self) -> None:
        self._observer.congested(True)

    def resumeProducing(self) -> None:
        self._observer.congested(False)

    def stopProducing(self) -> None:
        """Do nothing: connectionLost follows."""


class Delegate(TwistedDelegate):  # type: ignore[misc]
    """Answers what the broker begins by itself."""

    client: "AMQPProtocol"

    def dispatch(self, channel: Channel, message: Invocation) -> None:
        """Find the handler by the method's name.

        :raises FrameError: there is none: a broker does not say that to a client.
        """
        method = message.method
        handler = getattr(self, f"{pythonize(method.klass.name)}_{pythonize(method.name)}", None)
        if handler is None:
            raise FrameError(f"{method.klass.name}.{method.name} is not for a client")
        handler(channel, message)

    def connection_start(self, channel: Channel, message: Invocation) -> None:
        """Say who we are, and what we understand."""
        self._see_turn("connection.start")
        login = self.client.login
        mechanism, response = login.answer(_text(message.mechanisms))
        properties = {
            "product": "novasvc",
            "version": __version__,
            "platform": "Twisted",
            "connection_name": login.name,
            "capabilities": dict.fromkeys(_CAPABILITIES, True),
        }
        channel.connection_start_ok(properties, mechanism, response, "en_US")

    def connection_tune(self, channel: Channel, message: Invocation) -> None:
        """Agree on the limits; the smaller one counts, and 0 is no limit."""
        self._see_turn("connection.tune")
        self.client.tune(message.channel_max, message.frame_max, message.heartbeat)
        self.client.started.fire()

    def _see_turn(self, name: str) -> None:
        if self.client.tuned:
            raise FrameError(f"{name} out of its turn")

    def connection_blocked(self, channel: Channel, message: Invocation) -> None:
        """Pass it on."""
        self.client.observer.blocked(_text(message.reason))

    def connection_unblocked(self, channel: Channel, message: Invocation) -> None:
        """Pass it on."""
        self.client.observer.unblocked()

    def connection_close(self, channel: Channel, message: Invocation) -> None:
        """Answer, and end."""
        channel.connection_close_ok()
        self.client.end(ClosedError(_text(message.reply_text), message.reply_code))

    def channel_close(self, channel: Channel, message: Invocation) -> None:
        """Answer, and end that channel."""
        channel.channel_close_ok()
        self.client.release_channel(channel)
        channel.do_close(ClosedError(_text(message.reply_text), message.reply_code))

    def basic_cancel(self, channel: Channel, message: Invocation) -> None:
        """Pass it on."""
        if channel.receiver is not None:
            channel.receiver.consumer_cancelled(_text(message.consumer_tag))

    def close(self, reason: object) -> None:
        """Do nothing: the protocol ends itself."""


class AMQPProtocol(AMQClient):  # type: ignore[misc]
    """One connection, from the first byte to the last.

    :param login: who we are.
    :param clock: heartbeats and deadlines.
    :param heartbeat: seconds; the broker may want a shorter one. 0 is none.
    :param operation_timeout: seconds that the broker has for each answer.
    :param observer: the owner.
    :ivar reading: it handles what came by one read.
    :ivar turn_end: what is done once when that is handled; see :meth:`at_turn_end`.
    """

    def __init__(
        self, login: Login, *, clock: IReactorTime, heartbeat: float, operation_timeout: float, observer: Observer
    ) -> None:
        super().__init__(Delegate(), login.vhost, SPEC, heartbeat=0, clock=clock)
        self.login = login
        self.operation_timeout = operation_timeout
        self.observer = observer
        self.frame_max = FRAME_MAX
        self.channel_max = CHANNEL_MAX
        self.heartbeat = heartbeat
        self.closed = False
        self.reason: ClosedError | None = None
        self.channels: dict[int, Channel] = {0: Channel(0, None, self)}
        self._reader = FrameReader(self, frame_max=FRAME_MAX, body_limit=BODY_LIMIT, channels=self.channels)
        self._beats = LoopingCall(self._beat)
        self._beats.clock = clock
        self._heard = self._sent = False
        self._silence = 0
        self._greeted = False
        self.tuned = False
        self.reading = False
        self.turn_end: list[Callable[[], None]] = []
        self._closing: IDelayedCall | None = None

    # -- life ----------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Say what we speak; the broker goes on from there."""
        for option in ("setTcpNoDelay", "setTcpKeepAlive"):
            getattr(self.transport, option)(True)
        self.transport.registerProducer(_Valve(self.observer), True)
        self.transport.write(PROTOCOL_HEADER)

    async def handshake(self) -> None:
        """Wait until the virtual host is open.

        :raises ClosedError: the broker refused, or was lost.
        """
        await self.started.wait()
        await self.channels[0].connection_open(self.vhost)

    def tune(self, channel_max: int, frame_max: int, heartbeat: int) -> None:
        """Take the broker's limits, and tell it what counts."""
        self.tuned = True
        self.channel_max = min(channel_max or CHANNEL_MAX, CHANNEL_MAX)
        self.frame_max = self._reader.frame_max = max(SMALLEST_FRAME, min(frame_max or FRAME_MAX, FRAME_MAX))
        # What is sent is whole seconds; a shorter one of ours is kept by us alone.
        self.heartbeat = min(heartbeat or self.heartbeat, self.heartbeat) if self.heartbeat else 0
        announced = max(1, round(self.heartbeat)) if self.heartbeat else 0
        self.channels[0].connection_tune_ok(self.channel_max, self.frame_max, announced)
        if self.heartbeat:
            running = self._beats.start(self.heartbeat / 2, now=False)
            running.addErrback(lambda failure: _log.failure("heartbeats ended", failure))

    def close(self, reason: object = None, within: float = _CLOSE_TIMEOUT) -> Deferred[None]:
        """Say goodbye, and disconnect.

        :param within: seconds that the broker has for its own goodbye.
        :return: Deferred[None], fired when the socket is closed; never fails.
        """
        if self.closed:
            return succeed(None)
        goodbye = self.channels[0].connection_close(200, "goodbye", 0, 0)
        goodbye.addTimeout(within, self.clock)
        goodbye.addBoth(self._goodbye_said)
        return goodbye  # type: ignore[no-any-return]

    def _goodbye_said(self, answer: object) -> Deferred[None]:
        self.end(ClosedError("it was closed", clean=True))
        if isinstance(answer, Failure):
            self.transport.abortConnection()  # who does not answer would not take part in the end of TLS, either
        gone: Deferred[None] = self.disconnected.wait()
        return gone.addCallback(lambda _: None)

    def end(self, reason: ClosedError) -> None:
        """End all channels, disconnect, and tell the owner."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        if self._beats.running:
            self._beats.stop()
        for channel in list(self.channels.values()):
            channel.do_close(reason)
        self.started.fail_if_not_fired(Failure(reason))
        if self.transport is not None:
            self.transport.unregisterProducer()
            if reason.code or reason.clean:
                self.transport.loseConnection()  # after what is still to be written
                self._closing = self.clock.callLater(_CLOSE_TIMEOUT, self.transport.abortConnection)
            else:
                self.transport.abortConnection()
        self.observer.lost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """Note that the socket is gone."""
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        self.end(ClosedError(reason.getErrorMessage(), cause=reason))
        self.disconnected.fire()

    # -- bytes ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send whole frames. What was ended takes none."""
        if not self.closed:
            self._sent = True
            self.transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        """Take what came."""
        self._heard = True
        if self.reason is not None:
            return
        self.reading = True
        try:
            foreign = None if self._greeted else self._what_it_speaks(data)
            self._greeted = True
            if foreign:
                self.end(ClosedError(foreign))
            else:
                self._reader.feed(data)
        except (FrameError, CodecError) as error:
            self.end(ClosedError(f"it sent what is no AMQP: {error}"))
        finally:
            self.reading = False
            if self.turn_end:
                self._end_turn()

    @staticmethod
    def _what_it_speaks(data: bytes) -> str | None:
        """Recognise the usual mistakes of an address, by the first bytes of the answer; None if it is AMQP."""
        if data.startswith(_TLS_ALERT):
            return "the port speaks TLS; use amqps://"
        if data.startswith(b"AMQP"):
            return f"it speaks another version of AMQP: {data[4:8].hex(' ')}"
        return None

    def at_turn_end(self, flush: Callable[[], None]) -> None:
        """Have something done once, after all that came by the same read was handled."""
        self.turn_end.append(flush)
        if not self.reading and len(self.turn_end) == 1:
            self.clock.callLater(0, self._end_turn)

    def _end_turn(self) -> None:
        turn_end, self.turn_end = self.turn_end, []
        for flush in turn_end:
            flush()

    # -- channels ------------------------------------------------------------------------------

    def open_channel(self) -> Deferred[Channel]:
        """Open one more channel.

        :return: Deferred[Channel]; fails with ClosedError.
        """
        if self.closed:
            return fail(self.reason or ClosedError("the connection is closed"))
        number = next((n for n in range(1, self.channel_max + 1) if n not in self.channels), None)
        if number is None:
            return fail(ClosedError(f"all {self.channel_max} channels of the connection are in use"))
        channel = self.channels[number] = Channel(number, None, self)
        opening: Deferred[Channel] = channel.channel_open()
        opening.addCallback(lambda _: channel)
        opening.addErrback(self._not_opened, channel)
        return opening

    @staticmethod
    def _not_opened(failure: Failure, channel: Channel) -> Failure:
        """Leave no channel that nobody knows of: who asked for it may have been cancelled."""
        channel.abandon(ClosedError("nobody wants it any more", clean=True))
        return failure

    def release_channel(self, channel: Channel) -> None:
        """Take a channel's number back, when both sides know that it has ended."""
        self.channels.pop(channel.id, None)
        self._reader.forget_channel(channel.id)

    def method_received(self, channel: int, payload: bytes) -> None:
        """Take a method; see FrameReceiver."""
        if self.closed:
            return
        if channel not in self.channels:
            raise FrameError(f"a method on channel {channel}, which is not open")
        self.channels[channel].method_received(payload)

    def content_received(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        """Take a message; see FrameReceiver."""
        if self.closed:
            return
        if channel not in self.channels:
            raise FrameError(f"a message on channel {channel}, which is not open")
        self.channels[channel].content_received(payload, properties, body)

    # -- heartbeats ----------------------------------------------------------------------------

    def heartbeat_received(self) -> None:
        """Do nothing: every byte is a sign of life."""

    def _beat(self) -> None:
        """Send a sign of life if nothing else was sent, and see that there was one."""
        if not self._sent:
            self.transport.write(HEARTBEAT_FRAME)
        self._silence = 0 if self._heard else self._silence + 1
        self._sent = self._heard = False
        if self._silence >= _BEATS_MISSED:
            self.end(ClosedError(f"not a byte came for {self._silence * self.heartbeat / 2:g} s"))


def _text(value: object) -> str:
    """Return a text that the broker sent, which may be bytes, as one line."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return " ".join(text.split())
