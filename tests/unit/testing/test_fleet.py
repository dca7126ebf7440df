"""Tests for novasvc.testing.fleet, node and time."""

import gc
import unittest
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, periodic_task, rpc
from novasvc.errors import (
    DatabaseUnavailableError,
    InvalidArgumentsError,
    InvalidTargetError,
    MethodTimeoutError,
    NoSuchMethodError,
    NotSettledError,
    RPCTimeoutError,
    ServiceNotFoundError,
    StartError,
    StateError,
    UndeliverableError,
    UnknownNodeError,
    UnknownTaskError,
)
from novasvc.rpc.events.notification import Notification
from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import MAX_LABEL_SETS
from novasvc.testing import Fleet, FleetMixin
from novasvc.testing.client import FleetClient
from tests.unit.testing.parts import Orders, Stock


class FleetCase(FleetMixin, SynchronousTestCase):
    """A test with a fleet."""


class Sender(Manager):
    """Works for a while, sends something, and ends."""

    @rpc.expose
    async def send(self, context: RequestContext, kind: str) -> None:
        await deferLater(self.attachments.reactor, 5)
        if kind == "cast":
            await self.attachments.rpc.prepare(topic="stock").cast(context, "reserve")
        else:
            await self.attachments.events.emit(context, "order.placed", {})

    @periodic_task(spacing=30)
    async def remind(self, context: RequestContext) -> None:
        await self.send(context, "cast")


class NodeTests(FleetCase):
    """Nodes that a test starts."""

    def test_start(self) -> None:
        """A started node runs under the names that `novasvc run` gives it, with the arguments of its constructor."""
        stock = self.fleet.start(Stock, items=5)
        self.assertEqual((stock.service.state, stock.manager.items, stock.manager.host), ("running", 5, "host1"))
        self.assertEqual((stock.topic, stock.service.binary), ("stock", "novasvc-stock"))
        named = self.fleet.start(Stock, items=7, host="b", topic="shelf", binary="nova-shelf", report_interval=5)
        self.assertEqual((named.topic, named.service.binary, named.manager.items), ("shelf", "nova-shelf", 7))
        self.assertEqual(named.service.report_interval, 5)
        dotted = self.fleet.start("novasvc.host_agent:HostAgent")
        self.assertEqual(dotted.topic, "host_agent")

    def test_worker(self) -> None:
        """Nodes of one host can stand for the workers of a supervisor."""
        first, second = (self.fleet.start(Stock, host="a", worker=number) for number in (1, 2))
        self.assertEqual([node.manager.attachments.worker for node in (first, second)], [1, 2])
        self.assertEqual(len(self.fleet.rows()), 1)

    def test_not_started(self) -> None:
        """A manager whose hook fails is a StartError, and the fleet can still be stopped."""

        class Broken(Manager):
            def init_host(self) -> None:
                raise ValueError("no disk")

        self.assertRaisesRegex(StartError, "init_host.*no disk", self.fleet.start, Broken)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_wrong_names(self) -> None:
        """A host's name that no address can have is refused, and so is a node that the fleet does not have."""
        self.assertRaises(InvalidTargetError, self.fleet.start, Stock, host="a b")
        self.fleet.start(Stock, host="a")
        self.fleet.start(Stock, host="b")
        self.assertEqual(self.fleet.node("stock.b").host, "b")
        self.assertRaisesRegex(
            UnknownNodeError, "2 nodes have it; there are: stock.a, stock.b", self.fleet.node, "stock"
        )
        self.assertRaisesRegex(UnknownNodeError, "no node has it", self.fleet.node, "stok")
        self.assertRaisesRegex(UnknownNodeError, "no such host; there are: a, b", self.fleet.disconnect, "c")

    def test_no_class(self) -> None:
        """A manager instead of its class, and a function without a name, are errors that say what to give."""
        self.assertRaisesRegex(TypeError, "give the manager's class", self.fleet.start, Stock("a"))
        self.assertRaisesRegex(TypeError, "give topic=", self.fleet.start, lambda host: Stock(host, 5))
        self.assertEqual(self.fleet.start(lambda host: Stock(host, 5), topic="shelf").topic, "shelf")
        self.assertRaisesRegex(TypeError, "give a Deferred", self.fleet.run, 5)

    def test_together(self) -> None:
        """Nodes can be started at the same time, when their hooks wait for each other."""

        class First(Manager):
            async def post_start_hook(self) -> None:
                await self.attachments.rpc.prepare(topic="second").call(RequestContext(), "ping")

        class Second(Manager):
            @rpc.expose
            def ping(self, context: RequestContext) -> None: ...

        first, second = self.fleet.add(First), self.fleet.add(Second)
        second_started = second.service.start()
        self.fleet.run(gatherResults([first.service.start(), second_started]))
        self.assertEqual(first.service.state, "running")

    def test_stop(self) -> None:
        """A stopped fleet has drained its nodes and takes no others; stopping it again has no effect."""
        stock = self.fleet.start(Stock)
        self.fleet.stop()
        self.assertEqual(stock.service.state, "stopped")
        self.fleet.stop()
        self.assertRaises(StateError, self.fleet.start, Stock)
        self.assertEqual(self.fleet.clock.getDelayedCalls(), [])

    def test_stopped_topic(self) -> None:
        """A call to a topic that nobody ever served fails at once; after its only node has stopped, the call waits."""
        self.assertRaises(UndeliverableError, self.fleet.run, self.fleet.call("stock", "count"))
        stock = self.fleet.start(Stock)
        stock.stop()
        self.assertRaises(RPCTimeoutError, self.fleet.run, self.fleet.call("stock", "count"))
        self.assertEqual(self.fleet.seconds(), 60)
        calling = self.fleet.call("stock", "count")
        self.fleet.advance(30)
        self.fleet.start(Stock, items=5)
        self.assertEqual(self.fleet.run(calling), 5)

    def test_stop_with_work(self) -> None:
        """A method that never ends is cancelled at graceful_shutdown_timeout."""
        stock = self.fleet.start(Stock)
        self.fleet.cast("stock", "hang")
        self.fleet.advance(0)
        self.fleet.stop()
        self.assertEqual((stock.service.state, self.fleet.seconds()), ("stopped", 60))

    def test_outage(self) -> None:
        """A node whose database is away waits for it; the error of a wait that is given up says so."""
        fleet = Fleet(limit=30)
        fleet.registry.outage = DatabaseUnavailableError("memory:", "gone")
        node = fleet.add(Stock)
        self.assertRaisesRegex(NotSettledError, "stock at host1 is starting, waiting for the database", node.start)
        fleet.registry.outage = None
        fleet.settle()
        self.assertEqual(node.service.state, "running")
        fleet.stop()


