"""Tests for novasvc.transport.amqp.codec."""

import contextlib
from datetime import UTC, datetime
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from txamqp.spec import pythonize

from novasvc.transport.amqp.codec import (
    CodecError,
    decode_method,
    decode_properties,
    encode_method,
    encode_properties,
)
from novasvc.transport.amqp.frames import HEADER, pack_content, pack_frame
from novasvc.transport.amqp.spec import SPEC

METHODS = [method for kind in SPEC.classes for method in kind.methods]
PROPERTIES = [(field.name.replace("-", "_"), field.type) for field in SPEC.classes.byname["basic"].fields]

shortstrs = st.text(max_size=60).filter(lambda text: len(text.encode()) <= 255)
flat_tables = st.dictionaries(
    shortstrs, st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20), max_size=3
)
DOMAINS: dict[str, st.SearchStrategy[Any]] = {
    "bit": st.booleans(),
    "octet": st.integers(0, 2**8 - 1),
    "short": st.integers(0, 2**16 - 1),
    "long": st.integers(0, 2**32 - 1),
    "longlong": st.integers(0, 2**64 - 1),
    "shortstr": shortstrs,
    "longstr": st.text(max_size=300),
    "table": flat_tables | st.fixed_dictionaries({"capabilities": flat_tables}),
    "timestamp": st.integers(0, 2**33).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
}

IN_ORDER: list[tuple[str, dict[str, Any], str]] = [
    ("connection.tune-ok", {"channel_max": 1, "frame_max": 2, "heartbeat": 3}, "000a001f0001000000020003"),
    (
        "connection.close",
        {"reply_code": 1, "reply_text": "a", "class_id": 2, "method_id": 3},
        "000a00320001016100020003",
    ),
    (
        "exchange.declare",
        {"exchange": "a", "type": "b", "durable": True, "internal": True},
        "0028000a0000016101620a00000000",
    ),
    (
        "exchange.declare",
        {"exchange": "a", "type": "b", "passive": True, "auto_delete": True, "no_wait": True},
        "0028000a0000016101621500000000",
    ),
    ("exchange.delete", {"exchange": "a", "if_unused": True}, "002800140000016101"),
    ("exchange.bind", {"destination": "a", "source": "b", "routing_key": "c"}, "0028001e00000161016201630000000000"),
    ("queue.declare", {"queue": "a", "durable": True, "auto_delete": True}, "0032000a000001610a00000000"),
    (
        "queue.declare",
        {"queue": "a", "passive": True, "exclusive": True, "no_wait": True},
        "0032000a000001611500000000",
    ),
    ("queue.declare-ok", {"queue": "a", "message_count": 1, "consumer_count": 2}, "0032000b01610000000100000002"),
    ("queue.bind", {"queue": "a", "exchange": "b", "routing_key": "c"}, "0032001400000161016201630000000000"),
    ("queue.unbind", {"queue": "a", "exchange": "b", "routing_key": "c"}, "00320032000001610162016300000000"),
    ("queue.delete", {"queue": "a", "if_empty": True}, "003200280000016102"),
    ("basic.qos", {"prefetch_size": 1, "prefetch_count": 2, "global_": True}, "003c000a00000001000201"),
    (
        "basic.consume",
        {"queue": "a", "consumer_tag": "b", "no_ack": True, "no_wait": True},
        "003c00140000016101620a00000000",
    ),
    (
        "basic.consume",
        {"queue": "a", "consumer_tag": "b", "no_local": True, "exclusive": True},
        "003c00140000016101620500000000",
    ),
    ("basic.publish", {"exchange": "a", "routing_key": "b", "mandatory": True}, "003c002800000161016201"),
    (
        "basic.return",
        {"reply_code": 1, "reply_text": "a", "exchange": "b", "routing_key": "c"},
        "003c00320001016101620163",
    ),
    (
        "basic.deliver",
        {"consumer_tag": "a", "delivery_tag": 1, "redelivered": True, "exchange": "b", "routing_key": "c"},
        "003c003c016100000000000000010101620163",
    ),
    (
        "basic.get-ok",
        {"delivery_tag": 1, "redelivered": True, "exchange": "b", "routing_key": "c", "message_count": 2},
        "003c00470000000000000001010162016300000002",
    ),
    ("basic.nack", {"delivery_tag": 1, "multiple": True, "requeue": False}, "003c0078000000000000000101"),
    ("basic.nack", {"delivery_tag": 1, "multiple": False, "requeue": True}, "003c0078000000000000000102"),
    ("connection.start-ok", {"mechanism": "a", "response": "b", "locale": "c"}, "000a000b00000000016100000001620163"),
    ("connection.update-secret", {"new_secret": "a", "reason": "b"}, "000a004600000001610162"),
]
"""Methods whose arguments could be taken for one another, as another implementation writes them."""

