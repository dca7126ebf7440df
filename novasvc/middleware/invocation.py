"""One invocation that middleware wraps: a call, a method's run, a handler's, a task's or an HTTP request."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from novasvc.context import RequestContext

CALL = "call"
CAST = "cast"
EMIT = "emit"
SERVE = "serve"
EVENT = "event"
TASK = "task"
HTTP = "http"

SENDING = frozenset({CALL, CAST, EMIT})
"""What this process sends: calls, casts (fanouts too) and events."""
RECEIVING = frozenset({SERVE, EVENT})
"""What this process runs because another one sent it: exposed methods and handlers of events."""
KINDS = SENDING | RECEIVING | {TASK, HTTP}
"""All kinds of invocations."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class Invocation:
    """What is about to happen. A middleware passes it on, or a copy that :func:`attrs.evolve` made.

    :param kind: one of KINDS.
    :param name: of the method, of the event ("order.placed"), of the task; the method of an HTTP request ("GET").
    :param context: the request's context, which is sent with a call and given to a method; None for HTTP.
    :param args: arguments by name. Those of a method have been checked; those of an event are its handlers' fields; an
        HTTP request has {"path": str, "query": str, "server": its name in the metrics}.
    :param topic: of the call's target, or of the server.
    :param server: the host that a call names, or None; of a run, the server's own.
    :param namespace: of the interface, or None.
    :param message_id: the id that the caller gave the call; None for a cast.
    :param headers: of an HTTP request, by name in lower case.
    """

    kind: str
    name: str
    context: RequestContext | None = None
    args: Mapping[str, Any] = _NOTHING
    topic: str = ""
    server: str | None = None
    namespace: str | None = None
    message_id: str | None = None
    headers: Mapping[str, str] = _NOTHING

    def __str__(self) -> str:
        return f"{self.kind} {self.topic}.{self.name}" if self.topic else f"{self.kind} {self.name}"
