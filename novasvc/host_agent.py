"""The bundled host agent: reports facts about its host. A model for managers of your own.

``novasvc.host_agent.HostAgent`` is the default manager. It shows what most managers need: exposed
methods, a periodic task, work in a thread, a hook, options of its own, and errors for the caller.
"""

import os
import platform
import socket
import time
from typing import Any

import psutil
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.manager import Manager
from novasvc.periodic import periodic_task

_log = Logger()

REFRESH_INTERVAL = 30
"""Seconds between two refreshes of the facts."""


class HostAgent(Manager):
    """Collects facts about its host every half minute, and answers calls from the latest ones.

    :param host: the name of the host it serves.
    :param disks: mount points to report; all physical ones by default. Give it in a
        ``[service.options]`` table: ``disks = ["/", "/var"]``.
    """

    def __init__(self, host: str, disks: list[str] | None = None) -> None:
        super().__init__(host)
        self._disks = disks
        self._facts: dict[str, Any] = {}
        self._cpu_seconds = (0.0, 0.0)

    async def init_host(self) -> None:
        """Collect the facts once, before the first call can arrive."""
        await self._refresh()

    # In each worker, because each answers calls from facts of its own.
    @periodic_task(spacing=REFRESH_INTERVAL, timeout=REFRESH_INTERVAL, scope="worker")
    async def refresh_host_facts(self, context: RequestContext) -> None:
        """Collect the facts again."""
        await self._refresh()

    @rpc.expose(idempotent=True)
    def get_host_facts(self, context: RequestContext) -> dict[str, Any]:
        """Return all facts as of the last refresh.

        :return: {"host", "seen_at", "cpu", "memory", "load", "disks", "network", "boot_time",
            "platform"}; bytes, seconds since the epoch, percent.
        """
        return self._facts

    @rpc.expose(idempotent=True, expected=(LookupError,))
    def get_host_fact(self, context: RequestContext, name: str) -> Any:
        """Return one fact.

        :param name: a key of get_host_facts.
        :raises LookupError: there is no such fact.
        """
        if name not in self._facts:
            raise LookupError(f"no fact {name!r}; there are: {', '.join(self._facts)}")
        return self._facts[name]

    @rpc.expose(timeout=REFRESH_INTERVAL)
    async def refresh(self, context: RequestContext) -> dict[str, Any]:
        """Collect the facts now, and return them."""
        await self._refresh()
        return self._facts

    def _refresh(self) -> Deferred[None]:
        # A disk that hangs blocks the system call that asks for it, so never ask in the reactor's thread.
        refreshing: Deferred[dict[str, Any]] = self.attachments.run_blocking(self._collect)
        return refreshing.addCallback(self._store)

    def _store(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        _log.debug("refreshed the facts of {host}: {facts}", host=self.host, facts=facts)

    def _collect(self) -> dict[str, Any]:
        """Collect the facts from the operating system. Runs in a thread."""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return {
            "host": self.host,
            "seen_at": time.time(),
            "cpu": {"count": psutil.cpu_count(), "percent": self._cpu_percent()},
            "memory": {
                "total": memory.total,
                "available": memory.available,
                "percent": memory.percent,
                "swap_total": swap.total,
                "swap_used": swap.used,
            },
            "load": dict(zip(("1m", "5m", "15m"), os.getloadavg(), strict=True)),
            "disks": {mount: _disk(mount) for mount in self._mounts()},
            "network": {
                name: {
                    "up": stats.isup,
                    "speed_mbit": stats.speed,
                    "addresses": [
                        address.address
                        for address in psutil.net_if_addrs().get(name, [])
                        if address.family in {socket.AF_INET, socket.AF_INET6}
                    ],
                }
                for name, stats in psutil.net_if_stats().items()
            },
            "boot_time": psutil.boot_time(),
            "platform": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        }

    def _cpu_percent(self) -> float:
        """Return the CPU utilisation since the previous call; in the first call, since the host's boot."""
        times = psutil.cpu_times()
        total = sum(times[:8])  # guest time is included in user time already
        busy = total - times.idle - times.iowait
        (busy_before, total_before), self._cpu_seconds = self._cpu_seconds, (busy, total)
        return round(100 * (busy - busy_before) / max(total - total_before, 0.01), 1)

    def _mounts(self) -> list[str]:
        return self._disks or [partition.mountpoint for partition in psutil.disk_partitions()] or ["/"]


def _disk(mount: str) -> dict[str, Any]:
    try:
        usage = psutil.disk_usage(mount)
    except OSError as error:
        return {"error": error.strerror}
    return {"total": usage.total, "used": usage.used, "free": usage.free, "percent": usage.percent}
