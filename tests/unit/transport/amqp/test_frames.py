"""Tests for novasvc.transport.amqp.frames."""

import contextlib
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.channel import ChannelReceiver
from novasvc.transport.amqp.codec import decode_method, encode_method
from novasvc.transport.amqp.frames import (
    BASIC_ACK,
    BASIC_DELIVER,
    BASIC_NACK,
    BODY,
    HEADER,
    HEARTBEAT_FRAME,
    METHOD,
    MULTIPLE,
    SINGLE,
    FrameError,
    FrameReader,
    ack_packer,
    pack_content,
    pack_frame,
    pack_publish,
    pack_reject,
    parse_deliver,
)
from novasvc.transport.amqp.spec import SPEC

BASIC = SPEC.classes.byname["basic"]

names = st.text(max_size=60).filter(lambda name: len(name.encode()) <= 255)
tags = st.integers(0, 2**64 - 1)
channels = st.integers(1, 2047)
bodies = st.binary(max_size=300)


def basic(name: str) -> Any:
    return BASIC.methods.byname[name]


def _pack_ack(channel: int, delivery_tag: int, multiple: bool) -> bytes:
    return ack_packer(channel)(delivery_tag, MULTIPLE if multiple else SINGLE)


class Parts:
    """A receiver that keeps what the reader dispatches."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def method_received(self, channel: int, payload: bytes) -> None:
        self.seen.append((channel, payload))

    def content_received(self, channel: int, payload: bytes, properties: bytes, body: bytes | None) -> None:
        self.seen.append((channel, payload, properties, body))

    def heartbeat_received(self) -> None:
        self.seen.append("heartbeat")


class Confirms(ChannelReceiver):
    """Keeps the confirms of a channel; it is also the channel itself, as far as the reader uses one."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool]] = []
        self.receiver = self

    def confirmed(self, delivery_tag: int, multiple: bool, acked: bool) -> None:
        self.seen.append((delivery_tag, multiple))


def confirmed(payload: bytes) -> tuple[int, bool]:
    """Return the delivery tag and "multiple" of a basic.ack or basic.nack, as the channel's receiver gets them."""
    confirms = Confirms()
    reader = FrameReader(Parts(), frame_max=4096, body_limit=100, channels={1: confirms})
    reader.feed(pack_frame(METHOD, 1, payload))
    (seen,) = confirms.seen
    return seen


def read(*pieces: bytes, frame_max: int = 4096, body_limit: int = 10_000) -> list[Any]:
    parts = Parts()
    reader = FrameReader(parts, frame_max=frame_max, body_limit=body_limit)
    for piece in pieces:
        reader.feed(piece)
    return parts.seen


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(stream) + 1) for place in at}), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def deliver_payload(consumer_tag: str = "1", tag: int = 1, exchange: str = "nova", key: str = "compute") -> bytes:
    return encode_method(basic("deliver"), (consumer_tag, tag, False, exchange, key))


class CompiledTests(SynchronousTestCase):
    """Tests that the precompiled encoding equals the spec's."""

    @given(channels, names, names, st.booleans())
    def test_publish(self, channel: int, exchange: str, key: str, mandatory: bool) -> None:
        """basic.publish is encoded as by the spec."""
        by_spec = encode_method(basic("publish"), (0, exchange, key, mandatory, False))
        self.assertEqual(pack_publish(channel, exchange, key, mandatory), pack_frame(METHOD, channel, by_spec))

    @given(channels, tags, st.booleans())
    def test_ack_and_reject(self, channel: int, tag: int, flag: bool) -> None:
        """basic.ack and basic.reject are encoded as by the spec."""
        for pack, name in ((_pack_ack, "ack"), (pack_reject, "reject")):
            by_spec = encode_method(basic(name), (tag, flag))
            self.assertEqual(pack(channel, tag, flag), pack_frame(METHOD, channel, by_spec))

    @given(names, tags, st.booleans(), names, names)
    def test_deliver(self, consumer_tag: str, tag: int, redelivered: bool, exchange: str, key: str) -> None:
        """basic.deliver is decoded as by the spec."""
        payload = encode_method(basic("deliver"), (consumer_tag, tag, redelivered, exchange, key))
        self.assertEqual(payload[:4], BASIC_DELIVER)
        compiled = parse_deliver(payload)
        by_spec = decode_method(payload)[1]
        as_text = [value.decode() if isinstance(value, bytes) else value for value in compiled]
        self.assertEqual(as_text, list(by_spec))

    @given(tags, st.booleans(), st.sampled_from(["ack", "nack"]))
    def test_confirmations(self, tag: int, multiple: bool, name: str) -> None:
        """The broker's basic.ack and basic.nack are decoded as by the spec."""
        method = basic(name)
        args = {"delivery-tag": tag, "multiple": multiple, "requeue": False}
        payload = encode_method(method, tuple(args[field.name] for field in method.fields))
        self.assertIn(payload[:4], (BASIC_ACK, BASIC_NACK))
        self.assertEqual(confirmed(payload), (tag, multiple))

    @given(st.binary(max_size=40))
    def test_cut_short(self, rest: bytes) -> None:
        """A basic.deliver or basic.ack of a wrong length raises FrameError, nothing else."""
        for head, parse in ((BASIC_DELIVER, parse_deliver), (BASIC_ACK, confirmed)):
            try:
                parse(head + rest)
            except FrameError:
                continue

    def test_long_name(self) -> None:
        """A name over 255 bytes is refused with its length in bytes."""
        error = self.assertRaises(ValueError, pack_publish, 1, "", "é" * 128, False)
        self.assertIn("256 bytes", str(error))


