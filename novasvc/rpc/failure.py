"""Errors on the wire: what was raised over there, and what is raised here.

Only errors of :data:`novasvc.errors.WIRE_ERRORS` and of Python itself are rebuilt. They are
looked up in a table that was made beforehand; whatever else a peer names becomes a
:class:`~novasvc.errors.RemoteError`.
"""

import builtins
from collections.abc import Sequence
from typing import Any

from twisted.python.reflect import safe_str

from novasvc.errors import WIRE_ERRORS, RemoteError
from novasvc.rpc.payload import dumps, loads

# StopIteration is a signal of the language: thrown into a coroutine it would end, or break, it.
_SIGNALS = (StopIteration, StopAsyncIteration)
_BUILTINS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _SIGNALS)
}
_REBUILT: dict[tuple[str, str], type[Exception]] = {
    **{(module, name): kind for module in ("builtins", "exceptions") for name, kind in _BUILTINS.items()},
    **{(kind.__module__, kind.__name__): kind for kind in WIRE_ERRORS},
}


def write_failure(error: BaseException, traceback: Sequence[str] = ()) -> str:
    """Write an error as the text that a reply's ``failure`` holds.

    Arguments that JSON cannot hold are replaced by the error's text.

    :param traceback: lines, each ending in a newline; by default only the last line of one.
    """
    kind = type(error)
    message = safe_str(error)
    fields = {
        "class": kind.__name__,
        "module": kind.__module__,
        "message": message,
        "tb": list(traceback) or [f"{kind.__name__}: {message}\n"],
        "args": list(error.args),
        "kwargs": getattr(error, "kwargs", {}),
    }
    try:
        return dumps(fields, "the error")
    except ValueError:
        return dumps({**fields, "args": [message], "kwargs": {}}, "the error")


def read_failure(text: str) -> Exception:
    """Rebuild an error.

    :param text: what :func:`write_failure`, or a peer, wrote.
    :return: an error of a class that is known here, or a RemoteError. One that came with a
        traceback shows it as a note.
    """
    try:
        fields = loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return RemoteError("an error", "that cannot be read")
    name, module, message = (_text(fields.get(key)) for key in ("class", "module", "message"))
    lines = _lines(fields.get("tb"))
    error = _rebuild(module, name, fields.get("args", []), fields.get("kwargs", {}))
    if error is None:
        return RemoteError(name, message, lines, module)
    if len(lines) > 1:
        error.add_note("It was raised on the other side:\n" + "".join(lines))
    return error


def _rebuild(module: str, name: str, args: Any, kwargs: Any) -> Exception | None:
    kind = _REBUILT.get((module, name))
    if kind is None or not isinstance(args, list) or not isinstance(kwargs, dict):
        return None
    try:
        error = kind(*args, **kwargs)
        str(error)  # With arguments of a wrong type it may be one that cannot even be shown.
    except Exception:  # noqa: BLE001 - whatever a peer's arguments make of it
        return None
    return error


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _lines(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(line for line in value if isinstance(line, str)) if isinstance(value, list) else ()
