"""Tests for novasvc.transport.amqp.fields."""

import contextlib
import math
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.fields import DEPTH_BOUND, WRITERS, CodecError, Reader, encode_table

EXPIRED = bytes.fromhex(
    "14782d66697273742d64656174682d726561736f6e5300000007657870697265640778"
    "2d64656174684100000095460000009005636f756e746c0000000000000002"
    "06726561736f6e5300000007657870697265640571756575655300000007636f6d70757465"
    "0474696d6554000000006553f1000865786368616e676553000000046e6f7661"
    "0c726f7574696e672d6b657973410000000c5300000007636f6d70757465"
    "136f726967696e616c2d65787069726174696f6e53000000053630303030"
)
"""The headers of a message that expired twice in a queue, as RabbitMQ 3.10 writes them."""

names = st.text(max_size=40).filter(lambda name: len(name.encode()) <= 255)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | moments.map(lambda moment: moment.replace(microsecond=0))
    | st.builds(
        lambda number, scale: Decimal(number).scaleb(-scale), st.integers(-(2**31), 2**31 - 1), st.integers(0, 9)
    )
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
tables = st.dictionaries(names, values, max_size=5)
anything = (
    st.integers()
    | st.text()
    | st.characters(categories=["Cs"])
    | st.floats()
    | st.decimals()
    | st.datetimes()
    | st.complex_numbers()
    | st.sampled_from([None, True, ..., object(), 10**400, frozenset(), range(3), Decimal("1e-999999")])
)


def sized(octets: bytes) -> bytes:
    return len(octets).to_bytes(4, "big") + octets


def one(kind: str, octets: bytes) -> bytes:
    """Return a table of one field, named k."""
    return sized(b"\x01k" + kind.encode() + octets)


def nested(depth: int, kind: str) -> bytes:
    """Return a table with so many tables or arrays within each other."""
    octets = sized(b"")
    for _ in range(depth - 1):
        octets = sized((b"\x01kF" if kind == "F" else b"A") + octets)
    return one(kind, octets)


