"""Tests for novasvc.registry.targets, with the clients that nodes have."""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.errors import (
    DatabaseUnavailableError,
    RPCTimeoutError,
    ServiceDrainingError,
    TargetDownError,
    UndeliverableError,
)
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.query import ServiceQuery
from novasvc.registry.record import ServiceChanges
from novasvc.registry.targets import TargetLiveness
from novasvc.rpc import Retry
from novasvc.rpc.target import Target
from novasvc.testing import FleetMixin, MemoryRegistry

DOWN_TIME = 60.0


class Echo(Manager):
    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.calls = 0

        self.hold: Deferred[None] | None = None

    @rpc.expose
    async def wait(self, context: RequestContext) -> None:
        assert self.hold is not None
        await self.hold

    @rpc.expose
    def echo(self, context: RequestContext, value: int) -> int:
        self.calls += 1
        return value


class CallTests(FleetMixin, SynchronousTestCase):
    """Calls between nodes of a fleet."""

    def setUp(self) -> None:
        super().setUp()
        self.a, self.b = (self.fleet.start(Echo, host=host) for host in "ab")

    def force_down(self, *, down: bool = True) -> None:
        changes = ServiceChanges(forced_down=down)
        self.fleet.run(self.fleet.registry.update(self.a.row.id, changes))

    def test_up(self) -> None:
        """A server that is up is called, and so is a topic."""
        self.assertEqual(self.fleet.run(self.fleet.call("echo.a", "echo", value=1)), 1)
        self.assertEqual(self.fleet.run(self.fleet.call("echo", "echo", value=2)), 2)

    def test_dead(self) -> None:
        """A call to a host that is cut off fails at once, and says since when; without the check it waits."""
        self.fleet.disconnect("a")
        self.fleet.advance(DOWN_TIME + 11)
        before = self.fleet.seconds()
        error = self.failing("echo.a")
        self.assertEqual(self.fleet.seconds(), before)
        self.assertEqual((error.target, error.registered, error.up), ("echo.a", 1, 0))
        assert error.since is not None
        self.assertIn(f"no heartbeat since {error.since[:10]} {error.since[11:19]} UTC", str(error))
        self.assertIn("the call was not sent", str(error))
        self.assertEqual(error.args, tuple(getattr(error, each) for each in type(error).__match_args__))
        self.assertEqual([sent for sent in self.fleet.messages("echo") if sent.method == "echo"], [])
        client = self.fleet.client(topic="echo", server="a", check_liveness=False, timeout=5)
        with self.assertRaises(RPCTimeoutError):
            self.fleet.run(client.call(RequestContext(), "echo", value=1))

    def failing(self, target: str) -> TargetDownError:
        with self.assertRaises(TargetDownError) as caught:
            self.fleet.run(self.fleet.call(target, "echo", value=1))
        return caught.exception

    def test_forced_down(self) -> None:
        """A host that is forced down is not called although it runs, and is called within a second afterwards."""
        self.force_down()
        error = self.failing("echo.a")
        self.assertIn("forced down", str(error))
        self.assertIsInstance(error, UndeliverableError)
        self.assertEqual(self.a.manager.calls, 0)
        self.assertEqual(self.fleet.run(self.fleet.call("echo.b", "echo", value=1)), 1)
        self.force_down(down=False)
        self.fleet.advance(1)
        self.assertEqual(self.fleet.run(self.fleet.call("echo.a", "echo", value=3)), 3)

    def test_stopped(self) -> None:
        """A service that has stopped is not called, at once, and is called again when it is back."""
        self.a.stop()
        error = self.failing("echo.a")
        self.assertRegex(error.reason, r"^stopped cleanly at \d{4}-")
        self.assertRegex(error.since or "", r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.a.start()
        self.fleet.advance(1)
        self.assertEqual(self.fleet.run(self.fleet.call("echo.a", "echo", value=1)), 1)

    def test_suspect(self) -> None:
        """Services that are silent together with many others are suspect, and are called; later they are down."""
        for number in range(6):
            self.fleet.start(Echo, host=f"c{number}")
        cut_off = [f"c{number}" for number in range(4)]
        self.fleet.disconnect(*cut_off)
        self.fleet.advance(DOWN_TIME + 11)
        client = self.fleet.client(topic="echo", timeout=5)
        with self.assertRaises(RPCTimeoutError):
            self.fleet.run(client.prepare(server="c0").call(RequestContext(), "echo", value=1))
        self.fleet.advance(300)
        self.assertIn("no heartbeat since", self.failing("echo.c0").reason)

    def test_returned_meanwhile(self) -> None:
        """A host that returns after its row was read, before the outages are, is called."""
        self.fleet.disconnect("a")
        self.fleet.advance(DOWN_TIME + 11)
        read_outages = MemoryRegistry.outages

        def outages(registry: MemoryRegistry, rule: VerdictRule) -> Deferred[Outages]:
            self.fleet.reconnect("a")
            registry.beat(self.a.row.id)
            return read_outages(registry, rule)

        self.patch(MemoryRegistry, "outages", outages)
        self.assertEqual(self.fleet.run(self.fleet.call("echo.a", "echo", value=1)), 1)

    def test_long_start(self) -> None:
        """A service that consumes is called while its post_start_hook runs, however long that takes."""

        class Slow(Echo):
            async def post_start_hook(self) -> None:
                await deferLater(self.attachments.reactor, 3 * DOWN_TIME)

        self.fleet.add(Slow, host="c", topic="echo", binary="novasvc-echo").service.start()
        self.fleet.advance(2 * DOWN_TIME)
        self.assertEqual(self.fleet.run(self.fleet.call("echo.c", "echo", value=1)), 1)
        self.fleet.advance(2 * DOWN_TIME)

    def test_draining(self) -> None:
        """A service that drains is called: it still takes the calls that belong to operations in progress there."""
        self.a.manager.hold = Deferred()
        holding = self.fleet.call("echo.a", "wait")
        self.fleet.advance(0)
        stopping = self.a.service.stop()
        self.fleet.advance(1)
        self.assertEqual(self.a.service.state, "draining")
        with self.assertRaises(ServiceDrainingError):
            self.fleet.run(self.fleet.call("echo.a", "echo", value=1))
        self.a.manager.hold.callback(None)
        self.fleet.run(holding)
        self.fleet.run(stopping)

    def test_no_outages(self) -> None:
        """While it cannot be found out whether a silent service is suspect, it is called."""
        self.fleet.disconnect("a")
        self.fleet.advance(DOWN_TIME + 11)

        def outages(_registry: MemoryRegistry, _rule: Any) -> Deferred[Any]:
            return fail(DatabaseUnavailableError("conductor", "is too old"))

        self.patch(MemoryRegistry, "outages", outages)
        client = self.fleet.client(topic="echo", server="a", timeout=5)
        with self.assertRaises(RPCTimeoutError):
            self.fleet.run(client.call(RequestContext(), "echo", value=1))

    def test_cancelled_while_judged(self) -> None:
        """A call that is cancelled while its target is judged is not sent, and one whose time is up neither."""
        self.fleet.disconnect("a")
        self.fleet.advance(DOWN_TIME + 11)
        self.patch(MemoryRegistry, "outages", lambda _registry, _rule: Deferred())
        sent = len(self.fleet.messages("echo"))
        client = self.fleet.client(topic="echo", server="a", timeout=5)
        calling = client.call(RequestContext(), "echo", value=1)
        calling.cancel()
        with self.assertRaises(CancelledError):
            self.fleet.run(calling)
        with self.assertRaises(RPCTimeoutError):
            self.fleet.run(client.prepare(timeout=0.1).call(RequestContext(), "echo", value=1))
        self.assertEqual(len(self.fleet.messages("echo")), sent)

    def test_noticed(self) -> None:
        """While a host is called, it is noticed within two seconds that it is down."""
        for value in range(10):
            self.assertEqual(self.fleet.run(self.fleet.call("echo.a", "echo", value=value)), value)
            self.fleet.advance(0.3)
        self.force_down()
        self.fleet.advance(1)
        self.failing("echo.a")

    def test_casts(self) -> None:
        """A cast is sent: it is a message in a queue, and its server handles it when it can."""
        self.force_down()
        self.fleet.run(self.fleet.cast("echo.a", "echo", value=1))
        self.fleet.settle()
        self.assertEqual(self.a.manager.calls, 1)

    def test_opt_out(self) -> None:
        """prepare(check_liveness=False) calls a server that is down; clients that it prepares do, too."""
        self.force_down()
        client = self.fleet.client(topic="echo", server="a", check_liveness=False).prepare(timeout=5)
        self.assertEqual(self.fleet.run(client.call(RequestContext(), "echo", value=4)), 4)
        again = client.prepare(check_liveness=True)
        with self.assertRaises(TargetDownError):
            self.fleet.run(again.call(RequestContext(), "echo", value=4))

    def test_unknown(self) -> None:
        """What the registry does not know is called: no row, no registry."""
        with self.assertRaises(UndeliverableError) as caught:
            self.fleet.run(self.fleet.call("echo.nobody", "echo", value=1))
        self.assertNotIsInstance(caught.exception, TargetDownError)
        self.force_down()
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "away")
        self.fleet.advance(3)
        before = self.fleet.seconds()
        self.assertEqual(self.fleet.run(self.fleet.call("echo.a", "echo", value=1)), 1)
        self.assertEqual(self.fleet.seconds(), before)

    def test_no_heartbeats(self) -> None:
        """A service that sends no heartbeats is never up according to Nova's rule, and is called all the same."""
        self.fleet.start(Echo, host="c", report_interval=0)
        self.fleet.advance(DOWN_TIME + 1)
        self.assertEqual(self.fleet.run(self.fleet.call("echo.c", "echo", value=1)), 1)

    def test_retry(self) -> None:
        """A call with retries gets through to a server that comes back meanwhile."""
        self.force_down()
        retry = Retry(attempts=5, backoff=lambda _: 1.0)
        client = self.fleet.client(topic="echo", server="a", idempotent=True, retry=retry, timeout=30)
        calling = client.call(RequestContext(), "echo", value=5)
        self.fleet.advance(0.5)
        self.force_down(down=False)
        self.assertEqual(self.fleet.run(calling), 5)
        self.assertEqual(self.a.manager.calls, 1)

    def test_metrics(self) -> None:
        """A call that is not sent is counted as such."""
        self.force_down()
        self.failing("echo.a")
        self.assertEqual(self.fleet.metric("novasvc_rpc_client_calls_total", method="echo", outcome="unsent"), 1)


