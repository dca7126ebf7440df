"""The oldest services of a topic that are up, by their service version."""

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IServiceRegistry
from novasvc.registry.lookup import LIST_TIMEOUT
from novasvc.registry.query import ServicePage, ServiceQuery
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