class CallTests(FleetCase):
    """Calls, casts and fanouts of a test."""

    def test_call(self) -> None:
        """A call passes the whole path, and so does a call that it causes."""
        self.fleet.start(Stock, host="a")
        self.fleet.start(Orders, host="b")
        self.assertEqual(self.fleet.run(self.fleet.call("orders", "place", amount=2)), 1)
        outer, inner = self.fleet.messages()
        self.assertEqual((outer.sender, outer.received_by, outer.answered_by), ("test", ["b"], "b"))
        self.assertEqual((inner.sender, inner.args, inner.result), ("b", {"amount": 2}, 1))
        self.assertEqual(inner.context.request_id, outer.context.request_id)

    def test_errors(self) -> None:
        """A call fails as it would for another service."""
        self.fleet.start(Stock)
        for target, method, args, error in (
            ("stock", "reserve", {"amount": "x"}, InvalidArgumentsError),
            ("stock", "resrve", {}, NoSuchMethodError),
            ("stock.b", "reserve", {}, UndeliverableError),
        ):
            self.assertRaises(error, self.fleet.run, self.fleet.call(target, method, **args))
        self.assertIn("InvalidArgumentsError: invalid arguments", self.fleet.messages()[0].error or "")

    def test_host(self) -> None:
        """A call reaches the host that it names, a fanout all, and a call of the topic one after the other."""
        a, b = (self.fleet.start(Stock, host=host) for host in ("a", "b"))
        self.assertEqual([self.fleet.run(b.call("reserve")) for _ in range(2)], [2, 1])
        self.assertEqual((a.manager.items, b.manager.items), (3, 1))
        self.fleet.run(self.fleet.fanout("stock", "reserve"))
        self.fleet.run(self.fleet.cast("stock.a", "reserve"))
        self.fleet.settle()
        self.assertEqual((a.manager.items, b.manager.items), (1, 0))
        self.assertEqual(sorted(self.fleet.messages()[2].received_by), ["a", "b"])

    def test_topic_with_dot(self) -> None:
        """A topic may contain a dot, if a node serves it."""
        self.fleet.start(Stock, topic="shop.stock")
        self.assertEqual(self.fleet.run(self.fleet.call("shop.stock", "reserve")), 2)
        self.assertEqual(self.fleet.run(self.fleet.node("shop.stock").call("reserve")), 1)

    def test_await(self) -> None:
        """A coroutine that awaits results is never suspended, so any event loop can run it."""
        self.fleet.start(Stock)
        client = self.fleet.client(topic="stock")

        class StockAPI(Protocol):
            def wait(self, context: RequestContext, seconds: float) -> Deferred[float]: ...

        stub = rpc.stub(StockAPI, client)

        async def test() -> Any:
            first = await self.fleet.call("stock", "wait", seconds=5)
            second = await client.prepare(timeout=9).call(RequestContext(), "wait", seconds=1)
            return first, second, await stub.wait(RequestContext(), 2)

        with self.assertRaises(StopIteration) as stopped:
            test().send(None)
        self.assertEqual(stopped.exception.value, (5, 6, 8))

    def test_pending(self) -> None:
        """Calls that are not awaited are under way at the same time, and end while the time is advanced."""
        self.fleet.start(Stock)
        calls = [self.fleet.call("stock", "wait", seconds=seconds) for seconds in (2, 1)]
        self.fleet.advance(1)
        self.assertNoResult(calls[0])
        self.assertEqual(self.successResultOf(calls[1]), 1)
        self.assertEqual(self.fleet.run(calls[0]), 2)

    def test_cancelled(self) -> None:
        """A cancelled call is not under way any more, for the caller."""
        self.fleet.start(Stock)
        calling = self.fleet.call("stock", "wait", seconds=5)
        calling.cancel()
        self.failureResultOf(calling)
        self.fleet.settle()

    def test_cancelled_too_late(self) -> None:
        """What ends although its Deferred was cancelled ends alone; only an error is reported."""
        for outcome in (7, ZeroDivisionError()):
            first: Deferred[None] = Deferred()
            later: Deferred[Any] = Deferred(lambda _: None)

            async def stubborn(first: Deferred[None] = first, later: Deferred[Any] = later) -> Any:
                try:
                    await first
                except CancelledError:
                    return await later

            answer = self.fleet.answer(Deferred.fromCoroutine(stubborn()))
            answer.cancel()
            self.failureResultOf(answer, CancelledError)
            later.callback(outcome) if outcome == 7 else later.errback(outcome)
        gc.collect()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_client(self) -> None:
        """A client calls as any user, with any timeout, from any host."""
        self.fleet.start(Stock)
        client = self.fleet.client("web1", topic="stock", timeout=3)
        self.assertEqual(self.fleet.run(client.call(RequestContext(user_id="eve"), "whoami")), "eve")
        self.assertRaises(RPCTimeoutError, self.fleet.run, client.call(RequestContext(), "hang"))
        self.assertEqual((self.fleet.seconds(), self.fleet.messages()[0].sender), (3, "web1"))
        self.assertEqual(client.pending, 0)

    def test_iterator(self) -> None:
        """Asynchronous iterators of a client can be read in any coroutine, step by step."""
        clock = self.fleet.clock
        calls = [deferLater(clock, seconds, clock.seconds) for seconds in (1, 2)]

        class Answers:
            answered = 0

            async def __anext__(self) -> Any:
                if not calls:
                    raise StopAsyncIteration
                return await calls.pop(0)

            def all(self) -> Deferred[str]:
                return deferLater(clock, 3, lambda: "all")

        class Asking:
            def gather(self) -> Answers:
                return Answers()

        client: Any = FleetClient(Asking(), self.fleet.answer)

        async def test() -> Any:
            answers = client.gather()
            seen = [answer async for answer in answers]
            return seen, await answers.all(), answers.answered

        with self.assertRaises(StopIteration) as stopped:
            test().send(None)
        self.assertEqual(stopped.exception.value, ([1, 2], "all", 0))

    def test_timeout_note(self) -> None:
        """The error of a call without an answer says what became of its message."""
        self.fleet.start(Stock, host="a")
        error = self.assertRaises(RPCTimeoutError, self.fleet.run, self.fleet.call("stock", "hang"))
        self.assertIn("<call 'hang' to stock, sent by test at 0 s, received by a", error.__notes__[0])
        self.assertIn("A manager must wait on self.attachments.reactor", error.__notes__[0])

    def test_timeout_note_lost(self) -> None:
        """If the method waited for a call that a fault has lost, the note names that call and the fault instead."""
        self.fleet.start(Stock, host="a")
        self.fleet.start(Orders, host="b")
        self.fleet.faults.drop("stock", "reserve")
        other = self.fleet.call("stock", "hang")  # another operation, which has no answer either
        error = self.assertRaises(RPCTimeoutError, self.fleet.run, self.fleet.call("orders", "place"))
        (note,) = error.__notes__
        self.assertRegex(
            note,
            r"^In the fleet: <call 'place' to orders, .*>\. It waited for <call 'reserve' to stock, sent by b at 0 s, "
            r"received by no host, not answered, fault drop\(topic='stock', method='reserve'\)>\.$",
        )
        self.failureResultOf(other, RPCTimeoutError)

    def test_timeout_note_reply(self) -> None:
        """If the reply to the call itself was lost, the note names the fault, and blames no manager."""
        self.fleet.start(Stock, host="a")
        self.fleet.faults.drop("stock", "count", replies=True)
        error = self.assertRaises(RPCTimeoutError, self.fleet.run, self.fleet.call("stock", "count"))
        self.assertRegex(error.__notes__[0], r"answered by a with a result, fault drop\(.*replies=True\)>\.$")

    def test_timeout_note_own_limit(self) -> None:
        """The error of a method that was cancelled at its own time limit has the note too."""

        class Slow(Manager):
            @rpc.expose(timeout=5)
            def hang(self, context: RequestContext) -> Deferred[None]:
                return Deferred()

        self.fleet.start(Slow)
        error = self.assertRaises(MethodTimeoutError, self.fleet.run, self.fleet.call("slow", "hang"))
        self.assertIn("A manager must wait on self.attachments.reactor", error.__notes__[-1])

    def test_parallel(self) -> None:
        """A manager's calls to several hosts are under way at the same time."""
        self.fleet.start(Stock, host="a", items=1)
        self.fleet.start(Stock, host="b", items=2)
        self.fleet.start(Orders)
        self.fleet.faults.delay(1, "stock", "count")
        self.assertEqual(self.fleet.run(self.fleet.call("orders", "count_all", hosts=["b", "a"])), [2, 1])
        self.assertEqual(self.fleet.seconds(), 1)


