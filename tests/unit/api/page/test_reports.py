import re
from collections import Counter
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.page.assets import Assets
from novasvc.api.page.problems import NodeReport, find_problems, headline
from novasvc.api.page.rendering import Renderer
from novasvc.api.page.reports import BATCH, CURRENT, KEPT, TICK, Reports, read_reports
from novasvc.api.watch import Watch
from novasvc.errors import DatabaseUnavailableError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.lease import Lease
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.record import ServiceRecord
from novasvc.rpc.errors import RPCTimeoutError
from tests.support.page_rig import assess_alone

TROUBLE = {"title": "worker crashes", "why": "worker 1: killed", "since": "1970-01-01T00:16:40+00:00"}


class ReportsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.registry = MemoryRegistry(self.clock)
        self.asked: Counter[str] = Counter()
        self.told: dict[str, Any] = {}
        self.leases: list[Lease] = []
        self.outage: Exception | None = None

        async def read() -> list[ServiceRecord]:
            return await self.registry.list(None, None, None)

        async def ask(record: ServiceRecord) -> Any:
            self.asked[record.host] += 1
            answer = self.told.get(record.host, [])
            if isinstance(answer, Exception):
                raise answer
            return await answer if isinstance(answer, Deferred) else answer

        async def read_leases() -> list[Lease]:
            if self.outage is not None:
                raise self.outage
            return self.leases

        self.watch = Watch(read, self.clock, assess_alone(6000.0), 10.0)
        self.reports = Reports(self.watch, ask, read_leases, self.clock)
        for service in (self.watch, self.reports):
            service.startService()
            self.addCleanup(service.stopService)

    def add(self, host: str) -> ServiceRecord:
        start = ServiceStart(
            host=host, binary="agent", topic="agent", version=1, owner=host, machine="m1", service_down_time=6000.0
        )
        return self.successResultOf(self.registry.begin(start))

    def look(self, seconds: float = 2 * TICK) -> None:
        """Look at the page for some seconds."""
        stop = self.watch.subscribe(lambda: None)
        self.clock.pump([TICK] * int(seconds / TICK))
        stop()

    def test_only_while_viewed(self) -> None:
        """Nodes are asked only while somebody looks, and each at most every ten seconds."""
        self.add("h1")
        self.clock.pump([TICK] * 20)
        self.assertEqual(self.asked, {})
        self.look(40)
        self.assertIn(self.asked["h1"], {3, 4})

    def test_troubles(self) -> None:
        """What a node tells is a problem of its service, until it tells nothing any more."""
        number = self.add("h1").id
        self.told["h1"] = [TROUBLE]
        self.look()
        self.assertEqual(self.reports.nodes[number], [NodeReport("worker crashes", "worker 1: killed", 1000.0)])
        problems = find_problems(self.watch.services.values(), (), self.reports.nodes)
        (problem,) = problems.shown
        self.assertEqual((problem.title, problem.affected[0].detail), ("worker crashes", "worker 1: killed"))
        self.told["h1"] = []
        self.look(20)
        self.assertEqual(self.reports.nodes, {})

    def as_of(self) -> list[float | None]:
        return [report.as_of for told in self.reports.nodes.values() for report in told]

    def test_ended_meanwhile(self) -> None:
        """Reports of nodes that are not current have their age, and end after a while: troubles may have ended."""
        self.add("h1")
        self.told["h1"] = [TROUBLE]
        self.look(TICK)
        told_at = self.clock.seconds()
        self.clock.advance(CURRENT)
        self.assertEqual(self.as_of(), [None])
        self.clock.advance(TICK)
        self.assertEqual(self.as_of(), [told_at])
        problems = find_problems(self.watch.services.values(), (), self.reports.nodes)
        html = Renderer(Assets()).text("problems.html", problems=problems, now=told_at + 120.0, began=0.0)
        self.assertIn("as of 2 min ago", re.sub("<[^>]*>", "", html))
        answer = self.told["h1"] = Deferred[Any]()
        self.look(TICK)
        self.assertEqual(self.as_of(), [told_at])
        answer.callback([TROUBLE])
        self.assertEqual(self.as_of(), [None])
        self.clock.pump([TICK] * int(KEPT / TICK + 1))
        self.assertEqual(self.reports.nodes, {})

    def test_page_loaded_again(self) -> None:
        """A page that is loaded again every minute, without JavaScript, shows what nodes told after the last time."""
        for host in ("h1", "h2"):
            self.add(host)
        self.told["h1"] = [TROUBLE]
        headlines = []
        for _ in range(4):
            loading = Deferred.fromCoroutine(self.watch.wait_fresh())
            self.clock.advance(0)
            self.successResultOf(loading)
            services = self.watch.services.values()
            headlines.append(headline(services, find_problems(services, (), self.reports.nodes)))
            self.clock.pump([TICK] * 30)
        self.assertEqual(headlines[1:], ["worker crashes"] * 3)

    def test_same_reason(self) -> None:
        """Services whose nodes tell the same problem and reason share a line; reasons of one service share another."""
        other, stopped = {**TROUBLE, "why": "worker 2: killed"}, {**TROUBLE, "why": "worker 3: stopped"}
        for number, trouble in enumerate((TROUBLE, TROUBLE, TROUBLE, other, stopped)):
            self.add(f"h{number}")
            self.told[f"h{number}"] = [trouble]
        self.look()
        services = self.watch.services.values()
        problems = find_problems(services, (), self.reports.nodes)
        self.assertEqual(
            [(each.why, [(of.name, of.detail) for of in each.affected]) for each in problems.shown],
            [
                ("worker 1: killed", [("agent@h0", ""), ("agent@h1", ""), ("agent@h2", "")]),
                ("", [("agent@h3", "worker 2: killed"), ("agent@h4", "worker 3: stopped")]),
            ],
        )
        self.assertEqual(headline(services, problems), "worker crashes")

    def test_chance_reasons(self) -> None:
        """Reasons with numbers that coincide by chance share a line, and do not hide other problems."""
        for number in range(60):
            self.add(f"h{number}")
            why = f"worker {number % 4 + 1} is waiting, {number % 5 + 3} restarts: killed by SIGSEGV"
            self.told[f"h{number}"] = [{**TROUBLE, "why": why}]
        self.told["h7"] = [{"title": "not ready", "why": "database: read-only", "since": None}]
        self.look(60)
        services = self.watch.services.values()
        problems = find_problems(services, (), self.reports.nodes)
        self.assertEqual(
            [(each.title, each.why, each.count) for each in problems.shown],
            [("worker crashes", "", 59), ("not ready", "", 1)],
        )
        self.assertEqual(headline(services, problems), "worker crashes, not ready")

    def test_silent(self) -> None:
        """A node that does not answer, or does not know the question, has no report; others are asked on."""
        self.add("h1")
        self.add("h2")
        self.told = {"h1": RPCTimeoutError("troubles", 2.0, "agent.h1"), "h2": [TROUBLE]}
        self.look(40)
        self.assertEqual([*self.reports.nodes], [2])
        self.assertGreaterEqual(self.asked["h1"], 3)

    def test_in_turns(self) -> None:
        """Of many nodes some are asked in each round, all of them in turn."""
        for number in range(3 * BATCH):
            self.add(f"h{number}")
        while len(self.asked) < 3 * BATCH:
            before = self.asked.total()
            self.look(TICK)
            self.assertLessEqual(self.asked.total() - before, BATCH)
        self.assertEqual(set(self.asked.values()), {1})

    def test_nova(self) -> None:
        """Services of Nova's own are not asked: they do not know the question."""
        record = self.successResultOf(self.registry.register("h1", "nova-compute", "compute", 1))
        self.successResultOf(self.registry.beat(record.id))
        self.look(40)
        self.assertEqual(self.asked, {})

    def test_leases(self) -> None:
        """A lease that nobody holds for a while is a problem, if a service of its topic is up."""
        self.add("h1")
        now = self.registry_time()
        usual = Lease(
            topic="agent", task="nightly", holder=None, owner=None, fencing=4, acquired_at=now, held_for=0.0,
            expires_in=-100.0, known_for=0.0, last_run_at=None, ran_ago=None, last_due=None,
        )  # fmt: skip
        self.leases = [
            usual,
            attrs.evolve(usual, task="held", owner="x", expires_in=30.0),
            attrs.evolve(usual, task="new", expires_in=0.0),
            attrs.evolve(usual, topic="other"),
        ]
        self.look(TICK)
        self.assertEqual([free.lease.task for free in self.reports.leases()], ["nightly"])
        problems = find_problems(self.watch.services.values(), self.reports.leases())
        self.assertEqual([problem.title for problem in problems.shown], ["lease without holder"])
        self.assertEqual(problems.shown[0].affected[0].name, "agent nightly")
        self.assertEqual([free.as_of for free in self.reports.leases()], [None])
        read_at = self.clock.seconds()
        self.outage = DatabaseUnavailableError("mysql://db", "it is gone")
        self.look(20)
        self.assertEqual([free.lease.task for free in self.reports.leases()], ["nightly"])
        self.look(CURRENT)
        self.assertEqual({free.as_of for free in self.reports.leases()}, {read_at})
        self.clock.pump([TICK] * int(KEPT / TICK))
        self.assertEqual(self.reports.leases(), [])

    def registry_time(self) -> Any:
        return self.add("clock").created_at

    def test_nonsense(self) -> None:
        """Whatever a node answers becomes reports, of bounded number and size."""
        for answer in (None, 7, "x", {}, [None, 7, {"title": 7}, {}]):
            self.assertEqual(read_reports(answer), [])
        (report,) = read_reports([{"title": "x" * 999, "why": 7, "since": "tomorrow"}])
        self.assertEqual((len(report.title), report.why, report.since), (400, "", None))
        self.assertEqual(len(read_reports([TROUBLE] * 999)), 20)

    def test_stopped(self) -> None:
        """Questions under way are given up when the API stops."""
        self.add("h1")
        gone: list[str] = []
        self.told["h1"] = Deferred(lambda _: gone.append("h1"))
        self.look()
        self.reports.stopService()
        self.assertEqual(gone, ["h1"])
        self.reports.startService()
