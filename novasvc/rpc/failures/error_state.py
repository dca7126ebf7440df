"""Take a registered error apart into JSON, and make it again from that."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

import attrs
import msgspec

from novasvc.rpc.contracts.contract import BINARY, as_dicts, types_without_json
from novasvc.rpc.failures.origin import add_note
from novasvc.rpc.payload import dumps, primitive

_T = TypeVar("_T")

STATE = "novasvc_state"
"""The field of a failure with an error's state; oslo.messaging ignores it."""

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ARGS: Any = BaseException.args

# Note [How an error is made again]
#
# oslo.messaging calls the class with the error's ``args`` and ``kwargs``. That fails for most classes that are written
# naturally: ``args`` is what was passed to Exception.__init__, often a whole sentence, and dataclasses leave keyword
# arguments out of it. So ``args`` and ``kwargs`` are chosen here so that the call succeeds on both sides, and services
# of novasvc exchange the attributes as well. The way is the first of these that fits:
#
# - "args": the class is called with ``args`` and ``kwargs``: if it has a ``kwargs`` attribute, as Nova's exceptions, or
#   says in ``__reduce__`` how pickle is to call it, or inherits its constructor from a built-in class.
# - "attributes": the class is called with the attributes that have the names of its parameters. New parameters with
#   defaults, and parameters that are gone, do no harm: versions of a class may differ in them. As a constructor may
#   store something else under the name of a parameter, this is tried where the error is raised.
# - None: the constructor is not called, because its arguments are unknown. Only the built-in base class's is.
#
# Afterwards the attributes and ``args`` are set as they were.


def take_apart(error: Exception) -> dict[str, Any]:
    """Return the fields of a failure for a registered error, or one of a class that is derived from one.

    :return: "args", "kwargs" and STATE: {"constructor": see Note [How an error is made again], "args": as JSON,
        "attributes": JSON by name, "omitted": names of types by the names of attributes that JSON cannot hold}.
    """
    raw = _attributes(error)
    kept: dict[str, Any] = {}
    omitted: dict[str, str] = {}
    for name, value in raw.items():
        try:
            kept[name] = _plain(value)
        except Exception:  # noqa: BLE001 - users' objects may raise anything
            omitted[name] = type(value).__qualname__
    shown = [_plain_or_text(each) for each in error.args]
    args, kwargs, constructor = _arguments(error, raw, kept)
    try:
        dumps([args, kwargs], "the arguments")
    except ValueError:
        args, kwargs = shown, {}
        constructor = constructor if constructor == "attributes" else None
    state = {"constructor": constructor, "args": shown, "attributes": kept, "omitted": omitted}
    return {"args": list(args), "kwargs": kwargs, STATE: state}


def make_again(error_class: type[Exception], fields: Mapping[str, Any], *, derived: bool = False) -> Exception:
    """Make an error of a class from the fields of a failure.

    :param derived: the fields are those of a class derived from this one: do not call the constructor.
    :raises Exception: whatever the class raises for them.
    """
    args, kwargs = _get(fields, "args", list), _get(fields, "kwargs", dict)
    if STATE not in fields:  # the peer uses oslo.messaging
        return error_class(*args, **kwargs)
    state = _get(fields, STATE, dict)
    own_args, omitted = _get(state, "args", list), _get(state, "omitted", dict)
    constructor = None if derived else state.get("constructor")
    # In this way, a parameter and its attribute have one type, so that either may have the annotation.
    sources = (error_class.__init__, error_class) if constructor == "attributes" else (error_class,)
    attributes = _typed(_get(state, "attributes", dict), sources)
    if constructor == "args":
        error = error_class(*args, **kwargs)
    elif constructor == "attributes":
        error = _constructed(error_class, attributes)
    else:
        error = _unconstructed(error_class, own_args)
    if [_plain_or_text(each) for each in error.args] != own_args:  # else they have the annotated types
        _ARGS.__set__(error, tuple(own_args))
    for name, value in attributes.items():
        _set(error, name, value)
    if omitted:
        listed = ", ".join(f"{name} ({kind})" for name, kind in omitted.items())
        add_note(error, f"Attributes that were not sent, because JSON cannot hold them: {listed}")
    return error


def keyword_arguments(error: BaseException) -> dict[str, Any] | None:
    """Return an error's ``kwargs`` attribute, which oslo.messaging passes to its class; None without one."""
    try:
        found = getattr(error, "kwargs", None)
    except Exception:  # noqa: BLE001 - a property of a user's class may raise anything
        return None
    return found if isinstance(found, dict) else None


# -- taking apart ----------------------------------------------------------------------------------


def _attributes(error: Exception) -> dict[str, Any]:
    """Return an error's attributes, those in slots too; without names that begin with two underscores."""
    found: dict[str, Any] = {}
    for kind in type(error).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(error, name):
                found[name] = getattr(error, name)
    found.update(vars(error))
    return {name: value for name, value in found.items() if not name.startswith("__")}


def _plain(value: object) -> Any:
    """Return a value as JSON, so that its type can be restored from an annotation.

    :raises Exception: JSON cannot hold it.
    """
    plain = msgspec.to_builtins(as_dicts(value), builtin_types=(bytes,), str_keys=True, enc_hook=primitive)
    dumps(plain, "the value")
    return plain


def _plain_or_text(value: object) -> Any:
    try:
        return _plain(value)
    except Exception:  # noqa: BLE001 - as in take_apart
        return f"<{type(value).__qualname__}>"


