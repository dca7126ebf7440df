"""Methods, properties and field tables of AMQP 0-9-1 by the spec: bytes in, bytes out.

Field tables are read and written in RabbitMQ's dialect, which differs from the specification in
the types of its integers. Whatever is malformed is a CodecError, and nothing else.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from struct import Struct
from struct import error as _struct_error
from typing import Any

from novasvc.transport.amqp.spec import SPEC

DEPTH_BOUND = 32
"""Tables and arrays within each other, at the most."""

_OCTET, _SHORT, _LONG, _LONGLONG = (Struct(form) for form in (">B", ">H", ">I", ">Q"))
_ID = Struct(">HH")
_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_NAME_BYTES = 255
_FLAGS = 15
"""Properties that one word of flags has room for; its last bit says that another follows."""


class CodecError(ValueError):
    """Bytes that do not say what they should, or a value that bytes cannot say."""


# -- field tables: writing -----------------------------------------------------------------------


def encode_table(table: Mapping[str, Any]) -> bytes:
    """Write a field table with its length.

    :param table: values of type bool, int, float, Decimal, str, bytes, datetime, None, and lists,
        tuples and mappings of them.
    :raises CodecError: a value of another type, or too large.
    """
    return _table(table, 0)


def _table(table: Mapping[str, Any], depth: int) -> bytes:
    if depth > DEPTH_BOUND:
        raise CodecError(f"tables are nested deeper than {DEPTH_BOUND}")
    fields = b"".join(_shortstr(name) + _field(value, depth) for name, value in table.items())
    return _LONG.pack(len(fields)) + fields


def _array(values: list[Any] | tuple[Any, ...], depth: int) -> bytes:
    if depth > DEPTH_BOUND:
        raise CodecError(f"arrays are nested deeper than {DEPTH_BOUND}")
    fields = b"".join(_field(value, depth) for value in values)
    return _LONG.pack(len(fields)) + fields


def _field(value: Any, depth: int) -> bytes:  # noqa: PLR0911 - one for each type
    # bool before int, which it is a kind of.
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, str):
        return b"S" + _longstr(value)
    if isinstance(value, bytes):
        return b"x" + _longstr(value)
    if isinstance(value, float):
        return b"d" + _READERS["d"].pack(value)
    if isinstance(value, Mapping):
        return b"F" + _table(value, depth + 1)
    if isinstance(value, list | tuple):
        return b"A" + _array(value, depth + 1)
    if value is None:
        return b"V"
    if isinstance(value, datetime):
        return b"T" + _timestamp(value)
    if isinstance(value, Decimal):
        return b"D" + _decimal(value)
    raise CodecError(f"a field table cannot hold a value of type {type(value).__name__}")


def _integer(value: int) -> bytes:
    if value in _INT32:
        return b"I" + _READERS["I"].pack(value)
    if value in _INT64:
        return b"l" + _READERS["l"].pack(value)
    raise CodecError(f"{value} does not fit into 64 bits")


def _timestamp(value: datetime | int) -> bytes:
    if isinstance(value, datetime):
        value = int(value.timestamp())
    if not 0 <= value < 2**64:
        raise CodecError(f"{value} is no timestamp")
    return _LONGLONG.pack(value)


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise CodecError(f"{value} is no number that AMQP knows")
    number = int("".join(map(str, digits))) * (-1 if sign else 1) * 10 ** max(0, min(exponent, 12))
    if not -_NAME_BYTES <= exponent <= 12 or number not in _INT32:  # noqa: PLR2004 - more would not fit anyway
        raise CodecError(f"{value} does not fit into AMQP's decimals")
    return _OCTET.pack(max(0, -exponent)) + _READERS["I"].pack(number)


def _shortstr(value: str | bytes) -> bytes:
    octets = value if isinstance(value, bytes) else _utf8(value)
    if len(octets) > _NAME_BYTES:
        raise CodecError(f"{value[:60]!r}... is {len(octets)} bytes long; {_NAME_BYTES} is the most")
    return bytes((len(octets),)) + octets


def _longstr(value: str | bytes | Mapping[str, Any]) -> bytes:
    if isinstance(value, Mapping):
        return encode_table(value)  # AMQPLAIN's response
    octets = value if isinstance(value, bytes) else _utf8(value)
    return _LONG.pack(len(octets)) + octets


def _utf8(value: str) -> bytes:
    if not isinstance(value, str):
        raise CodecError(f"a text was expected, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise CodecError(f"a text cannot be encoded: {error.reason}") from None


# -- field tables: reading -----------------------------------------------------------------------

# By RabbitMQ's rules: "s" is an integer, not a short string, and "l" and "L" are both 64 bits, signed.
_READERS: dict[str, Struct] = {
    kind: Struct(">" + form)
    for kind, form in (
        ("b", "b"),
        ("B", "B"),
        ("s", "h"),
        ("u", "H"),
        ("I", "i"),
        ("i", "I"),
        ("l", "q"),
        ("L", "q"),
        ("f", "f"),
        ("d", "d"),
    )
}


class _Reader:
    """Reads values one after the other, and never past the end."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end

    def take(self, size: int) -> bytes:
        start, after = self.at, self.at + size
        if after > self.end:
            raise CodecError(f"{size} bytes were announced where {self.end - start} are left")
        self.at = after
        return self.data[start:after]

    def number(self, form: Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def octet(self) -> int:
        return int(self.number(_OCTET))

    def short(self) -> int:
        return int(self.number(_SHORT))

    def long(self) -> int:
        return int(self.number(_LONG))

    def longlong(self) -> int:
        return int(self.number(_LONGLONG))

    def shortstr(self) -> str | bytes:
        return _text(self.take(self.octet()))

    def longstr(self) -> str | bytes:
        return _text(self.take(self.long()))

    timestamp = longlong

    def table(self, depth: int = 0) -> dict[str, Any]:
        inner = self._within(depth)
        table: dict[str, Any] = {}
        while inner.at < inner.end:
            name = inner.shortstr()
            table[name if isinstance(name, str) else name.decode("latin-1")] = inner.field(depth)
        return table

    def array(self, depth: int) -> list[Any]:
        inner = self._within(depth)
        values = []
        while inner.at < inner.end:
            values.append(inner.field(depth))
        return values

    def _within(self, depth: int) -> "_Reader":
        if depth > DEPTH_BOUND:
            raise CodecError(f"tables are nested deeper than {DEPTH_BOUND}")
        size = self.long()
        start = self.at
        self.take(size)
        return _Reader(self.data, start, start + size)

    def field(self, depth: int) -> Any:
        kind = self.take(1).decode("latin-1")
        form = _READERS.get(kind)
        if form is not None:
            return self.number(form)
        read = _FIELDS.get(kind)
        if read is None:
            raise CodecError(f"a field of the unknown type {kind!r}")
        return read(self, depth)


def _moment(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return seconds  # beyond the calendar


def _read_decimal(reader: _Reader) -> Decimal:
    scale = reader.octet()
    return Decimal(reader.number(_READERS["I"])).scaleb(-scale)


_FIELDS: dict[str, Callable[[_Reader, int], Any]] = {
    "t": lambda reader, _: reader.octet() != 0,
    "S": lambda reader, _: reader.longstr(),
    "x": lambda reader, _: reader.take(reader.long()),
    "T": lambda reader, _: _moment(reader.longlong()),
    "D": lambda reader, _: _read_decimal(reader),
    "V": lambda reader, _: None,
    "F": lambda reader, depth: reader.table(depth + 1),
    "A": lambda reader, depth: reader.array(depth + 1),
}


def _text(octets: bytes) -> str | bytes:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets


def decode_table(data: bytes, at: int = 0) -> tuple[dict[str, Any], int]:
    """Read a field table with its length.

    :return: the table, and the index after it.
    :raises CodecError: it is malformed.
    """
    reader = _Reader(data, at, len(data))
    return reader.table(), reader.at


# -- methods and properties ----------------------------------------------------------------------

_WRITERS: dict[str, Callable[[Any], bytes]] = {
    "octet": _OCTET.pack,
    "short": _SHORT.pack,
    "long": _LONG.pack,
    "longlong": _LONGLONG.pack,
    "shortstr": _shortstr,
    "longstr": _longstr,
    "table": encode_table,
    "timestamp": _timestamp,
}

_METHODS = {(kind.id, method.id): method for kind in SPEC.classes for method in kind.methods}


def encode_method(method: Any, args: tuple[Any, ...]) -> bytes:
    """Write a method: class id, method id, arguments.

    :param method: of the spec.
    :param args: one for each of its fields.
    :raises CodecError: an argument of a wrong type or size, or a wrong number of them.
    """
    name = f"{method.klass.name}.{method.name}"
    if len(args) != len(method.fields):
        raise CodecError(f"{name} has {len(method.fields)} arguments, not {len(args)}")
    parts = [_ID.pack(method.klass.id, method.id)]
    bits: list[bool] = []
    for field, value in zip(method.fields, args, strict=True):
        if field.type == "bit":
            bits.append(bool(value))
            continue
        parts.append(_octets(bits))
        bits = []
        try:
            parts.append(_WRITERS[field.type](value))
        except (CodecError, _struct_error) as error:
            raise CodecError(f"{name}: {field.name}: {error}") from None
    parts.append(_octets(bits))
    return b"".join(parts)


def _octets(bits: list[bool]) -> bytes:
    number = sum(bit << place for place, bit in enumerate(bits))
    return number.to_bytes((len(bits) + 7) // 8, "little")


def decode_method(payload: bytes) -> tuple[Any, tuple[Any, ...]]:
    """Read a method.

    :param payload: class id, method id, arguments.
    :return: the spec's method, and the arguments; texts that are not UTF-8 are bytes.
    :raises CodecError: it is malformed, or not in the spec.
    """
    reader = _Reader(payload, 0, len(payload))
    ids = reader.short(), reader.short()
    method = _METHODS.get(ids)
    if method is None:
        raise CodecError(f"method {ids[1]} of class {ids[0]} is unknown")
    args: list[Any] = []
    octet = place = 0
    for field in method.fields:
        if field.type == "bit":
            if place == 0:
                octet = reader.octet()
            args.append(bool(octet >> place & 1))
            place = (place + 1) % 8
        else:
            place = 0
            args.append(getattr(reader, field.type)())
    if reader.at != reader.end:
        raise CodecError(f"{method.klass.name}.{method.name} is longer than its arguments")
    return method, tuple(args)


_PROPERTIES = tuple((field.name.replace("-", "_"), field.type) for field in SPEC.classes.byname["basic"].fields)


def encode_properties(properties: Mapping[str, Any]) -> bytes:
    """Write the properties of a message: flags and values.

    :param properties: by name, such as "content_type"; None is left out.
    :raises CodecError: one is unknown, or of a wrong type or size.
    """
    unknown = set(properties) - {name for name, _ in _PROPERTIES}
    if unknown:
        raise CodecError(f"messages have no property {sorted(unknown)[0]!r}")
    flags, parts = 0, []
    for place, (name, kind) in enumerate(_PROPERTIES):
        value = properties.get(name)
        if value is None:
            continue
        flags |= 1 << (_FLAGS - place)
        try:
            parts.append(_WRITERS[kind](value))
        except (CodecError, _struct_error) as error:
            raise CodecError(f"{name}: {error}") from None
    return _SHORT.pack(flags) + b"".join(parts)


def decode_properties(data: bytes) -> dict[str, Any]:
    """Read the properties of a message.

    :param data: flags and values.
    :raises CodecError: they are malformed.
    """
    reader = _Reader(data, 0, len(data))
    flags = reader.short()
    if flags & 1:
        raise CodecError("more properties than messages have")
    properties = {
        name: getattr(reader, kind)() for place, (name, kind) in enumerate(_PROPERTIES) if flags >> (_FLAGS - place) & 1
    }
    if reader.at != reader.end:
        raise CodecError("the properties are longer than their flags say")
    return properties
