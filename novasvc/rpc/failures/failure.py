"""Encode errors for the wire, and rebuild errors that a peer raised.

Only Python's built-in exceptions, the classes named in :data:`novasvc.errors.WIRE_ERRORS` and those that the author of
a service has registered (:mod:`novasvc.rpc.failures.error_classes`) are rebuilt: nothing else that a peer names is looked up. An
error of any other class becomes a :class:`~novasvc.errors.RemoteError`.
"""

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.python.reflect import safe_str

from novasvc import errors
from novasvc.errors import WIRE_ERRORS, NovasvcError
from novasvc.rpc.errors import InvalidArgumentsError, RemoteError, RPCError
from novasvc.rpc.failures.error_classes import RESERVED, WireName, error_classes
from novasvc.rpc.failures.error_state import STATE, keyword_arguments, make_again, take_apart
from novasvc.rpc.failures.origin import (
    Origin,
    add_note,
    decode_origin,
    encode_origin,
    is_outgoing,
    origin_of,
    set_origin,
)
from novasvc.rpc.failures.peer_errors import FROM_OSLO, OSLO_MODULE, OWN_ARGS, oslo_fields, unwrapped
from novasvc.rpc.payload import dumps, loads

# Not rebuilt: StopIteration controls iteration, and would end or break the coroutine that awaits a call.
_CONTROL_FLOW = (StopIteration, StopAsyncIteration)
_BUILTINS = {
    name: error_class
    for name, error_class in vars(builtins).items()
    if isinstance(error_class, type)
    and issubclass(error_class, Exception)
    and not issubclass(error_class, _CONTROL_FLOW)
}
_BUILTIN_MODULES = ("builtins", "exceptions")
_ERRORS = "novasvc.errors"

# Note [Errors of errors]
#
# A method may let through an error of a call that it made. Its caller gets that error under the class, module and text
# of the first one, with the methods in between in its origin. There is one exception: errors about a call itself, such
# as InvalidArgumentsError, would be taken for errors about the caller's own call. So they are sent with the module that
# defines them, in place of novasvc.errors, and arrive as a RemoteError, at callers that use oslo.messaging too.

_ORIGIN = "novasvc_origin"
_BASES = "novasvc_bases"
_FIELDS = "__novasvc_fields__"
"""The attribute with what was received, of an error that was not raised as itself, to be passed on unchanged."""
_PASSED_ON = ("args", "kwargs", OWN_ARGS, STATE, _BASES)
_LONGEST_REASON = 300


def encode_error(
    error: BaseException,
    traceback: Sequence[str] = (),
    here: Origin | None = None,
    *,
    method: str | None = None,
) -> str:
    """Encode an error as JSON text, for a reply's ``failure``.

    If JSON cannot hold the error's arguments, its text is sent in their place.

    :param traceback: the traceback's lines; without lines, only its last line is sent.
    :param here: the service that replies; None sends no origin.
    :param method: the method that raised the error; None if the server did, about the call itself.
    """
    of_another_call = method is not None and _is_of_another_call(error, method)
    fields = _fields(error, of_another_call=of_another_call)
    name, message = fields["class"], fields["message"]
    last_line = f"{name}: {message}"
    if here is not None:
        fields[_ORIGIN] = encode_origin(error, here)
        if of_another_call or origin_of(error) is not None:
            # For callers that use oslo.messaging: they show the traceback, and ignore the field above.
            last_line = f"Raised by {decode_origin(fields[_ORIGIN])}\n{last_line}"
    # A list of lines, each with its newline, as traceback.format_exception returns and oslo.messaging sends.
    fields["tb"] = [line.rstrip("\n") + "\n" for line in traceback or (last_line,)]
    try:
        return dumps(fields, "the error")
    except ValueError:
        return dumps({**fields, "args": [message], "kwargs": {}}, "the error")


def _fields(error: BaseException, *, of_another_call: bool) -> dict[str, Any]:
    """Return the fields of an error but its traceback and its origin; see :func:`encode_error`."""
    error_class = type(error)
    received: Mapping[str, Any] | None = vars(error).get(_FIELDS)
    if received is not None:  # an error of another service that was not raised as itself here
        names = ("class", "module", "message")
        passed_on = {name: received[name] for name in _PASSED_ON if name in received}
        return {"kwargs": {}, **{name: _text_or_empty(received.get(name)) for name in names}, **passed_on}
    if isinstance(error, RemoteError):
        return {
            "class": error.exc_type,
            "module": error.module,
            "message": error.value,
            "args": [error.value],
            "kwargs": {},
        }
    fields = {
        "class": error_class.__name__,
        "module": error_class.__module__,
        "message": safe_str(error),
        "args": list(error.args),
        "kwargs": keyword_arguments(error) or {},
    }
    known = _known_fields(error) if isinstance(error, Exception) else {}
    if known:
        return {**fields, **known}
    if of_another_call:
        return fields
    # Public errors are sent as module novasvc.errors, whichever package defines them: peers allow and import that
    # module.
    if isinstance(error, NovasvcError) and getattr(errors, error_class.__name__, None) is error_class:
        fields["module"] = _ERRORS
    return {**fields, **oslo_fields(error)}


