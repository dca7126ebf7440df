"""The values that an enum or a Literal allows, for the error about another one."""

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec

from novasvc.listing import list_some
from novasvc.rpc.contracts.shape import members

_MOST = 20
"""Most values in one error."""

_PART = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")
"""One step of a path as msgspec writes it: ``.name``, ``[0]``, or ``[...]`` for any element."""


def allowed_values(kind: Any, path: str) -> str:
    """Return the values that are allowed somewhere in a type, as text; "" if there is no enum or Literal.

    :param kind: the type of the whole.
    :param path: as msgspec writes it, "$.lines[0].colour".
    """
    found = [msgspec.inspect.type_info(kind)]
    for part in _PART.finditer(path):
        name, index = part.groups()
        found = [inner for each in found for inner in _inner(each, name, index)]
    return list_some([repr(value) for each in found for value in _values(each)], _MOST)


def _inner(information: Any, name: str | None, index: str | None) -> Iterator[Any]:
    for each in members(information):
        if name is not None:
            yield from (field.type for field in getattr(each, "fields", ()) if field.encode_name == name)
        elif isinstance(each, msgspec.inspect.TupleType) and index is not None and index.isdecimal():
            yield from each.item_types[int(index) : int(index) + 1]
        elif isinstance(each, msgspec.inspect.DictType):
            yield each.value_type
        else:
            item = getattr(each, "item_type", None)
            yield from () if item is None else (item,)


def _values(information: Any) -> Iterator[Any]:
    for each in members(information):
        if isinstance(each, msgspec.inspect.EnumType):
            enum: type[Enum] = each.cls
            yield from (member.value for member in enum)
        elif isinstance(each, msgspec.inspect.LiteralType):
            yield from each.values
