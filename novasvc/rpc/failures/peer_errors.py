"""Errors of peers, and for peers: programs that use oslo.messaging, and services of an older novasvc."""

import re
from collections.abc import Callable
from typing import Any

from novasvc.rpc.errors import NoSuchMethodError, UnsupportedVersionError

# Note [oslo.messaging's error classes]
#
# Programs that use oslo.messaging know NoSuchMethodError and UnsupportedVersionError by oslo.messaging's
# own classes, and rebuild them if they allow its module. So both are sent under its class names, with the
# arguments of its constructors. The arguments of our classes are in an additional field, "novasvc", which
# the peers ignore. oslo.messaging's servers put the whole error text into the one argument, so the name
# and the version are parsed out of it.
OSLO_MODULE = "oslo_messaging.rpc.dispatcher"
OWN_ARGS = "novasvc"
_NO_METHOD = re.compile(r"Endpoint does not support RPC method (.*)", re.DOTALL)
_NO_VERSION = re.compile(r"Endpoint does not support RPC version (.*?)(?:\. Attempted method: (.*))?", re.DOTALL)


def _no_such_method(method: str) -> NoSuchMethodError:
    match = _NO_METHOD.fullmatch(method)
    return NoSuchMethodError(method if match is None else match[1])


def _unsupported_version(version: str, method: str | None = None) -> UnsupportedVersionError:
    match = _NO_VERSION.fullmatch(version)
    return UnsupportedVersionError(version, method) if match is None else UnsupportedVersionError(*match.groups())


FROM_OSLO: dict[str, tuple[type[Exception], Callable[..., Exception]]] = {
    "NoSuchMethod": (NoSuchMethodError, _no_such_method),
    "UnsupportedVersion": (UnsupportedVersionError, _unsupported_version),
}


def oslo_fields(error: BaseException) -> dict[str, Any]:
    """Return the fields of an error that oslo.messaging has a class for; {} for any other error."""
    if isinstance(error, NoSuchMethodError):
        named: dict[str, Any] = {"class": "NoSuchMethod", "args": [error.method]}
    elif isinstance(error, UnsupportedVersionError):
        named = {"class": "UnsupportedVersion", "args": [error.version, error.method]}
    else:
        return {}
    return {**named, "module": OSLO_MODULE, OWN_ARGS: list(error.args)}


_OSLO_REMOTE_ERROR = "oslo_messaging.rpc.client", "RemoteError"
_OSLO_REMOTE_TEXT = re.compile(r"Remote error: (\S+) (.*)\n\[.*\]\.", re.DOTALL)


def unwrapped(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a RemoteError of a peer wraps: servers of oslo.messaging, and old ones of novasvc, send it so."""
    name = _text(fields.get("module")), _text(fields.get("class"))
    args = fields.get("args")
    if name == ("novasvc.errors", "RemoteError") and isinstance(args, list) and len(args) == 4:  # noqa: PLR2004 - of novasvc 0.1
        return {**fields, "class": args[0], "message": args[1], "tb": args[2], "module": args[3], "args": [args[1]]}
    while name == _OSLO_REMOTE_ERROR:
        match = _OSLO_REMOTE_TEXT.fullmatch(_text(fields.get("message")))
        if match is None:
            break
        # The text does not have the module, except that of a RemoteError within it.
        module = _OSLO_REMOTE_ERROR[0] if match[1] == "RemoteError" else ""
        fields = {**fields, "class": match[1], "message": match[2], "module": module, "args": [match[2]]}
        name = module, match[1]
    return fields


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
