"""The kinds of values that settings have, and how each is read from text and from a typed file."""

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


class InvalidValueError(ValueError):
    """A value that a setting cannot have.

    :param problem: what is wrong with it.
    :param remedy: what would be right; None leaves it to the kind.
    """

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


@attrs.frozen
class ValueType:
    """One kind of value.

    :param expected: what it must be, to follow "is not" and "give": "a whole number".
    :param from_text: reads the text of an INI file, a variable or an option.
    :param from_typed: reads a value of a TOML file or of Python.

    Both raise ValueError for what is not of the kind, or InvalidValueError to say it better.
    """

    expected: str
    from_text: Callable[[str], Any]
    from_typed: Callable[[object], Any]

    def read(self, value: object, *, textual: bool) -> Any:
        """Return the value as its kind.

        :param textual: where it comes from has nothing but texts.
        :raises InvalidValueError: it is not of this kind.
        """
        try:
            return self.from_text(value) if textual and isinstance(value, str) else self.from_typed(value)
        except InvalidValueError:
            raise
        except ValueError:
            problem = f"is not {self.expected}"
            raise InvalidValueError(problem) from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - one kind of error for whatever is wrong with a value
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


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
        return Path(_text(value)).expanduser().absolute()
    except RuntimeError as error:
        problem = f"has no meaning here: {error}"
        raise InvalidValueError(problem, "give the whole path") from None


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError  # noqa: TRY004
    return dict(value)


def _pattern(expression: str) -> Callable[[object], str]:
    compiled = re.compile(expression)

    def read(value: object) -> str:
        if not compiled.fullmatch(_text(value)):
            raise ValueError
        return str(value)

    return read


def _transport_url(value: object) -> str:
    url = _text(value)
    scheme = url.partition(":")[0].lower()
    if scheme == "memory":
        return url
    remedy = 'give "amqp://user:password@host/vhost" for RabbitMQ, or "memory:" for the nodes of one process'
    if ":" not in url:
        raise InvalidValueError("it has no scheme", remedy)
    try:
        BrokerAddress.parse(url)
    except ValueError as error:
        raise InvalidValueError(str(error), remedy) from None
    return url


def _database_url(value: object) -> str:
    url = _text(value)
    remedy = (
        'give a URL such as "sqlite:////var/lib/novasvc/novasvc.sqlite" or "postgresql://user:password@host/novasvc"'
    )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        problem = 'it cannot be read as a URL (a "@", "/", "[" or "]" in the password must be percent-encoded)'
        raise InvalidValueError(problem, remedy) from None
    dialect = parts.scheme.partition("+")[0] if "://" in url else ""
    if dialect not in _DATABASES:
        problem = f"no database is known for the scheme {dialect!r}" if dialect else 'it does not begin as "scheme://"'
        raise InvalidValueError(problem, remedy)
    if dialect == "sqlite" and parts.netloc:
        problem = "the path of a file begins after three slashes"
        raise InvalidValueError(problem, remedy)
    if dialect == "sqlite" and parts.path in {"", "/", "/:memory:"}:
        problem = "a database in memory would be another one in every thread"
        raise InvalidValueError(problem, remedy)
    if dialect != "sqlite" and not parts.path.strip("/"):
        problem = "it names no database"
        raise InvalidValueError(problem, remedy)
    return url


def _address(value: object) -> str:
    address = _text(value)
    if address != "localhost":
        ipaddress.ip_address(address)
    return address


def _port(value: object) -> int:
    port = _integer(value)
    if port not in range(65536):
        raise ValueError
    return port


def choice(*words: str) -> ValueType:
    """Make the kind of a value that is one of these words."""

    def read(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return ValueType(" or ".join(f'"{word}"' for word in words), read, read)


def _apis(value: object) -> tuple[str, ...]:
    # A comma at the end ends the last name, as in lists of oslo.config.
    names = value.strip().rstrip(",").split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        raise ValueError  # noqa: TRY004
    names = [name.strip() if isinstance(name, str) else name for name in names]
    if names in ([""], ["none"]):
        return ()
    found = tuple(_api(name) for name in names)
    if len(set(found)) < len(found):
        raise InvalidValueError("it names one twice", "name each once")
    return found


_api = _pattern(r"[A-Za-z]\w{0,63}")
_name = _pattern(r"[A-Za-z0-9._-]{1,255}")
_class = _pattern(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*")

TEXT = ValueType("a text that is not empty", _text, _text)
INTEGER = ValueType("a whole number", lambda text: _integer(int(text)), _integer)
NUMBER = ValueType("a number", lambda text: _number(float(text)), _number)
BOOLEAN = ValueType("true or false", _boolean_from_text, _boolean)
PATH = ValueType("a path", _path, _path)
NAME = ValueType("a name of 1 to 255 letters, digits, dots, dashes and underscores", _name, _name)
CLASS = ValueType('the name of a class, such as "package.module.Class" or "package.module:Class"', _class, _class)
TABLE = ValueType("a table", _table, _table)
APIS = ValueType("a list of names, with commas between them", _apis, _apis)
TRANSPORT_URL = ValueType("the URL of a transport", _transport_url, _transport_url)
ADDRESS = ValueType('an address of this host, such as "127.0.0.1", "::1" or "0.0.0.0"', _address, _address)
PORT = ValueType("a port, 0 to 65535", lambda text: _port(int(text)), _port)
DATABASE_URL = ValueType("the URL of a database", _database_url, _database_url)
