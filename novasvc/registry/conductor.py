"""The conductor: serves the registry over RPC to nodes that may not reach the database.

:mod:`novasvc.registry.remote` is its client, :mod:`novasvc.registry.encoding` the form of its arguments and results.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.interfaces import IServiceRegistry
from novasvc.manager import Manager
from novasvc.registry.breaker import CircuitBreaker
from novasvc.registry.encoding import encode_record, read_query
from novasvc.registry.errors import (
    DatabaseError,
    ObserverSupersededError,
    ServiceForcedDownError,
    ServiceNotFoundError,
    ServiceSupersededError,
    ServiceTwinError,
)
from novasvc.registry.incarnation import ServiceStart, ServiceState
from novasvc.registry.lease import LeaseRequest
from novasvc.registry.observation import Observation
from novasvc.registry.outages import VerdictRule
from novasvc.registry.record import ServiceChanges
from novasvc.rpc.errors import InvalidArgumentsError

TOPIC = "conductor"
NAMESPACE = "registry"
VERSION = "1.0"
PAGE_VERSION = "1.1"
"""The first version with page and count."""
PROVE_WRITABLE_VERSION = "1.2"
"""The first version with prove_writable."""
LEASES_VERSION = "1.3"
"""The first version with hold_leases, release_leases and list_leases."""
INCARNATIONS_VERSION = "1.4"
"""The first version with begin and enter, and with the argument ``incarnation`` of beat."""
VERDICTS_VERSION = "1.5"
"""The first version with outages, observations and observe."""

_Method = TypeVar("_Method", bound=Callable[..., Any])
_T = TypeVar("_T")


def _expose(*, idempotent: bool, version: str = VERSION) -> Callable[[_Method], _Method]:
    expected = (
        DatabaseError,
        ServiceNotFoundError,
        ServiceTwinError,
        ServiceSupersededError,
        ServiceForcedDownError,
        ObserverSupersededError,
        InvalidArgumentsError,
    )
    return rpc.expose(namespace=NAMESPACE, version=version, idempotent=idempotent, expected=expected)


class Conductor(Manager):
    """Serves :class:`novasvc.interfaces.IServiceRegistry` in the RPC namespace "registry".

    Rows are objects with the fields of :class:`novasvc.registry.record.ServiceRecord`, time stamps in ISO 8601. Whoever
    uses it without a node calls :meth:`cleanup_host` at the end.
    Source: nova.conductor.manager.ConductorManager.
    """

    # Note [What a conductor may do twice]
    #
    # After a crash of a conductor, another one repeats the idempotent operations. A second register
    # finds the row of the first. A second beat counts one too many, and the node was alive. A second
    # delete finds no row, as intended, and ids are never reused. But a second update could undo
    # what an operator has changed since the first, so update is not idempotent. A second hold_leases renews what the
    # first has taken. A second begin has the owner of the first, and gets the same incarnation. A second enter writes
    # the same state: a service enters one state after the other, and one that it no longer waits for is not written,
    # unless it is the last. A second observe has the same fencing number and the same observations.

    # Note [A database out of reach]
    #
    # Two conductors share the topic, and one of them is cut off from the database. Requests that reach it would wait
    # for the database's timeout, and a node whose heartbeats reach it several times in a row would be down. Therefore a
    # circuit breaker refuses them at once, and its client asks up to five times: the broker passes each attempt to the
    # next consumer of the topic. With two conductors, and many nodes that ask in between, every second attempt meets
    # the other one, so one heartbeat in 32 is lost.

    _breaker: CircuitBreaker | None = None

    def init_host(self) -> None:
        """Begin with a closed circuit breaker."""
        self._breaker = None

    def cleanup_host(self) -> None:
        """Stop the circuit breaker. Requests that arrive still are passed on."""
        if self._breaker is not None:
            self._breaker.stop()

    def _ask(self, request: Callable[[IServiceRegistry], Deferred[_T]]) -> Deferred[_T]:
        if self._breaker is None:
            self._breaker = CircuitBreaker(self._probe, self.attachments.reactor)
        return self._breaker.run(lambda: request(self.attachments.registry))

    def _probe(self) -> Deferred[None]:
        probing: Deferred[None] = self.attachments.registry.prove_writable()
        return probing

    @_expose(idempotent=True)
    async def register(
        self, context: RequestContext, host: str, binary: str, topic: str | None, version: int
    ) -> dict[str, Any]:
        """Return the row of (host, binary), created if there is none."""
        return encode_record(await self._ask(lambda registry: registry.register(host, binary, topic, version)))

    @_expose(version=INCARNATIONS_VERSION, idempotent=True)
    async def begin(self, context: RequestContext, start: ServiceStart) -> dict[str, Any]:
        """Begin the next incarnation of a service.

        :param start: an object with the fields of :class:`novasvc.registry.incarnation.ServiceStart`.
        """
        return encode_record(await self._ask(lambda registry: registry.begin(start)))

    @_expose(idempotent=True)
    def beat(self, context: RequestContext, service_id: int, incarnation: int | None = None) -> Deferred[None]:
        """Write a heartbeat. The argument ``incarnation`` is new in version 1.4."""
        return self._ask(lambda registry: registry.beat(service_id, incarnation))

    @_expose(version=INCARNATIONS_VERSION, idempotent=True)
    def enter(
        self,
        context: RequestContext,
        service_id: int,
        incarnation: int,
        state: ServiceState,
        until: float | None = None,
        reason: str | None = None,
        calls: int = 0,
    ) -> Deferred[None]:
        """Write the state of an incarnation."""
        return self._ask(
            lambda registry: registry.enter(service_id, incarnation, state, until=until, reason=reason, calls=calls)
        )

    @_expose(version=PROVE_WRITABLE_VERSION, idempotent=True)
    def prove_writable(self, context: RequestContext) -> Deferred[None]:
        """Check that the database can be written."""
        return self._ask(lambda registry: registry.prove_writable())

    @_expose(idempotent=True)
    async def get(self, context: RequestContext, service: str) -> dict[str, Any]:
        """Read the row with this id in decimal, or this uuid."""
        return encode_record(await self._ask(lambda registry: registry.get(service)))

    @_expose(idempotent=True)
    async def list(
        self,
        context: RequestContext,
        host: str | None = None,
        binary: str | None = None,
        topic: str | None = None,
    ) -> Any:
        """Read the live rows that match the arguments."""
        return [encode_record(row) for row in await self._ask(lambda registry: registry.list(host, binary, topic))]

    @_expose(version=PAGE_VERSION, idempotent=True)
    async def page(self, context: RequestContext, query: dict[str, Any]) -> Any:
        """Read one page of the live rows.

        :param query: an object with fields of :class:`novasvc.registry.query.ServiceQuery`.
        :return: {"rows": [row], "more": bool}.
        """
        wanted = read_query("page", query)
        page = await self._ask(lambda registry: registry.page(wanted))
        return {"rows": [encode_record(row) for row in page.rows], "more": page.more}

    @_expose(version=PAGE_VERSION, idempotent=True)
    async def count(self, context: RequestContext, query: dict[str, Any]) -> Any:
        """Count the live rows that match a query.

        :param query: see :meth:`page`.
        :return: an object with the fields of :class:`novasvc.registry.query.ServiceTotals`.
        """
        wanted = read_query("count", query)
        totals = await self._ask(lambda registry: registry.count(wanted))
        return attrs.asdict(totals)

    @_expose(idempotent=False)
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
        return encode_record(await self._ask(lambda registry: registry.update(service_id, changes)))

    @_expose(idempotent=True)
    def delete(self, context: RequestContext, service_id: int) -> Deferred[None]:
        """Soft-delete the row."""
        return self._ask(lambda registry: registry.delete(service_id))

    @_expose(version=VERDICTS_VERSION, idempotent=True)
    async def outages(self, context: RequestContext, rule: VerdictRule) -> Any:
        """Find the outages that concern many services now.

        :param rule: an object with the fields of :class:`novasvc.registry.outages.VerdictRule`.
        :return: an object with the fields of :class:`novasvc.registry.outages.Outages`.
        """
        outages = await self._ask(lambda registry: registry.outages(rule))
        return attrs.asdict(outages)

    @_expose(version=VERDICTS_VERSION, idempotent=True)
    async def observations(self, context: RequestContext, observer: str) -> Any:
        """Read what an observer was told: objects with the fields of Observation."""
        return [attrs.asdict(each) for each in await self._ask(lambda registry: registry.observations(observer))]

    @_expose(version=VERDICTS_VERSION, idempotent=True)
    def observe(
        self, context: RequestContext, observer: str, fencing: int, observations: Sequence[Observation]
    ) -> Deferred[None]:
        """Write what an observer was told.

        :param observations: objects with the fields of :class:`novasvc.registry.observation.Observation`.
        """
        return self._ask(lambda registry: registry.observe(observer, fencing, observations))

    @_expose(version=LEASES_VERSION, idempotent=True)
    async def hold_leases(self, context: RequestContext, request: LeaseRequest) -> Any:
        """Renew the leases that the owner has, and take those that are free.

        :param request: an object with the fields of :class:`novasvc.registry.lease.LeaseRequest`.
        :return: a list of objects with the fields of :class:`novasvc.registry.lease.Lease`.
        """
        return [attrs.asdict(lease) for lease in await self._ask(lambda registry: registry.hold_leases(request))]

    @_expose(version=LEASES_VERSION, idempotent=True)
    def release_leases(self, context: RequestContext, topic: str, owner: str, tasks: Sequence[str]) -> Deferred[None]:
        """Free the leases of an owner."""
        return self._ask(lambda registry: registry.release_leases(topic, owner, tasks))

    @_expose(version=LEASES_VERSION, idempotent=True)
    async def list_leases(self, context: RequestContext) -> Any:
        """Read all leases."""
        return [attrs.asdict(lease) for lease in await self._ask(lambda registry: registry.list_leases())]
