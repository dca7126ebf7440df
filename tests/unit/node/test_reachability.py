"""Tests for novasvc.node.reachability: how a node verifies that messages reach it."""

import random
from collections.abc import Callable
from itertools import pairwise

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import BrokerBlockedError
from novasvc.interfaces import Reachability
from novasvc.manager import Manager
from novasvc.node.reachability import ReachabilityCheck
from novasvc.node.runtime import SharedConnection
from novasvc.registry.verdict import VerdictRule, judge
from novasvc.rpc import Client, expose
from novasvc.rpc.target import Target
from novasvc.service import Service
from novasvc.testing import MemoryRegistry, memory_runtime
from novasvc.transport.memory import MemoryBroker, MemoryTransport

INTERVAL = 10.0


class LogCase(SynchronousTestCase):
    """Keeps what is logged, on a Clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.log: list[str] = []
        globalLogPublisher.addObserver(self._note)
        self.addCleanup(globalLogPublisher.removeObserver, self._note)

    def _note(self, event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("novasvc."):
            self.log.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    def said(self, text: str) -> int:
        return len([line for line in self.log if text in line])


class CheckTests(LogCase):
    """Tests for ReachabilityCheck."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[tuple[float, float]] = []
        self.answer: Callable[[], Deferred[Reachability]] = lambda: succeed(Reachability())
        self.check = self.make()

    def make(self, interval: float = INTERVAL, seed: int = 0) -> ReachabilityCheck:
        return ReachabilityCheck(self.verify, interval, self.clock, random.Random(seed))

    def verify(self, timeout: float) -> Deferred[Reachability]:
        self.asked.append((self.clock.seconds(), timeout))
        return self.answer()

    def run_for(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds * 2))

    def test_once_in_an_interval(self) -> None:
        """It verifies once in an interval, for less than an interval; the first time within the first."""
        self.check.start()
        self.run_for(3 * INTERVAL)
        times = [time for time, _ in self.asked]
        self.assertEqual([after - before for before, after in pairwise(times)], [INTERVAL] * 2)
        self.assertLess(times[0], INTERVAL)
        self.assertEqual({timeout for _, timeout in self.asked}, {9.0})

    def test_spread(self) -> None:
        """Nodes that start at the same time verify at different times."""
        for seed in range(20):
            self.make(seed=seed).start()
        self.run_for(INTERVAL)
        self.assertGreater(len({time for time, _ in self.asked}), 5)

    def test_short_interval(self) -> None:
        """An interval of a second leaves a busy machine two."""
        self.make(interval=1.0).start()
        self.run_for(1.0)
        self.assertEqual(self.asked[0][1], 2.0)

    def test_never_two(self) -> None:
        """One that takes longer is the only one."""
        self.answer = Deferred
        self.check.start()
        self.run_for(5 * INTERVAL)
        self.assertEqual(len(self.asked), 1)

    def test_problem(self) -> None:
        """What is found holds until something else is."""
        self.check.start()
        for problem in ("it is gone", None):
            self.answer = lambda problem=problem: succeed(Reachability(problem))
            self.run_for(INTERVAL)
            self.assertEqual(self.check.problem, problem)
        self.assertEqual(self.log, [])

    def test_repaired(self) -> None:
        """What was made again is one line."""
        self.answer = lambda: succeed(Reachability(repaired=("the exchange nova", "a binding")))
        self.check.start()
        self.run_for(INTERVAL)
        self.assertEqual(self.log, ["messages did not reach this node; restored: the exchange nova, a binding"])

    def test_unknown(self) -> None:
        """Where nothing can be found out, what was found before holds."""
        self.check.start()
        for answer, problem in (
            (lambda: succeed(Reachability("it is gone")), "it is gone"),
            (lambda: fail(BrokerBlockedError("amqp://x", "low on memory")), "it is gone"),
            (lambda: succeed(Reachability()), None),
            (lambda: fail(BrokerBlockedError("amqp://x", "low on memory")), None),
        ):
            self.answer = answer  # type: ignore[assignment]  # two kinds of Deferred
            self.run_for(INTERVAL)
            self.assertEqual(self.check.problem, problem)
        self.assertEqual(self.log, [])

    def test_bug(self) -> None:
        """An error that nobody expects is logged, and the next verification comes."""
        self.answer = lambda: fail(ZeroDivisionError())
        self.check.start()
        self.run_for(2 * INTERVAL)
        self.assertEqual((len(self.asked), self.said("the verification that messages reach this node failed")), (2, 2))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_stopped(self) -> None:
        """When it is stopped no more is asked, and what is under way is cancelled: before the first one, and later."""
        ended: list[object] = []
        for seconds in (0.0, INTERVAL, INTERVAL):
            verifying: Deferred[Reachability] = Deferred()
            self.answer = lambda verifying=verifying: verifying
            check = self.make()
            check.start()
            self.run_for(seconds)
            verifying.addErrback(lambda failure: ended.append(failure.trap(CancelledError)))
            check.stop()
            check.stop()
            self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((len(self.asked), self.log), (2, []))


