"""Contracts: what the annotations of an exposed method say about its arguments and its result.

Arguments arrive as JSON. Those that have an annotation are checked and converted before the method runs: to
dataclasses, attrs classes, enums, datetimes, UUIDs and whatever else msgspec can make of JSON, nested as deep as one
likes. A result is checked and converted to JSON in the same way. What has no annotation, or ``Any``, stays as it is.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Union

import attrs
import msgspec
from twisted.internet.defer import Deferred

from novasvc.errors import DeclarationError
from novasvc.rpc.errors import InvalidArgumentsError, ResultNotSerializableError

_PLAIN = (type(None), bool, int, float, str)
"""Types that JSON has: a result of one of them is checked only."""

_AWAITED = (Deferred, collections.abc.Awaitable, collections.abc.Coroutine, collections.abc.Generator)
"""A plain method that is annotated with one of them returns its result later."""

_REMEDY = "use types that JSON can represent: str, int, list[...], a dataclass, an attrs class, an Enum, a datetime"


@attrs.frozen
class Contract:
    """The types of a method's arguments and of its result.

    :param method: the method's name, for errors.
    :param arguments: a TypedDict of the annotated arguments; None if there are none.
    :param names: of the annotated arguments.
    :param result: the type of the result; Any if it has no annotation.
    """

    method: str
    arguments: Any
    names: frozenset[str]
    result: Any

    def convert_arguments(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check the arguments of a call, and convert those that are annotated.

        :param args: as they came, by name; JSON.
        :return: the arguments for the method.
        :raises InvalidArgumentsError: one is not of its type; the error names the path to the wrong value.
        """
        if self.arguments is None:
            return args
        try:
            converted: dict[str, Any] = msgspec.convert(args, self.arguments, str_keys=True)
        except msgspec.ValidationError as error:
            raise InvalidArgumentsError(self.method, _described(error, "")) from None
        if len(converted) < len(args):  # Those without annotations; msgspec leaves them out.
            return {**args, **converted}
        return converted

    def convert_result(self, result: Any) -> Any:
        """Check a result, and convert it to what JSON has.

        :raises ResultNotSerializableError: it is not of its type.
        """
        kind = self.result
        if kind is Any or type(result) is kind in _PLAIN:
            return result
        try:
            plain = msgspec.to_builtins(result, str_keys=True)
            msgspec.convert(plain, kind, str_keys=True)
        except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
            raise ResultNotSerializableError(self.method, _described(error, "the result")) from None
        return plain

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schemas: {"arguments": of an object, "result": of the result, "$defs": what they share}."""
        arguments = Any if self.arguments is None else self.arguments
        (given, returned), shared = msgspec.json.schema_components(
            (arguments, self.result), ref_template="#/$defs/{name}"
        )
        return {"arguments": given, "result": returned, "$defs": shared}


def contract_of(function: Callable[..., Any], method: str, where: str) -> Contract:
    """Read the contract of a method from its annotations.

    :param function: the exposed method, bound or not.
    :param method: its name.
    :param where: "module.Class.method", for errors.
    :raises DeclarationError: an annotation cannot be resolved, or JSON cannot represent its type.
    """
    function = inspect.unwrap(function)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001 - to evaluate an annotation can raise anything
        problem = f"an annotation cannot be resolved: {error}"
        raise DeclarationError(where, problem, "import its names where the method is defined") from None
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    accepted = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {each.name: hints[each.name] for each in parameters[1:] if each.kind in accepted and each.name in hints}
    for name, kind in found.items():
        _check(kind, f"the annotation of {name!r}", where)
    result = _awaited(hints.get("return", Any))
    _check(result, "the annotation of the result", where)
    arguments = TypedDict(f"{method} arguments", found, total=False) if found else None  # type: ignore[operator]
    return Contract(method, arguments, frozenset(found), result)


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


def _check(kind: Any, what: str, where: str) -> None:
    try:
        information = msgspec.inspect.type_info(kind)
    except Exception as error:  # noqa: BLE001 - msgspec raises several
        raise DeclarationError(where, f"{what} cannot be checked: {error}", _REMEDY) from None
    for custom in _custom(information, set()):
        problem = f"{what} cannot be checked: {custom.__module__}.{custom.__qualname__} has no form in JSON"
        raise DeclarationError(where, problem, _REMEDY)


def _custom(information: Any, seen: set[int]) -> "collections.abc.Iterator[type]":
    """Yield the classes within a type that msgspec does not know."""
    if id(information) in seen:
        return
    seen.add(id(information))
    if isinstance(information, msgspec.inspect.CustomType):
        if information.cls is not object:
            yield information.cls
        return
    if isinstance(information, tuple):
        for each in information:
            yield from _custom(each, seen)
    elif isinstance(information, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in information.__struct_fields__:
            value = getattr(information, name)
            if isinstance(value, msgspec.inspect.Type | msgspec.inspect.Field | tuple):
                yield from _custom(value, seen)


def _described(error: BaseException, what: str) -> str:
    """Say which value is wrong: "order.lines[0].amount: expected int, got str"."""
    text, at, path = str(error).partition(" - at `")
    path = path.rstrip("`")
    text = (text[:1].lower() + text[1:]).replace("`", "")
    if not at:
        return f"{what}: {text}" if what else text
    path = path.removeprefix("$").removeprefix(".")
    return f"{what}{'.' if what and path and not path.startswith('[') else ''}{path}: {text}" if path or what else text