methods = st.sampled_from(METHODS).flatmap(
    lambda method: st.tuples(st.just(method), st.tuples(*(DOMAINS[field.type] for field in method.fields)))
)
properties = st.fixed_dictionaries({}, optional={name: DOMAINS[kind] for name, kind in PROPERTIES})


def method(name: str) -> Any:
    return SPEC.parse_method(name)


class Written(SPEC.klass):
    """Writes what the spec's methods hand to a channel."""

    def invoke(self, method: Any, args: tuple[Any, ...], content: None = None) -> bytes:
        return encode_method(method, args)


class MethodTests(SynchronousTestCase):
    def test_order(self) -> None:
        """Arguments of the same type keep their order."""
        for name, arguments, octets in IN_ORDER:
            write = getattr(Written(), pythonize(name.replace(".", "_")))
            self.assertEqual(write(**arguments).hex(), octets, name)

    def test_queue_declare(self) -> None:
        """A method is encoded as ids and arguments, its bits in one octet, lowest bit first."""
        octets = encode_method(
            method("queue.declare"), (0, "reply", False, True, False, True, False, {"x-expires": 1_800_000})
        )
        expected = b"\x00\x32\x00\x0a" + b"\x00\x00" + b"\x05reply" + b"\x0a"
        self.assertEqual(octets, expected + b"\x00\x00\x00\x0f\x09x-expiresI\x00\x1b\x77\x40")

    def test_start_ok(self) -> None:
        """Client capabilities are encoded, and a name with an accent has its length in bytes."""
        args = ({"capabilities": {"basic.nack": True}}, "PLAIN", "\0josé\0pw", "en_US")
        octets = encode_method(method("connection.start-ok"), args)
        table = b"\x0ccapabilitiesF\x00\x00\x00\x0d\x0abasic.nackt\x01"
        self.assertEqual(
            octets,
            b"\x00\x0a\x00\x0b\x00\x00\x00\x1f" + table + b"\x05PLAIN\x00\x00\x00\x09\x00jos\xc3\xa9\x00pw\x05en_US",
        )

    def test_amqplain(self) -> None:
        """AMQPLAIN's response is encoded as a field table, which a broker reads as a string of that length."""
        args = ({}, "AMQPLAIN", {"LOGIN": "guest", "PASSWORD": "é"}, "en_US")
        _, read = decode_method(encode_method(method("connection.start-ok"), args))
        self.assertEqual(read[2].encode(), b"\x05LOGINS\x00\x00\x00\x05guest\x08PASSWORDS\x00\x00\x00\x02\xc3\xa9")

    def test_empty(self) -> None:
        """A method without arguments is its ids."""
        self.assertEqual(encode_method(method("channel.close-ok"), ()), b"\x00\x14\x00\x29")
        self.assertEqual(decode_method(b"\x00\x14\x00\x29"), (method("channel.close-ok"), ()))

    def test_bits_only(self) -> None:
        """Bits are packed when they are the only arguments."""
        self.assertEqual(encode_method(method("confirm.select"), (True,)), b"\x00\x55\x00\x0a\x01")
        self.assertEqual(encode_method(method("basic.nack"), (1, True, True))[-1:], b"\x03")

    def test_shortstr_in_bytes(self) -> None:
        """A short string with an accent does not shift the next argument."""
        args = (0, "ré", "naïve", False, True)
        payload = encode_method(method("basic.publish"), args)
        self.assertEqual(payload, b"\x00\x3c\x00\x28\x00\x00\x03r\xc3\xa9\x06na\xc3\xafve\x02")
        self.assertEqual(decode_method(payload), (method("basic.publish"), args))

    def test_not_utf8(self) -> None:
        """Text of the broker that is not UTF-8 stays bytes."""
        payload = b"\x00\x0a\x00\x3c\x02\xff\xfe"
        self.assertEqual(decode_method(payload), (method("connection.blocked"), (b"\xff\xfe",)))

    def test_close(self) -> None:
        """RabbitMQ's 406 for an inequivalent declaration is decoded with its code and text."""
        text = b"PRECONDITION_FAILED - inequivalent arg 'durable'"
        payload = b"\x00\x14\x00\x28\x01\x96" + bytes((len(text),)) + text + b"\x00\x32\x00\x0a"
        read, args = decode_method(payload)
        self.assertIs(read, method("channel.close"))
        self.assertEqual(args, (406, text.decode(), 50, 10))

    def test_consumer_cancel(self) -> None:
        """The broker's basic.cancel is decoded, and is no answer."""
        read, args = decode_method(b"\x00\x3c\x00\x1e\x011\x01")
        self.assertEqual((read.name, args, read.response), ("cancel", ("1", True), False))

    def test_unknown(self) -> None:
        """A method that is not in the spec is refused with its ids."""
        with self.assertRaisesRegex(CodecError, "unknown method: class 30, method 10"):
            decode_method(b"\x00\x1e\x00\x0a")

    def test_cut_short(self) -> None:
        """A truncated method is malformed, wherever it ends."""
        payload = encode_method(method("queue.declare"), (0, "compute", *[False] * 5, {"x-expires": 1, "k": [True]}))
        for end in range(len(payload)):
            self.assertRaises(CodecError, decode_method, payload[:end])

    def test_too_long(self) -> None:
        """A method with more than its arguments is malformed."""
        with self.assertRaisesRegex(CodecError, r"trailing bytes after the arguments of queue\.bind-ok"):
            decode_method(b"\x00\x32\x00\x15\x00")

    def test_wrong_argument(self) -> None:
        """A refused argument is named, with its method."""
        for name, args, text in (
            ("basic.qos", (0, 65536, False), r"basic\.qos: prefetch-count: .* 16-bit.* got 65536"),
            ("basic.ack", (-1, False), r"basic\.ack: delivery-tag: .* got -1"),
            (
                "basic.publish",
                (0, "x" * 256, "", False, False),
                r"basic\.publish: exchange: 'x+'\.\.\. is 256 bytes long",
            ),
            ("basic.cancel", (None, False), r"basic\.cancel: consumer-tag: expected a string"),
            ("queue.declare", (0, "q", *[False] * 5, None), r"queue\.declare: arguments: expected a table"),
            (
                "queue.declare",
                (0, "q", *[False] * 5, {"k": 2**64}),
                r"queue\.declare: arguments: an integer of 65 bits",
            ),
        ):
            with self.assertRaisesRegex(CodecError, text):
                encode_method(method(name), args)

    def test_number_of_arguments(self) -> None:
        """An argument too many or too few is refused."""
        with self.assertRaisesRegex(CodecError, r"tx\.select has 0 arguments, not 1"):
            encode_method(method("tx.select"), (1,))
        with self.assertRaisesRegex(CodecError, r"basic\.ack has 2 arguments, not 1"):
            encode_method(method("basic.ack"), (1,))

    def test_password(self) -> None:
        """A refused response does not show up in the error's text."""
        with self.assertRaises(CodecError) as raised:
            encode_method(method("connection.start-ok"), ({}, "PLAIN", "\0guest\0hunter2\ud800", "en_US"))
        self.assertNotIn("hunter2", str(raised.exception))


