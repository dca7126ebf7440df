"""Tests for novasvc.transport.amqp.content."""

import zlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.codec import CodecError, decode_properties, encode_properties
from novasvc.transport.amqp.content import (
    PLAIN,
    SENT,
    Properties,
    read_content,
    read_properties,
    sent_value,
    write_properties,
)

USUAL = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "headers": {},
    "delivery_mode": 2,
    "priority": 0,
}
ttls = st.floats(0, 1e9)


class WriteTests(SynchronousTestCase):
    """Tests for encoding properties."""

    def test_plain(self) -> None:
        """The precompiled properties equal the spec's encoding."""
        self.assertEqual(write_properties(None), encode_properties(USUAL))
        self.assertEqual(write_properties(None, {}), PLAIN)

    @given(ttls)
    def test_expiring(self, ttl: float) -> None:
        """The precompiled properties with an expiration equal it as well; the expiration is at least 1 ms."""
        values = decode_properties(write_properties(ttl))
        milliseconds = int(values.pop("expiration"))
        self.assertEqual(values, USUAL)
        self.assertTrue(1 <= milliseconds <= 2**32 - 1)
        self.assertTrue(milliseconds == 1 or milliseconds <= ttl * 1000)

    @given(ttls, st.floats(0, 1e9))
    def test_sent(self, ttl: float, sent_at: float) -> None:
        """So do those that say who sent the message when."""
        values = decode_properties(write_properties(ttl, None, b"abcdef01", sent_at))
        sent = f"abcdef01:{int(sent_at * 1000):013d}"
        self.assertEqual(values, decode_properties(write_properties(ttl)) | {"headers": {SENT: sent}})
        self.assertEqual(sent_value(b"abcdef01", sent_at).decode(), sent)

    def test_headers(self) -> None:
        """Headers are sent with the others, with and without an expiration."""
        headers = {"x-novasvc-deliveries": 2}
        self.assertEqual(decode_properties(write_properties(None, headers)), USUAL | {"headers": headers})
        expected = USUAL | {"headers": headers, "expiration": "1500"}
        self.assertEqual(decode_properties(write_properties(1.5, headers)), expected)

    def test_header_without_a_type(self) -> None:
        """A header value without an AMQP type raises CodecError."""
        self.assertRaises(CodecError, write_properties, None, {"a": object()})


class ReadTests(SynchronousTestCase):
    """Tests for decoding properties."""

    @given(st.none() | ttls)
    def test_ours(self, ttl: float | None) -> None:
        """Our own properties are decoded alike by the fast path and by the spec."""
        short = read_properties(write_properties(ttl))
        long = read_properties(write_properties(ttl, {"other": 1}))
        self.assertEqual(short, long)
        self.assertEqual(short.expires_in is None, ttl is None)
        written = [write_properties(ttl, headers, b"abcdef01", 5.25) for headers in (None, {"other": 1})]
        short, long = map(read_properties, written)
        self.assertEqual(short, long)
        self.assertEqual((short.sender, short.sent_at), (b"", 0.0) if ttl is None else (b"abcdef01", 5.25))

    def test_malformed_sent(self) -> None:
        """A header that does not say who sent the message when is read as none."""
        for odd in ("", "x", "abcdef01:00000000000x1", "abcdef0:00000000000001", "abcdef01" * 100, 5, None):
            read = read_properties(encode_properties({"headers": {SENT: odd}, "expiration": "1000"}))
            self.assertEqual((read.expires_in, read.sender, read.sent_at), (1.0, b"", 0.0), odd)

    def test_peers(self) -> None:
        """A peer's properties are decoded by the spec."""
        self.assertEqual(read_properties(encode_properties({})), Properties())
        self.assertEqual(read_properties(encode_properties({"expiration": "60000"})), Properties(60.0))
        for odd in ("", "-1", "1.5", "soon", "9" * 16):
            self.assertIsNone(read_properties(encode_properties({"expiration": odd})).expires_in)

    def test_counts(self) -> None:
        """Our delivery count is used, not the broker's, which counts messages that never began. Other types are 0."""
        for headers, deliveries in (
            ({"x-delivery-count": 2, "x-novasvc-deliveries": 3}, 3),
            ({"x-novasvc-deliveries": 3}, 3),
            ({"x-novasvc-deliveries": -3}, 0),
            ({"x-novasvc-deliveries": 2**40}, 0),
            ({"x-delivery-count": 2}, 0),
        ):
            read = read_properties(encode_properties({"headers": headers}))
            self.assertEqual(read.deliveries, deliveries, headers)

    def test_odd_compression(self) -> None:
        """A compression header that is not text means no compression."""
        for odd in (["zlib"], {"zlib": 1}, 1, None):
            self.assertFalse(read_properties(encode_properties({"headers": {"compression": odd}})).compressed)

    @given(st.binary(max_size=60))
    def test_garbage(self, data: bytes) -> None:
        """Random bytes are properties or raise ValueError, nothing else."""
        for octets in (data, PLAIN + data, b"\xf9" + PLAIN[1:] + data):
            try:
                self.assertIsInstance(read_properties(octets), Properties)
            except ValueError:
                continue


