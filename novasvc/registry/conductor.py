"""The registry over RPC, for nodes that may not reach the database.

A conductor, which reaches the database, answers (:class:`Conductor`); other nodes call it
(:class:`RemoteRegistry`). This module also defines how rows are encoded.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import wraps
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from zope.interface import implementer

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.interfaces import IServiceRegistry
from novasvc.manager import Manager
from novasvc.registry.errors import DatabaseError, DatabaseUnavailableError, ServiceNotFoundError
from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
from novasvc.registry.record import Records, ServiceChanges, ServiceRecord
from novasvc.rpc.errors import (
    InvalidArgumentsError,
    MethodTimeoutError,
    NoSuchMethodError,
    RPCTimeoutError,
    ServiceDrainingError,
    TooManyCallsError,
    TransportClosedError,
    TransportFullError,
    UnconfirmedError,
    UndeliverableError,
    UnsupportedVersionError,
)
from novasvc.transport.errors import BrokerError

TOPIC = "conductor"
NAMESPACE, VERSION, PAGES, PROOF = "registry", "1.0", "1.1", "1.2"
"""PAGES is the first version with page and count, PROOF the first with prove_writable."""

TIMEOUT = 20.0
"""Seconds for a call: more than the database's own timeout, so that the database's error is returned."""

_OUTAGES: Mapping[type[Exception], str] = {
    MethodTimeoutError: "its database did not answer in time",
    RPCTimeoutError: "it did not answer in time",
    ServiceDrainingError: "it is draining",
    TooManyCallsError: "too many calls wait for it",
    TransportClosedError: "the connection to it was closed",
    TransportFullError: "too many messages wait for it already",
    UnconfirmedError: "the connection to the broker was lost meanwhile",
    UndeliverableError: f"no node serves the topic {TOPIC!r}",
    BrokerError: "the broker is unavailable, or refused the call",
}
"""Errors that a later call may not meet, with the problem to report: they count as an outage."""

_T = TypeVar("_T")
_Operation = TypeVar("_Operation", bound=Callable[..., Any])


# -- encoding ----------------------------------------------------------------------------------


def _types(annotation: Any) -> tuple[type, ...]:
    """Return the types that an annotation allows: two for ``str | None``."""
    origin = get_origin(annotation)
    if origin is Literal:
        return (str,)
    return (origin,) if origin is dict else get_args(annotation) or (annotation,)


def _fields(kind: Any) -> dict[str, tuple[type, ...]]:
    return {field.name: _types(field.type) for field in attrs.fields(kind)}


_FIELDS, _QUERY, _TOTALS = _fields(ServiceRecord), _fields(ServiceQuery), _fields(ServiceTotals)


def _checked(name: str, value: Any, types: tuple[type, ...]) -> Any:
    """Check the type of a received value, and convert it: int to float, ISO text to datetime.

    :raises ValueError: the value has none of the types.
    """
    if type(value) in types:  # isinstance() would accept True as an int
        return value
    if float in types and type(value) is int:
        return float(value)
    if datetime in types and type(value) is str:
        stamp = datetime.fromisoformat(value)
        if stamp.tzinfo is None:
            return stamp
    wanted = " or ".join(kind.__name__ for kind in types)
    raise ValueError(f"{name} is {type(value).__name__}, not {wanted}")


def _write(record: ServiceRecord) -> dict[str, Any]:
    return attrs.asdict(record)  # the JSON encoder writes datetimes as ISO 8601


def _read_fields(name: str, value: Any, fields: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Read an object's fields. Unknown fields come from a newer conductor, and are ignored."""
    found = _checked(name, value, (dict,))
    missing = fields.keys() - found.keys()
    if missing:
        raise ValueError(f"{name} has no {', '.join(sorted(missing))}")
    return {name: _checked(name, found[name], types) for name, types in fields.items()}


def _read(value: Any) -> ServiceRecord:
    return ServiceRecord(**_read_fields("row", value, _FIELDS))


def _read_all(value: Any) -> Records:
    return [_read(row) for row in _checked("answer", value, (list,))]


def _read_page(value: Any) -> ServicePage:
    page = _read_fields("page", value, {"rows": (list,), "more": (bool,)})
    return ServicePage(_read_all(page["rows"]), page["more"])


def _read_totals(value: Any) -> ServiceTotals:
    return ServiceTotals(**_read_fields("totals", value, _TOTALS))