class TimeTests(FleetCase):
    """Time, as tests advance it."""

    def test_advance(self) -> None:
        """Heartbeats and tasks fall due while the time is advanced, each at its own time."""
        stock = self.fleet.start(Stock)
        self.fleet.advance(95)
        self.assertEqual((stock.manager.swept, stock.row.report_count), ([30, 60, 90], 10))
        self.assertEqual((stock.due_in("sweep"), stock.tasks["sweep"].runs, stock.is_up), (25, 3, True))

    def test_settle(self) -> None:
        """Settling advances the time as far as what is under way needs, and no further."""
        stock = self.fleet.start(Stock)
        self.fleet.settle()
        self.assertEqual(self.fleet.seconds(), 0)
        self.fleet.cast("stock", "wait", seconds=45)
        self.fleet.settle()
        self.assertEqual((self.fleet.seconds(), stock.manager.swept), (45, [30]))

    def test_settle_last_message(self) -> None:
        """What a method or a task sends just before it ends has arrived, too."""
        stock = self.fleet.start(Stock, host="a", items=10)
        self.fleet.start(Sender, host="b")
        for kind in ("cast", "event"):
            self.fleet.cast("sender", "send", kind=kind)
            self.fleet.settle()
        self.fleet.advance(30 - self.fleet.seconds())
        self.fleet.settle()
        self.assertEqual((self.fleet.seconds(), stock.manager.items, stock.manager.placed), (35, 8, [10]))

    def test_not_settled(self) -> None:
        """The error of a wait that is given up names each thing that is under way."""
        stock = self.fleet.start(Stock, host="a")
        calling = self.fleet.client(topic="stock", timeout=1000).call(RequestContext(), "hang")
        self.fleet.advance(1)
        running = stock.run_task("wait_for_work")
        self.fleet.faults.delay(500, "stock", "count")
        self.fleet.cast("stock", "count")
        error = self.assertRaises(NotSettledError, self.fleet.settle, 10)
        for part in (
            "after 10 s of the fleet's time",
            "'hang' of stock at a runs for 11 s",
            "call 'hang' to stock, sent by test at 0 s, without a reply",
            "the task 'wait_for_work' of stock at a runs",
            "cast 'count' to stock, sent by test at 1 s (delayed by a fault)",
        ):
            self.assertIn(part, str(error))
        for work in stock.manager.work:
            work.callback(None)
        self.assertEqual((self.fleet.run(calling), self.fleet.run(running), self.fleet.seconds()), (None, None, 11))

    def test_nothing_due(self) -> None:
        """If nothing is due that could end a wait, it ends at once, and the error says so."""
        error = self.assertRaises(NotSettledError, self.fleet.run, Deferred())
        self.assertIn("nothing is due any more, and still under way is: nothing of the fleet", str(error))
        self.assertEqual(self.fleet.seconds(), 0)

    def test_run_coroutine(self) -> None:
        """A coroutine may wait for any Deferred, and advance the time after it."""

        async def test() -> float:
            await deferLater(self.fleet.clock, 5)
            self.fleet.advance(5)
            await self.fleet.call("stock", "wait", seconds=1)
            return self.fleet.seconds()

        self.fleet.start(Stock)
        self.assertEqual(self.fleet.run(test()), 11)

    def test_run_given_up(self) -> None:
        """A coroutine sees at which await it was given up, and can clean up."""
        seen: list[str] = []

        async def test() -> None:
            try:
                await Deferred()
            finally:
                seen.append("cleaned up")

        self.assertRaises(NotSettledError, self.fleet.run, test())
        self.assertEqual(seen, ["cleaned up"])

    def test_no_deferred(self) -> None:
        """Something that only another event loop can wait for is refused."""

        class Future:
            def __await__(self) -> Any:
                yield self

        async def test() -> None:
            await Future()

        self.assertRaisesRegex(TypeError, "no Deferred", self.fleet.run, test())

    def test_inside(self) -> None:
        """Code that the clock runs cannot advance the time; the error says what to do."""
        for advance in (lambda: self.fleet.advance(1), self.fleet.settle, lambda: self.fleet.run(Deferred())):
            self.fleet.clock.callLater(1, advance)
            self.assertRaisesRegex(StateError, "is advancing the time", self.fleet.advance, 1)

    def test_no_heartbeats(self) -> None:
        """A node that falls silent is seen as down once its row is too old, one that stops at once."""
        stopped = self.fleet.start(Stock, host="host2")
        stopped.stop()
        self.assertFalse(stopped.is_up)
        stock = self.fleet.start(Stock)
        stock.service.node.heartbeat.stop()
        self.fleet.advance(60)
        self.assertTrue(stock.is_up)
        self.fleet.advance(1)
        self.assertFalse(stock.is_up)
        self.fleet.run(self.fleet.registry.delete(stock.row.id))
        self.assertRaises(ServiceNotFoundError, lambda: stock.row)


