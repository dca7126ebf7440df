"""An AMQP channel: one synchronous method at a time, each with a deadline, and one report of its end."""

from collections import deque
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from txamqp.protocol import AMQChannel

from novasvc.transport.amqp.codec import decode_method, encode_method
from novasvc.transport.amqp.frames import (
    BASIC_RETURN,
    METHOD,
    Deliver,
    FrameError,
    pack_frame,
)
from novasvc.transport.amqp.spec import SPEC


@attrs.define
class AMQPClosedError(Exception):
    """The end of a channel or a connection.

    :param problem: why, in one line.
    :param code: the broker's reply code (AMQP 0-9-1 1.2); 0 if it did not give one.
    :param clean: whether we closed it on purpose.
    :param cause: Twisted's reason, if the socket or TLS failed.
    """

    problem: str
    code: int = 0
    clean: bool = False
    cause: Failure | None = None

    def __str__(self) -> str:
        return f"{self.code} {self.problem}" if self.code else self.problem


class ChannelReceiver:
    """Base class for the user of a channel. The methods do nothing by default, and must not raise."""

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        """Handle basic.deliver; the body is None if it was over the limit."""

    def confirmed(self, delivery_tag: int, multiple: bool, acked: bool) -> None:  # noqa: FBT001 - fields of the method
        """Handle a publisher confirm: basic.ack, or basic.nack if ``acked`` is false.

        :param multiple: it settles all delivery tags up to this one.
        """

    def returned(self, args: tuple[Any, ...], body: bytes | None) -> None:
        """Handle basic.return: no queue was bound. The message's confirm follows.

        :param args: reply code, reply text, exchange, routing key.
        """

    def consumer_cancelled(self, consumer_tag: str) -> None:
        """Handle basic.cancel: the broker cancelled a consumer, for example because its queue was deleted."""

    def channel_closed(self, reason: AMQPClosedError) -> None:
        """Handle the end of the channel; called once, and no other method after it."""


@attrs.define(eq=False)
class _SyncMethod:
    """A synchronous method, and the Deferred of its answer.

    :param queue: the queue that it names, or "".
    :param payload: class id, method id and arguments.
    :param answer: fires with the answer's arguments; the caller may cancel it.
    """

    method: Any
    queue: str
    payload: bytes
    answer: Deferred[tuple[Any, ...]]