def _arguments(  # noqa: PLR0911 - a table of cases
    error: Exception, raw: Mapping[str, Any], kept: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any], str | None]:
    """Return the arguments to make an error of, and the way; see Note [How an error is made again]."""
    error_class: Any = type(error)
    args, kwargs = error.args, keyword_arguments(error)
    parameters = _parameters(error_class)
    if kwargs is not None and parameters is not None and _binds(error_class, args, kwargs):
        return args, kwargs, "args"
    reduced = _reduced(error) if parameters is None or inspect.isfunction(error_class.__reduce__) else None
    if reduced is not None:
        return reduced, {}, "args"
    if parameters is None:
        return args, {}, "args"
    named = [each for each in parameters if each.kind in _NAMED]
    attribute = _attribute_names(error_class)
    found = {each.name: raw[attribute(each.name)] for each in named if attribute(each.name) in kept}
    if any(each.default is each.empty and each.name not in found for each in named):
        return args, {}, None
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        only_keywords = all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in named)
        return args, found if only_keywords else {}, "args" if only_keywords else None
    if named and not found:
        return args, {}, None
    # By position, up to the first parameter that is not an attribute: what oslo.messaging's callers find in ``args``.
    by_position: list[Any] = []
    for each in named:
        if each.kind is inspect.Parameter.KEYWORD_ONLY or each.name not in found:
            break
        by_position.append(found.pop(each.name))
    if not _restores(error_class, by_position, found, [attribute(each.name) for each in named], raw):
        return args, {}, None
    return by_position, found, "attributes"


def _restores(
    error_class: type[Exception],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Iterable[str],
    raw: Mapping[str, Any],
) -> bool:
    """Return whether a class that is called with its attributes sets them to what they are."""
    missing = object()
    try:
        again = error_class(*args, **kwargs)
        return all(bool(getattr(again, name, missing) == raw[name]) for name in names if name in raw)
    except Exception:  # noqa: BLE001 - users' code
        return False


def _reduced(error: Exception) -> tuple[Any, ...] | None:
    """Return the arguments with which pickle would call an error's class; None if it would do something else."""
    reduced: Any = error.__reduce__()
    if isinstance(reduced, tuple) and reduced[0] is type(error) and isinstance(reduced[1], tuple):
        return reduced[1]
    return None


def _binds(error_class: type[Exception], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(error_class.__init__).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True


# -- making again ----------------------------------------------------------------------------------


def _get(fields: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """Return a field that is missing or of this type."""
    value = fields.get(name, kind())
    if not isinstance(value, kind):
        problem = f"{name!r} is a {type(value).__name__}, not a {kind.__name__}"
        raise TypeError(problem)
    return value


def _constructed(error_class: Any, attributes: Mapping[str, Any]) -> Exception:
    args, kwargs = [], {}
    attribute = _attribute_names(error_class)
    for each in _parameters(error_class) or ():
        name = attribute(each.name)
        if each.kind in _NAMED and name in attributes:
            if each.kind is inspect.Parameter.POSITIONAL_ONLY:
                args.append(attributes[name])
            else:
                kwargs[each.name] = attributes[name]
    made: Exception = error_class(*args, **kwargs)
    return made


def _unconstructed(error_class: type[Exception], args: Sequence[Any]) -> Exception:
    """Make an error with the constructor of its built-in base class only."""
    base: Any = error_class
    while base.__module__ != "builtins":
        base = base.__base__  # not the next in __mro__: the one whose __new__ can make such an object
    error: Exception = base.__new__(error_class, *args)
    base.__init__(error, *args)
    return error


def _set(error: Exception, name: str, value: Any) -> None:
    """Set an attribute that a peer sent, even of a frozen class; nothing that would hide a method."""
    known = getattr(type(error), name, None)
    if name.startswith("__") or callable(known):
        return
    if inspect.ismemberdescriptor(known):
        known.__set__(error, value)
    else:
        vars(error)[name] = value


def _typed(attributes: Mapping[str, Any], sources: tuple[Any, ...]) -> dict[str, Any]:
    """Convert attributes to the types of their annotations. What cannot be converted stays as it was sent.

    :param sources: functions and classes that have the annotations.
    """
    typed = dict(attributes)
    for name, kind in _types(sources).items():
        if typed.get(name) is not None:
            with suppress(Exception):  # users' classes may raise anything
                typed[name] = msgspec.convert(typed[name], kind, str_keys=True)
    return typed


# -- classes ---------------------------------------------------------------------------------------


@lru_cache(256)
def _parameters(error_class: Any) -> list[inspect.Parameter] | None:
    """Return the parameters of a class's constructor, without self; None if it is that of a built-in class."""
    constructor = error_class.__init__
    if not inspect.isfunction(constructor):
        return None
    return list(inspect.signature(constructor).parameters.values())[1:]


@lru_cache(256)
def _attribute_names(error_class: Any) -> Any:
    """Return a function from the name of a constructor's parameter to that of its attribute."""
    aliases = {field.alias: field.name for field in attrs.fields(error_class)} if attrs.has(error_class) else {}
    return lambda parameter: aliases.get(parameter, parameter)


@lru_cache(256)
def _types(sources: tuple[Any, ...]) -> dict[str, Any]:
    """Return the annotated types by name that JSON can represent."""
    hints: dict[str, Any] = {}
    for source in sources:
        with suppress(Exception):  # an annotation may be one that only type checkers can resolve
            hints.update(get_type_hints(source))
    hints.pop("return", None)
    return {name: kind for name, kind in hints.items() if kind is not Any and _is_json(kind)}


def _is_json(kind: Any) -> bool:
    try:
        information = msgspec.inspect.type_info(kind)
    except Exception:  # noqa: BLE001 - msgspec raises several, as for ClassVar
        return False
    return not any(types_without_json(information, BINARY, set()))
