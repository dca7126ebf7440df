"""The request context: caller, request id and deadline."""

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Self

import attrs

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def new_request_id() -> str:
    """Make a request id of the form that OpenStack's services use and log: "req-" and a random UUID."""
    # Every call and every run of a task makes one, and uuid.uuid4() takes three times as long.
    octets = bytearray(os.urandom(16))
    octets[6] = octets[6] & 0x0F | 0x40  # version 4
    octets[8] = octets[8] & 0x3F | 0x80  # the variant of RFC 9562
    digits = octets.hex()
    return f"req-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@attrs.frozen(kw_only=True)
class RequestContext:
    """The data that accompanies a request from its first caller to the last service it reaches.

    :param request_id: "req-" and a UUID; in every log event of the request. A context made while a request is
        served, or a periodic task runs, inherits that request id, so that its calls are recognised as part of the
        same operation. See :mod:`novasvc.rpc.admission`.
    :param user_id: the caller, if known.
    :param project_id: the project the caller acts for, if known.
    :param is_admin: whether the caller may do anything, as the sender says. Nothing verifies it; see
        ``@rpc.expose(allow=...)`` for callers that are verified.
    :param deadline: seconds on the clock of this process's reactor after which nobody waits for the answer; None
        if there is none. The absolute time does not cross the wire, because the clocks of two hosts differ.
    :param extra: further entries that a peer sent, JSON values, passed on unchanged.
    """

    request_id: str = attrs.field(factory=lambda: _current_request_id() or new_request_id())
    user_id: str | None = None
    project_id: str | None = None
    is_admin: bool = False
    deadline: float | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def admin(cls) -> Self:
        """Make the context of work without a caller, such as periodic tasks and hooks."""
        return cls(is_admin=True)

    def to_wire(self) -> dict[str, Any]:
        """Return the entries to send: names without the wire's prefix, JSON values."""
        return {
            **self.extra,
            "request_id": self.request_id,
            "user_id": self.user_id,
            "project_id": self.project_id,
            "is_admin": self.is_admin,
        }

    @classmethod
    def from_wire(cls, entries: Mapping[str, Any], deadline: float | None = None) -> Self:
        """Rebuild a context from a peer's entries; missing entries get their defaults.

        :param entries: names without the wire's prefix.
        :param deadline: as the attribute.
        """
        extra = dict(entries)
        request_id = extra.pop("request_id", None)
        # The id is logged, so a peer must not be able to inject line breaks or long text.
        valid = isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id) is not None
        return cls(
            request_id=request_id if valid and isinstance(request_id, str) else new_request_id(),
            user_id=extra.pop("user_id", None),
            project_id=extra.pop("project_id", None),
            is_admin=extra.pop("is_admin", None) is True,
            deadline=deadline,
            extra=extra,
        )


current_context: ContextVar[RequestContext | None] = ContextVar("novasvc_request", default=None)
"""The context of the request that is being served; log events take their request id from it."""


def _current_request_id() -> str | None:
    context = current_context.get()
    return None if context is None else context.request_id
