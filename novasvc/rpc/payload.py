"""Python values as JSON text, and back.

What goes out is mapped as OpenStack's services map it; nothing is mapped back. JSON only:
nothing that a peer names is ever imported, looked up or built here.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any
from uuid import UUID

_AS_TEXT = (
    UUID,
    Decimal,
    IPv4Address,
    IPv6Address,
    IPv4Interface,
    IPv6Interface,
    IPv4Network,
    IPv6Network,
)
_KEYS = (str, int, float, type(None))


def _primitive(value: object) -> Any:
    """Map what the encoder does not know; called by it."""
    if isinstance(value, datetime):
        # A zone's offset is dropped, not applied: so do the peers.
        return value.replace(tzinfo=None).isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, _AS_TEXT):
        return str(value)
    if isinstance(value, BaseException):
        return repr(value)
    raise TypeError


# Note [JSON at a few microseconds]
#
# A call is written four times and read four times. The json module makes an encoder of its C code
# for each value, which costs more than to write a small message with it, and looks for values that
# contain themselves, which cost a lookup for each list and object. Here it is made once and does
# not look: such a value ends in a RecursionError like one that is too deep, and only then the
# careful way is gone, to say which it was.
_careful = json.JSONEncoder(default=_primitive)
_decode: Callable[[str], Any] = json.JSONDecoder().decode

loads_at: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
"""Reads the JSON value that begins at an index; returns it and the index after it.

As :func:`loads`, but raises StopIteration where no value begins.
"""

quote: Callable[[str], str] = json.encoder.encode_basestring_ascii
"""Writes a text as JSON, in ASCII."""


_Encoder = Callable[[Any, int], tuple[str, ...]]


def _encoder(make: Callable[..., _Encoder] | None) -> _Encoder:
    """Return what writes a value.

    :param make: the json module's own maker of encoders; None in a Python without its C code.
    """
    if make is None:
        return lambda value, _: (_careful.encode(value),)
    separators = _careful.key_separator, _careful.item_separator
    flags = _careful.sort_keys, _careful.skipkeys, _careful.allow_nan
    return make(None, _primitive, quote, None, *separators, *flags)


encode_parts = _encoder(getattr(json.encoder, "c_make_encoder", None))
"""Writes a value, at the indentation 0, as the parts of its JSON text.

As :func:`dumps`, which says what is wrong where this raises TypeError, ValueError or RecursionError.
"""


def loads(text: str) -> Any:
    """Read JSON text.

    NaN and infinities are taken as JavaScript writes them, and integers of up to 4300 digits.

    :raises ValueError: it is not JSON.
    :raises RecursionError: it is nested deeper than the stack.
    """
    try:
        value, end = loads_at(text, 0)
    except StopIteration:
        pass
    else:
        if end == len(text):
            return value
    return _decode(text)  # blanks around it, or an error


def dumps(value: Any, root: str) -> str:
    """Write a value as JSON text, in ASCII.

    datetime, date, UUID, Decimal and IP addresses become text, bytes UTF-8 text, tuples and
    sets lists, exceptions their repr; keys that are numbers become text. NaN and infinities
    are written as JavaScript writes them.

    :param value: made of those and of JSON's types.
    :param root: what the value is called in an error: "result".
    :raises ValueError: says which part of the value, of which type, JSON cannot hold.
    """
    try:
        return "".join(encode_parts(value, 0))
    except RecursionError:
        problem = _too_deep(value, root)
    except (TypeError, ValueError):
        problem = _misfit(value, root)
    raise ValueError(problem)


def _too_deep(value: Any, root: str) -> str:
    try:
        _careful.encode(value)
    except (TypeError, ValueError):
        return _misfit(value, root)
    except RecursionError:
        pass
    return f"{root} is nested too deeply"


def _misfit(value: Any, root: str) -> str:
    """Find the first part of a value that was not encoded. Only called when one exists."""
    seen: set[int] = set()
    parts = [(value, root)]
    while parts:
        part, path = parts.pop()
        if isinstance(part, Mapping | list | tuple | set | frozenset):
            if id(part) in seen:
                continue  # A value may be there twice, and may contain itself.
            seen.add(id(part))
            key = next((key for key in part if isinstance(part, Mapping) and not isinstance(key, _KEYS)), None)
            if key is not None:
                return f"{path} has a key of type {_name(key)}, which JSON cannot hold"
            parts.extend(reversed([(child, f"{path}[{at!r}]") for at, child in _children(part)]))
        try:
            encode_parts(None if isinstance(part, dict | list | tuple | set | frozenset) else part, 0)
        except UnicodeDecodeError:
            return f"{path} is bytes that are not UTF-8"
        except (TypeError, ValueError):
            return f"{path} is of type {_name(part)}, which JSON cannot hold"
    return f"{root} contains itself"


def _children(container: Any) -> Iterable[tuple[Any, Any]]:
    return container.items() if isinstance(container, Mapping) else enumerate(container)


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
