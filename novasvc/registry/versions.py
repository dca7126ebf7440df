"""The service versions of a fleet: those that are in use, and the oldest services of a topic that are up."""

from collections.abc import Callable, Iterable

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IServiceRegistry
from novasvc.registry.liveness import is_up
from novasvc.registry.lookup import LIST_TIMEOUT
from novasvc.registry.query import ServicePage, ServiceQuery
from novasvc.registry.record import ServiceRecord
from novasvc.rpc.auto_version import OldestServices

_HOSTS = 3
"""Services that are named, and asked what they serve."""


@attrs.frozen(eq=False)
class OldestUp:
    """Find the services of a topic that are up and have the lowest version; see ``oldest`` of :class:`rpc.Client`.

    :param registry: returns the registry, or None while it is not connected.
    :param clock: measures the timeout.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    Source: nova.objects.service.Service.get_minimum_version.
    """

    _registry: Callable[[], IServiceRegistry | None]
    _clock: IReactorTime
    _service_down_time: float

    def __call__(self, topic: str) -> Deferred[OldestServices | None]:
        """Return them, or None if no service is up; fails within LIST_TIMEOUT if the registry does not answer."""
        registry = self._registry()
        if registry is None:
            return fail(LookupError("the registry is not connected"))
        query = ServiceQuery(
            topic=topic, up=True, service_down_time=self._service_down_time, sort="version", limit=_HOSTS
        )
        asking: Deferred[ServicePage] = registry.page(query)
        asking.addTimeout(LIST_TIMEOUT, self._clock)
        return asking.addCallback(_oldest)


def _oldest(page: ServicePage) -> OldestServices | None:
    if not page.rows:
        return None
    lowest = page.rows[0].version
    return OldestServices(lowest, tuple(row.host for row in page.rows if row.version == lowest))


@attrs.frozen(kw_only=True)
class VersionUse:
    """The services of a binary and topic that have the same version.

    :param services: how many there are.
    :param up: how many of them are up.
    :param hosts: the hosts of those that are up, in order.
    :param lowest: whether it is the lowest version that is up, and there is a higher one.
    """

    binary: str
    topic: str | None
    version: int
    services: int
    up: int
    hosts: tuple[str, ...]
    lowest: bool


def versions_in_use(records: Iterable[ServiceRecord], service_down_time: float) -> list[VersionUse]:
    """Count the versions of services, by binary and topic, the lowest version first.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    """
    groups: dict[tuple[str, str | None, int], list[ServiceRecord]] = {}
    up: dict[tuple[str, str | None], dict[int, list[str]]] = {}
    for record in records:
        groups.setdefault((record.binary, record.topic, record.version), []).append(record)
        if is_up(record, service_down_time):
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
