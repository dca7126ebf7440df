"""A scheduler that places instances on the live hosts of the registry."""

from twisted.logger import Logger

from novasvc import Manager, RequestContext, rpc
from novasvc.errors import NovasvcError
from novasvc.registry.query import ServiceQuery

_log = Logger()
PATIENCE = 2
"""Seconds for a host to say how many instances it has."""


class NoHostError(LookupError):
    """No host can take the instance."""


class Compute(Manager):
    """Has the instances of one host."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self._instances: list[str] = []

    @rpc.expose
    def count(self, context: RequestContext) -> int:
        """Return the number of instances."""
        return len(self._instances)

    @rpc.expose
    def boot(self, context: RequestContext, name: str) -> str:
        """Boot an instance; return the host's name."""
        self._instances.append(name)
        return self.host


class Scheduler(Manager):
    """Chooses hosts."""

    @rpc.expose(expected=(LookupError,))
    async def boot(self, context: RequestContext, name: str) -> str:
        """Boot an instance on the host with the fewest instances; return the host's name.

        :raises NoHostError: no host is up, enabled and answers.
        """
        compute = self.attachments.rpc.prepare(topic="compute", timeout=PATIENCE)
        query = ServiceQuery(topic="compute", up=True, disabled=False, sort="host")
        page = await self.attachments.registry.page(query)
        hosts = [row.host for row in page.rows]
        # All hosts answer at the same time; those that are disabled, too.
        counts = (await compute.gather(context, "count").all()).results
        for host in sorted(counts.keys() & set(hosts), key=lambda host: (counts[host], host)):
            try:
                placed: str = await compute.prepare(server=host).call(context, "boot", name=name)
            except NovasvcError as error:  # it has died since it was counted
                _log.warn("{host} did not boot {name}: {error}", host=host, name=name, error=error)
            else:
                return placed
        raise NoHostError(f"none of {len(hosts)} live hosts took {name!r}")
