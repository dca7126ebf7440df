"""Verdicts on ten thousand services whose heartbeats go through a registry."""

from collections import Counter

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import DatabaseUnavailableError
from novasvc.registry import verdicts
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.outages import Outages, Stall, VerdictRule, moment_of
from novasvc.registry.query import ServicePage, ServiceQuery
from novasvc.registry.record import ServiceRecord
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


class ReturningRegistry(MemoryRegistry):
    """A registry in which services return after their rows were read, before the outages are."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.returning: list[int] = []
        self.queries: list[ServiceQuery] = []

    def page(self, query: ServiceQuery) -> Deferred[ServicePage]:
        self.queries.append(query)
        return super().page(query)

    def outages(self, rule: VerdictRule) -> Deferred[Outages]:
        for service_id in self.returning:
            self.beat(service_id, 1)
        return super().outages(rule)


class ReturnTests(SynchronousTestCase):
    """Services that return while the fleet is read."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.registry = ReturningRegistry(self.clock)

    def start(self, count: int) -> list[int]:
        """Start services."""
        starts = [
            ServiceStart(host=f"h{n}", binary="agent", topic="agent", version=1, owner=f"o{n}", machine="m")
            for n in range(count)
        ]
        ids = [self.successResultOf(self.registry.begin(start)).id for start in starts]
        self.run_for(10, ids)
        return ids

    def run_for(self, seconds: int, ids: list[int]) -> None:
        """Let time pass; some services send heartbeats."""
        for _ in range(seconds // 10):
            self.clock.advance(10)
            for service_id in ids:
                self.registry.beat(service_id, 1)

    def stall(self, count: int, silent: int) -> None:
        """Let services be silent for 100 s, and then all but some return; those do as soon as outages are read."""
        ids = self.start(count)
        self.clock.advance(100)
        self.registry.returning = ids[:silent]
        for service_id in ids[silent:]:
            self.registry.beat(service_id, 1)
        self.clock.advance(2)

    def read(self) -> list[ServiceRecord]:
        return self.successResultOf(self.registry.page(ServiceQuery(sort="id"))).rows

    def judge_some(self, records: list[ServiceRecord]) -> list[str]:
        judging = Deferred.fromCoroutine(judge_some(self.registry, records, RULE))
        return [verdict.status for verdict in self.successResultOf(judging)]

    def judge_all(self) -> list[tuple[float, str]]:
        fleet = self.successResultOf(Deferred.fromCoroutine(judge_all(self.registry, RULE)))
        return [(record.age, verdict.status) for record, verdict in fleet.services]

    def test_all(self) -> None:
        """The last services that a stall kept silent return before the outages are read: their new rows are judged."""
        self.stall(10, 2)
        self.assertEqual(self.judge_all(), [(0.0, "alive")] * 2 + [(2.0, "alive")] * 8)

    def test_some(self) -> None:
        """The same holds if only the rows of these services are judged."""
        self.stall(10, 2)
        self.assertEqual(self.judge_some(self.read()[:2]), ["alive"] * 2)

    def test_part_of_a_mass(self) -> None:
        """Some services of a part that was cut off return: they are alive, and the others are suspect."""
        ids = self.start(10)
        self.clock.advance(5)
        for service_id in ids[3:5]:  # the last ones to become silent
            self.registry.beat(service_id, 1)
        self.run_for(70, ids[5:])
        records = self.read()
        self.assertEqual(self.judge_some(records), ["suspect"] * 5 + ["alive"] * 5)
        self.registry.returning = ids[3:5]
        self.assertEqual(self.judge_some(records), ["suspect"] * 3 + ["alive"] * 7)

    def test_deleted(self) -> None:
        """A dead service whose row is deleted meanwhile is judged by the row that was read."""
        ids = self.start(10)
        self.run_for(80, ids[2:])
        records = self.read()
        self.registry.delete(ids[0])
        self.assertEqual(self.judge_some(records), ["down"] * 2 + ["alive"] * 8)

    def test_queries(self) -> None:
        """Services that are down cost one query more; without them there is none."""
        ids = self.start(600)
        self.run_for(80, [each for each in ids if each % 100])
        self.registry.queries.clear()
        self.assertEqual(Counter(status for _, status in self.judge_all()), {"alive": 594, "down": 6})
        self.assertEqual([query.up for query in self.registry.queries], [None, None, False])
        self.run_for(10, ids)
        self.registry.queries.clear()
        self.assertEqual({status for _, status in self.judge_all()}, {"alive"})
        self.assertEqual([query.up for query in self.registry.queries], [None, None])

    def test_many(self) -> None:
        """Many services return at once: their rows are read again page by page."""
        self.stall(1200, 1200)
        self.assertEqual({status for _, status in self.judge_all()}, {"alive"})
        self.assertEqual(
            [(query.up, query.after) for query in self.registry.queries[3:]],
            [(False, "0"), (None, "0"), (None, "500"), (None, "1000")],
        )

    def test_bound(self) -> None:
        """Only so many pages are read again; the other services are judged by the rows that were read first."""
        self.patch(verdicts, "_MOST_PAGES", 2)
        self.stall(1200, 1200)
        self.assertEqual(Counter(status for _, status in self.judge_all()), {"alive": 1000, "down": 200})


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