class ReadableTests(SynchronousTestCase):
    """Tests for decoding bodies."""

    def test_plain(self) -> None:
        """An uncompressed body is returned unchanged."""
        self.assertEqual(read_content(b"\xff", PLAIN, 1), (b"\xff", Properties()))

    def test_too_long(self) -> None:
        """A body over the limit raises an error that says so."""
        self.assertIn("exceeds 5 bytes", str(self.assertRaises(ValueError, read_content, None, PLAIN, 5)))

    @given(st.binary(max_size=100))
    def test_compressed(self, body: bytes) -> None:
        """A compressed body is decompressed up to the limit, not a byte further, and only if it is complete."""
        packed = zlib.compress(body)
        for name in ("zlib", "gzip", "application/x-gzip", "application/zlib"):
            properties = encode_properties({"headers": {"compression": name}})
            self.assertEqual(read_content(packed, properties, len(body))[0], body)
            self.assertRaises(ValueError, read_content, packed[:-1], properties, 100)
            self.assertRaises(ValueError, read_content, b"?" + packed, properties, 100)
            if body:
                self.assertRaises(ValueError, read_content, packed, properties, len(body) - 1)

    def test_bomb(self) -> None:
        """A body that inflates to a thousand times its size takes no more memory than the limit."""
        packed = zlib.compress(bytes(50 * 2**20))
        properties = encode_properties({"headers": {"compression": "zlib"}})
        self.assertIn("exceeds", str(self.assertRaises(ValueError, read_content, packed, properties, 2**20)))


class UnclaimedTests(SynchronousTestCase):
    """Tests for x-death on a request that its process did not claim."""

    def read(self, *dead_letters: object) -> Properties:
        headers = {"x-death": list(dead_letters), "x-novasvc-deaths": 1, "x-novasvc-expires-in": 1500}
        return read_properties(write_properties(None, headers))

    def test_unclaimed(self) -> None:
        """A message that expired in a queue of unclaimed requests is marked, and its TTL goes on."""
        passed = {"queue": "compute_running_0f_unclaimed", "reason": "expired", "count": 1}
        self.assertEqual(self.read({"queue": "other", "reason": "expired"}, passed), Properties(1.5, 0, False, 1, True))

    def test_claimed(self) -> None:
        """Dead letters of other queues, or for other reasons, are not marked."""
        for queue, reason in (
            ("compute_running_0f", "expired"),
            ("compute_running_0f_unclaimed", "maxlen"),
            ("compute_unclaimed", "expired"),
            ("compute", "expired"),
        ):
            self.assertFalse(self.read({"queue": queue, "reason": reason}).unclaimed)
        for rubbish in (1, "x", {}, {"reason": "expired"}):
            self.assertFalse(self.read(rubbish).unclaimed)