class Registry:
    """A registry whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[ServiceQuery] = []
        self.answers: list[Deferred[Any]] = []

    def page(self, query: ServiceQuery) -> Deferred[Any]:
        self.asked.append(query)
        self.answers.append(Deferred())
        return self.answers[-1]


class TargetLivenessTests(SynchronousTestCase):
    """The check itself."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.slow = Registry()
        self.memory = MemoryRegistry(self.clock)
        self.registry: Any = self.memory
        self.check = TargetLiveness(lambda: self.registry, self.clock, VerdictRule(service_down_time=DOWN_TIME))

    def test_not_connected(self) -> None:
        """Without a registry every server is called, and nobody waits."""
        self.registry = None
        self.assertIs(self.check(Target("work", "a")), None)

    def test_queries(self) -> None:
        """Calls to many servers cost one query a second."""
        asked: list[ServiceQuery] = []
        page = self.memory.page
        self.registry = Registry()
        self.registry.page = lambda query: asked.append(query) or page(query)
        for _ in range(30):
            for number in range(100):
                self.assertIs(self.check(Target("work", f"h{number}")), None)
            self.clock.advance(0.1)
        self.assertEqual(len(asked), 3)
        self.assertEqual({(each.topic, each.up, each.limit) for each in asked}, {("work", False, 1000)})

    def test_slow_registry(self) -> None:
        """A call waits for a slow registry for a quarter of a second, and is sent; calls meanwhile share the query."""
        self.registry = self.slow
        first = self.check(Target("work", "a"))
        assert isinstance(first, Deferred)
        self.clock.advance(0.2)
        second = self.check(Target("work", "b"))
        assert isinstance(second, Deferred)
        self.clock.advance(0.05)
        self.assertIs(self.successResultOf(first), None)
        self.assertNoResult(second)
        self.assertEqual(len(self.slow.asked), 1)
        self.clock.advance(2)  # the query is given up
        self.assertIs(self.check(Target("work", "a")), None)

    def test_cancelled_call(self) -> None:
        """A call that is cancelled while it waits is not sent, and the query goes on for the others."""
        self.registry = self.slow
        first, second = (self.check(Target("work", "a")) for _ in range(2))
        assert isinstance(first, Deferred)
        assert isinstance(second, Deferred)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.slow.answers[0].callback(self.successResultOf(self.memory.page(ServiceQuery())))
        self.assertIs(self.successResultOf(second), None)

    def test_topics(self) -> None:
        """Only so many topics are remembered."""
        for number in range(150):
            self.check(Target(f"t{number}", "a"))
        self.assertEqual(len(self.check._topics), 100)
