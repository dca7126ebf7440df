"""Encode and decode AMQP 0-9-1 values: integers, strings and field tables.

Field tables use RabbitMQ's dialect, whose integer types differ from the specification's (AMQP
0-9-1 4.2.1 and 4.2.5). Malformed input raises CodecError and nothing else.

======  =============================  ==========================
octet   on the wire                    in Python
======  =============================  ==========================
t       octet                          bool
b B     8 bits, signed, unsigned       int
s u     16 bits, signed, unsigned      int
I i     32 bits, signed, unsigned      int (written: I)
l L     64 bits, both signed           int (written: l, if too large for I)
f d     32 and 64 bits                 float (written: d)
D       scale, 32 bits, signed         Decimal
S       long string                    str, or bytes if it is not UTF-8
x       long string                    bytes
T       seconds since 1970, 64 bits    datetime in UTC, or int if out of its range
F       table                          dict
A       array                          list
V       nothing                        None
======  =============================  ==========================

Source: RabbitMQ's errata to AMQP 0-9-1, section 3, and what RabbitMQ 3.10 reads and writes.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct
from typing import Any

DEPTH_BOUND = 32
"""Largest nesting depth of tables and arrays."""

_SHORTSTR_BYTES = 255
_DECIMAL_DIGITS = 10
"""Largest number of decimal digits that may fit into 32 bits."""
_DECIMAL_SCALE = 255

_OCTET, _SHORT, _LONG, _LONGLONG = (Struct(form) for form in (">B", ">H", ">I", ">Q"))
_INT, _INT64, _DOUBLE = (Struct(form) for form in (">i", ">q", ">d"))


class CodecError(ValueError):
    """Malformed bytes, or a value that cannot be encoded."""


# -- writing ---------------------------------------------------------------------------------------


def encode_table(table: Mapping[str, Any]) -> bytes:
    """Encode a field table with its length.

    :param table: values of type bool, int, float, Decimal, str, bytes, datetime, None, and lists,
        tuples and mappings of them. A datetime needs a time zone, and is truncated to seconds.
    :raises CodecError: a value of another type, or too large, or nested too deep.
    """
    return _table(table, 0)


def _table(table: Any, depth: int) -> bytes:
    if not isinstance(table, Mapping):
        raise CodecError(f"expected a table, got {_shown(table)}")
    _check_depth(depth)
    return _sized(b"".join([_shortstr(name) + _field(value, depth) for name, value in table.items()]))


def _array(values: list[Any] | tuple[Any, ...], depth: int) -> bytes:
    _check_depth(depth)
    return _sized(b"".join([_field(value, depth) for value in values]))


def _field(value: Any, depth: int) -> bytes:  # noqa: C901, PLR0911 - one branch for each type
    if isinstance(value, str):
        return b"S" + _longstr(value)
    # bool before int: bool is a subclass of int.
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, Mapping):
        return b"F" + _table(value, depth + 1)
    if isinstance(value, list | tuple):
        return b"A" + _array(value, depth + 1)
    if value is None:
        return b"V"
    if isinstance(value, bytes):
        return b"x" + _sized(value)
    if isinstance(value, float):
        return b"d" + _DOUBLE.pack(value)
    if isinstance(value, datetime):
        return b"T" + _timestamp(value)
    if isinstance(value, Decimal):
        return b"D" + _decimal(value)
    raise CodecError(f"a field table cannot hold {_shown(value)}")


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"I" + _INT.pack(value)
    if -(2**63) <= value < 2**63:
        return b"l" + _INT64.pack(value)
    raise CodecError(f"an integer of {value.bit_length()} bits does not fit into a signed 64-bit field")


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise CodecError(f"the decimal {value} is not finite")
    if len(digits) + max(0, exponent) <= _DECIMAL_DIGITS and -exponent <= _DECIMAL_SCALE:
        number = (-1 if sign else 1) * int("".join(map(str, digits))) * 10 ** max(0, exponent)
        if -(2**31) <= number < 2**31:
            return _OCTET.pack(max(0, -exponent)) + _INT.pack(number)
    raise CodecError(f"a decimal of {len(digits)} digits and the exponent {exponent} does not fit into 32 bits")


def _timestamp(value: datetime | int) -> bytes:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise CodecError(f"{value} has no time zone")
        value = int(value.timestamp())
    return _longlong(value)


def _shortstr(value: str | bytes) -> bytes:
    octets = _utf8(value)
    if len(octets) > _SHORTSTR_BYTES:
        raise CodecError(f"{value[:60]!r}... is {len(octets)} bytes long; the limit is {_SHORTSTR_BYTES}")
    return _OCTET.pack(len(octets)) + octets


def _longstr(value: str | bytes | Mapping[str, Any]) -> bytes:
    # AMQPLAIN's response is a field table where the method has a long string.
    return encode_table(value) if isinstance(value, Mapping) else _sized(_utf8(value))


def _sized(octets: bytes) -> bytes:
    return _LONG.pack(len(octets)) + octets


def _utf8(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise CodecError(f"expected a string, got {_shown(value)}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise CodecError(f"a string is not valid Unicode: {error.reason}") from None


def _unsigned(form: Struct) -> Callable[[Any], bytes]:
    bits = 8 * form.size

    def write(value: Any) -> bytes:
        if not isinstance(value, int) or value < 0 or value.bit_length() > bits:
            raise CodecError(f"expected an unsigned {bits}-bit integer, got {_shown(value)}")
        return form.pack(value)

    return write


def _check_depth(depth: int) -> None:
    if depth > DEPTH_BOUND:
        raise CodecError(f"tables or arrays are nested deeper than {DEPTH_BOUND}")


def _shown(value: object) -> str:
    """Describe a value in an error; its text is left out if it could be long or secret."""
    short = isinstance(value, int) and value.bit_length() <= 128  # noqa: PLR2004 - two digits for each octet of 64 bits
    return str(value) if short else f"a value of type {type(value).__name__}"


_longlong = _unsigned(_LONGLONG)

WRITERS: Mapping[str, Callable[[Any], bytes]] = {
    "octet": _unsigned(_OCTET),
    "short": _unsigned(_SHORT),
    "long": _unsigned(_LONG),
    "longlong": _longlong,
    "shortstr": _shortstr,
    "longstr": _longstr,
    "table": encode_table,
    "timestamp": _timestamp,
}
"""Encoders by the spec's type names; each raises CodecError only."""


