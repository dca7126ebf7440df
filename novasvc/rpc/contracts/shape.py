"""The shapes of types: where in a value of JSON there are objects with known fields, and times.

msgspec converts JSON by a type. It drops the unknown fields of dataclasses, and it makes a time without an offset a
naive one; neither can be told it otherwise. So a value is read by its shape before it is converted.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import attrs
import msgspec
from msgspec.inspect import (
    DataclassType,
    DateTimeType,
    DictType,
    FrozenSetType,
    ListType,
    Metadata,
    NamedTupleType,
    SetType,
    StructType,
    TupleType,
    TypedDictType,
    UnionType,
    VarTupleType,
)

# Note [Unknown fields]
#
# A field that the class does not have is refused, as an argument that the method does not have is. To drop it would run
# the method without something that its caller asked for: a misspelt "amout" would be the default, and a newer caller's
# "gift_wrap" would be forgotten without a trace. The price is the order of an upgrade: services first, then callers, or
# callers with a version cap, as for new arguments. A class that must accept what it does not know is a msgspec.Struct:
# it decides by its own option forbid_unknown_fields, which is off.

# Note [Times without an offset]
#
# On the wire a time has no offset and is in UTC, as OpenStack's services write it. So a time that arrives without an
# offset is read as UTC, and the method gets an aware datetime, always. One that a peer wrote with an offset keeps it.
# Annotated[datetime, msgspec.Meta(tz=False)] asks for naive ones and gets them.

_NAIVE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?")
ITEMS = (ListType, SetType, FrozenSetType, VarTupleType)
"""Types of arrays whose items are all of one type."""
_MAX_SHOWN, _MAX_LENGTH = 8, 64


class UnknownFieldError(msgspec.ValidationError):
    """An object has a field that its class does not have.

    :ivar path: names and numbers that lead to the object.
    """

    def __init__(self, unknown: list[str], fields: list[str]) -> None:
        super().__init__()
        self.path: list[str] = []
        names = ", ".join(name[:_MAX_LENGTH] for name in unknown[:_MAX_SHOWN])
        self._text = f"object contains unknown field {names}; its fields are: {', '.join(fields) or 'none'}"

    def __str__(self) -> str:
        return f"{self._text} - at `${''.join(self.path)}`"


class Shape(Protocol):
    """A part of a type that has something to be read before the conversion."""

    def fit(self, value: Any) -> Any:
        """Return a value of JSON, or a changed copy, for the conversion by msgspec.

        What is not of this shape is returned as it is: the conversion says what is wrong.

        :raises UnknownFieldError: an object has a field that its class does not have.
        """


@attrs.frozen
class _Time:
    def fit(self, value: Any) -> Any:
        return f"{value}Z" if type(value) is str and _NAIVE.fullmatch(value) else value


@attrs.define(eq=False)
class _Object:
    """:param fields: the names of all fields; None if others are accepted.

    :param nested: name -> shape, of those that have one.
    """

    fields: frozenset[str] | None
    nested: dict[str, Shape] = attrs.field(factory=dict)

    def fit(self, value: Any) -> Any:
        if type(value) is not dict:
            return value
        if self.fields is not None and not value.keys() <= self.fields:
            raise UnknownFieldError(sorted(value.keys() - self.fields), sorted(self.fields))
        changed = value
        for name, shape in self.nested.items():
            if name in value:
                part = value[name]
                try:
                    fitting = shape.fit(part)
                except UnknownFieldError as error:
                    error.path.insert(0, f".{name}")
                    raise
                if fitting is not part:
                    changed = value.copy() if changed is value else changed
                    changed[name] = fitting
        return changed


@attrs.frozen
class _Values:
    values: Shape

    def fit(self, value: Any) -> Any:
        if type(value) is not dict:
            return value
        return _Object(None, dict.fromkeys(value, self.values)).fit(value)


@attrs.define(eq=False)
class _Array:
    """:param items: the shape of all items; None if each position has its own.

    :param positions: shapes by position.
    """

    items: Shape | None
    positions: list[Shape | None] = attrs.field(factory=list)

    def fit(self, value: Any) -> Any:
        if type(value) is not list:
            return value
        fitting = []
        for at, part in enumerate(value):
            shape = self.items or (self.positions[at] if at < len(self.positions) else None)
            try:
                fitting.append(part if shape is None else shape.fit(part))
            except UnknownFieldError as error:
                error.path.insert(0, f"[{at}]")
                raise
        return fitting


@attrs.frozen
class _Choice:
    """A union. Of the types that are text, arrays or objects in JSON msgspec accepts one each, or structs with tags."""

    text: Shape | None
    array: Shape | None
    objects: dict[Any, Shape | None]
    tag: str | None

    def fit(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            shape = self.text
        elif kind is list:
            shape = self.array
        elif kind is dict:
            key = None if self.tag is None else value.get(self.tag)
            shape = self.objects.get(key) if isinstance(key, str | int | None) else None
        else:
            shape = None
        return value if shape is None else shape.fit(value)


def shape_of_arguments(kind: Any) -> Shape | None:
    """Return the shape of a method's arguments; None if there is nothing to read in them before a conversion.

    :param kind: a TypedDict of those with annotations. Unknown names are not refused: there may be others.
    """
    return _shape(msgspec.inspect.type_info(kind), {}, closed=True, names=None)


def shape_of_result(kind: Any) -> Shape | None:
    """Return the shape of a result, for its receiver. Unknown fields are accepted: a newer service may have added them.

    :param kind: the type.
    """
    return _shape(msgspec.inspect.type_info(kind), {}, closed=False)


def members(info: Any) -> Iterator[Any]:
    """Yield the types of a union, or the one type; of ``Annotated[kind, Meta(description=...)]`` the kind."""
    if isinstance(info, UnionType):
        for each in info.types:
            yield from members(each)
    elif isinstance(info, Metadata):
        yield from members(info.type)
    else:
        yield info


_UNSET: Any = object()


def _shape(info: Any, known: dict[int, Any], *, closed: bool, names: Any = _UNSET) -> Shape | None:
    """Return the shape of a type.

    :param known: those that were made or are being made, by the identity of the type: types may contain themselves.
    :param closed: whether unknown fields of dataclasses, attrs classes and TypedDicts are refused.
    :param names: None accepts any field in this object; by default its class decides.
    """
    shape = partial(_shape, known=known, closed=closed)
    found: Shape | None = known.get(id(info))
    if found is not None:
        return found
    match info:
        case Metadata():
            found = shape(info.type)
        case DateTimeType():
            found = None if info.tz is False else _Time()
        case StructType(array_like=True) | NamedTupleType():
            found = array = known[id(info)] = _Array(None)
            array.positions = [shape(field.type) for field in info.fields]
        case StructType() | DataclassType() | TypedDictType():
            fields = frozenset(field.encode_name for field in info.fields)
            refuses = closed and not isinstance(info, StructType) and names is not None
            found = whole = known[id(info)] = _Object(fields if refuses else None)
            nested = {field.encode_name: shape(field.type) for field in info.fields}
            whole.nested = {name: part for name, part in nested.items() if part is not None}
            found = whole if whole.nested or refuses else None
        case DictType():
            values = shape(info.value_type)
            found = None if values is None else _Values(values)
        case TupleType():
            positions = [shape(part) for part in info.item_types]
            found = _Array(None, positions) if any(positions) else None
        case UnionType():
            found = _choice(info, shape)
        case _ if isinstance(info, ITEMS):
            items = shape(info.item_type)
            found = None if items is None else _Array(items)
    return found


def _choice(info: UnionType, shape: Callable[[Any], Shape | None]) -> Shape | None:
    text = array = tag = None
    objects: dict[Any, Shape | None] = {}
    for part in members(info):
        match shape(part):
            case None:
                pass
            case _Time() as found:
                text = found
            case _Array() as found:
                array = found
            case found:
                tag = getattr(part, "tag_field", None)
                objects[getattr(part, "tag", None)] = found
    return _Choice(text, array, objects, tag) if text or array or objects else None
