"""RPC over HTTP: who speaks no AMQP calls the methods of nodes."""

from collections.abc import Mapping
from typing import Any

import attrs
from klein import Klein
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.api.access import Access, audit
from novasvc.api.answers import answer_error, answer_json, read_json
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.tokens import ADMIN
from novasvc.context import RequestContext, current_context
from novasvc.errors import (
    BrokerBlockedError,
    BrokerError,
    InvalidArgumentsError,
    InvalidTargetError,
    MessageFormatError,
    MethodTimeoutError,
    NoSuchMethodError,
    NovasvcError,
    RPCError,
    RPCTimeoutError,
    RPCVersionCapError,
    ServiceDrainingError,
    TooManyCallsError,
    TransportClosedError,
    TransportFullError,
    UnconfirmedError,
    UndeliverableError,
    UnsupportedVersionError,
)
from novasvc.rpc import Client
from novasvc.rpc.version import parse_version

_log = Logger()

MOST = 256
"""Calls of one API process that wait for a node at the same time; more get 503."""

SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 0.1, 600.0
"""Seconds that a call may ask for."""

_LONGEST_TEXT = 2000
"""Characters of what a method raised, in an answer."""

_BUSY = {"Retry-After": "1"}

_STATUSES: Mapping[type[BaseException], int] = {
    InvalidArgumentsError: 400,
    InvalidTargetError: 400,
    MessageFormatError: 400,
    RPCVersionCapError: 400,
    UnsupportedVersionError: 400,
    NoSuchMethodError: 404,
    # Nobody serves the topic, or not on that host: what the path names is not there. If the registry has it as up, 503.
    UndeliverableError: 404,
    RPCTimeoutError: 504,
    MethodTimeoutError: 504,
    # No 503, which invites to try again: the method may run.
    UnconfirmedError: 504,
    ServiceDrainingError: 503,
    TooManyCallsError: 503,
    TransportFullError: 503,
    TransportClosedError: 503,
    BrokerBlockedError: 503,
    BrokerError: 503,
}
"""What the errors of RPC are over HTTP. All others come from the method, or from its node: 502."""


@attrs.frozen
class _Call:
    """What a body asks for; all but ``args`` may be left out.

    :param args: for the method.
    :param host: the node that is to answer; None is any of the topic.
    :param namespace: of the interface.
    :param version: of the interface, "major.minor".
    :param timeout: seconds to wait for the result.
    :param cast: do not wait for a result.
    :param fanout: to every node of the topic, as a cast.
    :param idempotent: the method may run twice; see :class:`novasvc.rpc.Client`.
    """

    args: dict[str, Any] = attrs.field(factory=dict)
    host: str | None = None
    namespace: str | None = None
    version: str | None = None
    timeout: float | None = None
    cast: bool = False
    fanout: bool = False
    idempotent: bool = False

    @property
    def returns(self) -> bool:
        """Whether there is a result to wait for."""
        return not (self.cast or self.fanout)


class Gateway:
    """``POST /v1/rpc/{topic}/{method}``, for callers with the scope admin.

    That only exposed methods are called is the node's to say, as with every other caller: see
    :class:`novasvc.rpc.endpoint.Endpoints`.
    """

    app = Klein()

    def __init__(self, backend: Backend, access: Access) -> None:
        self._backend = backend
        self._access = access
        self._waiting = 0

    @app.route("/v1/rpc/<topic>/<method>", methods=["POST"])
    async def call(self, request: Any, topic: str, method: str) -> bytes:
        """Call a method.

        :return: JSON {"result": JSON}, with 200; of a cast {"result": None}, with 202.
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
        except BaseException as error:
            audit(request, caller, action, target, str(error) or "given up by the caller")
            raise
        audit(request, caller, action, target)
        return answer_json(request, {"result": result}, 200 if call.returns else 202)

    @app.handle_errors
    def refuse(self, request: Any, failure: Failure) -> bytes:  # type: ignore[misc]  # a method: klein types functions
        """Say what is wrong."""
        return answer_error(request, failure)

    async def _call(self, topic: str, method: str, call: _Call) -> Any:
        if self._waiting >= MOST:
            raise APIError(503, f"{MOST} calls wait for their nodes already; try again", _BUSY)
        client: Client = self._backend.client
        self._waiting += 1
        try:
            return await self._ask(client, topic, method, call)
        except (APIError, NovasvcError) as error:
            raise gateway_error(error) from error
        except Exception as error:
            # The transport gives back what the method raised, if Python itself has such an error.
            raise _raised(type(error).__name__, str(error)) from error
        finally:
            self._waiting -= 1

    async def _ask(self, client: Client, topic: str, method: str, call: _Call) -> Any:
        timeout = min(call.timeout or self._backend.settings.rpc_response_timeout, LONGEST_TIMEOUT)
        prepared = client.prepare(
            topic=topic,
            server=call.host,
            namespace=call.namespace,
            version=call.version,
            fanout=call.fanout,
            timeout=timeout,
            idempotent=call.idempotent,
        )
        own = current_context.get() or RequestContext()
        context = attrs.evolve(own, is_admin=True, deadline=self._backend.reactor.seconds() + timeout)
        send = prepared.call if call.returns else prepared.cast
        return await send(context, method, **call.args)


def read_call(body: Any) -> _Call:
    """Understand a request's body.

    :param body: JSON.
    :raises APIError: 400, it is none; the text says which part.
    """
    if not isinstance(body, dict):
        raise APIError(400, 'the body is to be an object, such as {"args": {"name": "load"}}')
    names = [field.name for field in attrs.fields(_Call)]
    for name in body:
        if name not in names:
            raise APIError(400, f"the body has {name[:100]!r}, and takes {', '.join(names)}")
    checks = {
        "args": ("an object", lambda value: isinstance(value, dict)),
        "host": ("a text", lambda value: isinstance(value, str) and value),
        "namespace": ("a text", lambda value: isinstance(value, str)),
        "version": ('a text such as "1.0"', _is_version),
        "timeout": (
            f"a number of seconds from {SHORTEST_TIMEOUT:g} to {LONGEST_TIMEOUT:g}",
            lambda value: (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and SHORTEST_TIMEOUT <= value <= LONGEST_TIMEOUT
            ),
        ),
        "cast": ("true or false", lambda value: isinstance(value, bool)),
        "fanout": ("true or false", lambda value: isinstance(value, bool)),
        "idempotent": ("true or false", lambda value: isinstance(value, bool)),
    }
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        wanted, fits = checks[name]
        if not fits(value):
            raise APIError(400, f"{name} is to be {wanted}")
    call = _Call(**given)
    if call.fanout and call.host is not None:
        raise APIError(400, "a fanout goes to every node of the topic; leave host out")
    return call


def _is_version(value: Any) -> bool:
    try:
        parse_version(value)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def gateway_error(error: Exception) -> APIError:
    """Return what an error of a call is over HTTP."""
    if isinstance(error, APIError):
        return error
    for kind, usual in _STATUSES.items():
        if isinstance(error, kind):
            status = 503 if isinstance(error, UndeliverableError) and error.up else usual
            return APIError(status, str(error)[:_LONGEST_TEXT], _BUSY if status == 503 else {})  # noqa: PLR2004
    if isinstance(error, RPCError):
        return APIError(502, str(error)[:_LONGEST_TEXT])
    return _raised(type(error).__name__, str(error))


def _raised(kind: str, text: str) -> APIError:
    return APIError(502, f"the method raised {kind}: {text}"[:_LONGEST_TEXT])