class Hanging(Manager):
    """Has a method that ends when the test says."""

    @expose
    def hang(self, context: RequestContext) -> Deferred[None]:
        self.hanging: Deferred[None] = Deferred()
        return self.hanging


class NodeTests(LogCase):
    """A node over the memory transport."""

    def setUp(self) -> None:
        super().setUp()
        self.broker = MemoryBroker()
        self.registry = MemoryRegistry(self.clock)
        runtime = attrs.evolve(
            memory_runtime(self.clock, host="h1"),
            broker=SharedConnection("broker", lambda: MemoryTransport(self.broker, clock=self.clock)),
            database=SharedConnection("database", lambda: self.registry),
        )
        self.service = Service("h1", "nova-x", "x", Hanging, report_interval=INTERVAL, runtime=runtime)
        self.successResultOf(self.service.start())
        self.addCleanup(self.stop)
        self.run_for(INTERVAL)

    def stop(self) -> None:
        self.service.stop()
        self.run_for(70)

    def run_for(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds * 2))

    def beats(self) -> int:
        (row,) = self.successResultOf(self.registry.list(None, None, None))
        return row.report_count

    def unready(self) -> list[str]:
        legs = self.successResultOf(self.service.health())["legs"]
        return [leg["detail"] for leg in legs if leg["name"] == "consumers" and not leg["ready"]]

    def test_repaired(self) -> None:
        """A way that is lost is there again within two heartbeats; that is said once, and the beats go on."""
        before = self.beats()
        self.broker._queues.clear()
        self.broker._fanouts.clear()
        self.run_for(2 * INTERVAL)
        self.assertEqual(len(self.broker.route("nova", Target("x", "h1"))), 1)
        self.assertEqual(len(self.broker.route("nova", Target("x", fanout=True))), 1)
        self.assertEqual(self.said("restored: the queue x, the queue x.h1, the queue for fanouts of x"), 1)
        self.assertEqual((self.beats(), self.said("no heartbeat")), (before + 2, 0))

    def test_unreachable(self) -> None:
        """A node that no message reaches is not up, says what is missing once, and is up again when one does."""
        found = [Reachability("it is gone")]
        self.service.node.reachability._verify = lambda _: succeed(found[0])
        self.run_for(2 * INTERVAL)
        before = self.beats()
        self.run_for(2 * INTERVAL)
        self.assertEqual((self.beats(), self.said("no heartbeat is sent, because it is gone")), (before, 1))
        self.assertEqual(self.unready(), ["no messages reach it: it is gone"])
        found[0] = Reachability()
        self.run_for(2 * INTERVAL)
        self.assertGreater(self.beats(), before)
        self.assertEqual((self.unready(), self.said("heartbeats resumed")), ([], 1))

    def test_told(self) -> None:
        """Others see why an unreachable node sends no heartbeats: it is suspect, then down, then alive."""

        def verdict() -> tuple[str, str]:
            (row,) = self.successResultOf(self.registry.list(None, None, None))
            (found,) = judge([row], VerdictRule())
            return found.status, found.reason

        found = [Reachability("the queue x.h1 is gone")]
        self.assertEqual(verdict(), ("alive", ""))
        self.service.node.reachability._verify = lambda _: succeed(found[0])
        self.run_for(30)
        self.assertEqual(verdict(), ("suspect", "it runs, but sends no heartbeats: the queue x.h1 is gone"))
        self.run_for(45)
        self.assertEqual(verdict()[0], "down")
        self.assertRegex(verdict()[1], r"\Ano heartbeat since .* UTC: the queue x.h1 is gone\Z")
        found[0] = Reachability()
        self.run_for(2 * INTERVAL)
        self.assertEqual(verdict(), ("alive", ""))

    def test_draining(self) -> None:
        """A node that drains beats on, and verifies no more: that nothing new reaches it is meant."""
        client = Client(MemoryTransport(self.broker, clock=self.clock), clock=self.clock, target=Target("x"))
        called = client.call(RequestContext(), "hang")
        self.run_for(1)
        self.service.node.reachability.problem = "it is gone"
        self.service.stop()
        before = self.beats()
        self.run_for(2 * INTERVAL)
        self.assertEqual((self.beats(), self.said("no heartbeat")), (before + 2, 0))
        self.service.manager.hanging.callback(None)
        self.run_for(1)
        self.successResultOf(called)
