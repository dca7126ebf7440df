"""JSON Schemas: what msgspec leaves out of them, and one set of definitions for many methods."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import msgspec
from msgspec.inspect import (
    DataclassType,
    DateTimeType,
    DictType,
    Metadata,
    NamedTupleType,
    StructType,
    TupleType,
    TypedDictType,
    UnionType,
)

from novasvc.rpc.contracts.shape import ITEMS, members

Schema = dict[str, Any]
"""A JSON Schema (2020-12)."""

_IN_UTC = "A time in UTC, without an offset."

_OBJECTS = (StructType, DataclassType, TypedDictType)


def add_time_formats(kind: Any, schema: Schema, shared: dict[str, Schema]) -> None:
    """Say in the schema of a type how its times are written; msgspec says nothing, or that they have an offset.

    JSON Schema's "date-time" (RFC 3339 5.6) has an offset, which times on the wire have not. OpenAPI's registry of
    formats calls such a time "date-time-local".

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
        schema["format"] = "date-time-local"
        if info.tz is not False:
            schema.setdefault("description", _IN_UTC)
    for part, of_part in _parts(info, schema):
        _add(part, of_part, shared, seen)


def _parts(info: Any, schema: Schema) -> Iterator[tuple[Any, Schema]]:
    """Yield the parts of a type with their schemas."""
    match info:
        case Metadata():
            yield info.type, schema
        case UnionType():
            for entry in _alternatives(schema):
                yield from ((part, entry) for part in members(info) if _is_of(part, entry))
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
    return isinstance(info, kinds.get(str(entry.get("type")), ())) and entry.get("format") in {None, "date-time"}


def tagged(part: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the definitions that a part of a schema tells apart by a tag: name, field of the tag, tag."""
    if isinstance(part, dict):
        if "anyOf" in part and "discriminator" in part:
            field, mapping = part["discriminator"]["propertyName"], part["discriminator"]["mapping"]
            yield from ((referred({"$ref": name}), field, tag) for tag, name in mapping.items())
        for value in part.values():
            yield from tagged(value)
    elif isinstance(part, list):
        for value in part:
            yield from tagged(value)


def referred(schema: Schema) -> str:
    """Return the name of the definition that a schema refers to; "" if it does not."""
    return str(schema.get("$ref", "")).rpartition("/")[2]


@attrs.frozen
class MethodSchemas:
    """The schemas of one method, which refer to definitions that all methods share.

    :param row: what :func:`novasvc.rpc.contracts.description.describe_methods` says of the method.
    :param arguments: schemas of the arguments that have one, by name.
    :param required: the names of those that a call must pass.
    :param result: the schema of the result; {} for anything.
    """

    row: Mapping[str, Any]
    arguments: Mapping[str, Schema]
    required: frozenset[str]
    result: Schema


def merge_definitions(
    rows: Iterable[Mapping[str, Any]], reference: str = "#/$defs/"
) -> tuple[list[MethodSchemas], dict[str, Schema]]:
    """Give methods one set of definitions: equal ones once, different ones of the same name under different names.

    :param rows: of :func:`novasvc.rpc.contracts.description.describe_methods`; as a peer sent them.
    :param reference: what stands before the name of a definition in "$ref".
    :return: the methods, and the definitions by name. The names depend on the order of the methods only.
    """
    merged: dict[str, Schema] = {}
    texts: dict[str, str] = {}
    methods = []
    for row in rows:
        schema = row["schema"] or {}
        own = dict(schema.get("$defs", {}))
        given = schema.get("arguments", {})
        # msgspec makes the object of all arguments a definition, which nothing else refers to.
        given = own.pop(referred(given), given)
        names: dict[str, str] = {}
        for name in sorted(own):
            text = f"{name} {json.dumps({each: own[each] for each in sorted(_reached(name, own))}, sort_keys=True)}"
            short = re.sub(r"[^\w\-]", "_", name.rpartition(".")[2], flags=re.ASCII) or "Type"
            number = 1
            while texts.get(names.setdefault(name, short), text) != text:
                number += 1
                names[name] = f"{short}_{number}"
            texts[names[name]] = text
        for name, definition in own.items():
            merged[names[name]] = _renamed(definition, names, reference)
        methods.append(
            MethodSchemas(
                row,
                {name: _renamed(part, names, reference) for name, part in given.get("properties", {}).items()},
                frozenset(given.get("required", ())),
                _renamed(schema.get("result", {}), names, reference),
            )
        )
    return methods, merged


def _reached(name: str, definitions: Mapping[str, Schema]) -> set[str]:
    """Return the names of a definition and of all that it refers to, directly or not."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in definitions and name not in reached:
            reached.add(name)
            waiting += references(definitions[name])
    return reached


def references(part: Any) -> Iterator[str]:
    """Yield the names of the definitions that a part of a schema refers to."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield referred(part)
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def _renamed(part: Any, names: Mapping[str, str], reference: str) -> Any:
    if isinstance(part, list):
        return [_renamed(each, names, reference) for each in part]
    if not isinstance(part, dict):
        return part
    renamed = {key: _renamed(value, names, reference) for key, value in part.items()}
    if isinstance(part.get("$ref"), str):
        renamed["$ref"] = f"{reference}{names[referred(part)]}"
    if "anyOf" in part and "discriminator" in part:
        mapping = part["discriminator"]["mapping"]
        renamed["discriminator"]["mapping"] = {
            tag: f"{reference}{names[referred({'$ref': name})]}" for tag, name in mapping.items()
        }
    return renamed
