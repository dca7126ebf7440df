"""JSON Schemas: what msgspec leaves out of them, and one set of definitions for many methods."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.inspect import (
    DataclassType,
    DateTimeType,
    DictType,
    NamedTupleType,
    StructType,
    TupleType,
    TypedDictType,
    UnionType,
)

from novasvc.rpc.shape import ITEMS

Schema = dict[str, Any]
"""A JSON Schema (2020-12)."""

_OBJECTS = (StructType, DataclassType, TypedDictType)


def add_time_formats(kind: Any, schema: Schema, shared: dict[str, Schema]) -> None:
    """Add the format "date-time" to the schema of a type; msgspec adds it only to times that must have an offset.

    :param kind: the type that msgspec made the schema of.
    :param schema: changed in place, as its ``shared`` definitions by name.
    """
    _add(msgspec.inspect.type_info(kind), schema, shared, set())


def _add(info: Any, schema: Schema, shared: dict[str, Schema], seen: set[str]) -> None:
    name = referred(schema)
    if name in seen:
        return
    if name:
        seen.add(name)
        schema = shared[name]
    if isinstance(info, DateTimeType):
        schema["format"] = "date-time"
    for part, of_part in _parts(info, schema):
        _add(part, of_part, shared, seen)


def _parts(info: Any, schema: Schema) -> Iterator[tuple[Any, Schema]]:
    """Yield the parts of a type with their schemas."""
    match info:
        case UnionType():
            for entry in _alternatives(schema):
                yield from ((part, entry) for part in info.types if _is_of(part, entry))
        case StructType(array_like=True) | NamedTupleType():
            yield from zip([field.type for field in info.fields], schema.get("prefixItems", ()), strict=False)
        case StructType() | DataclassType() | TypedDictType():
            properties = schema["properties"]
            yield from ((field.type, properties[field.encode_name]) for field in info.fields)
        case TupleType():
            yield from zip(info.item_types, schema.get("prefixItems", ()), strict=False)
        case DictType():
            if isinstance(schema.get("additionalProperties"), dict):
                yield info.value_type, schema["additionalProperties"]
        case _ if isinstance(info, ITEMS) and isinstance(schema.get("items"), dict):
            yield info.item_type, schema["items"]


def _alternatives(schema: Schema) -> Iterator[Schema]:
    for entry in schema.get("anyOf", ()):
        yield from _alternatives(entry) if "anyOf" in entry else (entry,)


def _is_of(info: Any, entry: Schema) -> bool:
    """Return whether an alternative is that of a part of a union; of texts, arrays and dicts msgspec has one each."""
    name = referred(entry)
    if name:
        return isinstance(info, (*_OBJECTS, NamedTupleType)) and name.rpartition(".")[2] == info.cls.__name__
    kinds: dict[str, Any] = {"string": DateTimeType, "array": (*ITEMS, TupleType), "object": DictType}
    return isinstance(info, kinds.get(str(entry.get("type")), ())) and entry.get("format") is None


def referred(schema: Schema) -> str:
    """Return the name of the definition that a schema refers to; "" if it does not."""
    return str(schema.get("$ref", "")).rpartition("/")[2]
