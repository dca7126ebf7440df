"""A database whose processes are stopped: no service is down because of it."""

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.trial.unittest import TestCase

from novasvc.errors import DatabaseError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.outages import VerdictRule
from novasvc.registry.sql import migrate
from novasvc.registry.sql.services import ServiceRegistry, connect_registry
from novasvc.registry.verdict import Verdict
from novasvc.registry.verdicts import judge_all
from tests.servers import PostgreSQL

RULE = VerdictRule(service_down_time=2.0)
START = ServiceStart(host="h", binary="agent", topic="agent", version=1, owner="o", machine="m")


def processes_of(pid: int) -> list[int]:
    """Return a process and its children: PostgreSQL has one for each connection."""
    found = [pid]
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = entry.read_text()
        except OSError:  # it has ended
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.parent.name))
    return found


class StalledDatabaseTests(TestCase):
    """Services on PostgreSQL, which stops for longer than service_down_time."""

    def server(self) -> PostgreSQL:
        """Start a server. The path of its socket has to be short."""
        directory = TemporaryDirectory(prefix="stall-")
        self.addCleanup(directory.cleanup)
        server = PostgreSQL(Path(directory.name, "pg"))
        self.addCleanup(server.kill)
        server.start()
        return server

    async def connect(self, url: str) -> ServiceRegistry:
        registry = connect_registry(url, reactor=reactor, service_down_time=RULE.service_down_time)
        self.addCleanup(registry.close)
        await registry.open()
        return registry

    async def start(self, registry: ServiceRegistry, number: int) -> LoopingCall:
        """Start a service that sends five heartbeats a second."""
        start = attrs.evolve(START, host=f"h{number}", owner=f"o{number}")
        service_id = (await registry.begin(start)).id

        def beat() -> Deferred[None]:
            beating = registry.beat(service_id, 1)
            beating.addErrback(lambda failure: failure.trap(DatabaseError) and None)
            return beating

        loop = LoopingCall(beat)
        loop.start(0.2)
        self.addCleanup(lambda: loop.running and loop.stop())
        return loop

    async def verdicts(self, registry: ServiceRegistry) -> dict[str, Verdict]:
        fleet = await judge_all(registry, RULE)
        return {record.host: verdict for record, verdict in fleet.services}

    async def test_stall(self) -> None:
        """Nobody is down when it goes on after 3 s; a service that died meanwhile is, two seconds later."""
        server = self.server()
        url = server.url(server.system)
        migrate.create(url)
        nodes, reader = await self.connect(url), await self.connect(url)
        loops = [await self.start(nodes, number) for number in range(8)]
        await deferLater(reactor, 1.0)
        self.assertEqual({verdict.status for verdict in (await self.verdicts(reader)).values()}, {"alive"})
        stopped = processes_of(server.pid)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            loops[0].stop()
            reading = Deferred.fromCoroutine(self.verdicts(reader))
            await deferLater(reactor, 3.0)
            self.assertFalse(reading.called)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        resumed = reactor.seconds()  # type: ignore[attr-defined]
        found = await reading
        while not found["h0"].is_down:
            self.assertNotIn("down", [verdict.status for host, verdict in found.items() if host != "h0"], found)
            self.assertLess(reactor.seconds() - resumed, 30)  # type: ignore[attr-defined]
            await deferLater(reactor, 0.05)
            found = await self.verdicts(reader)
        # It was silent for three seconds of the stall, too, which do not count.
        self.assertGreater(reactor.seconds() - resumed, 1.0)  # type: ignore[attr-defined]
        self.assertEqual({found[f"h{number}"].status for number in range(1, 8)}, {"alive"})
