"""Verdicts on ten thousand services whose heartbeats go through a registry."""

from collections import Counter

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.outages import Outages, Stall, VerdictRule, moment_of
from novasvc.registry.verdict import Verdict
from novasvc.registry.verdicts import OutageLog, judge_all, judge_some

COUNT = 10_000
INTERVAL = 10
RULE = VerdictRule()


class FleetTests(SynchronousTestCase):
    """Heartbeats that are spread over an interval, on a Clock."""

    def start(self, count: int) -> None:
        """Start services."""
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.registry = MemoryRegistry(self.clock)
        self.ids = [
            self.successResultOf(
                self.registry.begin(
                    ServiceStart(host=f"h{n}", binary="compute", topic="compute", version=1, owner=str(n), machine="m")
                )
            ).id
            for n in range(count)
        ]
        self.silent: set[int] = set()
        self.run_for(INTERVAL)

    def run_for(self, seconds: int) -> None:
        """Let time pass; each second a tenth of the services sends its heartbeat."""
        for _ in range(seconds):
            self.clock.advance(1)
            if self.registry.outage is None:
                for service_id in self.ids[int(self.clock.seconds()) % INTERVAL :: INTERVAL]:
                    if service_id not in self.silent:
                        self.registry.beat(service_id, 1)

    def verdicts(self) -> dict[int, Verdict]:
        records = self.successResultOf(self.registry.list(None, None, None))
        found = self.successResultOf(Deferred.fromCoroutine(judge_some(self.registry, records, RULE)))
        return {record.id: verdict for record, verdict in zip(records, found, strict=True)}

    def count(self) -> Counter[str]:
        return Counter(verdict.status for verdict in self.verdicts().values())

    def test_stall(self) -> None:
        """The database stalls for 60 s: no verdict of down, from its first answer on; those who died are down later."""
        self.start(COUNT)
        self.registry.outage = DatabaseUnavailableError("memory:", "stalled")
        self.run_for(60)
        self.registry.outage = None
        self.silent = set(self.ids[:3])
        self.assertEqual(self.count()["down"], 0)
        for _ in range(3):
            self.run_for(4)
            self.assertEqual(self.count()["down"], 0)
        self.assertEqual(self.count(), {"alive": COUNT - 3, "suspect": 3})
        self.run_for(36)
        self.assertEqual(self.count(), {"alive": COUNT - 3, "down": 3})

    def test_cut_off_and_killed(self) -> None:
        """40 % that are cut off are suspect for suspect_time; three that are killed elsewhere are down in time."""
        self.start(1000)
        self.silent = set(self.ids[:400])
        self.run_for(55)
        killed = set(self.ids[-3:])
        self.silent |= killed
        self.run_for(62)
        verdicts = self.verdicts()
        self.assertEqual({service_id for service_id, verdict in verdicts.items() if verdict.is_down}, killed)
        self.assertEqual(Counter(verdict.status for verdict in verdicts.values())["suspect"], 400)
        self.silent = killed
        for _ in range(3):
            self.run_for(4)
            self.assertEqual(self.count()["down"], 3)
        self.assertEqual(self.count(), {"alive": 997, "down": 3})


class ReadTests(SynchronousTestCase):
    """How a fleet is read."""

    def test_pages(self) -> None:
        """A fleet of more than one page is judged whole, ordered by id."""
        registry = MemoryRegistry(Clock())
        for number in range(501):
            registry.register(f"h{number}", "agent", "agent", 1)
            registry.beat(number + 1)
        registry.register("h", "nova-osapi_compute", "osapi_compute", 1)  # which sends no heartbeats
        fleet = self.successResultOf(Deferred.fromCoroutine(judge_all(registry, RULE)))
        self.assertEqual([record.id for record, _ in fleet.services], list(range(1, 502)))
        self.assertEqual(fleet.outages, Outages())


class LogTests(SynchronousTestCase):
    """OutageLog."""

    def test_once(self) -> None:
        """An outage is logged when it begins, and the end of the last one."""
        lines: list[str] = []

        def observe(event: dict[str, str]) -> None:
            if event.get("log_namespace") == "novasvc.registry.verdicts":
                lines.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        log = OutageLog()
        stall = Stall(binary="agent", heard=moment_of(0), began=moment_of(15), ended=None, excused=3)
        for outages in (Outages(), Outages(stalls=(stall,)), Outages(stalls=(stall,)), Outages(), Outages()):
            log.note(outages)
        problem = (
            "no heartbeat of agent has arrived since 1970-01-01 00:00:00 UTC: "
            "the database, the broker, a conductor or a network"
        )
        self.assertEqual(
            lines,
            [
                f"services are suspect, not down: {problem}",
                f"no service is suspect because of the others any more; the last outage: {problem}",
            ],
        )
