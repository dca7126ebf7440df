"""The registry, reached through a conductor."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from zope.interface import implementer

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.conductor import (
    INCARNATIONS_VERSION,
    LEASES_VERSION,
    NAMESPACE,
    PAGE_VERSION,
    PROVE_WRITABLE_VERSION,
    TOPIC,
    VERDICTS_VERSION,
    VERSION,
)
from novasvc.registry.encoding import (
    read_leases,
    read_nothing,
    read_observations,
    read_outages,
    read_page,
    read_record,
    read_records,
    read_totals,
)
from novasvc.registry.errors import (
    CircuitOpenError,
    DatabaseError,
    DatabaseUnavailableError,
    ObserverSupersededError,
    ServiceForcedDownError,
    ServiceNotFoundError,
    ServiceSupersededError,
    ServiceTwinError,
)
from novasvc.registry.incarnation import ServiceStart, ServiceState
from novasvc.registry.lease import LeaseRequest, Leases
from novasvc.registry.observation import Observation, Observations
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
from novasvc.registry.record import Records, ServiceChanges, ServiceRecord
from novasvc.rpc.errors import (
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

TIMEOUT = 20.0
"""Seconds for each attempt: more than the database's own timeout, so that the database's error is returned."""

ATTEMPTS = 5
"""Most attempts of a call, the first included, while conductors refuse it because their databases do not answer."""

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
"""Transient errors, which a later call may not meet, with the problem to report. They count as an outage."""

_T = TypeVar("_T")


@implementer(IServiceRegistry)
class RemoteRegistry:
    """The registry, reached through a conductor.

    It fails as the SQL registry does: with the database's own error, which the conductor returns; with
    DatabaseUnavailableError while no conductor answers; with DatabaseError if an answer is malformed.

    :param client: an RPC client on an open transport; closed with the registry.
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
        # By version, prepared once: heartbeats and starts are many.
        self._since = {VERSION: self._conductor}

    def open(self) -> Deferred[None]:
        """Do nothing: each call finds a conductor, or fails."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """See IServiceRegistry. Calls under way fail with DatabaseUnavailableError."""
        return self._client.close()

    def register(self, host: str, binary: str, topic: str | None, version: int) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        return self._ask(read_record, "register", host=host, binary=binary, topic=topic, version=version)

    def begin(self, start: ServiceStart) -> Deferred[ServiceRecord]:
        """See IServiceRegistry. An older conductor lacks the method; then the row has no incarnation."""
        return Deferred.fromCoroutine(self._begin(start))

    async def _begin(self, start: ServiceStart) -> ServiceRecord:
        try:
            return await self._ask(read_record, "begin", INCARNATIONS_VERSION, start=attrs.asdict(start))
        except DatabaseError as error:
            if not _is_too_old(error):
                raise
        return await self.register(start.host, start.binary, start.topic, start.version)

    def beat(self, service_id: int, incarnation: int | None = None) -> Deferred[None]:
        """See IServiceRegistry. While conductors are upgraded, an older one may answer: it refuses no incarnation."""
        if incarnation is None:
            return self._ask(read_nothing, "beat", service_id=service_id)
        return Deferred.fromCoroutine(self._beat(service_id, incarnation))

    async def _beat(self, service_id: int, incarnation: int) -> None:
        args = {"service_id": service_id, "incarnation": incarnation}
        try:
            await self._ask(read_nothing, "beat", INCARNATIONS_VERSION, **args)
        except DatabaseError as error:
            if not _is_too_old(error):
                raise
            await self.beat(service_id)

    def enter(
        self,
        service_id: int,
        incarnation: int,
        state: ServiceState,
        *,
        until: float | None = None,
        reason: str | None = None,
        calls: int = 0,
    ) -> Deferred[None]:
        """See IServiceRegistry. An older conductor lacks the method: DatabaseError."""
        given = {"until": until, "reason": reason, "calls": calls}
        return self._ask(
            read_nothing,
            "enter",
            INCARNATIONS_VERSION,
            service_id=service_id,
            incarnation=incarnation,
            state=state,
            **given,
        )

    def prove_writable(self) -> Deferred[None]:
        """See IServiceRegistry. An older conductor lacks the method; then a read must do."""
        return Deferred.fromCoroutine(self._prove_writable())

    async def _prove_writable(self) -> None:
        try:
            await self._ask(read_nothing, "prove_writable", PROVE_WRITABLE_VERSION)
        except DatabaseError as error:
            if not _is_too_old(error):
                raise
            with suppress(ServiceNotFoundError):
                await self.get("0")

    def get(self, service: str) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        return self._ask(read_record, "get", service=service)

    def list(self, host: str | None, binary: str | None, topic: str | None) -> Deferred[Records]:
        """See IServiceRegistry."""
        return self._ask(read_records, "list", host=host, binary=binary, topic=topic)

    def page(self, query: ServiceQuery) -> Deferred[ServicePage]:
        """See IServiceRegistry."""
        return self._ask(read_page, "page", PAGE_VERSION, query=_encoded(query))

    def count(self, query: ServiceQuery) -> Deferred[ServiceTotals]:
        """See IServiceRegistry."""
        return self._ask(read_totals, "count", PAGE_VERSION, query=_encoded(query))

    def update(self, service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        once = self._conductor.prepare(idempotent=False)  # See Note [What a conductor may do twice].
        ask = partial(once.call, RequestContext.admin(), "update", service_id=service_id, **attrs.asdict(changes))
        return Deferred.fromCoroutine(_answer(ask, read_record, "update"))

    def delete(self, service_id: int) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._ask(read_nothing, "delete", service_id=service_id)

    def outages(self, rule: VerdictRule) -> Deferred[Outages]:
        """See IServiceRegistry. An older conductor lacks the method; then no outage is known."""
        return Deferred.fromCoroutine(self._read_outages(rule))

    async def _read_outages(self, rule: VerdictRule) -> Outages:
        try:
            return await self._ask(read_outages, "outages", VERDICTS_VERSION, rule=attrs.asdict(rule))
        except DatabaseError as error:
            if not _is_too_old(error):
                raise
        return Outages()

    def observations(self, observer: str) -> Deferred[Observations]:
        """See IServiceRegistry. An older conductor lacks the method: DatabaseError."""
        return self._ask(read_observations, "observations", VERDICTS_VERSION, observer=observer)

    def observe(self, observer: str, fencing: int, observations: Sequence[Observation]) -> Deferred[None]:
        """See IServiceRegistry."""
        changed = [attrs.asdict(each) for each in observations]
        return self._ask(
            read_nothing, "observe", VERDICTS_VERSION, observer=observer, fencing=fencing, observations=changed
        )

    def hold_leases(self, request: LeaseRequest) -> Deferred[Leases]:
        """See IServiceRegistry. An older conductor lacks the method: DatabaseError."""
        return self._ask(read_leases, "hold_leases", LEASES_VERSION, request=attrs.asdict(request))

    def release_leases(self, topic: str, owner: str, tasks: Sequence[str]) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._ask(read_nothing, "release_leases", LEASES_VERSION, topic=topic, owner=owner, tasks=list(tasks))

    def list_leases(self) -> Deferred[Leases]:
        """See IServiceRegistry."""
        return self._ask(read_leases, "list_leases", LEASES_VERSION)

    def _ask(self, read: Callable[[Any], _T], method: str, since: str = VERSION, /, **args: Any) -> Deferred[_T]:
        if since not in self._since:
            self._since[since] = self._conductor.prepare(version=since)
        ask = partial(self._since[since].call, RequestContext.admin(), method, **args)
        return Deferred.fromCoroutine(_answer(ask, read, method))


_OWN_ERRORS = (
    DatabaseError,
    ServiceNotFoundError,
    ServiceTwinError,
    ServiceSupersededError,
    ServiceForcedDownError,
    ObserverSupersededError,
    CancelledError,
)
"""Errors that the caller gets as they are."""


def _encoded(query: ServiceQuery) -> dict[str, Any]:
    """Return a query as JSON. Newer fields are sent only if they are given: an older conductor refuses them."""
    newer = {name for name in ("zone", "tag") if getattr(query, name) is None}
    return {name: value for name, value in attrs.asdict(query).items() if name not in newer}


def _is_too_old(error: BaseException) -> bool:
    """Return whether a call failed because the conductor is older than the method."""
    return isinstance(error.__cause__, UnsupportedVersionError | NoSuchMethodError)


async def _answer(ask: Callable[[], Deferred[Any]], read: Callable[[Any], _T], method: str) -> _T:
    try:
        answer = await _ask_conductors(ask)
    except _OWN_ERRORS:
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


async def _ask_conductors(ask: Callable[[], Deferred[Any]]) -> Any:
    # Without a pause: the next attempt may meet another conductor, see novasvc.registry.conductor,
    # Note [A database out of reach]. A refused request was not made, so an update may be repeated, too.
    for _ in range(ATTEMPTS - 1):
        try:
            return await ask()
        except CircuitOpenError:
            pass
    return await ask()
