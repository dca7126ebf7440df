"""The RPC gateway: calls methods of nodes over HTTP, for clients without AMQP."""

from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from novasvc.api.access import Access, audit
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.openapi import NULLABLE_STRING, Component, content, object_schema, operation
from novasvc.api.responses import json_response, make_app, read_json
from novasvc.api.tokens import ADMIN
from novasvc.context import RequestContext, current_context
from novasvc.rpc import Client
from novasvc.rpc.errors import (
    InvalidArgumentsError,
    InvalidTargetError,
    MessageFormatError,
    MethodTimeoutError,
    NoSuchMethodError,
    NotAllowedError,
    RemoteError,
    RPCError,
    RPCTimeoutError,
    RPCVersionCapError,
    ServiceDrainingError,
    TargetDownError,
    TooManyCallsError,
    TransportClosedError,
    TransportFullError,
    UnconfirmedError,
    UndeliverableError,
    UnsupportedVersionError,
)
from novasvc.rpc.failures.origin import origin_of, with_origin
from novasvc.rpc.version import parse_version
from novasvc.transport.errors import BrokerBlockedError, BrokerError

_log = Logger()

MAX_CALLS = 256
"""Concurrent calls of one API process; more get 503."""

MIN_TIMEOUT, MAX_TIMEOUT = 0.1, 600.0
"""Range of a call's timeout, in seconds."""

_MAX_TEXT = 2000
"""Characters of an error of a method, in a response."""

_BUSY = {"Retry-After": "1"}

_STATUSES: Mapping[type[BaseException], int] = {
    InvalidArgumentsError: 400,
    InvalidTargetError: 400,
    MessageFormatError: 400,
    RPCVersionCapError: 400,
    UnsupportedVersionError: 400,
    NoSuchMethodError: 404,
    NotAllowedError: 403,
    TargetDownError: 503,
    # No node serves the topic, or none on that host: the path names nothing. 503 if the registry lists one as up.
    UndeliverableError: 404,
    RPCTimeoutError: 504,
    MethodTimeoutError: 504,
    # Not 503, which invites a retry: the method may be running.
    UnconfirmedError: 504,
    ServiceDrainingError: 503,
    TooManyCallsError: 503,
    TransportFullError: 503,
    TransportClosedError: 503,
    BrokerBlockedError: 503,
    BrokerError: 503,
}
"""Statuses of RPC errors. Any other error is that of the method, or of its node: 502."""


_CALL_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "args": {"type": ["object", "null"], "description": "The method's arguments."},
    "host": {
        "type": ["string", "null"],
        "minLength": 1,
        "description": "The host of the node; if omitted, any node of the topic.",
    },
    "namespace": NULLABLE_STRING,
    "version": {"type": ["string", "null"], "pattern": r"^[0-9]{1,9}\.[0-9]{1,9}(\.[0-9]{1,9})?$"},
    "timeout": {
        "type": ["number", "null"],
        "minimum": MIN_TIMEOUT,
        "maximum": MAX_TIMEOUT,
        "description": "Seconds; rpc_response_timeout if omitted.",
    },
    "cast": {"type": ["boolean", "null"], "description": "Do not wait for the result."},
    "fanout": {"type": ["boolean", "null"], "description": "To every node of the topic; no result."},
    "idempotent": {
        "type": ["boolean", "null"],
        "description": "The method may run twice: a message that the broker did not confirm is sent again.",
    },
    "check_liveness": {
        "type": ["boolean", "null"],
        "description": "false: call a host even if its service is down according to the registry.",
    },
}
_CALL = Component("Call", object_schema({**_CALL_FIELDS}, *_CALL_FIELDS, closed=True))


@attrs.frozen
class _Call:
    """The body of a request; every field is optional.

    :param args: the method's arguments.
    :param host: the node to call; None is any node of the topic.
    :param namespace: namespace of the interface.
    :param version: version of the interface, "major.minor".
    :param timeout: seconds to wait for the result.
    :param cast: whether not to wait for a result.
    :param fanout: whether to cast to every node of the topic.
    :param idempotent: whether the method may run twice; see :class:`novasvc.rpc.Client`.
    :param check_liveness: whether a call to a host that is down fails at once, as there.
    """

    args: dict[str, Any] = attrs.field(factory=dict)
    host: str | None = None
    namespace: str | None = None
    version: str | None = None
    timeout: float | None = None
    cast: bool = False
    fanout: bool = False
    idempotent: bool = False
    check_liveness: bool = True

    @property
    def returns(self) -> bool:
        """Whether it has a result."""
        return not (self.cast or self.fanout)


