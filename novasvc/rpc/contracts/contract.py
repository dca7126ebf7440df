"""Contracts: what the annotations of an exposed method say about its arguments and its result.

Arguments arrive as JSON. Those that have an annotation are checked and converted before the method runs: to
dataclasses, attrs classes, enums, datetimes, UUIDs and whatever else msgspec can make of JSON, nested as deep as one
likes. A result is checked and converted to JSON in the same way. What has no annotation, or ``Any``, stays as it is.

A field that a dataclass does not have is refused, and a time without an offset is in UTC: see the notes in
:mod:`novasvc.rpc.contracts.shape`.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NotRequired, TypedDict, Union
from uuid import UUID

import attrs
import msgspec
from twisted.internet.defer import Deferred

from novasvc.errors import DeclarationError
from novasvc.rpc.contracts.allowed_values import allowed_values
from novasvc.rpc.contracts.schema import add_time_formats
from novasvc.rpc.contracts.shape import Shape, shape_of_arguments, shape_of_result
from novasvc.rpc.errors import InvalidArgumentsError, ResultNotSerializableError
from novasvc.rpc.failures.origin import mark_outgoing
from novasvc.rpc.payload import object_fields, primitive

_PLAIN = (type(None), bool, int, float, str)
"""Types that JSON has: a result of one of them is checked only."""

_ATOMS = frozenset(_PLAIN)

BINARY = (msgspec.inspect.BytesType, msgspec.inspect.ByteArrayType, msgspec.inspect.MemoryViewType)
"""Refused in arguments: a client sends bytes as text, msgspec would read that as base64."""

_LEFT = (datetime, date, UUID, Decimal, bytes)
"""Types of a result that the encoder of messages converts."""

_AWAITED = (Deferred, collections.abc.Awaitable, collections.abc.Coroutine, collections.abc.Generator)
"""A plain method that is annotated with one of them returns its result later."""

_REMEDY = "use types that JSON can represent: str, int, list[...], a dataclass, an attrs class, an Enum, a datetime"


@attrs.frozen
class Contract:
    """The types of a method's arguments and of its result.

    :param method: the method's name, for errors.
    :param arguments: a TypedDict of the annotated arguments, for ``msgspec.convert``; None if there are none.
    :param result: the type of the result; Any if it has no annotation.
    :ivar shape: what the arguments are read by before they are converted; None if there is nothing to read.
    :ivar plain_result: the type of a result that is JSON already; NotImplemented, which is no type, if it is not.
    """

    method: str
    arguments: Any
    result: Any
    plain_result: Any = attrs.field(init=False)
    shape: Shape | None = attrs.field(init=False)

    @plain_result.default
    def _plain_result(self) -> Any:
        return self.result if self.result in _PLAIN else NotImplemented

    @shape.default
    def _shape(self) -> Shape | None:
        return None if self.arguments is None else shape_of_arguments(self.arguments)

    @property
    def result_shape(self) -> Shape | None:
        """What a caller reads the result by before it converts it; unknown fields, a newer service's, are accepted."""
        return shape_of_result(self.result)

    def invalid_arguments(self, error: Exception) -> InvalidArgumentsError:
        """Describe arguments that cannot be converted.

        :param error: a ValidationError, which names the path to the wrong value, or what a class's own code raised.
        """
        return InvalidArgumentsError(self.method, _described(error, "", self.arguments))

    def convert_result(self, result: Any) -> Any:
        """Check a result, and convert it to what JSON has.

        :raises ResultNotSerializableError: it is not of its type.
        """
        try:
            plain = as_json(result)
            msgspec.convert(plain, self.result, builtin_types=_LEFT, str_keys=True)
        except Exception as error:  # noqa: BLE001 - users' classes may raise anything
            problem = _described(error, "the result", self.result)
            if isinstance(error, msgspec.ValidationError):
                problem += ", by the method's annotation"
            if isinstance(result, _AWAITED):
                problem = f"the result is a {type(result).__name__}: an await is missing in the method, or its caller"
            raise ResultNotSerializableError(self.method, problem) from None
        return plain

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schemas: {"arguments": of an object, "result": of the result, "$defs": what they share}."""
        arguments = Any if self.arguments is None else self.arguments
        (given, returned), shared = msgspec.json.schema_components(
            (arguments, self.result), ref_template="#/$defs/{name}"
        )
        for kind, schema in ((arguments, given), (self.result, returned)):
            add_time_formats(kind, schema, shared)
        return {"arguments": given, "result": returned, "$defs": shared}


def contract_of(function: Callable[..., Any], method: str, where: str) -> Contract | None:
    """Read the contract of a method from its annotations; None if it has none.

    :param function: the exposed method, bound or not.
    :param method: its name.
    :param where: "module.Class.method", for errors.
    :raises DeclarationError: an annotation cannot be resolved, or JSON cannot represent its type.
    """
    function = inspect.unwrap(function)
    plain = getattr(function, "__func__", function)
    return _contract_of(plain, method, where, is_bound=plain is not function)


# A process with many nodes of one manager, as in a test or a simulation, reads each method once.
@lru_cache(maxsize=1000)
def _contract_of(function: Callable[..., Any], method: str, where: str, *, is_bound: bool) -> Contract | None:
    """Read the contract of a plain function.

    :param is_bound: its first parameter is the manager, whatever its name.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if is_bound or (parameters and parameters[0].name == "self"):
        parameters = parameters[1:]
    # The context is not checked: its annotation may be one that only type checkers can resolve.
    given = {name: kind for name, kind in function.__annotations__.items() if name != parameters[0].name}
    try:
        hints = typing.get_type_hints(
            types.SimpleNamespace(__annotations__=given), getattr(function, "__globals__", {}), include_extras=True
        )
    except Exception as error:  # noqa: BLE001 - to evaluate an annotation can raise anything
        problem = f"an annotation cannot be resolved: {error}"
        raise DeclarationError(where, problem, "import its names where the method is defined") from None
    accepted = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found: dict[str, Any] = {}
    for each in parameters[1:]:
        kind = hints.get(each.name, Any)
        if each.kind in accepted and kind not in (Any, object):
            if each.default is None:
                kind = Union[kind, None]  # noqa: UP007 - made at run time; as type checkers once read it
            _check(kind, f"the annotation of {each.name!r}", where, refused=BINARY)
            found[each.name] = kind if each.default is inspect.Parameter.empty else NotRequired[kind]
    result = _awaited(hints.get("return", Any))
    result = Any if result is object else result
    _check(result, "the annotation of the result", where)
    if not found and result is Any:
        return None
    try:
        arguments = TypedDict(f"{method} arguments", found) if found else None  # type: ignore[operator]
    except TypeError as error:  # as for Final
        raise DeclarationError(where, f"an annotation cannot be checked: {error}", _REMEDY) from None
    return Contract(method, arguments, result)