class PropertiesTests(SynchronousTestCase):
    def test_call(self) -> None:
        """The properties of a call have oslo.messaging's flags, F9 00, and its bytes; see docs/protocol.md."""
        octets = encode_properties(
            {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "headers": {},
                "delivery_mode": 2,
                "priority": 0,
                "expiration": "200",
            }
        )
        self.assertEqual(octets, b"\xf9\x00\x10application/json\x05utf-8\x00\x00\x00\x00\x02\x00\x03200")
        header = pack_content(1, octets, b"", 4096)
        self.assertEqual(header, pack_frame(HEADER, 1, b"\x00\x3c\x00\x00" + bytes(8) + octets))

    def test_cast(self) -> None:
        """The properties of a cast have the flags F8 00."""
        cast = {"content_type": "a", "content_encoding": "b", "headers": {}, "delivery_mode": 2, "priority": 0}
        self.assertEqual(encode_properties(cast)[:2], b"\xf8\x00")

    def test_each(self) -> None:
        """Each property has the flag of its place, from the highest on."""
        example_of = {"shortstr": "é", "octet": 7, "table": {"k": True}, "timestamp": datetime(2020, 1, 2, tzinfo=UTC)}
        for place, (name, kind) in enumerate(PROPERTIES):
            octets = encode_properties({name: example_of[kind]})
            self.assertEqual(int.from_bytes(octets[:2], "big"), 1 << (15 - place), name)
            self.assertEqual(decode_properties(octets), {name: example_of[kind]})

    def test_none(self) -> None:
        """No properties are two octets; None is left out, 0 and "" are not."""
        self.assertEqual(encode_properties({}), b"\x00\x00")
        self.assertEqual(encode_properties({"priority": None}), b"\x00\x00")
        self.assertEqual(encode_properties({"priority": 0, "reply_to": ""}), b"\x0a\x00\x00\x00")
        self.assertEqual(decode_properties(b"\x00\x00"), {})

    def test_timestamp(self) -> None:
        """A timestamp is encoded from seconds, and decoded as a datetime."""
        octets = encode_properties({"timestamp": 86400})
        self.assertEqual(decode_properties(octets), {"timestamp": datetime(1970, 1, 2, tzinfo=UTC)})

    def test_refused(self) -> None:
        """An unknown property, or one of a wrong type, is refused by its name."""
        for values, text in (
            ({"content-type": "a"}, "unknown message property 'content-type'"),
            ({"delivery_mode": 256}, "delivery_mode: expected an unsigned 8-bit integer"),
            ({"expiration": 200}, "expiration: expected a string, got 200"),
            ({"headers": []}, "headers: expected a table"),
            ({"timestamp": "now"}, "timestamp: expected an unsigned 64-bit integer"),
            ({"correlation_id": "é" * 128}, "correlation_id: .* 256 bytes long"),
        ):
            with self.assertRaisesRegex(CodecError, text):
                encode_properties(values)

    def test_malformed(self) -> None:
        """Flags of unknown properties, and missing or surplus values, are malformed."""
        for octets in (b"", b"\x80", b"\x00\x01", b"\x00\x02", b"\x80\x00", b"\x80\x00\x02a", b"\x00\x00a"):
            self.assertRaises(CodecError, decode_properties, octets)

    def test_dead_lettered(self) -> None:
        """The headers of a message that RabbitMQ dead-lettered are decoded."""
        death = b"\x05countl\x00\x00\x00\x00\x00\x00\x00\x01\x06reasonS\x00\x00\x00\x08rejected"
        array = b"F" + len(death).to_bytes(4, "big") + death
        table = b"\x07x-deathA" + len(array).to_bytes(4, "big") + array
        octets = b"\x20\x00" + len(table).to_bytes(4, "big") + table
        self.assertEqual(decode_properties(octets), {"headers": {"x-death": [{"count": 1, "reason": "rejected"}]}})