def _read_query(method: str, query: Mapping[str, Any]) -> ServiceQuery:
    """Read a node's query.

    :raises InvalidArgumentsError: a field is unknown, or has the wrong type.
    """
    unknown = query.keys() - _QUERY.keys()
    if unknown:
        raise InvalidArgumentsError(method, f"query has unknown fields: {', '.join(sorted(unknown))}")
    try:
        return ServiceQuery(**{name: _checked(name, value, _QUERY[name]) for name, value in query.items()})
    except ValueError as error:
        raise InvalidArgumentsError(method, str(error)) from None


def _read_nothing(value: Any) -> None:
    _checked("answer", value, (NoneType,))


# -- server ------------------------------------------------------------------------------------


def _operation(*, idempotent: bool, version: str = VERSION) -> Callable[[_Operation], _Operation]:
    """Expose a method, and check its arguments against the types of its signature."""

    def decorate(function: _Operation) -> _Operation:
        types = {name: _types(annotation) for name, annotation in function.__annotations__.items()}

        @wraps(function)
        def checked(self: "Conductor", context: RequestContext, **args: Any) -> Any:
            try:
                args = {name: _checked(name, value, types[name]) for name, value in args.items()}
            except ValueError as error:
                raise InvalidArgumentsError(function.__name__, str(error)) from None
            return function(self, context, **args)

        expected = (DatabaseError, ServiceNotFoundError, InvalidArgumentsError)
        exposed = rpc.expose(namespace=NAMESPACE, version=version, idempotent=idempotent, expected=expected)
        return cast(_Operation, exposed(checked))

    return decorate


