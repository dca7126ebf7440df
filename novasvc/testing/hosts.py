"""The hosts of a fleet: their resources, their connections, and faults."""

import random
from collections.abc import Iterable
from functools import partial
from typing import Any

from novasvc.config import Settings
from novasvc.node.runtime import Runtime
from novasvc.registry.memory import MemoryRegistry
from novasvc.testing.errors import UnknownNodeError
from novasvc.testing.faults import Faults
from novasvc.testing.runtime import make_runtime
from novasvc.testing.threads import run_blocking
from novasvc.testing.time import FleetTime
from novasvc.testing.transport import FleetTransport, Network

HOST = "host1"
"""The host of nodes for which the test names none."""


class FleetHosts(FleetTime):
    """Hosts that share a broker and a registry in memory; see :class:`novasvc.testing.Fleet`.

    :ivar registry: the ``services`` table; set its ``outage`` to an error to take the database away.
    """

    def __init__(self, limit: float, seed: int, settings: dict[str, Any]) -> None:
        super().__init__(limit)
        self.registry = MemoryRegistry(self.clock, service_down_time=settings.get("service_down_time", 60.0))
        self._random = random.Random(seed)  # noqa: S311 - a test's
        self._settings = {"periodic_fuzzy_delay": 0, **settings}
        self._network = Network(self.clock)
        self._runtimes: dict[tuple[str, int | None], Runtime] = {}

    def runtime(self, host: str = HOST, worker: int | None = None) -> Runtime:
        """Return the resources of a host's processes, for parts other than managers, such as a WSGIService."""
        known = self._runtimes.get((host, worker))
        if known is None:
            settings = Settings(**{"host": host, **self._settings})
            known = self._runtimes[host, worker] = make_runtime(
                settings,
                self.clock,
                lambda: FleetTransport(self._network, host, settings.control_exchange),
                self.registry,
                self._random,
                worker,
                partial(run_blocking, self.clock),
            )
        return known

    @property
    def faults(self) -> Faults:
        """The faults that are injected into messages; see :class:`novasvc.testing.Faults`."""
        return self._network.faults

    def disconnect(self, *hosts: str) -> None:
        """Take the connection to the broker from hosts.

        What they have not settled is delivered again, and what they send is buffered until :meth:`reconnect`: a call
        for 95 % of its timeout at most, a cast or an event for 15 s. Then it fails with a BrokerUnavailableError.

        :raises UnknownNodeError: a host is not known to the fleet.
        """
        self._check_hosts(hosts)
        self._network.disconnected.update(hosts)
        for transport in self._on(hosts):
            transport.disconnect()

    def reconnect(self, *hosts: str) -> None:
        """Give hosts their connection back; those that have one keep it.

        :raises UnknownNodeError: a host is not known to the fleet.
        """
        self._check_hosts(hosts)
        lost = [host for host in hosts if host in self._network.disconnected]
        self._network.disconnected.difference_update(lost)
        for transport in self._on(lost):
            transport.reconnect()

    def _check_hosts(self, hosts: tuple[str, ...]) -> None:
        known = sorted({host for host, _ in self._runtimes})
        for host in hosts:
            if host not in known:
                raise UnknownNodeError(host, "the fleet has no such host", f"there are: {', '.join(known) or 'none'}")

    def _on(self, hosts: Iterable[str]) -> list[FleetTransport]:
        return [transport for transport in self._network.transports if transport.host in hosts]
