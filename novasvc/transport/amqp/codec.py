"""Encode and decode AMQP 0-9-1 methods and content properties by the spec.

Malformed input raises CodecError and nothing else. The methods of every call are compiled
instead, see :mod:`novasvc.transport.amqp.frames`.
"""

from collections.abc import Mapping
from struct import Struct
from typing import Any

from novasvc.transport.amqp.fields import WRITERS, CodecError, Reader
from novasvc.transport.amqp.spec import SPEC

__all__ = ["CodecError", "decode_method", "decode_properties", "encode_method", "encode_properties"]

_IDS = Struct(">HH")
_FLAGS = Struct(">H")
_FIRST_FLAG = 15
_NO_PROPERTY = 0b11
"""Flags beyond the 14 properties of class basic; bit 0 says that more flags follow (AMQP 0-9-1 4.2.6.1)."""

_METHODS = {(kind.id, method.id): method for kind in SPEC.classes for method in kind.methods}
_PROPERTIES = {
    field.name.replace("-", "_"): (field.type, 1 << (_FIRST_FLAG - place))
    for place, field in enumerate(SPEC.classes.byname["basic"].fields)
}
"""Type and flag of each property, by name."""


def encode_method(method: Any, args: tuple[Any, ...]) -> bytes:
    """Encode a method's payload: class id, method id, arguments.

    :param method: of the spec.
    :param args: one value for each of its fields.
    :raises CodecError: an argument of a wrong type or size, or a wrong number of them.
    """
    if len(args) != len(method.fields):
        raise CodecError(f"{method.klass.name}.{method.name} has {len(method.fields)} arguments, not {len(args)}")
    parts = [_IDS.pack(method.klass.id, method.id)]
    bits: list[bool] = []
    for field, value in zip(method.fields, args, strict=True):
        if field.type == "bit":
            bits.append(bool(value))
            continue
        parts.append(_octets(bits))
        bits = []
        try:
            parts.append(WRITERS[field.type](value))
        except CodecError as error:
            raise CodecError(f"{method.klass.name}.{method.name}: {field.name}: {error}") from None
    parts.append(_octets(bits))
    return b"".join(parts)


def _octets(bits: list[bool]) -> bytes:
    """Pack consecutive bits, eight to an octet, lowest bit first (AMQP 0-9-1 4.2.5.2)."""
    number = sum(bit << place for place, bit in enumerate(bits))
    return number.to_bytes((len(bits) + 7) // 8, "little")


def decode_method(payload: bytes) -> tuple[Any, tuple[Any, ...]]:
    """Decode a method's payload.

    :param payload: class id, method id, arguments.
    :return: the spec's method and its arguments; strings that are not UTF-8 stay bytes.
    :raises CodecError: it is malformed, or not in the spec.
    """
    reader = Reader(payload, 0, len(payload))
    ids = reader.short(), reader.short()
    method = _METHODS.get(ids)
    if method is None:
        raise CodecError(f"unknown method: class {ids[0]}, method {ids[1]}")
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
        raise CodecError(f"trailing bytes after the arguments of {method.klass.name}.{method.name}")
    return method, tuple(args)


def encode_properties(properties: Mapping[str, Any]) -> bytes:
    """Encode a message's properties: flags and values.

    :param properties: by name, such as "content_type"; None is left out.
    :raises CodecError: one is unknown, or of a wrong type or size.
    """
    for name in properties:
        if name not in _PROPERTIES:
            raise CodecError(f"unknown message property {name!r}")
    flags, parts = 0, []
    for name, (kind, flag) in _PROPERTIES.items():
        value = properties.get(name)
        if value is None:
            continue
        flags |= flag
        try:
            parts.append(WRITERS[kind](value))
        except CodecError as error:
            raise CodecError(f"{name}: {error}") from None
    return _FLAGS.pack(flags) + b"".join(parts)


def decode_properties(data: bytes) -> dict[str, Any]:
    """Decode a message's properties.

    :param data: flags and values.
    :return: the properties that are present, by name, such as "content_type".
    :raises CodecError: they are malformed.
    """
    reader = Reader(data, 0, len(data))
    flags = reader.short()
    if flags & _NO_PROPERTY:
        raise CodecError(f"the property flags {flags:#06x} name unknown properties")
    properties = {name: getattr(reader, kind)() for name, (kind, flag) in _PROPERTIES.items() if flags & flag}
    if reader.at != reader.end:
        raise CodecError("trailing bytes after the properties")
    return properties