class Conductor(Manager):
    """Serves :class:`novasvc.interfaces.IServiceRegistry` in the RPC namespace "registry".

    Rows are objects with the fields of :class:`novasvc.registry.record.ServiceRecord`, time stamps in ISO 8601.
    Source: nova.conductor.manager.ConductorManager.
    """

    # Note [What a conductor may do twice]
    #
    # After a crash of a conductor, another one repeats the idempotent operations. A second register
    # finds the row of the first. A second beat counts one too many, and the node was alive. A second
    # delete finds no row, as intended, and ids are never reused. But a second update could undo
    # what an operator has changed since the first, so update is not idempotent.

    @_operation(idempotent=True)
    async def register(
        self, context: RequestContext, host: str, binary: str, topic: str | None, version: int
    ) -> dict[str, Any]:
        """Return the row of (host, binary), created if there is none."""
        return _write(await self.attachments.registry.register(host, binary, topic, version))

    @_operation(idempotent=True)
    def beat(self, context: RequestContext, service_id: int) -> Deferred[None]:
        """Write a heartbeat."""
        return self.attachments.registry.beat(service_id)

    @_operation(idempotent=True, version=PROOF)
    def prove_writable(self, context: RequestContext) -> Deferred[None]:
        """Check that the database can be written."""
        return self.attachments.registry.prove_writable()

    @_operation(idempotent=True)
    async def get(self, context: RequestContext, service: str) -> dict[str, Any]:
        """Read the row with this id in decimal, or this uuid."""
        return _write(await self.attachments.registry.get(service))

    @_operation(idempotent=True)
    async def list(
        self,
        context: RequestContext,
        host: str | None = None,
        binary: str | None = None,
        topic: str | None = None,
    ) -> Any:
        """Read the live rows that match the arguments."""
        return [_write(row) for row in await self.attachments.registry.list(host, binary, topic)]

    @_operation(idempotent=True, version=PAGES)
    async def page(self, context: RequestContext, query: dict[str, Any]) -> Any:
        """Read one page of the live rows.

        :param query: an object with fields of :class:`novasvc.registry.query.ServiceQuery`.
        :return: {"rows": [row], "more": bool}.
        """
        page = await self.attachments.registry.page(_read_query("page", query))
        return {"rows": [_write(row) for row in page.rows], "more": page.more}

    @_operation(idempotent=True, version=PAGES)
    async def count(self, context: RequestContext, query: dict[str, Any]) -> Any:
        """Count the live rows that match a query.

        :param query: see :meth:`page`.
        :return: an object with the fields of :class:`novasvc.registry.query.ServiceTotals`.
        """
        return attrs.asdict(await self.attachments.registry.count(_read_query("count", query)))

    @_operation(idempotent=False)
    async def update(
        self,
        context: RequestContext,
        service_id: int,
        disabled: bool | None = None,  # noqa: FBT001 - arguments travel by name
        disabled_reason: str | None = None,
        forced_down: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Change a row's columns; see :class:`novasvc.registry.record.ServiceChanges`."""
        changes = ServiceChanges(disabled=disabled, disabled_reason=disabled_reason, forced_down=forced_down)
        return _write(await self.attachments.registry.update(service_id, changes))

    @_operation(idempotent=True)
    def delete(self, context: RequestContext, service_id: int) -> Deferred[None]:
        """Soft-delete the row."""
        return self.attachments.registry.delete(service_id)


# -- client ------------------------------------------------------------------------------------


@implementer(IServiceRegistry)
class RemoteRegistry:
    """The registry, reached through a conductor.

    It fails as the SQL registry does: with the database's own error, which the conductor returns; with
    DatabaseUnavailableError while no conductor answers; with DatabaseError if an answer is malformed.

    :param client: on an open transport; closed with the registry.
    Source: novasvc.interfaces.IServiceRegistry; nova.conductor.api.API.
    """

    def __init__(self, client: rpc.Client) -> None:
        self._client = client
        self._conductor = client.prepare(
            topic=TOPIC,
            server=None,
            fanout=False,
            namespace=NAMESPACE,
            version=VERSION,
            timeout=TIMEOUT,
            idempotent=True,
        )

    def open(self) -> Deferred[None]:
        """Do nothing: each call finds a conductor, or fails."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """See IServiceRegistry. Calls under way fail with DatabaseUnavailableError."""
        return self._client.close()

    def register(self, host: str, binary: str, topic: str | None, version: int) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        return self._ask(_read, "register", host=host, binary=binary, topic=topic, version=version)

    def beat(self, service_id: int) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._ask(_read_nothing, "beat", service_id=service_id)

    def prove_writable(self) -> Deferred[None]:
        """See IServiceRegistry. An older conductor lacks the method; then a read must do."""
        return Deferred.fromCoroutine(self._prove_writable())

    async def _prove_writable(self) -> None:
        try:
            await self._ask(_read_nothing, "prove_writable", PROOF)
        except DatabaseError as error:
            if not isinstance(error.__cause__, UnsupportedVersionError | NoSuchMethodError):
                raise
            with suppress(ServiceNotFoundError):
                await self.get("0")

    def get(self, service: str) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        return self._ask(_read, "get", service=service)

    def list(self, host: str | None, binary: str | None, topic: str | None) -> Deferred[Records]:
        """See IServiceRegistry."""
        return self._ask(_read_all, "list", host=host, binary=binary, topic=topic)

    def page(self, query: ServiceQuery) -> Deferred[ServicePage]:
        """See IServiceRegistry."""
        return self._ask(_read_page, "page", PAGES, query=attrs.asdict(query))

    def count(self, query: ServiceQuery) -> Deferred[ServiceTotals]:
        """See IServiceRegistry."""
        return self._ask(_read_totals, "count", PAGES, query=attrs.asdict(query))

    def update(self, service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        once = self._conductor.prepare(idempotent=False)  # See Note [What a conductor may do twice].
        asking = once.call(RequestContext.admin(), "update", service_id=service_id, **attrs.asdict(changes))
        return Deferred.fromCoroutine(_answer(asking, _read, "update"))

    def delete(self, service_id: int) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._ask(_read_nothing, "delete", service_id=service_id)

    def _ask(self, read: Callable[[Any], _T], method: str, since: str = VERSION, /, **args: Any) -> Deferred[_T]:
        asking = self._conductor.prepare(version=since).call(RequestContext.admin(), method, **args)
        return Deferred.fromCoroutine(_answer(asking, read, method))


async def _answer(asking: Deferred[Any], read: Callable[[Any], _T], method: str) -> _T:
    try:
        answer = await asking
    except (DatabaseError, ServiceNotFoundError, CancelledError):
        raise
    except Exception as error:
        for kind, problem in _OUTAGES.items():
            if isinstance(error, kind):
                raise DatabaseUnavailableError(TOPIC, problem) from error
        raise DatabaseError(TOPIC, f"{method!r} failed with {type(error).__name__}: {error}") from error
    try:
        return read(answer)
    except ValueError as error:
        raise DatabaseError(TOPIC, f"its answer to {method!r} cannot be read: {error}") from error