class TaskTests(FleetCase):
    """Periodic tasks, as tests run them."""

    def test_run_task(self) -> None:
        """A task can be run at any time; it is next due one spacing later."""
        stock = self.fleet.start(Stock)
        self.fleet.advance(10)
        self.assertEqual(self.fleet.run(stock.run_task("sweep")), 1)
        self.assertEqual((stock.due_in("sweep"), stock.manager.swept), (30, [10]))

    def test_unknown(self) -> None:
        """A misspelt task is an error that lists the tasks."""
        stock = self.fleet.start(Stock)
        self.assertRaisesRegex(UnknownTaskError, "sweep", stock.due_in, "swep")
        self.assertRaises(UnknownTaskError, self.fleet.run, stock.run_task("swep"))


class SeenTests(FleetCase):
    """What tests can look at."""

    def test_events(self) -> None:
        """Notifications are sent, handled and listed."""
        handled: list[Notification] = []
        transport = self.fleet.run(Deferred.fromCoroutine(self.fleet.runtime("a").broker.acquire()))
        listener = rpc.NotificationListener(transport, handled.append, clock=self.fleet.clock)
        self.fleet.run(listener.start())
        self.fleet.run(self.fleet.emit("order.placed", {"amount": 2}))
        self.fleet.run(self.fleet.emit("order.lost", {}, priority="error"))
        self.fleet.settle()
        self.assertEqual([one.event_type for one in handled], ["order.placed", "order.lost"])
        (event,) = self.fleet.events("*.placed")
        self.assertEqual((event.args, event.topic, event.received_by), ({"amount": 2}, "notifications", ["a"]))
        self.assertEqual(len(self.fleet.events()), 2)
        self.assertEqual(self.fleet.messages(), [])

    def test_event_handler(self) -> None:
        """A handler of events that does not end is under way."""
        work: Deferred[None] = Deferred()
        transport = self.fleet.run(Deferred.fromCoroutine(self.fleet.runtime("a").broker.acquire()))
        listener = rpc.NotificationListener(transport, lambda _: work, clock=self.fleet.clock)
        self.fleet.run(listener.start())
        self.fleet.emit("order.placed", {})
        self.assertRaisesRegex(NotSettledError, "1 message delivered and not settled", self.fleet.settle)
        work.callback(None)
        self.fleet.settle()

    def test_metrics(self) -> None:
        """The growth of a metric is read by its labels; a wrong name is an error."""
        self.fleet.start(Stock)
        name = "novasvc_rpc_server_calls_total"
        for _ in range(2):
            self.fleet.run(self.fleet.call("stock", "count"))
        self.fleet.run(self.fleet.call("stock", "reserve"))
        self.assertEqual(self.fleet.metric(name, method="count", outcome="done"), 2)
        self.assertEqual((self.fleet.metric(name), Fleet().metric(name)), (3, 0))
        self.assertEqual(self.fleet.metric("novasvc_rpc_server_duration_seconds", method="count"), 2)
        self.assertRaises(KeyError, self.fleet.metric, "novasvc_unknown")
        self.assertRaises(KeyError, self.fleet.metric, name, metod="count")

    def test_many_metrics(self) -> None:
        """The metrics of earlier tests do not fill the families of this one."""
        for number in range(MAX_LABEL_SETS):
            metrics.called.at(f"topic{number}", "m", "done")
        with Fleet() as fleet:
            fleet.start(Stock)
            fleet.run(fleet.call("stock", "count"))
            self.assertEqual(fleet.metric("novasvc_rpc_client_calls_total", topic="stock", method="count"), 1)

    def test_seed(self) -> None:
        """Random delays are the same in each run of a test."""
        delays = []
        for seed in (1, 1, 2):
            with Fleet(seed=seed, periodic_fuzzy_delay=60) as fleet:
                delays.append(fleet.start(Stock, periodic_fuzzy_delay=1000).due_in("sweep"))
        self.assertEqual(delays[0], delays[1])
        self.assertNotEqual(delays[0], delays[2])


