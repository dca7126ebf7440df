"""The conductor: serves the registry over RPC to nodes that may not reach the database.

:mod:`novasvc.registry.remote` is its client, :mod:`novasvc.registry.encoding` the form of its arguments and results.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import attrs
from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.manager import Manager
from novasvc.registry.encoding import check_type, encode_record, read_query, types_of
from novasvc.registry.errors import DatabaseError, ServiceNotFoundError
from novasvc.registry.record import ServiceChanges
from novasvc.rpc.errors import InvalidArgumentsError

TOPIC = "conductor"
NAMESPACE = "registry"
VERSION = "1.0"
PAGE_VERSION = "1.1"
"""The first version with page and count."""
PROVE_WRITABLE_VERSION = "1.2"
"""The first version with prove_writable."""

_Operation = TypeVar("_Operation", bound=Callable[..., Any])


def _operation(*, idempotent: bool, version: str = VERSION) -> Callable[[_Operation], _Operation]:
    """Expose a method, and check its arguments against the types of its signature."""

    def decorate(function: _Operation) -> _Operation:
        types = {name: types_of(annotation) for name, annotation in function.__annotations__.items()}

        @wraps(function)
        def checked(self: "Conductor", context: RequestContext, **args: Any) -> Any:
            try:
                args = {name: check_type(name, value, types[name]) for name, value in args.items()}
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
        return encode_record(await self.attachments.registry.register(host, binary, topic, version))

    @_operation(idempotent=True)
    def beat(self, context: RequestContext, service_id: int) -> Deferred[None]:
        """Write a heartbeat."""
        return self.attachments.registry.beat(service_id)

    @_operation(idempotent=True, version=PROVE_WRITABLE_VERSION)
    def prove_writable(self, context: RequestContext) -> Deferred[None]:
        """Check that the database can be written."""
        return self.attachments.registry.prove_writable()

    @_operation(idempotent=True)
    async def get(self, context: RequestContext, service: str) -> dict[str, Any]:
        """Read the row with this id in decimal, or this uuid."""
        return encode_record(await self.attachments.registry.get(service))

    @_operation(idempotent=True)
    async def list(
        self,
        context: RequestContext,
        host: str | None = None,
        binary: str | None = None,
        topic: str | None = None,
    ) -> Any:
        """Read the live rows that match the arguments."""
        return [encode_record(row) for row in await self.attachments.registry.list(host, binary, topic)]

    @_operation(idempotent=True, version=PAGE_VERSION)
    async def page(self, context: RequestContext, query: dict[str, Any]) -> Any:
        """Read one page of the live rows.

        :param query: an object with fields of :class:`novasvc.registry.query.ServiceQuery`.
        :return: {"rows": [row], "more": bool}.
        """
        page = await self.attachments.registry.page(read_query("page", query))
        return {"rows": [encode_record(row) for row in page.rows], "more": page.more}

    @_operation(idempotent=True, version=PAGE_VERSION)
    async def count(self, context: RequestContext, query: dict[str, Any]) -> Any:
        """Count the live rows that match a query.

        :param query: see :meth:`page`.
        :return: an object with the fields of :class:`novasvc.registry.query.ServiceTotals`.
        """
        return attrs.asdict(await self.attachments.registry.count(read_query("count", query)))

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
        return encode_record(await self.attachments.registry.update(service_id, changes))

    @_operation(idempotent=True)
    def delete(self, context: RequestContext, service_id: int) -> Deferred[None]:
        """Soft-delete the row."""
        return self.attachments.registry.delete(service_id)