class ReaderTests(SynchronousTestCase):
    """Tests for FrameReader."""

    @given(
        st.lists(st.tuples(channels, bodies, st.binary(max_size=20)), max_size=5),
        st.lists(st.integers(0, 10_000), max_size=30),
        st.integers(40, 400),
    )
    def test_segments(self, messages: list[tuple[int, bytes, bytes]], at: list[int], frame_max: int) -> None:
        """The same messages come out, however the stream is split and whatever the frame size."""
        payload = deliver_payload()
        stream = b"".join(
            pack_frame(METHOD, channel, payload) + pack_content(channel, properties, body, frame_max) + HEARTBEAT_FRAME
            for channel, body, properties in messages
        )
        expected: list[Any] = []
        for channel, body, properties in messages:
            expected += [(channel, payload, properties, body), "heartbeat"]
        self.assertEqual(read(*cut(stream, at)), expected)

    def test_single_octets(self) -> None:
        """A stream that arrives byte by byte is parsed."""
        stream = pack_frame(METHOD, 1, deliver_payload()) + pack_content(1, b"\0\0", b"\xc3\xa9\xff", 4096)
        seen = read(*[bytes((octet,)) for octet in stream])
        self.assertEqual(seen, [(1, deliver_payload(), b"\0\0", b"\xc3\xa9\xff")])

    def test_interleaved(self) -> None:
        """The frames of two channels' messages may alternate."""
        first, second = (pack_frame(METHOD, n, deliver_payload()) for n in (1, 2))
        header_1, header_2 = (pack_content(n, b"\0\0", b"xy", 4096)[:22] for n in (1, 2))
        body_1, body_2 = pack_frame(BODY, 1, b"ab"), pack_frame(BODY, 2, b"cd")
        seen = read(first + second + header_1 + header_2 + body_2 + body_1)
        self.assertEqual([(part[0], part[3]) for part in seen], [(2, b"cd"), (1, b"ab")])

    def test_over_the_limit(self) -> None:
        """A body over the limit is discarded, and the next message is parsed."""
        method = pack_frame(METHOD, 1, deliver_payload())
        stream = method + pack_content(1, b"", b"x" * 101, 60) + method + pack_content(1, b"", b"y" * 100, 60)
        self.assertEqual([part[3] for part in read(stream, body_limit=100)], [None, b"y" * 100])

    def test_forgotten_channel(self) -> None:
        """A partial message of a closed channel does not affect the next one."""
        parts = Parts()
        reader = FrameReader(parts, frame_max=4096, body_limit=100)
        reader.feed(pack_frame(METHOD, 1, deliver_payload()))
        reader.forget_channel(1)
        reader.feed(pack_frame(METHOD, 1, deliver_payload()) + pack_content(1, b"", b"", 4096))
        self.assertEqual(len(parts.seen), 1)

    def test_refused(self) -> None:
        """A stream that is not AMQP is refused with the reason."""
        method = pack_frame(METHOD, 1, deliver_payload())
        header = pack_frame(HEADER, 1, b"\x00\x3c\x00\x00" + (3).to_bytes(8, "big") + b"\0\0")
        for stream, reason in (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "exceeds the negotiated frame-max"),
            (pack_frame(5, 1, b""), "unknown frame type 5"),
            (pack_frame(METHOD, 1, b"abcd")[:-1] + b"\0", "without its frame-end"),
            (pack_frame(METHOD, 1, b"x" * 4096), "exceeds the negotiated frame-max"),
            (method + method, "before the content is complete"),
            (header, "without its method"),
            (method + header + header, "without its method"),
            (method + pack_frame(HEADER, 1, b"\0"), "too short"),
            (method + pack_frame(BODY, 1, b"abc"), "without a content header"),
            (method + header + pack_frame(BODY, 1, b"abcd"), "exceeds the size in its content header"),
            (method + header + pack_frame(BODY, 1, b""), "an empty body frame"),
        ):
            error = self.assertRaises(FrameError, read, stream)
            self.assertIn(reason, str(error))

    @given(st.lists(st.binary(max_size=60), max_size=8))
    def test_garbage(self, pieces: list[bytes]) -> None:
        """Random bytes are dispatched, wait for more, or raise FrameError; nothing else."""
        with contextlib.suppress(FrameError):
            read(*pieces)