def _known_fields(error: Exception) -> dict[str, Any]:
    """Return the fields of an error whose class, or a base class of it, is registered; {} for any other error."""
    names = [error_classes.name_of(kind) for kind in type(error).__mro__]
    own, bases = names[0], [name for name in names[1:] if name is not None]
    if own is None and not bases:
        return {}
    try:
        fields = take_apart(error)
    except Exception:  # noqa: BLE001 - a class that cannot be inspected; its caller must get a reply nevertheless
        return {}
    if own is not None:
        fields["module"], fields["class"] = own
    if bases:
        fields[_BASES] = bases
    return fields


def _is_of_another_call(error: BaseException, method: str) -> bool:
    """Return whether an error that a method raised is about a call that the method made; see Note [Errors of errors].

    A method may raise InvalidArgumentsError about its own arguments.
    """
    if not isinstance(error, RPCError) or not type(error).__module__.startswith("novasvc."):
        return False
    own = isinstance(error, InvalidArgumentsError) and error.method == method
    return not own or origin_of(error) is not None or is_outgoing(error)


def decode_error(text: str, called: Origin | None = None) -> Exception:
    """Rebuild an error from a reply's ``failure``. Never raises.

    :param text: JSON text from :func:`encode_error` or from a peer.
    :param called: what the caller knows about the service, for servers that do not tell their origin.
    :return: an error of its own class if that is in the table, otherwise a RemoteError. A remote traceback
        is added to a rebuilt error as a note.
    """
    try:
        fields = loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        error: Exception = RemoteError("unknown", "the reply reports an error, but not as a JSON object")
        fields = {}
    else:
        error = _decode(unwrapped(fields))
    origin = decode_origin(fields.get(_ORIGIN)) or called
    if origin is not None:
        set_origin(error, origin)
        if not isinstance(error, RemoteError):  # whose text has it
            add_note(error, f"Raised by {origin}")
    return error


def _decode(fields: dict[str, Any]) -> Exception:
    name, module, message = (_text_or_empty(fields.get(key)) for key in ("class", "module", "message"))
    lines = _lines(fields.get("tb"))
    error: Exception | None
    error, reason = _registered(WireName(module, name), fields)
    if error is None and not reason:
        args, kwargs = fields.get("args", []), fields.get("kwargs", {})
        factory = _class_of(module, name)
        if module == OSLO_MODULE and name in FROM_OSLO:
            from_own, from_oslo = FROM_OSLO[name]
            own = OWN_ARGS in fields
            factory, args, kwargs = (from_own, fields[OWN_ARGS], {}) if own else (from_oslo, args, kwargs)
        error = _rebuild(factory, args, kwargs)
    if error is None:
        error = RemoteError(name, message, lines, module, reason)
        vars(error)[_FIELDS] = fields
        if module and not reason and not RESERVED.fullmatch(module):
            add_note(error, f"To have it raised as itself, register {module}.{name} in this process with rpc.error")
    elif len(lines) > 1:
        add_note(error, "Remote traceback:\n" + "".join(lines))
    return error


def _registered(name: WireName, fields: Mapping[str, Any]) -> tuple[Exception | None, str]:
    """Rebuild an error whose class, or a base class of it, is registered.

    :return: the error, or None and the reason why a registered class cannot be used; "" if none is registered.
    """
    own = error_classes.find(name)
    error_class = _registered_base(fields.get(_BASES)) if own is None else own
    if error_class is None:
        return None, ""
    try:
        error = make_again(error_class, fields, derived=own is None)
        str(error)  # as in _rebuild
    except Exception as problem:  # noqa: BLE001 - a class of another version can raise anything
        return None, f"{type(problem).__name__}: {safe_str(problem)}"[:_LONGEST_REASON]
    if own is None:
        vars(error)[_FIELDS] = fields
        add_note(error, f"Raised as its base class: {name} is not registered in this process")
    return error, ""


def _registered_base(names: object) -> type[Exception] | None:
    pairs = names if isinstance(names, list) else []
    known = (error_classes.find(WireName(*pair)) for pair in pairs if _is_pair_of_text(pair))
    return next((found for found in known if found is not None), None)


def _is_pair_of_text(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)  # noqa: PLR2004


def _class_of(module: str, name: str) -> Callable[..., Exception] | None:
    """Return the class that a peer's error is rebuilt with; None if it is not rebuilt."""
    if module in _BUILTIN_MODULES:
        return _BUILTINS.get(name)
    # Lazy import: the defining package may not be loaded yet.
    return getattr(errors, name) if module == _ERRORS and name in WIRE_ERRORS else None


def _rebuild(factory: Callable[..., Exception] | None, args: Any, kwargs: Any) -> Exception | None:
    if factory is None or not isinstance(args, list) or not isinstance(kwargs, dict):
        return None
    try:
        error = factory(*args, **kwargs)
        str(error)  # Arguments of the wrong type can make an error whose str() raises.
    except Exception:  # noqa: BLE001 - a peer's arguments can make the constructor raise anything
        return None
    return error


def _text_or_empty(value: object) -> str:
    return value if isinstance(value, str) else ""


def _lines(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(line for line in value if isinstance(line, str)) if isinstance(value, list) else ()
