"""Requested changes of a service, validated as Nova does and with its error messages."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from novasvc.api.errors import APIError
from novasvc.api.microversion import Microversion
from novasvc.api.openapi import STRING, Component, object_schema
from novasvc.api.responses import media_type
from novasvc.registry.record import ServiceChanges

FORCED_DOWN_SINCE = Microversion(2, 11)
"""Adds the action force-down. Source: Nova's REST API version history."""

_MAX_TEXT = 255
"""Characters of a text column."""
_MAX_SHOWN = 300
"""Characters of clients' text in a message."""
_HOST = "^[a-zA-Z0-9-._]*$"
_TRUE = (True, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t")
_FALSE = (False, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f")
_MEDIA_TYPES = (b"application/json", b"application/vnd.openstack.compute+json")

_Check = Callable[[Any], str | None]
"""Returns why a value is invalid, or None."""


# -- values --------------------------------------------------------------------------------------


def _string(value: Any) -> str | None:
    if type(value) is not str:
        return f"{value!r} is not of type 'string'"
    if not value:
        return "'' is too short"
    if len(value) > _MAX_TEXT:
        return f"{value!r} is too long"
    # JSON can escape NUL and lone surrogates, but PostgreSQL accepts no NUL, and UTF-8 has no surrogates.
    if "\0" in value or not _is_unicode(value):
        return f"{value!r} contains invalid characters"
    return None


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _host(value: Any) -> str | None:
    problem = _string(value)
    if problem is None and re.fullmatch(_HOST[1:-1], value) is None:
        return f"{value!r} does not match {_HOST!r}"
    return problem


def _flag(value: Any) -> str | None:
    if type(value) not in {bool, str}:
        return f"{value!r} is not of type 'boolean', 'string'"
    return None if value in (*_TRUE, *_FALSE) else f"{value!r} is not one of {[*_TRUE, *_FALSE]}"


def _status(value: Any) -> str | None:
    if type(value) is not str:
        return f"{value!r} is not of type 'string'"
    return None if value in {"enabled", "disabled"} else f"{value!r} is not one of ['enabled', 'disabled']"


_OLD: Mapping[str, _Check] = {"host": _host, "binary": _string, "disabled_reason": _string}
_OLD_FORCED: Mapping[str, _Check] = {**_OLD, "forced_down": _flag}
_NEW: Mapping[str, _Check] = {"status": _status, "disabled_reason": _string, "forced_down": _flag}

_TEXT_SCHEMA = {**STRING, "minLength": 1, "maxLength": _MAX_TEXT}
_FLAG_SCHEMA = {"type": ["boolean", "string"]}
OLD_CHANGE = Component(
    "OldChange",
    object_schema(
        {"host": _TEXT_SCHEMA, "binary": _TEXT_SCHEMA, "disabled_reason": _TEXT_SCHEMA, "forced_down": _FLAG_SCHEMA},
        *("disabled_reason", "forced_down"),
        closed=True,
    ),
)
NEW_CHANGE = Component(
    "NewChange",
    object_schema(
        {
            "status": {"enum": ["enabled", "disabled"]},
            "disabled_reason": _TEXT_SCHEMA,
            "forced_down": _FLAG_SCHEMA,
        },
        *("status", "disabled_reason", "forced_down"),
        closed=True,
    ),
)


# -- bodies --------------------------------------------------------------------------------------


def read_body(request: Any) -> Any:
    """Return the JSON of a request's body.

    :raises APIError: 415 if its media type is another one, 400 if it is malformed.
    """
    octets = request.content.read()
    # A defence against CSRF, as in novasvc.api.responses.read_json.
    if octets and media_type(request) not in _MEDIA_TYPES:
        raise APIError(415, "Unsupported Content-Type")
    try:
        return json.loads(octets)
    except (ValueError, RecursionError):
        raise APIError(400, "Malformed request body") from None


def check_keys(given: Any, known: Any) -> None:
    """Reject unknown keys.

    :raises APIError: 400, there are some.
    """
    unknown = sorted({*given} - {*known})
    if unknown:
        names = ", ".join(repr(name[:_MAX_SHOWN]) for name in unknown[:10])
        were = "was" if len(unknown) == 1 else "were"
        raise APIError(400, f"Additional properties are not allowed ({names} {were} unexpected)")


def _checked(body: Any, checks: Mapping[str, _Check], required: tuple[str, ...] = ()) -> dict[str, Any]:
    if type(body) is not dict:
        raise APIError(400, f"{body!r} is not of type 'object'"[:_MAX_SHOWN])
    for name, check in checks.items():
        problem = check(body[name]) if name in body else None
        if problem is not None:
            value = str(body[name])[:_MAX_SHOWN]
            message = f"Invalid input for field/attribute {name}. Value: {value}. {problem[: 2 * _MAX_SHOWN]}"
            raise APIError(400, message.encode("utf-8", "backslashreplace").decode())
    for name in required:
        if name not in body:
            raise APIError(400, f"{name!r} is a required property")
    check_keys(body, checks)
    return body


@attrs.frozen
class OldChange:
    """A change requested by an action, as before 2.53: PUT os-services/disable.

    :param host: host of the service.
    :param binary: binary of the service.
    :param shown: fields of the service in the response besides host and binary.
    """

    host: str
    binary: str
    changes: ServiceChanges
    shown: Mapping[str, Any]


def read_old(action: str, body: Any, version: Microversion, *, lenient: bool = False) -> OldChange:
    """Read the body of an action.

    :param action: "enable", "disable", "disable-log-reason", or, since 2.11, "force-down".
    :param body: JSON.
    :param lenient: ignore unknown keys, as ``/v2`` does.
    :raises APIError: 400, it is invalid; 404, the action is unknown.
    """
    checks = _OLD if version < FORCED_DOWN_SINCE else _OLD_FORCED
    if lenient and type(body) is dict:
        body = {name: value for name, value in body.items() if name in checks}
    given = _checked(body, checks, ("host", "binary"))
    reason = given.get("disabled_reason")
    shown: dict[str, Any] = {"status": "disabled"}
    if action == "enable":
        changes, shown = ServiceChanges(disabled=False), {"status": "enabled"}
    elif action == "disable":
        changes = ServiceChanges(disabled=True)
    elif action == "disable-log-reason":
        if reason is None:
            raise APIError(400, "Missing disabled reason field")
        changes = ServiceChanges(disabled=True, disabled_reason=reason)
        shown["disabled_reason"] = reason
    elif action == "force-down" and version >= FORCED_DOWN_SINCE:
        if "forced_down" not in given:
            raise APIError(400, "Missing forced_down field")
        forced = given["forced_down"] in _TRUE
        changes, shown = ServiceChanges(forced_down=forced), {"forced_down": forced}
    else:
        raise APIError(404, "Unknown action")
    return OldChange(given["host"], given["binary"], changes, shown)


@attrs.frozen
class NewChange:
    """A change requested by the body of a PUT of a uuid, as since 2.53."""

    status: str | None
    reason: str | None
    forced_down: bool | None

    def changes(self) -> ServiceChanges:
        """Return the changes of the row.

        :raises APIError: 400, there are none, or they contradict each other.
        """
        if self.status is None and self.forced_down is None:
            message = "No updates were requested. Fields 'status' or 'forced_down' should be specified."
            raise APIError(400, message)
        if self.status == "enabled" and self.reason is not None:
            raise APIError(400, "Specifying 'disabled_reason' with status 'enabled' is invalid.")
        disabled = None if self.status is None else self.status == "disabled"
        return ServiceChanges(
            disabled=disabled, disabled_reason=self.reason if disabled else None, forced_down=self.forced_down
        )


def read_new(body: Any) -> NewChange:
    """Read the body of an update.

    :param body: JSON.
    :raises APIError: 400, it is invalid.
    """
    given = _checked(body, _NEW)
    forced = given.get("forced_down")
    return NewChange(given.get("status"), given.get("disabled_reason"), None if forced is None else forced in _TRUE)


def describe_changes(changes: ServiceChanges) -> str:
    """Describe a change for the audit log: "disable, force down"."""
    verbs = []
    if changes.disabled is not None:
        verbs.append("disable" if changes.disabled else "enable")
    if changes.forced_down is not None:
        verbs.append("force down" if changes.forced_down else "unset forced down")
    return ", ".join(verbs) or "change nothing of"
