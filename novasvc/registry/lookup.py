"""What the registry knows of the targets of calls: whether a service is up that was not reached, and who is up."""

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IServiceRegistry
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.registry.outages import VerdictRule
from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
from novasvc.registry.verdicts import judge_some
from novasvc.rpc.errors import UndeliverableError
from novasvc.rpc.gather import MAX_REPLIES
from novasvc.rpc.replies import LOOKUP_TIMEOUT
from novasvc.rpc.target import Target

LIST_TIMEOUT = 2.0
"""Seconds for the registry to list the hosts of a topic."""

_MAX_TARGETS = 100
"""Targets whose counts are cached for a second, so that thousands of failing calls cause one query."""


@attrs.define(eq=False)
class ServiceLookup:
    """Count the services registered for a target; see ``explain`` of :class:`novasvc.rpc.Client`.

    :param registry: returns the registry, or None while it is not connected.
    :param clock: measures the timeout.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    """

    _registry: Callable[[], IServiceRegistry | None]
    _clock: IReactorTime
    _service_down_time: float
    _caches: dict[tuple[str, str | None], CoalescingCache[ServiceTotals]] = attrs.field(factory=dict, init=False)

    def __call__(self, target: Target) -> Deferred[UndeliverableError]:
        """Return an error with the counts; fails within LOOKUP_TIMEOUT if the registry does not answer."""
        key = target.topic, target.server
        cache = self._caches.pop(key, None) or CoalescingCache(lambda: self._count(*key), self._clock)
        self._caches[key] = cache
        if len(self._caches) > _MAX_TARGETS:
            del self._caches[next(iter(self._caches))]
        answer = cache.get()
        return answer.addCallback(lambda totals: UndeliverableError(str(target), totals.services, totals.up))

    def _count(self, topic: str, host: str | None) -> Deferred[ServiceTotals]:
        registry = self._registry()
        if registry is None:
            return fail(LookupError("the registry is not connected"))
        query = ServiceQuery(topic=topic, host=host, service_down_time=self._service_down_time)
        counting: Deferred[ServiceTotals] = registry.count(query)
        return counting.addTimeout(LOOKUP_TIMEOUT, self._clock)


@attrs.frozen(eq=False)
class UpHosts:
    """List the hosts of the services of a topic that are not down; see ``hosts`` of :class:`novasvc.rpc.Client`.

    Those of services that are suspect are among them: they may well answer, and if they do not, that is to be known. A
    service that still starts after service_down_time is not: it takes in nothing before its hooks have ended.

    :param registry: returns the registry, or None while it is not connected.
    :param clock: measures the timeout.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    :param rule: when a service is suspect; None takes the defaults.
    """

    _registry: Callable[[], IServiceRegistry | None]
    _clock: IReactorTime
    _service_down_time: float
    _rule: VerdictRule | None = None

    def __call__(self, topic: str) -> Deferred[frozenset[str]]:
        """Return the hosts; fails within LIST_TIMEOUT if the registry does not answer."""
        registry = self._registry()
        if registry is None:
            return fail(LookupError("the registry is not connected"))
        return Deferred.fromCoroutine(self._list(registry, topic)).addTimeout(LIST_TIMEOUT, self._clock)

    async def _list(self, registry: IServiceRegistry, topic: str) -> frozenset[str]:
        down_time = self._service_down_time
        query = ServiceQuery(topic=topic, up=True, service_down_time=down_time, limit=MAX_REPLIES)
        page: ServicePage = await registry.page(query)
        hosts = {record.host for record in page.rows}
        # The last ones to become silent first, in case there are too many.
        silent = attrs.evolve(query, up=False, sort="seen", descending=True)
        page = await registry.page(silent)
        rule = self._rule or VerdictRule(service_down_time=down_time)
        verdicts = await judge_some(registry, page.rows, rule)
        judged = zip(page.rows, verdicts, strict=True)
        hosts |= {record.host for record, verdict in judged if not verdict.is_down and record.state != "starting"}
        return frozenset(sorted(hosts)[:MAX_REPLIES])
