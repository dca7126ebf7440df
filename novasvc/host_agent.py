"""The bundled host agent: what this host is and how it does. A model for managers of your own.

``novasvc.host_agent.HostAgent`` is the default manager. It shows all that most managers need: exposed
methods, a periodic task, work in a thread, a hook, settings of its own, errors for the caller.
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
"""Seconds between two looks at the host."""


class HostAgent(Manager):
    """Looks at its host every half minute and answers what it saw.

    :param host: the host it works for.
    :param disks: mount points to report; all physical ones by default. Give it in a
        ``[service.options]`` table: ``disks = ["/", "/var"]``.
    """

    def __init__(self, host: str, disks: list[str] | None = None) -> None:
        super().__init__(host)
        self._disks = disks
        self._facts: dict[str, Any] = {}
        self._cpu_seconds = (0.0, 0.0)

    async def init_host(self) -> None:
        """Look once before the first question can arrive."""
        await self._look()

    @periodic_task(spacing=REFRESH_INTERVAL, timeout=REFRESH_INTERVAL)
    async def refresh_host_facts(self, context: RequestContext) -> None:
        """Look again."""
        await self._look()

    @rpc.expose
    def get_host_facts(self, context: RequestContext) -> dict[str, Any]:
        """Return all that was seen at the last look.

        :return: {"host", "seen_at", "cpu", "memory", "load", "disks", "network", "boot_time",
            "platform"}; bytes, seconds since the epoch, percent.
        """
        return self._facts

    @rpc.expose(expected=(LookupError,))
    def get_host_fact(self, context: RequestContext, name: str) -> Any:
        """Return one of the facts.

        :param name: a key of get_host_facts.
        :raises LookupError: there is no such fact.
        """
        if name not in self._facts:
            raise LookupError(f"no fact {name!r}; there are: {', '.join(self._facts)}")
        return self._facts[name]

    @rpc.expose(timeout=REFRESH_INTERVAL)
    async def refresh(self, context: RequestContext) -> dict[str, Any]:
        """Look now, and return what was seen."""
        await self._look()
        return self._facts

    def _look(self) -> Deferred[None]:
        # A disk that hangs, hangs the call that asks for it: never ask on the reactor's thread.
        looking: Deferred[dict[str, Any]] = self.attachments.run_blocking(self._see)
        return looking.addCallback(self._remember)

    def _remember(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        _log.debug("looked at {host}: {facts}", host=self.host, facts=facts)

    def _see(self) -> dict[str, Any]:
        """Ask the operating system; runs in a thread."""
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
        """Return how busy the processors were since the look before; at the first, since the host's start."""
        times = psutil.cpu_times()
        total = sum(times[:8])  # what guests took is in what users took
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
