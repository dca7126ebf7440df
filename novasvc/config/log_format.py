"""The format of access log lines, compatible with Nova's wsgi_log_format."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from novasvc.config.types import InvalidValueError, ValueType

NOVA_LOG_FORMAT = (
    '%(client_ip)s "%(request_line)s" status: %(status_code)s len: %(body_length)s time: %(wall_seconds).7f'
)
"""Nova's default."""

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
"""The fields that a format may use, with sample values of the right types to try a format with."""


def _format(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - every invalid value raises the same error
    if value.strip().lower() in {"", "none"}:
        return ""
    try:
        value % LOG_FIELDS
    except (KeyError, TypeError, ValueError) as error:
        problem = f"cannot be filled with the fields {', '.join(LOG_FIELDS)}: {type(error).__name__} {error}"
        raise InvalidValueError(problem, f"give a format such as {NOVA_LOG_FORMAT!r}") from None
    return value


LOG_FORMAT = ValueType('a format string, or "none"', _format, _format)
