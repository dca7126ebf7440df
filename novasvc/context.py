"""The request context: caller, request id and deadline."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import attrs

from novasvc import identifiers

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def new_request_id() -> str:
    """Make a request id of the form that OpenStack's services use and log: "req-" and a random UUID."""
    # Every call and every run of a task makes one, and uuid.uuid4() takes three times as long.
    octets = bytearray(identifiers.random_bytes(16))
    octets[6] = octets[6] & 0x0F | 0x40  # version 4
    octets[8] = octets[8] & 0x3F | 0x80  # the variant of RFC 9562
    digits = octets.hex()
    return f"req-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@attrs.frozen(kw_only=True)
class RequestContext:
    """The data that accompanies a request from its first caller to the last service it reaches.

    :param request_id: "req-" and a UUID; in every log event of the request. A context made while a request is
        served, or a periodic task runs, inherits that request id, so that its calls are recognised as part of the
        same operation. See :mod:`novasvc.rpc.server.admission`.
    :param user_id: the caller, if known.
    :param project_id: the project the caller acts for, if known.
    :param is_admin: whether the caller may do anything, as the sender says. Nothing verifies it; see
        ``@rpc.expose(allow=...)`` for callers that are verified.
    :param deadline: seconds on the clock of this process's reactor after which nobody waits for the answer; None
        if there is none. The absolute time does not cross the wire, because the clocks of two hosts differ.
    :param fencing: the fencing number of the lease, while a periodic task with scope="fleet" runs; else None. It does
        not cross the wire: pass it as an argument to whoever must refuse an earlier holder.
    :param extra: further entries that a peer sent, JSON values, passed on unchanged.
    :param report: takes what :meth:`progress` is given; None in a context that no RPC server made.
    """

    request_id: str = attrs.field(factory=lambda: _current_request_id() or new_request_id())
    user_id: str | None = None
    project_id: str | None = None
    is_admin: bool = False
    deadline: float | None = None
    fencing: int | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    _report: Callable[[float, str], None] | None = attrs.field(default=None, repr=False, eq=False, alias="report")

    @classmethod
    def admin(cls) -> Self:
        """Make the context of work without a caller, such as periodic tasks and hooks."""
        return cls(is_admin=True)

    def progress(self, fraction: float, text: str = "") -> None:
        """Report how far the method is: to its caller, if that asked for it, and to the page of its service.

        The caller gets at most two reports a second: of those between, only the latest. One that still waits when the
        method ends is dropped. A report counts as a keepalive. May be called from any thread. In a context that no RPC
        server made, such as that of a periodic task, it has no effect.

        :param fraction: from 0 to 1.
        :param text: what the method does now; cut after 200 characters.
        :raises ValueError: the fraction is not a number from 0 to 1, or the text is not a string.
        """
        if not is_fraction(fraction):
            raise ValueError(f"progress({fraction!r:.40}): the fraction is not a number from 0 to 1")
        if not isinstance(text, str):
            raise ValueError(f"progress({fraction!r}, {text!r:.40}): the text is not a string")  # noqa: TRY004 - as above
        if self._report is not None:
            self._report(float(fraction), text)

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
    def from_wire(
        cls,
        entries: Mapping[str, Any],
        deadline: float | None = None,
        report: Callable[[float, str], None] | None = None,
    ) -> Self:
        """Rebuild a context from a peer's entries; missing entries get their defaults.

        :param entries: names without the wire's prefix.
        :param deadline: as the attribute.
        :param report: as the attribute.
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
            report=report,
        )


current_context: ContextVar[RequestContext | None] = ContextVar("novasvc_request", default=None)
"""The context of the request that is being served; log events take their request id from it."""


@contextmanager
def without_deadline() -> Iterator[None]:
    """Begin work in this block that goes on after the request, or the run of a task, has been answered.

    Calls that are made in the block, and in coroutines that begin in it, do not end with the deadline of the current
    request. They keep its request id.
    """
    current = current_context.get()
    token = current_context.set(None if current is None else attrs.evolve(current, deadline=None, report=None))
    try:
        yield
    finally:
        current_context.reset(token)


def is_fraction(value: Any) -> bool:
    """Return whether a value is a number from 0 to 1; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def earlier(one: float | None, other: float | None) -> float | None:
    """Return the earlier of two deadlines; None is no deadline."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _current_request_id() -> str | None:
    context = current_context.get()
    return None if context is None else context.request_id
