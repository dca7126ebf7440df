"""Refuse to start a service that is older than all others of its binary that are up."""

import attrs
from twisted.logger import Logger

from novasvc.interfaces import IServiceRegistry
from novasvc.node.errors import ServiceTooOldError
from novasvc.registry.errors import DatabaseError, DatabaseUnavailableError
from novasvc.registry.heartbeat import ServiceIdentity
from novasvc.registry.query import ServicePage, ServiceQuery

_log = Logger()

_SAMPLE = 8
"""Rows of others that are read; more than one, because the service's own row may be among them."""


async def check_service_version(
    registry: IServiceRegistry, identity: ServiceIdentity, service_down_time: float
) -> None:
    """Check that a service is not older than the fleet. Called before it registers, because that writes its version.

    Only other hosts count, so that a fleet of one host can be downgraded. A service that was up until a moment ago
    starts again even if all others have been upgraded meanwhile: it may be the last one in a rolling upgrade.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    :raises ServiceTooOldError: others are up, and all of them have a higher service version.
    :raises DatabaseUnavailableError: the registry does not answer.
    Source: nova.objects.service.Service._check_minimum_version.
    """
    query = ServiceQuery(binary=identity.binary, up=True, service_down_time=service_down_time, sort="id", limit=_SAMPLE)
    try:
        # Any that is not newer will do, and some rows are quickly read: a whole fleet may be starting.
        page: ServicePage = await registry.page(query)
        if page.more and all(row.version > identity.version for row in page.rows):
            page = await registry.page(attrs.evolve(query, sort="version"))
    except DatabaseUnavailableError:
        raise
    except DatabaseError as error:  # such as one of an older conductor, which cannot sort by version
        _log.warn("the service version is not compared with that of the fleet: {error}", error=error)
        return
    others = [row for row in page.rows if row.host != identity.host]
    lowest = min(others, key=lambda row: row.version, default=None)
    if lowest is None or lowest.version <= identity.version:
        return
    for row in await registry.list(identity.host, identity.binary, None):
        if row.version <= identity.version and row.last_seen_up is not None and row.age <= service_down_time:
            return
    raise ServiceTooOldError(str(identity), identity.version, lowest.version, lowest.host)