def _awaited(kind: Any) -> Any:
    """Return the type of a result that a Deferred or an awaitable has in the end."""
    origin = typing.get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        members = tuple(_awaited(member) for member in typing.get_args(kind))
        return Union[members]  # noqa: UP007 - made at run time
    if isinstance(origin, type) and issubclass(origin, _AWAITED):
        given = typing.get_args(kind)
        return _awaited(given[-1]) if given else Any
    return kind


def _check(kind: Any, what: str, where: str, refused: tuple[type, ...] = ()) -> None:
    try:
        information = msgspec.inspect.type_info(kind)
    except Exception as error:  # noqa: BLE001 - msgspec raises several
        raise DeclarationError(where, f"{what} cannot be checked: {error}", _REMEDY) from None
    for name in types_without_json(information, refused, set()):
        problem = f"{what} cannot be checked: {name} has no form in JSON"
        raise DeclarationError(where, problem, _REMEDY)


def types_without_json(information: Any, refused: tuple[type, ...], seen: set[int]) -> Iterator[str]:
    """Yield the names of the classes within a type that msgspec does not know, or that are refused.

    :param information: of ``msgspec.inspect.type_info``.
    :param seen: the ids of what was looked at already.
    """
    if id(information) in seen:
        return
    seen.add(id(information))
    if isinstance(information, msgspec.inspect.CustomType):
        if information.cls is not object:
            yield f"{information.cls.__module__}.{information.cls.__qualname__}"
    elif isinstance(information, refused):
        yield type(information).__name__.removesuffix("Type").lower()
    elif isinstance(information, tuple):
        for each in information:
            yield from types_without_json(each, refused, seen)
    elif isinstance(information, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in information.__struct_fields__:
            yield from types_without_json(getattr(information, name), refused, seen)


def arguments_as_json(method: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the arguments of a call that is to be sent; see :func:`as_json`.

    :raises InvalidArgumentsError: one cannot be converted.
    """
    converted = {}
    for name, value in args.items():
        try:
            converted[name] = as_json(value)
        except Exception as error:  # noqa: BLE001 - users' classes may raise anything
            invalid = InvalidArgumentsError(method, _described(error, name, Any))
            mark_outgoing(invalid)
            raise invalid from None
    return converted


def as_json(value: Any) -> Any:
    """Convert a value to what the encoder of messages takes: JSON, and the types that the encoder converts."""
    # A copy, in which nested dataclasses and the like are dicts. What JSON lacks, and OpenStack's services convert in
    # their own way, is left to the encoder, so that peers see what they always saw.
    return msgspec.to_builtins(as_dicts(value), builtin_types=_LEFT, str_keys=True, enc_hook=primitive)


def as_dicts(value: Any) -> Any:
    """Return a value with its dataclasses and attrs objects as dicts of all their fields, and its times in UTC.

    msgspec reads the ``__dict__`` of a dataclass. In one that it has made itself, from an argument, a field that was
    not given is missing there: its default is found in the class. A field that is ``msgspec.UNSET`` is left out.
    """
    if type(value) in _ATOMS:
        return value
    if isinstance(value, list | tuple):
        return [as_dicts(each) for each in value]
    if isinstance(value, datetime):
        # The encoder drops the offset.
        return value if value.tzinfo is None else value.astimezone(UTC)
    found = value if isinstance(value, dict) else object_fields(value)
    if found is None:
        return value
    return {key: as_dicts(each) for key, each in found.items() if each is not msgspec.UNSET}


def _described(error: BaseException, what: str, kind: Any) -> str:
    """Say which value is wrong: "order.lines[0].amount: expected int, got str".

    :param kind: the type of the whole.
    """
    if not isinstance(error, msgspec.ValidationError):
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return f"{what}: {text}" if what else text
    text, at, path = str(error).partition(" - at `")
    path = path.rstrip("`")
    text = (text[:1].lower() + text[1:]).replace("`", "")
    if text.startswith("invalid enum value"):
        text += f"; allowed: {allowed_values(kind, path)}"
    if not at:
        return f"{what}: {text}" if what else text
    path = path.removeprefix("$").removeprefix(".")
    return f"{what}{'.' if what and path and not path.startswith('[') else ''}{path}: {text}" if path or what else text
