"""The service versions of a fleet: those that are in use, and the oldest services of a topic that are not down."""

from collections.abc import Callable, Iterable

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IServiceRegistry
from novasvc.registry.lookup import LIST_TIMEOUT
from novasvc.registry.outages import VerdictRule
from novasvc.registry.query import ServicePage, ServiceQuery
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Verdict
from novasvc.registry.verdicts import judge_some
from novasvc.rpc.auto_version import OldestServices

_HOSTS = 3
"""Services that are named, and asked what they serve; of those that are suspect as many more."""

_SILENT = 100
"""Services without heartbeats that are looked at, those with the lowest versions."""


@attrs.frozen(eq=False)
class OldestUp:
    """Find the services of a topic that are not down and have the lowest version.

    See ``oldest`` of :class:`novasvc.rpc.Client`. Services that are suspect count: they may well be called.

    :param registry: returns the registry, or None while it is not connected.
    :param clock: measures the timeout.
    :param rule: when a service is down, and when it is suspect.
    Source: nova.objects.service.Service.get_minimum_version.
    """

    _registry: Callable[[], IServiceRegistry | None]
    _clock: IReactorTime
    _rule: VerdictRule

    def __call__(self, topic: str) -> Deferred[OldestServices | None]:
        """Return them, or None if no service is up; fails within LIST_TIMEOUT if the registry does not answer."""
        registry = self._registry()
        if registry is None:
            return fail(LookupError("the registry is not connected"))
        return Deferred.fromCoroutine(self._find(registry, topic)).addTimeout(LIST_TIMEOUT, self._clock)

    async def _find(self, registry: IServiceRegistry, topic: str) -> OldestServices | None:
        query = ServiceQuery(
            topic=topic, up=True, service_down_time=self._rule.service_down_time, sort="version", limit=_HOSTS
        )
        page: ServicePage = await registry.page(query)
        found = list(page.rows)
        silent: ServicePage = await registry.page(attrs.evolve(query, up=False, limit=_SILENT))
        older = [row for row in silent.rows if not found or row.version < found[0].version]
        verdicts = await judge_some(registry, older, self._rule)
        suspects = [row for row, verdict in zip(older, verdicts, strict=True) if not verdict.is_down][:_HOSTS]
        if not suspects and not found:
            return None
        lowest = min(row.version for row in (*suspects, *found))
        # Those that are suspect may not answer, so the oldest of the others are named, too.
        hosts = [row.host for row in (*suspects, *found) if row in suspects or row.version == found[0].version]
        return OldestServices(lowest, tuple(hosts))


@attrs.frozen(kw_only=True)
class VersionUse:
    """The services of a binary and topic that have the same version.

    :param services: how many there are.
    :param up: how many of them are not down.
    :param hosts: the hosts of those that are not down, in order.
    :param lowest: whether it is the lowest version of those that are not down, and there is a higher one.
    """

    binary: str
    topic: str | None
    version: int
    services: int
    up: int
    hosts: tuple[str, ...]
    lowest: bool


def versions_in_use(services: Iterable[tuple[ServiceRecord, Verdict]]) -> list[VersionUse]:
    """Count the versions of services, by binary and topic, the lowest version first."""
    groups: dict[tuple[str, str | None, int], list[ServiceRecord]] = {}
    up: dict[tuple[str, str | None], dict[int, list[str]]] = {}
    for record, verdict in services:
        groups.setdefault((record.binary, record.topic, record.version), []).append(record)
        if not verdict.is_down:
            up.setdefault((record.binary, record.topic), {}).setdefault(record.version, []).append(record.host)
    uses = []
    for (binary, topic, version), members in groups.items():
        versions = up.get((binary, topic), {})
        hosts = sorted(versions.get(version, []))
        uses.append(
            VersionUse(
                binary=binary,
                topic=topic,
                version=version,
                services=len(members),
                up=len(hosts),
                hosts=tuple(hosts),
                lowest=len(versions) > 1 and version == min(versions),
            )
        )
    return sorted(uses, key=lambda use: (use.binary, use.topic or "", use.version))