class WrittenTests(SynchronousTestCase):
    """Tests for encoding each type of value."""

    def check(self, value: Any, kind: str, octets: bytes) -> None:
        self.assertEqual(encode_table({"k": value}), one(kind, octets))

    def test_bool(self) -> None:
        """A bool is encoded as a boolean, not as the integer that it is a subclass of."""
        self.check(True, "t", b"\x01")
        self.check(False, "t", b"\x00")

    def test_int(self) -> None:
        """An integer is encoded as signed 32 bits, as by oslo.messaging, or as 64 bits if it needs them."""
        self.check(1_800_000, "I", b"\x00\x1b\x77\x40")
        self.check(-1, "I", b"\xff" * 4)
        self.check(2**31 - 1, "I", b"\x7f\xff\xff\xff")
        self.check(-(2**31), "I", b"\x80\x00\x00\x00")
        self.check(2**31, "l", b"\x00\x00\x00\x00\x80\x00\x00\x00")
        self.check(-(2**63), "l", b"\x80" + bytes(7))

    def test_int_too_large(self) -> None:
        """An integer over 64 bits is refused, without its digits in the error."""
        for value in (2**63, -(2**63) - 1, 10**5000):
            with self.assertRaisesRegex(CodecError, "bits does not fit"):
                encode_table({"k": value})

    def test_enum(self) -> None:
        """Members of enumerations are encoded as their values' type."""
        number, text = IntEnum("Number", {"SEVEN": 7}), StrEnum("Text", {"QUORUM": "quorum"})
        self.check(number.SEVEN, "I", b"\x00\x00\x00\x07")  # type: ignore[attr-defined]
        self.check(text.QUORUM, "S", sized(b"quorum"))  # type: ignore[attr-defined]

    def test_text(self) -> None:
        """The length of a text is that of its bytes, not of its characters."""
        self.check("é€", "S", b"\x00\x00\x00\x05\xc3\xa9\xe2\x82\xac")

    def test_bytes(self) -> None:
        """Bytes go as bytes."""
        self.check(b"\xff\x00", "x", b"\x00\x00\x00\x02\xff\x00")

    def test_float(self) -> None:
        """A float goes with all its bits."""
        self.check(1.5, "d", b"\x3f\xf8" + bytes(6))

    def test_decimal(self) -> None:
        """A decimal goes as scale and number."""
        self.check(Decimal("-3.14"), "D", b"\x02\xff\xff\xfe\xc6")
        self.check(Decimal("2E+3"), "D", b"\x00\x00\x00\x07\xd0")

    def test_decimal_refused(self) -> None:
        """A decimal that does not fit into 32 bits, of any length, is refused; so is one that is not a number."""
        for text in ("2147483648", "1E+10", "1E-256", "1" * 5000, "1E+999999", "NaN", "Infinity"):
            with self.assertRaises(CodecError):
                encode_table({"k": Decimal(text)})

    def test_datetime(self) -> None:
        """A datetime is encoded as seconds since 1970, whatever its time zone."""
        moment = datetime(2023, 11, 15, 0, 13, 20, tzinfo=timezone(timedelta(hours=2)))
        self.check(moment, "T", b"\x00\x00\x00\x00\x65\x53\xf1\x00")

    def test_datetime_refused(self) -> None:
        """A datetime without a time zone, or before 1970, is refused."""
        for moment in (datetime(2020, 1, 1), datetime(1969, 1, 1, tzinfo=UTC)):  # noqa: DTZ001
            with self.assertRaises(CodecError):
                encode_table({"k": moment})

    def test_none(self) -> None:
        """None has a type and no value."""
        self.check(None, "V", b"")

    def test_nested(self) -> None:
        """Tables and arrays go within each other, each with its length."""
        self.check({"a": True}, "F", sized(b"\x01at\x01"))
        self.check(MappingProxyType({}), "F", sized(b""))
        self.check([1, (None, "s")], "A", sized(b"I\x00\x00\x00\x01A" + sized(b"VS" + sized(b"s"))))

    def test_capabilities(self) -> None:
        """A client's capabilities are booleans in a table in a table."""
        table = {"product": "novasvc", "capabilities": {"consumer_cancel_notify": True}}
        inner = b"\x16consumer_cancel_notifyt\x01"
        self.assertEqual(
            encode_table(table), sized(b"\x07productS" + sized(b"novasvc") + b"\x0ccapabilitiesF" + sized(inner))
        )

    def test_unknown(self) -> None:
        """A value of any other type is refused by its type's name; the value may be secret and is not shown."""
        for value in (object(), {1}, 1j, bytearray(b"x"), ValueError("hunter2")):
            with self.assertRaisesRegex(CodecError, f"cannot hold a value of type {type(value).__name__}$"):
                encode_table({"k": value})

    def test_no_table(self) -> None:
        """A value that is not a mapping is refused as a table."""
        for value in (None, [], "text", 5):
            with self.assertRaisesRegex(CodecError, "expected a table"):
                encode_table(value)  # type: ignore[arg-type]

    def test_name(self) -> None:
        """A name of 255 bytes is encoded; a longer one is refused, and so is one that is not text."""
        self.assertEqual(encode_table({"é" * 127 + "a": None})[4], 255)
        with self.assertRaisesRegex(CodecError, "256 bytes long; the limit is 255"):
            encode_table({"é" * 128: None})
        with self.assertRaisesRegex(CodecError, "expected a string, got 5"):
            encode_table({5: None})  # type: ignore[dict-item]

    def test_surrogate(self) -> None:
        """A text with a lone surrogate is refused."""
        with self.assertRaisesRegex(CodecError, "surrogates"):
            encode_table({"k": "\ud800"})

    def test_endless(self) -> None:
        """A table that contains itself is refused."""
        table: dict[str, Any] = {}
        table["again"] = [table, table]
        with self.assertRaisesRegex(CodecError, "nested deeper than 32"):
            encode_table(table)