class Gateway:
    """Serves ``POST /v1/rpc/{topic}/{method}``, for callers with the scope admin.

    The node decides which methods are exposed, as for every other RPC client: see
    :class:`novasvc.rpc.endpoint.Endpoints`.
    """

    app = make_app()

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._calls = 0

    @app.route("/v1/rpc/<topic>/<method>", methods=["POST"])
    @operation(
        "Call a method of a node",
        {
            200: content("The result.", json=object_schema({"result": {}})),
            202: content("The cast was sent.", json=object_schema({"result": {"type": "null"}})),
        },
        *(400, 401, 403, 404, 415, 502, 503, 504),
        path_parameters={"topic": "The topic of the node.", "method": "An exposed method."},
        body=_CALL,
    )
    async def call(self, request: Any, topic: str, method: str) -> bytes:
        """Call a method.

        :return: JSON {"result": JSON}, with 200; for a cast {"result": null}, with 202.
        """
        request.route = "/v1/rpc"
        caller = self._access.require(request)
        try:
            self._access.require(request, ADMIN)
        except APIError as error:
            audit(request, caller, "call", f"{topic}.{method}", error.message)
            raise
        call = read_call(read_json(request))
        target = f"{topic}.{method}" + (f" on {call.host}" if call.host else "")
        action = "call" if call.returns else "cast"
        try:
            result = await self._call(topic, method, call)
        except BaseException as error:  # also CancelledError: the method may be running, so the attempt is audited
            audit(request, caller, action, target, str(error) or "cancelled by the client")
            raise
        audit(request, caller, action, target)
        return json_response(request, {"result": result}, 200 if call.returns else 202)

    async def _call(self, topic: str, method: str, call: _Call) -> Any:
        if self._calls >= MAX_CALLS:
            raise APIError(503, f"{MAX_CALLS} calls are in progress already; try again", _BUSY)
        client: Client = self._backend.client
        self._calls += 1
        try:
            return await self._send(client, topic, method, call)
        except CancelledError:  # the client has disconnected: no error of the call
            raise
        except Exception as error:  # a method may raise anything, and the client raises it again
            raise gateway_error(error) from error
        finally:
            self._calls -= 1

    async def _send(self, client: Client, topic: str, method: str, call: _Call) -> Any:
        timeout = min(call.timeout or self._backend.settings.rpc_response_timeout, MAX_TIMEOUT)
        prepared = client.prepare(
            topic=topic,
            server=call.host,
            namespace=call.namespace,
            version=call.version,
            fanout=call.fanout,
            timeout=timeout,
            idempotent=call.idempotent,
            check_liveness=call.check_liveness,
        )
        current = current_context.get() or RequestContext()
        context = attrs.evolve(current, is_admin=True, deadline=self._backend.reactor.seconds() + timeout)
        send = prepared.call if call.returns else prepared.cast
        return await send(context, method, **call.args)


def read_call(body: Any) -> _Call:
    """Validate a request's body.

    :param body: JSON.
    :raises APIError: 400, it is invalid; the message names the field.
    """
    if not isinstance(body, dict):
        raise APIError(400, 'the body must be an object, such as {"args": {"name": "load"}}')
    names = [field.name for field in attrs.fields(_Call)]
    for name in body:
        if name not in names:
            raise APIError(400, f"unknown field {name[:100]!r}; the fields are {', '.join(names)}")
    checks = {
        "args": ("an object", lambda value: isinstance(value, dict)),
        "host": ("a string", lambda value: isinstance(value, str) and value),
        "namespace": ("a string", lambda value: isinstance(value, str)),
        "version": ('a string such as "1.0"', _is_version),
        "timeout": (
            f"a number of seconds from {MIN_TIMEOUT:g} to {MAX_TIMEOUT:g}",
            lambda value: (
                isinstance(value, int | float) and not isinstance(value, bool) and MIN_TIMEOUT <= value <= MAX_TIMEOUT
            ),
        ),
        "cast": ("true or false", lambda value: isinstance(value, bool)),
        "fanout": ("true or false", lambda value: isinstance(value, bool)),
        "idempotent": ("true or false", lambda value: isinstance(value, bool)),
        "check_liveness": ("true or false", lambda value: isinstance(value, bool)),
    }
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        expected, fits = checks[name]
        if not fits(value):
            raise APIError(400, f"{name} must be {expected}")
    call = _Call(**given)
    if call.fanout and call.host is not None:
        raise APIError(400, "a fanout goes to every node of the topic; omit host")
    return call


def _is_version(value: Any) -> bool:
    try:
        parse_version(value)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def gateway_error(error: Exception) -> APIError:
    """Return the APIError for an error of a call."""
    if isinstance(error, APIError):
        return error
    status = next((usual for kind, usual in _STATUSES.items() if isinstance(error, kind)), 502)
    if isinstance(error, UndeliverableError) and error.up:
        status = 503
    name, text = type(error).__name__, str(error)
    if isinstance(error, TargetDownError):
        text = error.explain('"check_liveness": false')
    if isinstance(error, RemoteError):
        name, text = error.exc_type, error.value
    if isinstance(error, RemoteError) or not isinstance(error, RPCError):
        text = f"the method raised {name}: {text}"
    message = with_origin(error, text)[:_MAX_TEXT]
    headers = _BUSY if status == 503 else {}  # noqa: PLR2004 - of HTTP
    origin = origin_of(error)
    if origin is None:
        return APIError(status, message, headers)
    details = {**origin.to_json(), "through": [each.to_json() for each in origin.through]}
    return APIError(status, message, headers, {"exception": name, "origin": details})