class RoundTripTests(SynchronousTestCase):
    def test_every_method(self) -> None:
        """Every method of the spec is read as it was written."""
        plain = {"bit": True, "octet": 1, "short": 2, "long": 3, "longlong": 4, "shortstr": "é", "longstr": "é"}
        for each in METHODS:
            args = tuple(plain.get(field.type, {"k": False}) for field in each.fields)
            self.assertEqual(decode_method(encode_method(each, args)), (each, args))

    @given(methods)
    def test_method(self, generated: tuple[Any, tuple[Any, ...]]) -> None:
        """A method is read as it was written, whatever its arguments are."""
        self.assertEqual(decode_method(encode_method(*generated)), generated)

    @given(properties)
    def test_properties(self, values: dict[str, Any]) -> None:
        """Properties are read as they were written."""
        self.assertEqual(decode_properties(encode_properties(values)), values)

    @given(st.binary(max_size=100))
    @example(b"")
    def test_random(self, octets: bytes) -> None:
        """Any bytes are decoded or raise CodecError, nothing else."""
        with contextlib.suppress(CodecError):
            decode_method(octets)
        with contextlib.suppress(CodecError):
            decode_properties(octets)

    @given(st.sampled_from(METHODS), st.binary(max_size=60))
    def test_random_arguments(self, each: Any, octets: bytes) -> None:
        """Any bytes after a method's ids are decoded or raise CodecError, nothing else."""
        with contextlib.suppress(CodecError):
            read, args = decode_method(bytes((0, each.klass.id, 0, each.id)) + octets)
            self.assertIs(read, each)
            self.assertEqual(len(args), len(each.fields))

    @given(methods, st.data())
    def test_damaged(self, generated: tuple[Any, tuple[Any, ...]], data: st.DataObject) -> None:
        """A method with one byte changed is decoded or raises CodecError, nothing else."""
        octets = bytearray(encode_method(*generated))
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(CodecError):
            decode_method(bytes(octets))

    @given(st.sampled_from(METHODS), st.data())
    def test_any_argument(self, each: Any, data: st.DataObject) -> None:
        """Any arguments are encoded or raise CodecError, nothing else."""
        anything = st.none() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.none()) | flat_tables
        with contextlib.suppress(CodecError):
            encode_method(each, tuple(data.draw(anything) for _ in each.fields))