def decode_table(data: bytes, at: int = 0) -> tuple[dict[str, Any], int]:
    """Return the table at an index, and the index after it."""
    reader = Reader(data, at, len(data))
    return reader.table(), reader.at


class ReadTests(SynchronousTestCase):
    """Tests for decoding each type of value."""

    def check(self, kind: str, octets: bytes, value: Any) -> None:
        table, end = decode_table(one(kind, octets))
        self.assertEqual(table, {"k": value})
        self.assertIs(type(table["k"]), type(value))
        self.assertEqual(end, 4 + 3 + len(octets))

    def test_integers(self) -> None:
        """Each type of integer has RabbitMQ's size and sign: s is no short string, l and L are the same."""
        for kind, size, signed in (
            *(("b", 1, True), ("B", 1, False), ("s", 2, True), ("u", 2, False)),
            *(("I", 4, True), ("i", 4, False), ("l", 8, True), ("L", 8, True)),
        ):
            self.check(kind, b"\xff" * size, -1 if signed else 2 ** (8 * size) - 1)

    def test_bool(self) -> None:
        """Any octet but 0 is true."""
        for octet in (0, 1, 2, 255):
            self.check("t", bytes((octet,)), octet != 0)

    def test_floats(self) -> None:
        """Both sizes of float are read."""
        self.check("f", b"\x3f\xc0\x00\x00", 1.5)
        self.check("d", b"\x3f\xf8" + bytes(6), 1.5)

    def test_decimal(self) -> None:
        """A decimal keeps all its digits, whatever the precision of the thread is."""
        with localcontext() as context:
            context.prec = 2
            self.check("D", b"\x02\xff\xff\xfe\xc6", Decimal("-3.14"))
            self.check("D", b"\xff\x80\x00\x00\x00", Decimal("-2147483648E-255"))

    def test_text(self) -> None:
        """A text is UTF-8, and stays bytes if it is not."""
        self.check("S", sized("é".encode()), "é")
        self.check("S", sized(b"\xe9"), b"\xe9")

    def test_bytes(self) -> None:
        """Bytes stay bytes, even if they could be text."""
        self.check("x", sized(b"text"), b"text")

    def test_timestamp(self) -> None:
        """A timestamp is a datetime in UTC, or an int if out of datetime's range."""
        self.check("T", (1_700_000_000).to_bytes(8, "big"), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
        self.check("T", b"\xff" * 8, 2**64 - 1)
        self.check("T", (10**13).to_bytes(8, "big"), 10**13)

    def test_void(self) -> None:
        """A field without a value is None."""
        self.check("V", b"", None)

    def test_nested(self) -> None:
        """Tables and arrays are read within each other."""
        self.check("F", sized(b"\x01at\x01"), {"a": True})
        self.check("A", sized(b"VF" + sized(b"")), [None, {}])

    def test_name(self) -> None:
        """A name that is not UTF-8 is decoded as Latin-1."""
        self.assertEqual(decode_table(sized(b"\x01\xe9V"))[0], {"é": None})

    def test_again(self) -> None:
        """Of two fields with one name the last one counts."""
        self.assertEqual(decode_table(sized(b"\x01at\x00\x01at\x01"))[0], {"a": True})

    def test_amid(self) -> None:
        """A table is decoded from its index on, and the bytes after it are left."""
        self.assertEqual(decode_table(b"\xff\xff" + one("V", b"") + b"\xff", 2), ({"k": None}, 9))


class RabbitMQTests(SynchronousTestCase):
    """Tables as RabbitMQ sends them."""

    def test_x_death(self) -> None:
        """The x-death header of an expired message is decoded."""
        table, _ = decode_table(sized(EXPIRED))
        death = {
            "count": 2,
            "reason": "expired",
            "queue": "compute",
            "time": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
            "exchange": "nova",
            "routing-keys": ["compute"],
            "original-expiration": "60000",
        }
        self.assertEqual(table, {"x-first-death-reason": "expired", "x-death": [death]})

    def test_x_delivery_count(self) -> None:
        """A quorum queue's 64-bit x-delivery-count is decoded."""
        octets = bytes.fromhex("10782d64656c69766572792d636f756e746c0000000000000003")
        self.assertEqual(decode_table(sized(octets))[0], {"x-delivery-count": 3})

    def test_server_properties(self) -> None:
        """The capabilities of a broker are read."""
        octets = bytes.fromhex(
            "0c6361706162696c6974696573460000003c127075626c69736865725f636f6e6669726d737401"
            "12636f6e6e656374696f6e2e626c6f636b656474010f6469726563745f7265706c795f746f7400"
            "0770726f6475637453000000085261626269744d51"
        )
        capabilities = {"publisher_confirms": True, "connection.blocked": True, "direct_reply_to": False}
        self.assertEqual(decode_table(sized(octets))[0], {"capabilities": capabilities, "product": "RabbitMQ"})


class MalformedTests(SynchronousTestCase):
    def test_cut_short(self) -> None:
        """A truncated table is malformed, wherever it ends."""
        whole = sized(EXPIRED)
        for end in range(len(whole)):
            self.assertRaises(CodecError, decode_table, whole[:end])

    def test_beyond_its_table(self) -> None:
        """A value cannot extend beyond its table, even if bytes follow."""
        for inner in (b"\x05kV", b"\x01kS\x00\x00\x00\x02x", b"\x01kF\x00\x00\x00\x01", b"\x01kl" + bytes(7), b"\x01k"):
            with self.assertRaisesRegex(CodecError, "bytes expected"):
                decode_table(sized(inner) + bytes(20))

    def test_lengths(self) -> None:
        """An announced length of 4 GiB allocates nothing."""
        for kind in "SxAF":
            with self.assertRaisesRegex(CodecError, "4294967295 bytes expected, 0 left"):
                decode_table(one(kind, b"\xff" * 4))

    def test_unknown(self) -> None:
        """An unknown type is malformed, because its length is unknown as well."""
        for kind in set(string.ascii_letters) - set("tbBsuIilLfdDSxTFAV"):
            with self.assertRaisesRegex(CodecError, f"unknown field type b'{kind}'"):
                decode_table(one(kind, bytes(16)))

    def test_depth(self) -> None:
        """Tables and arrays may be nested as deep as the bound, and not deeper."""
        for kind in "FA":
            decode_table(nested(DEPTH_BOUND, kind))
            for depth in (DEPTH_BOUND + 1, 5000):
                with self.assertRaisesRegex(CodecError, "nested deeper than 32"):
                    decode_table(nested(depth, kind))

    def test_depth_of_both(self) -> None:
        """What is read can be written again, at the bound too."""
        table, _ = decode_table(nested(DEPTH_BOUND, "F"))
        self.assertEqual(encode_table(table), nested(DEPTH_BOUND, "F"))


class WritersTests(SynchronousTestCase):
    """Tests for the types of method arguments."""

    def refused(self, write: Callable[[Any], bytes], *values: Any) -> None:
        for value in values:
            with self.assertRaises(CodecError) as raised:
                write(value)
            self.assertNotIn("\n", str(raised.exception))

    def test_unsigned(self) -> None:
        """A value that is not an unsigned integer of the type's size is refused with that size in bits."""
        for kind, size in (("octet", 1), ("short", 2), ("long", 4), ("longlong", 8)):
            self.assertEqual(WRITERS[kind](2 ** (8 * size) - 1), b"\xff" * size)
            self.refused(WRITERS[kind], 2 ** (8 * size), -1, 1.0, "1", None, 10**5000)
        with self.assertRaisesRegex(CodecError, "expected an unsigned 16-bit integer, got 65536"):
            WRITERS["short"](65536)

    def test_shortstr(self) -> None:
        """A short text is counted in bytes; one of more than 255 is refused with its length."""
        self.assertEqual(WRITERS["shortstr"]("é"), b"\x02\xc3\xa9")
        self.assertEqual(WRITERS["shortstr"](b"\xff"), b"\x01\xff")
        with self.assertRaisesRegex(CodecError, "is 256 bytes long"):
            WRITERS["shortstr"]("é" * 128)
        self.refused(WRITERS["shortstr"], None, 5, "\ud800", b"x" * 256)

    def test_longstr(self) -> None:
        """A long text is counted in bytes; in its place a table may stand."""
        self.assertEqual(WRITERS["longstr"]("é"), sized(b"\xc3\xa9"))
        self.assertEqual(WRITERS["longstr"]({"LOGIN": "é"}), sized(b"\x05LOGINS" + sized(b"\xc3\xa9")))
        self.refused(WRITERS["longstr"], None, 5, {"k": object()})

    def test_timestamp(self) -> None:
        """A timestamp is a moment or a number of seconds."""
        self.assertEqual(WRITERS["timestamp"](datetime(1970, 1, 2, tzinfo=UTC)), WRITERS["timestamp"](86400))
        self.refused(WRITERS["timestamp"], -1, "now", None, 1.5, datetime(1970, 1, 1))  # noqa: DTZ001


class RoundTripTests(SynchronousTestCase):
    @given(tables)
    def test_table(self, table: dict[str, Any]) -> None:
        """A table is read as it was written, to its last byte."""
        octets = encode_table(table)
        self.assertEqual(decode_table(octets + b"rest"), (table, len(octets)))

    @given(tables)
    def test_again(self, table: dict[str, Any]) -> None:
        """A table that was read is written with the same bytes."""
        octets = encode_table(table)
        self.assertEqual(encode_table(decode_table(octets)[0]), octets)

    def test_nan(self) -> None:
        """A float that is no number stays one."""
        self.assertTrue(math.isnan(decode_table(encode_table({"k": math.nan}))[0]["k"]))

    @given(st.binary(max_size=200), st.integers(0, 250))
    def test_random(self, octets: bytes, at: int) -> None:
        """Any bytes are decoded or raise CodecError, nothing else."""
        for data in (octets, sized(octets)):
            with contextlib.suppress(CodecError):
                table, end = decode_table(data, at % (len(data) + 1))
                self.assertIsInstance(table, dict)
                self.assertLessEqual(end, len(data))

    @given(st.sampled_from("tbBsuIilLfdDSxTFAV"), st.binary(max_size=60))
    def test_random_field(self, kind: str, octets: bytes) -> None:
        """Any bytes after a known type are decoded or raise CodecError, nothing else."""
        with contextlib.suppress(CodecError):
            decode_table(one(kind, octets))

    @given(tables, st.data())
    def test_damaged(self, table: dict[str, Any], data: st.DataObject) -> None:
        """A table with one byte changed is decoded or raises CodecError, nothing else."""
        octets = bytearray(encode_table(table))
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(CodecError):
            decode_table(bytes(octets))

    @given(
        st.dictionaries(
            st.text() | st.integers() | st.none(), st.recursive(anything, st.lists, max_leaves=3), max_size=3
        )
    )
    def test_any_value(self, table: dict[Any, Any]) -> None:
        """Any value in a table is encoded or raises CodecError, nothing else."""
        with contextlib.suppress(CodecError):
            encode_table(table)

    @given(st.binary(max_size=9), st.sampled_from(sorted(WRITERS)))
    def test_reader(self, octets: bytes, kind: str) -> None:
        """Each type is read or refused, and leaves the reader within its bytes."""
        reader = Reader(octets + b"beyond", 0, len(octets))
        with contextlib.suppress(CodecError):
            getattr(reader, kind)()
        self.assertLessEqual(reader.at, len(octets))