# -- reading ---------------------------------------------------------------------------------------


class Reader:
    """Decodes consecutive values within bounds.

    The methods are named after the spec's types, and raise CodecError only.

    :param at: index of the first byte.
    :param end: index after the last byte.
    """

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end

    def octet(self) -> int:
        """Read an unsigned 8-bit integer."""
        return int(self._number(_OCTET))

    def short(self) -> int:
        """Read an unsigned 16-bit integer, big-endian."""
        return int(self._number(_SHORT))

    def long(self) -> int:
        """Read an unsigned 32-bit integer, big-endian."""
        return int(self._number(_LONG))

    def longlong(self) -> int:
        """Read an unsigned 64-bit integer, big-endian."""
        return int(self._number(_LONGLONG))

    def shortstr(self) -> str | bytes:
        """Read a string of up to 255 bytes; it stays bytes if it is not UTF-8."""
        return _text_if_utf8(self.take(self.octet()))

    def longstr(self) -> str | bytes:
        """Read a string with a 32-bit length; it stays bytes if it is not UTF-8."""
        return _text_if_utf8(self.take(self.long()))

    def timestamp(self) -> datetime | int:
        """Read seconds since 1970 as a datetime in UTC; an int if out of datetime's range."""
        seconds = self.longlong()
        try:
            return datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, ValueError, OSError):
            return seconds

    def table(self, depth: int = 0) -> dict[str, Any]:
        """Read a field table with its length."""
        inner = self._within(depth)
        table: dict[str, Any] = {}
        while inner.at < inner.end:
            name = inner.shortstr()
            table[name if isinstance(name, str) else name.decode("latin-1")] = inner.field(depth)
        return table

    def array(self, depth: int) -> list[Any]:
        """Read an array with its length."""
        inner = self._within(depth)
        values = []
        while inner.at < inner.end:
            values.append(inner.field(depth))
        return values

    def _within(self, depth: int) -> "Reader":
        """Read a length; return a reader of that many bytes, and skip them here."""
        _check_depth(depth)
        size = self.long()
        start = self.at
        self._skip(size)
        return Reader(self.data, start, self.at)

    def field(self, depth: int) -> Any:
        """Read a typed value of a table or an array."""
        kind = self.take(1)
        form = _NUMBERS.get(kind)
        if form is not None:
            return self._number(form)
        read = _FIELDS.get(kind)
        if read is None:
            raise CodecError(f"unknown field type {kind!r}")
        return read(self, depth)

    def decimal(self) -> Decimal:
        """Read a scale and a signed 32-bit number."""
        scale, number = self.octet(), self._number(_INT)
        # Built from digits: arithmetic would round by the thread's decimal context.
        return Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale))

    def _number(self, form: Struct) -> Any:
        start = self.at
        self._skip(form.size)
        return form.unpack_from(self.data, start)[0]

    def take(self, size: int) -> bytes:
        """Read a number of bytes."""
        start = self.at
        self._skip(size)
        return self.data[start : self.at]

    def _skip(self, size: int) -> None:
        after = self.at + size
        if after > self.end:
            raise CodecError(f"{size} bytes expected, {self.end - self.at} left")
        self.at = after


_NUMBERS = {
    kind: Struct(form)
    for kind, form in (
        (b"b", ">b"),
        (b"B", ">B"),
        (b"s", ">h"),
        (b"u", ">H"),
        (b"I", ">i"),
        (b"i", ">I"),
        (b"l", ">q"),
        (b"L", ">q"),
        (b"f", ">f"),
        (b"d", ">d"),
    )
}

_FIELDS: Mapping[bytes, Callable[[Reader, int], Any]] = {
    b"t": lambda reader, _: reader.octet() != 0,
    b"S": lambda reader, _: reader.longstr(),
    b"x": lambda reader, _: reader.take(reader.long()),
    b"T": lambda reader, _: reader.timestamp(),
    b"D": lambda reader, _: reader.decimal(),
    b"V": lambda _reader, _: None,
    b"F": lambda reader, depth: reader.table(depth + 1),
    b"A": lambda reader, depth: reader.array(depth + 1),
}


def _text_if_utf8(octets: bytes) -> str | bytes:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets
