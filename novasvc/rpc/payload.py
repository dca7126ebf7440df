"""Encode Python values as JSON text, and decode it.

Values are converted to JSON types as OpenStack's services convert them; nothing is converted back.
Decoding yields JSON types only: no name sent by a peer is imported, looked up or instantiated.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any
from uuid import UUID

import attrs
from twisted.python.reflect import safe_str

from novasvc._compat import json_encoder, json_scanner

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


def primitive(value: object) -> Any:
    """Convert a value of a type that JSON lacks, as OpenStack's services do; called by the encoder.

    :raises TypeError: the type cannot be converted.
    """
    if isinstance(value, datetime):
        # The UTC offset is dropped, not applied, as OpenStack's services do.
        return value.replace(tzinfo=None).isoformat(timespec="microseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, _AS_TEXT):
        return str(value)
    return _plain_object(value)


def _plain_object(value: object) -> Any:
    if isinstance(value, BaseException):
        return repr(value)  # it may have fields, too
    if isinstance(value, Enum):
        return value.value
    fields = object_fields(value)
    if fields is None:
        problem = f"{_name(value)} is not JSON serializable"
        raise TypeError(problem)
    return fields


def object_fields(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass or attrs object, as they are; None for anything else."""
    kind: Any = type(value)
    names = _field_names(kind)
    return None if names is None else {name: getattr(value, name) for name in names}


@lru_cache(maxsize=1024)
def _field_names(kind: type) -> tuple[str, ...] | None:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return tuple(field.name for field in attrs.fields(kind)) if attrs.has(kind) else None


# Note [JSON at a few microseconds]
#
# One call encodes four values and decodes four. For each value the json module creates a C encoder,
# which costs more than encoding a small message with it, and checks for circular references, which
# costs a lookup for each list and object. This module creates the encoder once, without that check. A
# circular value then raises RecursionError, as a value that is nested too deeply does. Only in that case
# the checking encoder runs too, to tell the two apart.
_checking_encoder = json.JSONEncoder(default=primitive)
_decode: Callable[[str], Any] = json.JSONDecoder().decode

loads_at = json_scanner()
"""Decode the JSON value at an index; return the value and the index after it.

Raises StopIteration if no value begins there; otherwise as :func:`loads`.
"""

quote: Callable[[str], str] = json.encoder.encode_basestring_ascii
"""Encode a string as JSON, in ASCII."""


def _encode_without_c(value: Any, _indentation: int) -> tuple[str, ...]:
    return (_checking_encoder.encode(value),)


encode_parts = json_encoder(_checking_encoder) or _encode_without_c
"""Encode a value, at indentation 0, and return the parts of its JSON text.

Raises any error where :func:`dumps` raises one that names the part: users' objects can raise anything.
"""


def loads(text: str) -> Any:
    """Decode JSON text.

    NaN and infinities are accepted as JavaScript writes them; integers may have up to 4300 digits.

    :raises ValueError: the text is not JSON.
    :raises RecursionError: the text is nested too deeply.
    """
    try:
        value, end = loads_at(text, 0)
    except StopIteration:
        pass
    else:
        if end == len(text):
            return value
    return _decode(text)  # The slow path: whitespace around the value, or an error.


def dumps(value: Any, root: str) -> str:
    """Encode a value as JSON text, in ASCII.

    datetime, date, UUID, Decimal and IP addresses become strings; bytes are decoded as UTF-8; tuples and
    sets become lists; exceptions become their repr; numbers as keys become strings. NaN and infinities are
    written as JavaScript writes them.

    :param value: a value of these types and of JSON's types.
    :param root: the name of the value in an error: "the result".
    :raises ValueError: JSON cannot hold a part of the value, or the part cannot be read; the text names the part and
        its type. No other error is raised, whatever the code of a value's class raises.
    """
    try:
        return "".join(encode_parts(value, 0))
    except RecursionError:
        problem = _describe_depth(value, root)
    except Exception:  # noqa: BLE001 - to read the fields of a user's object can raise anything
        problem = _describe_misfit(value, root)
    raise ValueError(problem)


def _describe_depth(value: Any, root: str) -> str:
    try:
        _checking_encoder.encode(value)
    except RecursionError:
        pass
    except Exception:  # noqa: BLE001 - as in dumps
        return _describe_misfit(value, root)
    return f"{root} is nested too deeply"


def _describe_misfit(value: Any, root: str) -> str:
    """Return the error text for the first part of a value that JSON cannot hold. Call it only if there is one."""
    seen: set[int] = set()
    parts = [(value, root)]
    while parts:
        part, path = parts.pop()
        try:
            if isinstance(part, Mapping | list | tuple | set | frozenset):
                if id(part) in seen:
                    continue  # The same object may occur twice, and a circular value contains itself.
                seen.add(id(part))
                key = next((key for key in part if isinstance(part, Mapping) and not isinstance(key, _KEYS)), None)
                if key is not None:
                    return f"{path} has a key of type {_name(key)}, which is not JSON serializable"
                parts.extend(reversed([(child, f"{path}[{at!r}]") for at, child in _children(part)]))
            encode_parts(None if isinstance(part, dict | list | tuple | set | frozenset) else part, 0)
        except UnicodeDecodeError:
            return f"{path} is bytes that are not valid UTF-8"
        except (TypeError, ValueError):
            return f"{path} is of type {_name(part)}, which is not JSON serializable"
        except RecursionError:
            return f"{path} is of type {_name(part)}, which contains itself or is nested too deeply"
        except Exception as error:  # noqa: BLE001 - as in dumps
            return f"{path} is of type {_name(part)}, which cannot be read: {type(error).__name__}: {safe_str(error)}"
    return f"{root} contains a circular reference"


def _children(container: Any) -> Iterable[tuple[Any, Any]]:
    return container.items() if isinstance(container, Mapping) else enumerate(container)


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