class Channel(AMQChannel, SPEC.klass):  # type: ignore[misc]
    """txamqp's channel with the methods of our spec, and its own pairing of answers.

    txamqp's pairing is not used: it has no deadline, loses its place when a caller cancels, and
    supports no content but text. Answers carry no identifier, so only one synchronous method is
    outstanding at a time, and answers are matched in order.

    :param id: channel number; 0 is the connection itself.
    :param client: the connection, see :class:`novasvc.transport.amqp.protocol.AMQPProtocol`.
    """

    def __init__(self, id: int, outgoing: object, client: Any) -> None:  # noqa: A002 - txamqp's signature
        # Skip AMQChannel.__init__: it creates unbounded queues on the global reactor.
        self.id = id
        self.client = client
        self.closed = False
        self.reason: AMQPClosedError | None = None
        self.receiver: ChannelReceiver | None = None
        self._queued: deque[_SyncMethod] = deque()
        self._outstanding: _SyncMethod | None = None
        self._timer: IDelayedCall | None = None
        self._closing = False

    # -- sending methods -----------------------------------------------------------------------

    def invoke(self, method: Any, args: tuple[Any, ...], content: None = None) -> Deferred[tuple[Any, ...]]:
        """Send a method; called by the methods of the spec's class, such as ``queue_declare``.

        :return: Deferred of the reply's arguments, or of () for a method without a reply. Cancelling it leaves
            the channel open; a late reply is ignored.
        :raises AMQPClosedError: the channel is closed, or closes before the reply arrives.
        :raises CodecError: an invalid argument.
        """
        if self.closed:
            return fail(self.reason or AMQPClosedError("the channel is closed"))
        try:
            payload = encode_method(method, args)
        except ValueError as error:
            return fail(error)
        if not method.responses or _argument(method, args, "no-wait"):
            self.client.write(pack_frame(METHOD, self.id, payload))
            return succeed(())
        request = _SyncMethod(method, _argument(method, args, "queue") or "", payload, Deferred(_ignore_late_result))
        self._queued.append(request)
        if self._outstanding is None:
            self._send_next()
        return request.answer

    def _send_next(self) -> None:
        """Send the next queued method whose caller still waits, unless one is outstanding."""
        while self._queued and self._outstanding is None:
            request = self._queued.popleft()
            if not request.answer.called:
                self._outstanding = request
                timeout = self.client.operation_timeout
                self._timer = self.client.clock.callLater(timeout, self._timed_out, request, timeout)
                self.client.write(pack_frame(METHOD, self.id, request.payload))
                return

    def _timed_out(self, request: _SyncMethod, timeout: float) -> None:
        self._timer = None
        name = f"{request.method.klass.name}.{request.method.name}"
        subject = f" for queue '{request.queue}'" if request.queue else ""
        self.close(AMQPClosedError(f"no reply to {name}{subject} within {timeout:g} s"))

    def _reply_received(self, method: Any, args: tuple[Any, ...]) -> None:
        request = self._outstanding
        if request is None or method not in request.method.responses:
            raise FrameError(f"unexpected {method.klass.name}.{method.name}: no method awaits it")
        self._outstanding = None
        self._cancel_timer()
        if not request.answer.called:
            request.answer.callback(args)  # may send the next method, or close the channel
        self._send_next()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- received frames -----------------------------------------------------------------------

    def method_received(self, payload: bytes) -> None:
        """Handle a method without content. Confirms do not come this way, see :class:`.frames.FrameReader`.

        :raises FrameError: it does not belong on this channel, or answers no method.
        :raises CodecError: it is malformed.
        """
        method, args = decode_method(payload)
        # Class connection belongs to channel 0, and nothing else does (AMQP 0-9-1 4.2.3).
        if (method.klass.name == "connection") != (self.id == 0):
            raise FrameError(f"{method.klass.name}.{method.name} on channel {self.id}")
        if self._closing:
            self._received_while_closing(method)
        elif method.response:
            self._reply_received(method, args)
        else:
            self.client.delegate.dispatch(self, Invocation(method, args))

    def _received_while_closing(self, method: Any) -> None:
        """Ignore everything but channel.close and close-ok, as AMQP 0-9-1 1.5.2.5 requires after channel.close."""
        name = f"{method.klass.name}.{method.name}"
        if name == "channel.close":
            # Not by invoke(), which sends nothing on a closed channel.
            self.client.write(pack_frame(METHOD, self.id, encode_method(_CHANNEL_CLOSE_OK, ())))
        elif name == "channel.close-ok":
            self.client.release_channel(self)

    def content_received(self, payload: bytes, properties: bytes, body: bytes | None) -> None:
        """Handle a message other than basic.deliver.

        :raises FrameError: it is not a basic.return.
        """
        receiver = self.receiver
        if receiver is None or self.closed:
            return
        if payload[:4] != BASIC_RETURN:
            raise FrameError("a message that was not requested: basic.get is never sent")
        receiver.returned(decode_method(payload)[1], body)

    # -- the end -------------------------------------------------------------------------------

    def close(self, reason: AMQPClosedError) -> None:
        """Send channel.close and fail the callers at once; the number is free again when close-ok arrives.

        On channel 0 this ends the connection.
        """
        if self.closed:
            return
        if self.id == 0:  # the connection
            self.client.end(reason)
            return
        self._closing = True
        text = reason.problem.encode()[:255].decode(errors="ignore")
        self.client.write(pack_frame(METHOD, self.id, encode_method(_CHANNEL_CLOSE, (200, text, 0, 0))))
        self.do_close(reason)

    def do_close(self, reason: AMQPClosedError) -> None:
        """Mark the channel closed, and fail the callers, then tell the receiver. Sends nothing."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._cancel_timer()
        outstanding, self._outstanding = self._outstanding, None
        requests, self._queued = self._queued, deque()
        for request in (*([outstanding] if outstanding else ()), *requests):
            if not request.answer.called:
                request.answer.errback(Failure(reason))
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.channel_closed(reason)


@attrs.frozen(eq=False)
class Invocation:
    """A method that the broker sends unasked, in the form that txamqp's delegate takes."""

    method: Any
    args: tuple[Any, ...]

    def __getattr__(self, name: str) -> Any:
        """Return the argument of that name."""
        fields = self.method.fields
        field = fields.bypyname.get(name)
        if field is None:
            raise AttributeError(name)
        return self.args[fields.index(field)]


def _argument(method: Any, args: tuple[Any, ...], name: str) -> Any:
    """Return a method's argument by name, or None if it has none of that name."""
    field = method.fields.byname.get(name)
    return None if field is None else args[method.fields.index(field)]


def _ignore_late_result(answer: Deferred[Any]) -> None:
    """No-op canceller: the Deferred fails by itself, and a late answer is ignored."""


_CHANNEL_CLOSE, _CHANNEL_CLOSE_OK = (
    SPEC.classes.byname["channel"].methods.byname[name] for name in ("close", "close-ok")
)
