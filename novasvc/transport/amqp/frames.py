"""AMQP 0-9-1 frames: an incremental parser, and precompiled encoders for the methods of every call.

basic.publish, basic.deliver and basic.ack are packed and unpacked here with ``struct``; all other
methods go through the spec, see :mod:`novasvc.transport.amqp.codec`. Both produce the same bytes.
No I/O happens here.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from struct import Struct
from struct import error as _struct_error
from typing import NamedTuple, Protocol

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
"""Frame types (AMQP 0-9-1 4.2.3)."""

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
"""The protocol header, the first bytes that a client sends (AMQP 0-9-1 4.2.2)."""

SMALLEST_FRAME = 4096
"""Frame size in bytes that both peers have to accept: frame-min-size."""

_END = b"\xce"
_END_OCTET = 0xCE
_OVERHEAD = 8
"""Bytes of a frame besides its payload."""

_FRAME = Struct(">BHI")
_METHOD = Struct(">HH")
_PUBLISH = Struct(">BHIHHH")
_CONTENT = Struct(">BHIHHQ")
_CONTENT_BYTES = 12
_SIZE = Struct(">Q")
_TAGGED = Struct(">BHIHHQBB")
_ACK = Struct(">BHIHHQH")
_TAG = Struct(">Q")

BASIC_PUBLISH = _METHOD.pack(60, 40)
BASIC_RETURN = _METHOD.pack(60, 50)
BASIC_DELIVER = _METHOD.pack(60, 60)
BASIC_GET_OK = _METHOD.pack(60, 71)
BASIC_ACK = _METHOD.pack(60, 80)
BASIC_NACK = _METHOD.pack(60, 120)
_WITH_CONTENT = frozenset({BASIC_PUBLISH, BASIC_RETURN, BASIC_DELIVER, BASIC_GET_OK})
_CONFIRMS = frozenset({BASIC_ACK, BASIC_NACK})

HEARTBEAT_FRAME = _FRAME.pack(HEARTBEAT, 0, 0) + _END
"""A complete heartbeat frame."""


class FrameError(ValueError):
    """Malformed frames, or frames that are too large. The connection cannot be used any more."""


class FrameReceiver(Protocol):
    """Receives the methods that are not compiled here."""

    def method_received(self, channel: int, payload: bytes) -> None:
        """Handle a method without content.

        :param payload: class id, method id and arguments.
        """

    def content_received(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        """Handle a method with its content.

        :param payload: class id, method id and arguments.
        :param properties: flags and values.
        :param body: None if it was over the limit and was discarded.
        """

    def heartbeat_received(self) -> None:
        """Handle a heartbeat."""


class ContentReceiver(Protocol):
    """Receives deliveries and confirms of one channel; see :class:`novasvc.transport.amqp.channel.ChannelReceiver`."""

    def delivered(self, deliver: "Deliver", properties: bytes, body: bytes | None) -> None:
        """Handle basic.deliver; the body is None if it was over the limit."""

    def confirmed(self, delivery_tag: int, multiple: bool, acked: bool) -> None:  # noqa: FBT001 - fields of the method
        """Handle a publisher confirm: basic.ack, or basic.nack if ``acked`` is false."""


class OpenChannel(Protocol):
    """An open channel, as far as the reader uses it."""

    @property
    def receiver(self) -> ContentReceiver | None:
        """Receives deliveries and confirms; None drops them."""


class _Content:
    """A message whose frames have arrived in part."""

    __slots__ = ("body", "expected", "payload", "properties", "received")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.properties: bytes | None = None
        self.expected = 0
        self.received = 0
        self.body: list[bytes] | None = None


class FrameReader:
    """Parses a byte stream into methods and messages, whatever the size of its pieces.

    Deliveries and confirms go straight to the receivers of their channels; everything else goes to
    ``receiver``. The order of the stream is kept across both.

    :param receiver: receives the methods that are not compiled here.
    :param frame_max: largest frame in bytes, as negotiated.
    :param body_limit: largest message body in bytes; a longer one is discarded as it arrives.
    :param channels: the open channels by number; content on any other channel is an error. None accepts every
        channel, and sends everything to ``receiver``.
    """

    def __init__(
        self,
        receiver: FrameReceiver,
        *,
        frame_max: int,
        body_limit: int,
        channels: Mapping[int, OpenChannel] | None = None,
    ) -> None:
        self.frame_max = frame_max
        self._body_limit = body_limit
        self._channels = channels
        self._receiver = receiver
        self._buffer = bytearray()
        self._needed = 0
        self._contents: dict[int, _Content] = {}
        self._handlers = {METHOD: self._method, HEADER: self._header, BODY: self._body, HEARTBEAT: self._heartbeat}

    def forget_channel(self, channel: int) -> None:
        """Discard a partial message of a closed channel, whose rest will not arrive."""
        self._contents.pop(channel, None)

    def feed(self, data: bytes) -> None:  # noqa: C901 - calls cost more than branches here
        """Parse the next piece of the stream.

        :raises FrameError: it is malformed; do not feed the reader any more.
        """
        if self._buffer:
            # TCP delivers the stream in pieces of any size. Join them only when a frame is complete: many small pieces
            # would otherwise cost quadratic time.
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        at, end, size, read = 0, len(data), 0, _FRAME.unpack_from
        # A frame: type, channel, size of the payload, payload, frame-end octet (AMQP 0-9-1 4.2.3).
        while end - at >= _OVERHEAD:
            kind, channel, size = read(data, at)
            if size + _OVERHEAD > self.frame_max:
                raise FrameError(
                    f"a frame of {size + _OVERHEAD} bytes exceeds the negotiated frame-max of {self.frame_max}"
                )
            after = at + _OVERHEAD + size
            if after > end:
                break
            if data[after - 1] != _END_OCTET:
                raise FrameError("a frame without its frame-end octet")
            payload = data[at + 7 : after - 1]
            at = after
            if kind == METHOD:
                name = payload[:4]
                if name == BASIC_DELIVER:
                    at = self._read_whole(data, at, end, channel, payload) or after
                    if at > after:
                        continue
                elif name in _CONFIRMS and self._confirm(channel, payload, acked=name == BASIC_ACK):
                    continue
            handle = self._handlers.get(kind)
            if handle is None:
                raise FrameError(f"unknown frame type {kind}")
            handle(channel, payload)
        if at < end:
            self._buffer += data[at:]
            self._needed = _OVERHEAD if end - at < _OVERHEAD else _OVERHEAD + size

    def _read_whole(self, data: bytes, at: int, end: int, channel: int, payload: bytes) -> int:
        """Parse a message whose header and single body frame are in this piece as well: the common case.

        :param at: index where its header frame would begin.
        :return: the index after the message; 0 if it has to be parsed frame by frame.
        """
        channels = self._channels
        if channels is None or channel not in channels or channel in self._contents:
            return 0
        if end - at < _CONTENT.size + 2 * _OVERHEAD:
            return 0
        size: int
        # Content is a header frame and as many body frames as its size needs (AMQP 0-9-1 4.2.6), none for size 0. The
        # broker may interleave frames of other channels. Whatever is not exactly header and one body is left to feed().
        kind, number, size, _, _, length = _CONTENT.unpack_from(data, at)
        body_at = at + _OVERHEAD + size
        if kind != HEADER or number != channel or size < _CONTENT_BYTES or body_at + _OVERHEAD > end:
            return 0
        kind, number, size = _FRAME.unpack_from(data, body_at)
        after: int = body_at + _OVERHEAD + size
        whole = kind == BODY and number == channel and size == length and 0 < size <= self._body_limit
        if not whole or after > end or size + _OVERHEAD > self.frame_max:
            return 0
        if data[body_at - 1] != _END_OCTET or data[after - 1] != _END_OCTET:
            return 0
        properties = data[at + _CONTENT.size : body_at - 1]
        receiver = channels[channel].receiver
        if receiver is not None:
            receiver.delivered(parse_deliver(payload), properties, data[body_at + 7 : after - 1])
        return after

    def _dispatch(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        """Dispatch a complete message."""
        if self._channels is None or payload[:4] != BASIC_DELIVER:
            self._receiver.content_received(channel, payload, properties, body)
            return
        receiver = self._channels[channel].receiver
        if receiver is not None:
            receiver.delivered(parse_deliver(payload), properties, body)

    def _confirm(self, channel: int, payload: bytes, *, acked: bool) -> bool:
        """Dispatch basic.ack or basic.nack; return whether the channel is open."""
        if self._channels is None or channel not in self._channels or channel in self._contents:
            return False
        receiver = self._channels[channel].receiver
        if receiver is not None:
            if len(payload) != _ACK_BYTES:
                raise FrameError("basic.ack or basic.nack has the wrong length")
            receiver.confirmed(_TAG.unpack_from(payload, 4)[0], bool(payload[12] & _MULTIPLE_BIT), acked)
        return True

    def _heartbeat(self, _channel: int, _payload: bytes) -> None:
        self._receiver.heartbeat_received()

    def _method(self, channel: int, payload: bytes) -> None:
        if channel in self._contents:
            raise FrameError("a method frame before the content is complete")
        if payload[:4] in _WITH_CONTENT:
            if self._channels is not None and channel not in self._channels:
                raise FrameError(f"a message on channel {channel}, which is not open")
            self._contents[channel] = _Content(payload)
        else:
            self._receiver.method_received(channel, payload)

    def _header(self, channel: int, payload: bytes) -> None:
        content = self._contents.get(channel)
        if content is None or content.properties is not None:
            raise FrameError("a content header without its method")
        if len(payload) < _CONTENT_BYTES:
            raise FrameError("a content header is too short")
        (content.expected,) = _SIZE.unpack_from(payload, 4)
        content.properties = payload[_CONTENT_BYTES:]
        if content.expected == 0:
            self._complete(channel, content, b"")
        elif content.expected <= self._body_limit:
            content.body = []

    def _body(self, channel: int, payload: bytes) -> None:
        content = self._contents.get(channel)
        if content is None or content.properties is None:
            raise FrameError("a body frame without a content header")
        if len(payload) == content.expected and not content.received and content.body is not None:
            self._complete(channel, content, payload)  # a body in one frame: the common case
            return
        if not payload:
            # RabbitMQ sends none, and the bound on the body's size does not bound their number.
            raise FrameError("an empty body frame")
        content.received += len(payload)
        if content.received > content.expected:
            raise FrameError("the body exceeds the size in its content header")
        if content.body is not None:
            content.body.append(payload)
        if content.received == content.expected:
            self._complete(channel, content, None if content.body is None else b"".join(content.body))

    def _complete(self, channel: int, content: _Content, body: bytes | None) -> None:
        del self._contents[channel]
        self._dispatch(channel, content.payload, content.properties or b"", body)


class Deliver(NamedTuple):
    """The arguments of basic.deliver (AMQP 0-9-1 1.8.3.9).

    :param consumer_tag: bytes, as the other names.
    :param redelivered: the message was delivered before, perhaps to another consumer.
    """

    consumer_tag: bytes
    delivery_tag: int
    redelivered: bool
    exchange: bytes
    routing_key: bytes


def parse_deliver(payload: bytes) -> Deliver:
    """Decode basic.deliver.

    :param payload: class id, method id and arguments.
    :raises FrameError: it is truncated, or longer than its arguments.
    """
    try:
        at = 5 + payload[4]
        consumer_tag = payload[5:at]
        (delivery_tag,) = _TAG.unpack_from(payload, at)
        redelivered = payload[at + 8]
        key_at = at + 10 + payload[at + 9]
        exchange = payload[at + 10 : key_at]
        end = key_at + 1 + payload[key_at]
    except (IndexError, ValueError, OverflowError, _struct_error) as error:
        raise FrameError("basic.deliver is truncated") from error
    if end != len(payload):
        raise FrameError("trailing bytes after basic.deliver")
    return Deliver(consumer_tag, delivery_tag, bool(redelivered & 1), exchange, payload[key_at + 1 : end])


_ACK_BYTES = 13
"""Length of basic.ack and basic.nack: class id, method id, delivery tag, bits."""
_MULTIPLE_BIT = 1


@lru_cache(maxsize=4096)
def pack_publish(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:  # noqa: FBT001 - a field of the method
    """Encode the frame of basic.publish; cached, as few combinations recur.

    :raises ValueError: a name is longer than 255 bytes.
    """
    names = b"".join(_short(name) for name in (exchange, routing_key))
    size = 4 + 2 + len(names) + 1
    return _PUBLISH.pack(METHOD, channel, size, 60, 40, 0) + names + bytes((mandatory,)) + _END


def pack_content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Encode the header and body frames of a message.

    :param properties: flags and values.
    :param frame_max: largest frame in bytes; a longer body is split.
    """
    length = len(body)
    head = _CONTENT.pack(HEADER, channel, _CONTENT_BYTES + len(properties), 60, 0, length)
    largest = frame_max - _OVERHEAD
    if 0 < length <= largest:
        return b"".join((head, properties, _END, _FRAME.pack(BODY, channel, length), body, _END))
    parts = [head, properties, _END]
    for at in range(0, length, largest):
        part = body[at : at + largest]
        parts += (_FRAME.pack(BODY, channel, len(part)), part, _END)
    return b"".join(parts)


MULTIPLE, SINGLE = 0x01CE, 0x00CE
"""The last two bytes of a basic.ack: the "multiple" bit, and frame-end."""


def ack_packer(channel: int) -> Callable[[int, int], bytes]:
    """Return the encoder of a channel's basic.ack frames; it takes a delivery tag and MULTIPLE or SINGLE."""
    return partial(_ACK.pack, METHOD, channel, _ACK_BYTES, 60, 80)


def pack_reject(channel: int, delivery_tag: int, requeue: bool) -> bytes:  # noqa: FBT001 - as pack_publish
    """Encode the frame of basic.reject."""
    return _TAGGED.pack(METHOD, channel, 13, 60, 90, delivery_tag, requeue, _END_OCTET)


def pack_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Encode a frame."""
    return b"".join((_FRAME.pack(kind, channel, len(payload)), payload, _END))


def _short(name: str) -> bytes:
    octets = name.encode()
    if len(octets) > _NAME_BYTES:
        raise ValueError(f"{name!r} is {len(octets)} bytes long; names on the broker are limited to {_NAME_BYTES}")
    return bytes((len(octets),)) + octets


_NAME_BYTES = 255
