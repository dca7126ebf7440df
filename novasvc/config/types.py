"""The value types of settings: how each is parsed from text and from TOML or Python values."""

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from novasvc.config.transport_url import BOOLEAN_WORDS, BrokerAddress

_DATABASES = ("sqlite", "postgresql", "mysql", "mariadb")


@attrs.define
class InvalidValueError(ValueError):
    """A value that its type does not allow.

    :param problem: what is wrong with it.
    :param remedy: what to give instead; None to use the type's own description.
    """

    problem: str
    remedy: str | None = None


@attrs.frozen
class ValueType:
    """How values of one type are parsed.

    Both parsers raise ValueError for an invalid value, or InvalidValueError to give a better reason.

    :param expected: noun phrase that follows "is not" and "give" in errors: "a whole number".
    :param from_text: parses the text of an INI file, a variable or an option.
    :param from_typed: parses a value of a TOML file or of Python.
    """

    expected: str
    from_text: Callable[[str], Any]
    from_typed: Callable[[object], Any]

    def read(self, value: object, *, textual: bool) -> Any:
        """Parse a value.

        :param textual: the source knows only text: an INI file, a variable or an option.
        :raises InvalidValueError: the value is invalid.
        """
        try:
            return self.from_text(value) if textual and isinstance(value, str) else self.from_typed(value)
        except InvalidValueError:
            raise
        except (ValueError, OverflowError):  # an integer may be too large for a float
            problem = f"is not {self.expected}"
            raise InvalidValueError(problem) from None


def _nonempty_text(value: object) -> str:
    # The system's calls and the databases take no NUL.
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - every invalid value raises the same error
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _share(value: object) -> float:
    share = _number(value)
    if not 0 <= share <= 1:
        raise ValueError
    return share


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004
    return value


def _boolean_from_text(text: str) -> bool:
    if text.lower() not in BOOLEAN_WORDS:
        raise ValueError
    return BOOLEAN_WORDS[text.lower()]


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    try:
        return Path(_nonempty_text(value)).expanduser().absolute()
    except RuntimeError as error:
        problem = f"cannot be resolved: {error}"
        raise InvalidValueError(problem, "give an absolute path") from None


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError  # noqa: TRY004
    return dict(value)


def _pattern(expression: str) -> Callable[[object], str]:
    compiled = re.compile(expression)

    def read(value: object) -> str:
        if not compiled.fullmatch(_nonempty_text(value)):
            raise ValueError
        return str(value)

    return read


def _transport_url(value: object) -> str:
    url = _nonempty_text(value)
    scheme = url.partition(":")[0].lower()
    if scheme == "memory":
        return "memory:"
    remedy = 'give "amqp://user:password@host/vhost" for RabbitMQ, or "memory:" for the processes of one host'
    if ":" not in url:
        raise InvalidValueError("has no scheme", remedy)
    try:
        BrokerAddress.parse(url)
    except ValueError as error:
        raise InvalidValueError(str(error), remedy) from None
    return url


def _database_url(value: object) -> str:
    url = _nonempty_text(value)
    remedy = (
        'give a URL such as "sqlite:////var/lib/novasvc/novasvc.sqlite" or "postgresql://user:password@host/novasvc"'
    )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        problem = 'is not a valid URL (a "@", "/", "[" or "]" in the password must be percent-encoded)'
        raise InvalidValueError(problem, remedy) from None
    dialect = parts.scheme.partition("+")[0] if "://" in url else ""
    if dialect not in _DATABASES:
        problem = f"has the unsupported scheme {dialect!r}" if dialect else 'does not start with "scheme://"'
        raise InvalidValueError(problem, remedy)
    if dialect == "sqlite" and parts.netloc:
        problem = "needs three slashes before the path of the SQLite file"
        raise InvalidValueError(problem, remedy)
    if dialect == "sqlite" and parts.path in {"", "/", "/:memory:"}:
        problem = "names an in-memory database, which every thread would see as a separate database"
        raise InvalidValueError(problem, remedy)
    if dialect != "sqlite" and not parts.path.strip("/"):
        problem = "names no database"
        raise InvalidValueError(problem, remedy)
    return url


def _address(value: object) -> str:
    address = _nonempty_text(value)
    if address != "localhost":
        ipaddress.ip_address(address)
    return address


def _port(value: object) -> int:
    port = _integer(value)
    if port not in range(65536):
        raise ValueError
    return port


def choice(*words: str) -> ValueType:
    """Return the type of values that are one of these words."""

    def read(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return ValueType(" or ".join(f'"{word}"' for word in words), read, read)


def _apis(value: object) -> tuple[str, ...]:
    # oslo.config, too, allows a trailing comma in lists.
    names = value.strip().rstrip(",").split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        raise ValueError  # noqa: TRY004
    names = [name.strip() if isinstance(name, str) else name for name in names]
    if names in ([""], ["none"]):
        return ()
    found = tuple(_api(name) for name in names)
    if len(set(found)) < len(found):
        raise InvalidValueError("contains a name twice", "give each name once")
    return found


def _list_of(read: Callable[[object], str], noun: str) -> Callable[[object], tuple[str, ...]]:
    """Return the parser of a list whose elements are different; "none" is the empty list."""

    def read_list(value: object) -> tuple[str, ...]:
        names = value.strip().rstrip(",").split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            raise ValueError  # noqa: TRY004
        names = [name.strip() if isinstance(name, str) else name for name in names]
        if names in ([], [""], ["none"]):
            return ()
        found = tuple(read(name) for name in names)
        if len(set(found)) < len(found):
            raise InvalidValueError(f"contains a {noun} twice", f"give each {noun} once")
        return found

    return read_list


_api = _pattern(r"[A-Za-z]\w{0,63}")
_name = _pattern(r"[A-Za-z0-9._-]{1,255}")
_class = _pattern(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*")
_identity = _pattern(r"[A-Za-z0-9._@-]{1,64}")
_classes, _names, _identities = _list_of(_class, "class"), _list_of(_name, "name"), _list_of(_identity, "identity")

INTEGER = ValueType("a whole number", lambda text: _integer(int(text)), _integer)
NUMBER = ValueType("a number", lambda text: _number(float(text)), _number)
SHARE = ValueType("a number from 0 to 1", lambda text: _share(float(text)), _share)
BOOLEAN = ValueType("true or false", _boolean_from_text, _boolean)
PATH = ValueType("a path", _path, _path)
NAME = ValueType("a name of 1 to 255 letters, digits, dots, dashes and underscores", _name, _name)
CLASS = ValueType('a class name such as "package.module.Class" or "package.module:Class"', _class, _class)
CLASSES = ValueType('a list of class names such as "package.module.Class"', _classes, _classes)
NAMES = ValueType("a list of names of letters, digits, dots, dashes and underscores", _names, _names)
IDENTITIES = ValueType("a list of identities of rpc_callers_file", _identities, _identities)
TABLE = ValueType("a table", _table, _table)
APIS = ValueType("a list of names separated by commas", _apis, _apis)
TRANSPORT_URL = ValueType("a transport URL", _transport_url, _transport_url)
ADDRESS = ValueType('an address to listen on, such as "127.0.0.1", "::1" or "0.0.0.0"', _address, _address)
PORT = ValueType("a port from 0 to 65535", lambda text: _port(int(text)), _port)
DATABASE_URL = ValueType("a database URL", _database_url, _database_url)