class MixinTests(SynchronousTestCase):
    """Tests for novasvc.testing.FleetMixin."""

    def test_settings(self) -> None:
        """A class of test cases gives the settings of its fleets."""

        class Case(FleetMixin, SynchronousTestCase):
            fleet_settings = {"service_down_time": 90, "limit": 5.0}  # noqa: RUF012 - as a test's author writes it

            def runTest(self) -> None: ...

        fleet = Case().fleet
        self.assertEqual(fleet.runtime().settings.service_down_time, 90)
        self.assertRaisesRegex(NotSettledError, "after 5 s", lambda: (fleet.start(Stock), fleet.run(Deferred())))

    def test_again(self) -> None:
        """A test that runs again, as by `trial --until-failure`, gets another fleet."""
        fleets: list[Fleet] = []

        class Case(FleetMixin, SynchronousTestCase):
            def runTest(self) -> None:
                self.fleet.start(Stock)
                fleets.append(self.fleet)

        case, result = Case(), unittest.TestResult()
        for _ in range(2):
            case.run(result)
        self.assertEqual((result.errors, len(set(fleets))), ([], 2))

    def test_no_case(self) -> None:
        """A class that is no test case is told what it lacks."""
        self.assertRaisesRegex(TypeError, "is no test case", lambda: FleetMixin().fleet)
