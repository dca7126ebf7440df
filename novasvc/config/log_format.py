"""The form of a line of the access log, as Nova's wsgi_log_format has it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from novasvc.config.types import InvalidValueError, ValueType

NOVA_LOG_FORMAT = (
    '%(client_ip)s "%(request_line)s" status: %(status_code)s len: %(body_length)s time: %(wall_seconds).7f'
)
"""What it is by default."""
LOG_FIELDS: Mapping[str, Any] = MappingProxyType(
    {
        "client_ip": "",
        "client_port": 0,
        "date_time": "",
        "request_line": "",
        "status_code": 0,
        "body_length": 0,
        "wall_seconds": 0.0,
    }
)
"""What a form may name, with values that are like those it gets."""


def _format(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - one kind of error for whatever is wrong with a value
    if value.strip().lower() in {"", "none"}:
        return ""
    try:
        value % LOG_FIELDS
    except (KeyError, TypeError, ValueError) as error:
        problem = f"it does not fill the fields {', '.join(LOG_FIELDS)}: {type(error).__name__} {error}"
        raise InvalidValueError(problem, f"give one such as {NOVA_LOG_FORMAT!r}") from None
    return value


LOG_FORMAT = ValueType('a format, or "none"', _format, _format)
