"""The frames of AMQP 0-9-1: the stream taken apart, and the few messages that come by the thousand, compiled.

What comes with each call (publish, deliver, ack) is packed and unpacked here with ``struct``;
all the rest goes through the spec, see :mod:`novasvc.transport.amqp.codec`. Both give the same
bytes. Nothing here knows a socket.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from struct import Struct
from struct import error as _struct_error
from typing import NamedTuple, Protocol

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
"""The types of frames."""

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
"""What a client says first."""

SMALLEST_FRAME = 4096
"""Bytes of a frame that either side takes in any case."""

_END = b"\xce"
_END_OCTET = 0xCE
_OVERHEAD = 8
"""Bytes of a frame beside its payload."""

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
"""The whole frame of a sign of life."""


class FrameError(ValueError):
    """Bytes that are no AMQP, or too many of them. The connection cannot go on after them."""


class FrameReceiver(Protocol):
    """Take the methods of a stream that are not compiled here."""

    def method_received(self, channel: int, payload: bytes) -> None:
        """Take a method without content.

        :param payload: class id, method id and arguments.
        """

    def content_received(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        """Take a method with its content.

        :param properties: flags and values.
        :param body: None if it was over the limit, and was thrown away.
        """

    def heartbeat_received(self) -> None:
        """Take a sign of life."""


class ContentReceiver(Protocol):
    """Take what comes by the thousand on one channel; see :class:`novasvc.transport.amqp.channel.ChannelReceiver`."""

    def delivered(self, deliver: "Deliver", properties: bytes, body: bytes | None) -> None:
        """Handle basic.deliver; the body is None if it was over the limit."""

    def confirmed(self, delivery_tag: int, multiple: bool, taken: bool) -> None:  # noqa: FBT001 - fields of the method
        """Handle basic.ack or basic.nack of messages that were published."""


class OpenChannel(Protocol):
    """A channel, as the reader needs it."""

    @property
    def receiver(self) -> ContentReceiver | None:
        """Who gets deliveries and confirms; None drops them."""


class _Content:
    """What has come of a message so far."""

    __slots__ = ("body", "expected", "payload", "properties", "received")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.properties: bytes | None = None
        self.expected = 0
        self.received = 0
        self.body: list[bytes] | None = None


class FrameReader:
    """Takes the stream apart, however it is cut in pieces.

    Deliveries and confirms go straight to the receivers of their channels; everything else goes to
    ``receiver``. Both see the stream in its order.

    :param receiver: gets the methods that are not compiled here.
    :param frame_max: bytes of a frame at the most; what was negotiated.
    :param body_limit: bytes of a message's body; of a longer one nothing is kept.
    :param channels: the open ones by number; no message is kept for others. Without them ``receiver`` gets
        everything, on any channel.
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
        self._rest = bytearray()
        self._needed = 0
        self._contents: dict[int, _Content] = {}
        self._takers = {METHOD: self._method, HEADER: self._header, BODY: self._body, HEARTBEAT: self._heartbeat}

    def forget_channel(self, channel: int) -> None:
        """Give up what has come of a channel's message; the rest of it will not come."""
        self._contents.pop(channel, None)

    def feed(self, data: bytes) -> None:  # noqa: C901 - calls cost more than branches here
        """Take the next piece.

        :raises FrameError: it is no AMQP; nothing may be fed after that.
        """
        if self._rest:
            # Joined when a frame is complete and not before, or many small pieces would cost their square.
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        at, end, size, read = 0, len(data), 0, _FRAME.unpack_from
        while end - at >= _OVERHEAD:
            kind, channel, size = read(data, at)
            if size + _OVERHEAD > self.frame_max:
                raise FrameError(f"a frame of {size + _OVERHEAD} bytes where {self.frame_max} were agreed upon")
            after = at + _OVERHEAD + size
            if after > end:
                break
            if data[after - 1] != _END_OCTET:
                raise FrameError("a frame does not end where it says")
            payload = data[at + 7 : after - 1]
            at = after
            if kind == METHOD:
                name = payload[:4]
                if name == BASIC_DELIVER:
                    at = self._whole(data, at, end, channel, payload) or after
                    if at > after:
                        continue
                elif name in _CONFIRMS and self._confirm(channel, payload, taken=name == BASIC_ACK):
                    continue
            take = self._takers.get(kind)
            if take is None:
                raise FrameError(f"a frame of the unknown type {kind}")
            take(channel, payload)
        if at < end:
            self._rest += data[at:]
            self._needed = _OVERHEAD if end - at < _OVERHEAD else _OVERHEAD + size

    def _whole(self, data: bytes, at: int, end: int, channel: int, payload: bytes) -> int:
        """Take a message whose header and only body are here as well, as nearly always.

        :param at: where its header would begin.
        :return: the index after it; 0 if it has to be taken frame by frame.
        """
        channels = self._channels
        if channel in self._contents or (channels is not None and channel not in channels):
            return 0
        if end - at < _CONTENT.size + 2 * _OVERHEAD:
            return 0
        size: int
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
        self._take(channel, payload, properties, data[body_at + 7 : after - 1])
        return after

    def _take(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        """Hand a message on that is complete."""
        if self._channels is None or payload[:4] != BASIC_DELIVER:
            self._receiver.content_received(channel, payload, properties, body)
            return
        receiver = self._channels[channel].receiver
        if receiver is not None:
            receiver.delivered(parse_deliver(payload), properties, body)

    def _confirm(self, channel: int, payload: bytes, *, taken: bool) -> bool:
        """Hand on basic.ack or basic.nack; return whether the channel is one that is open."""
        if self._channels is None or channel not in self._channels or channel in self._contents:
            return False
        receiver = self._channels[channel].receiver
        if receiver is not None:
            receiver.confirmed(*parse_ack(payload), taken)
        return True

    def _heartbeat(self, _channel: int, _payload: bytes) -> None:
        self._receiver.heartbeat_received()

    def _method(self, channel: int, payload: bytes) -> None:
        if channel in self._contents:
            raise FrameError("a method in the midst of a message")
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
            raise FrameError("a message's body without its header")
        if len(payload) == content.expected and not content.received and content.body is not None:
            self._complete(channel, content, payload)  # in one frame, as nearly always
            return
        content.received += len(payload)
        if content.received > content.expected:
            raise FrameError("a message's body is longer than its header says")
        if content.body is not None:
            content.body.append(payload)
        if content.received == content.expected:
            self._complete(channel, content, None if content.body is None else b"".join(content.body))

    def _complete(self, channel: int, content: _Content, body: bytes | None) -> None:
        del self._contents[channel]
        self._take(channel, content.payload, content.properties or b"", body)


class Deliver(NamedTuple):
    """The arguments of basic.deliver.

    :param consumer_tag: bytes, as all names here.
    :param redelivered: the broker gave it to somebody before.
    """

    consumer_tag: bytes
    delivery_tag: int
    redelivered: bool
    exchange: bytes
    routing_key: bytes


def parse_deliver(payload: bytes) -> Deliver:
    """Read basic.deliver.

    :param payload: class id, method id and arguments.
    :raises FrameError: it is cut short.
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
        raise FrameError("basic.deliver is cut short") from error
    if end != len(payload):
        raise FrameError("basic.deliver is not as long as it says")
    return Deliver(consumer_tag, delivery_tag, bool(redelivered & 1), exchange, payload[key_at + 1 : end])


def parse_ack(payload: bytes) -> tuple[int, bool]:
    """Read basic.ack or basic.nack.

    :return: the delivery tag, and whether all before it are meant too.
    :raises FrameError: it has another length.
    """
    if len(payload) != _ACK_BYTES:
        raise FrameError("basic.ack or basic.nack of a wrong length")
    (tag,) = _TAG.unpack_from(payload, 4)
    return tag, bool(payload[12] & 1)


_ACK_BYTES = 13


@lru_cache(maxsize=4096)
def pack_publish(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:  # noqa: FBT001 - a field of the method
    """Write the frame of basic.publish. The same few come again and again, and are kept.

    :raises ValueError: a name is longer than 255 bytes.
    """
    names = b"".join(_short(name) for name in (exchange, routing_key))
    size = 4 + 2 + len(names) + 1
    return _PUBLISH.pack(METHOD, channel, size, 60, 40, 0) + names + bytes((mandatory,)) + _END


def pack_content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Write the frames of a message's header and body.

    :param properties: flags and values.
    :param frame_max: bytes of a frame at the most; a longer body goes in several.
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
"""The last two octets of a basic.ack: its bit, and the end of the frame."""


def ack_packer(channel: int) -> Callable[[int, int], bytes]:
    """Return what writes the frames of basic.ack of one channel; it takes a delivery tag and MULTIPLE or SINGLE."""
    return partial(_ACK.pack, METHOD, channel, _ACK_BYTES, 60, 80)


def pack_reject(channel: int, delivery_tag: int, requeue: bool) -> bytes:  # noqa: FBT001 - as pack_publish
    """Write the frame of basic.reject."""
    return _TAGGED.pack(METHOD, channel, 13, 60, 90, delivery_tag, requeue, _END_OCTET)


def pack_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Write a frame."""
    return b"".join((_FRAME.pack(kind, channel, len(payload)), payload, _END))


def _short(name: str) -> bytes:
    octets = name.encode()
    if len(octets) > _NAME_BYTES:
        raise ValueError(f"{name!r} is {len(octets)} bytes long, and a name on the broker may have {_NAME_BYTES}")
    return bytes((len(octets),)) + octets


_NAME_BYTES = 255
