"""Encode errors for the wire, and rebuild errors that a peer raised.

Only the classes named in :data:`novasvc.errors.WIRE_ERRORS` and Python's built-in exceptions are rebuilt: nothing
else that a peer names is looked up. An error of any other class becomes a :class:`~novasvc.errors.RemoteError`.
"""

import builtins
import re
from collections.abc import Callable, Sequence
from typing import Any

from twisted.python.reflect import safe_str

from novasvc import errors
from novasvc.errors import WIRE_ERRORS, NovasvcError
from novasvc.rpc.errors import NoSuchMethodError, RemoteError, UnsupportedVersionError
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

# Note [oslo.messaging's error classes]
#
# Programs that use oslo.messaging know NoSuchMethodError and UnsupportedVersionError by oslo.messaging's
# own classes, and rebuild them if they allow its module. So both are sent under its class names, with the
# arguments of its constructors. The arguments of our classes are in an additional field, "novasvc", which
# the peers ignore. oslo.messaging's servers put the whole error text into the one argument, so the name
# and the version are parsed out of it.
_OSLO_MODULE = "oslo_messaging.rpc.dispatcher"
_OWN_ARGS = "novasvc"
_NO_METHOD = re.compile(r"Endpoint does not support RPC method (.*)", re.DOTALL)
_NO_VERSION = re.compile(r"Endpoint does not support RPC version (.*?)(?:\. Attempted method: (.*))?", re.DOTALL)


def _no_such_method(method: str) -> NoSuchMethodError:
    match = _NO_METHOD.fullmatch(method)
    return NoSuchMethodError(method if match is None else match[1])


def _unsupported_version(version: str, method: str | None = None) -> UnsupportedVersionError:
    match = _NO_VERSION.fullmatch(version)
    return UnsupportedVersionError(version, method) if match is None else UnsupportedVersionError(*match.groups())


_FROM_OSLO: dict[str, tuple[type[Exception], Callable[..., Exception]]] = {
    "NoSuchMethod": (NoSuchMethodError, _no_such_method),
    "UnsupportedVersion": (UnsupportedVersionError, _unsupported_version),
}


def _oslo_fields(error: BaseException) -> dict[str, Any]:
    """Return the fields of an error that oslo.messaging has a class for; {} for any other error."""
    if isinstance(error, NoSuchMethodError):
        named: dict[str, Any] = {"class": "NoSuchMethod", "args": [error.method]}
    elif isinstance(error, UnsupportedVersionError):
        named = {"class": "UnsupportedVersion", "args": [error.version, error.method]}
    else:
        return {}
    return {**named, "module": _OSLO_MODULE, _OWN_ARGS: list(error.args)}


def encode_error(error: BaseException, traceback: Sequence[str] = ()) -> str:
    """Encode an error as JSON text, for a reply's ``failure``.

    If JSON cannot hold the error's arguments, its text is sent in their place.

    :param traceback: the traceback's lines; without lines, only its last line is sent.
    """
    error_class = type(error)
    message = safe_str(error)
    # Public errors are sent as module novasvc.errors, whichever package defines them: peers allow and import that
    # module.
    public = isinstance(error, NovasvcError) and getattr(errors, error_class.__name__, None) is error_class
    fields = {
        "class": error_class.__name__,
        "module": _ERRORS if public else error_class.__module__,
        "message": message,
        # A list of lines, each with its newline, as traceback.format_exception returns and oslo.messaging sends.
        "tb": [line.rstrip("\n") + "\n" for line in traceback or (f"{error_class.__name__}: {message}",)],
        "args": list(error.args),
        "kwargs": getattr(error, "kwargs", {}),
        **_oslo_fields(error),
    }
    try:
        return dumps(fields, "the error")
    except ValueError:
        return dumps({**fields, "args": [message], "kwargs": {}}, "the error")


def decode_error(text: str) -> Exception:
    """Rebuild an error from a reply's ``failure``. Never raises.

    :param text: JSON text from :func:`encode_error` or from a peer.
    :return: an error of its own class if that is in the table, otherwise a RemoteError. A remote traceback
        is added to a rebuilt error as a note.
    """
    try:
        fields = loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return RemoteError("unknown", "the reply reports an error, but not as a JSON object")
    name, module, message = (_text_or_empty(fields.get(key)) for key in ("class", "module", "message"))
    lines = _lines(fields.get("tb"))
    args, kwargs = fields.get("args", []), fields.get("kwargs", {})
    factory = _class_of(module, name)
    if module == _OSLO_MODULE and name in _FROM_OSLO:
        from_own, from_oslo = _FROM_OSLO[name]
        factory, args, kwargs = (from_own, fields[_OWN_ARGS], {}) if _OWN_ARGS in fields else (from_oslo, args, kwargs)
    error = _rebuild(factory, args, kwargs)
    if error is None:
        return RemoteError(name, message, lines, module)
    if len(lines) > 1:
        error.add_note("Remote traceback:\n" + "".join(lines))
    return error


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
