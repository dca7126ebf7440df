"""Tests for novasvc.testing.faults and transport: what happens to messages."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc import RequestContext, rpc
from novasvc.errors import (
    BrokerBlockedError,
    BrokerUnavailableError,
    NovasvcError,
    RPCTimeoutError,
    TransportFullError,
    UnusedFaultError,
)
from novasvc.testing import Fleet, FleetMixin, transport
from tests.unit.testing.parts import Orders, Stock


class FaultCase(FleetMixin, SynchronousTestCase):
    """A test with two hosts that serve one topic."""

    def setUp(self) -> None:
        self.a, self.b = (self.fleet.start(Stock, host=host, items=10) for host in ("a", "b"))

    def call(self, target: str = "stock", method: str = "reserve", **args: Any) -> Any:
        return self.fleet.run(self.fleet.call(target, method, **args))

    def left(self) -> tuple[int, int]:
        """Return what each host has left of its ten items."""
        self.fleet.settle()
        return self.a.manager.items, self.b.manager.items


class DropTests(FaultCase):
    def test_request(self) -> None:
        """A dropped request reaches no host, and its caller waits in vain; other methods are not affected."""
        fault = self.fleet.faults.drop("stock", "reserve", times=1)
        self.assertRaises(RPCTimeoutError, self.call)
        self.assertEqual((self.left(), fault.hits), ((10, 10), 1))
        self.assertEqual((self.call(method="count"), self.call()), (10, 9))

    def test_cast(self) -> None:
        """A dropped cast is lost, and its sender does not know."""
        self.fleet.faults.drop("stock")
        self.fleet.run(self.fleet.cast("stock", "reserve"))
        self.assertEqual(self.left(), (10, 10))

    def test_reply(self) -> None:
        """If a reply is dropped, the method has run."""
        self.fleet.faults.drop("stock", replies=True, host="a", times=1)
        self.assertRaises(RPCTimeoutError, self.call, "stock.a")
        self.assertEqual((self.left(), self.call("stock.a")), ((9, 10), 8))

    def test_host(self) -> None:
        """Of a fanout, only the copies for one host are dropped."""
        self.fleet.faults.drop("stock", host="b")
        self.fleet.fanout("stock", "reserve")
        self.assertEqual(self.left(), (9, 10))

    def test_sender(self) -> None:
        """Only the requests of one sender are dropped."""
        self.fleet.start(Orders, host="web")
        self.fleet.faults.drop("stock", sender="web")
        self.assertRaises(NovasvcError, self.call, "orders", "place")
        self.assertEqual(self.call("stock.a"), 9)

    def test_after(self) -> None:
        """A fault can begin after some messages, and end after some more."""
        self.fleet.faults.drop(after=2, times=1)
        for _ in range(5):
            self.fleet.cast("stock.a", "reserve")
        self.assertEqual(self.left(), (6, 10))

    def test_pattern(self) -> None:
        """Names may be patterns, and events are chosen by their type."""
        self.fleet.faults.drop("st*", "res*")
        self.fleet.cast("stock.a", "reserve")
        self.fleet.faults.drop(method="order.*")
        self.fleet.emit("order.placed", {})
        self.fleet.emit("user.added", {})
        self.assertEqual((self.left(), self.fleet.events("user.*")[0].method), ((10, 10), "user.added"))


class DelayTests(FaultCase):
    def test_request(self) -> None:
        """A delayed request arrives later."""
        self.fleet.faults.delay(7, "stock")
        self.call()
        self.assertEqual(self.fleet.seconds(), 7)

    def test_host(self) -> None:
        """One host can be slow, in receiving and in answering."""
        self.fleet.faults.delay(3, host="b")
        self.fleet.faults.delay(2, host="b", replies=True)
        self.call("stock.a")
        self.assertEqual(self.fleet.seconds(), 0)
        self.call("stock.b")
        self.assertEqual(self.fleet.seconds(), 5)

    def test_too_late(self) -> None:
        """A request that is delayed for longer than its caller waits does not run; neither does a delayed delivery."""
        self.fleet.faults.delay(61, "stock", "reserve", times=1)
        self.assertRaises(RPCTimeoutError, self.call)
        self.fleet.faults.delay(61, "stock", "reserve", host="a")
        self.assertRaises(RPCTimeoutError, self.call, "stock.a")
        self.assertEqual(self.left(), (10, 10))

    def test_stopped_meanwhile(self) -> None:
        """A request that a host has not received yet when it stops is given to another."""
        self.fleet.faults.delay(5, host="a")
        calls = [self.fleet.call("stock", "count") for _ in range(2)]
        self.fleet.advance(0)
        self.a.stop()
        self.assertEqual([self.fleet.run(calling) for calling in calls], [10, 10])
        self.assertEqual(self.fleet.messages()[0].received_by, ["b"])

    def test_wrong(self) -> None:
        """A delay of no time is an error."""
        for seconds in (0, -1, float("nan")):
            self.assertRaises(ValueError, self.fleet.faults.delay, seconds)


class DuplicateTests(FaultCase):
    def test_host(self) -> None:
        """A host that receives a message twice runs it once."""
        self.fleet.faults.duplicate("stock", host="a")
        self.assertEqual((self.call("stock.a"), self.left()), (9, (9, 10)))
        self.assertEqual(self.fleet.messages()[0].received_by, ["a", "a"])

    def test_topic(self) -> None:
        """The copy of a message to any host can reach another one."""
        self.fleet.faults.duplicate("stock")
        self.call()
        self.assertEqual(self.left(), (9, 9))

    def test_reply(self) -> None:
        """The copy of a reply is recognised."""
        self.fleet.faults.duplicate("stock", replies=True)
        self.assertEqual(self.call("stock.a"), 9)
        self.fleet.settle()
        self.assertEqual(self.fleet.client().unmatched_replies, 1)

    def test_event(self) -> None:
        """An event can be delivered twice."""
        handled: list[Any] = []
        transport = self.fleet.run(Deferred.fromCoroutine(self.fleet.runtime("c").broker.acquire()))
        listener = rpc.NotificationListener(transport, handled.append, clock=self.fleet.clock)
        self.fleet.run(listener.start())
        self.fleet.faults.duplicate("notifications", host="c", times=1)
        self.fleet.emit("order.placed", {})
        self.fleet.settle()
        self.assertEqual(len(handled), 2)


class RefuseTests(FaultCase):
    def test_request(self) -> None:
        """A refused request fails for its sender."""
        with self.fleet.faults.refuse("stock"):
            self.assertRaises(BrokerUnavailableError, self.call)
        self.fleet.faults.refuse("stock", error=BrokerBlockedError("memory:", "full"), times=1)
        self.assertRaises(BrokerBlockedError, self.fleet.run, self.fleet.cast("stock", "reserve"))
        self.assertEqual((self.left(), self.call("stock.a")), ((10, 10), 9))

    def test_event(self) -> None:
        """A refused event fails for its sender."""
        self.fleet.faults.refuse("notifications")
        self.assertRaises(BrokerUnavailableError, self.fleet.run, self.fleet.emit("order.placed", {}))

    def test_wrong(self) -> None:
        """An error that no transport raises, and a host, are refused with what to do."""
        self.assertRaises(TypeError, self.fleet.faults.refuse, error=ValueError())
        self.assertRaisesRegex(ValueError, "give a sender", self.fleet.faults.refuse, host="a")


class UnusedTests(SynchronousTestCase):
    def test_unused(self) -> None:
        """A fault that met no message is an error at the end of the test, unless it is optional."""
        fleet = Fleet()
        fleet.faults.drop("stock", "resrve")
        self.assertRaisesRegex(UnusedFaultError, r"drop\(topic='stock', method='resrve'\): .* 0 messages", fleet.stop)
        with Fleet() as fleet:
            fleet.faults.drop("stock", optional=True)

    def test_failed_test(self) -> None:
        """If the test has failed before, its own error is the one that is seen."""

        def failing() -> None:
            with Fleet() as fleet:
                fleet.faults.drop("stock")
                raise KeyError("the test's own")

        self.assertRaises(KeyError, failing)


class DisconnectTests(FaultCase):
    def test_requests_wait(self) -> None:
        """Requests for a host without a connection wait in its queue; those for any host reach the others."""
        self.fleet.disconnect("a")
        calling = self.fleet.call("stock.a", "reserve")
        self.assertEqual([self.call(), self.call()], [9, 8])
        self.assertNoResult(calling)
        self.fleet.reconnect("a")
        self.assertEqual(self.fleet.run(calling), 9)

    def test_all(self) -> None:
        """If all hosts of a topic lose their connection, requests wait, too."""
        self.fleet.disconnect("a", "b")
        calling = self.fleet.call("stock", "reserve")
        self.fleet.advance(5)
        self.assertNoResult(calling)
        self.fleet.reconnect("a", "b")
        self.fleet.run(calling)

    def test_heartbeats(self) -> None:
        """A node without a connection sends no heartbeats, and is up again afterwards."""
        self.fleet.disconnect("a")
        self.fleet.advance(61)
        self.assertEqual((self.a.is_up, self.b.is_up), (False, True))
        self.fleet.reconnect("a")
        self.fleet.advance(20)
        self.assertTrue(self.a.is_up)

    def test_sender(self) -> None:
        """What a host without a connection sends arrives when it has one, unless its caller has given up."""
        self.fleet.start(Orders, host="web")
        client = self.fleet.client("web", topic="stock", server="a", timeout=10)
        self.fleet.disconnect("web")
        late, in_time = (client.prepare(timeout=seconds).call(RequestContext(), "reserve") for seconds in (5, 30))
        cast = self.fleet.client("web", topic="stock", server="a").cast(RequestContext(), "reserve")
        self.assertRaises(BrokerUnavailableError, self.fleet.run, late)
        self.assertEqual((self.a.manager.items, cast.called), (10, False))
        self.fleet.reconnect("web")
        self.fleet.run(cast)
        self.fleet.run(in_time)
        self.assertEqual(self.left(), (8, 10))

    def test_buffered_for(self) -> None:
        """As over RabbitMQ, a call is buffered for 95 % of its timeout, a cast and an event for 15 s."""
        client = self.fleet.client("b", topic="stock", server="a", timeout=100)
        self.fleet.disconnect("b")
        ended: dict[str, float] = {}
        for name, sending in (
            ("call", client.call(RequestContext(), "reserve")),
            ("cast", client.cast(RequestContext(), "reserve")),
            ("event", self.fleet.emit("order.placed", {}, host="b")),
        ):
            sending.addErrback(Failure.trap, BrokerUnavailableError)
            sending.addCallback(lambda _, name=name: ended.setdefault(name, self.fleet.seconds()))
        self.fleet.advance(200)
        self.assertEqual(ended, {"cast": 15, "event": 15, "call": 95})
        self.fleet.reconnect("b")
        self.assertEqual((self.left(), self.a.manager.placed), ((10, 10), []))

    def test_blocking(self) -> None:
        """A blocking function that casts from a host without a connection gets the error, too."""
        blocking = self.b.manager.attachments.blocking.prepare(topic="stock")
        self.fleet.disconnect("b")
        waiting = self.fleet.runtime("b").run_blocking(blocking.cast, RequestContext(), "reserve")
        self.assertRaises(BrokerUnavailableError, self.fleet.run, waiting)
        self.assertEqual(self.fleet.seconds(), 15)

    def test_replies(self) -> None:
        """Replies wait for their caller's connection, and for that of the host that answers."""
        for host in ("test", "a"):
            calling = self.fleet.call("stock.a", "wait", seconds=5)
            self.fleet.advance(1)
            self.fleet.disconnect(host)
            self.fleet.advance(10)
            self.assertNoResult(calling)
            self.fleet.reconnect(host)
            self.fleet.run(calling)

    def test_unsettled(self) -> None:
        """A request that was not settled is delivered again, and a lost connection is no death of its process."""
        self.b.stop()
        calling = self.fleet.call("stock", "hang")
        for _ in range(5):
            self.fleet.advance(0)
            self.fleet.disconnect("a")
            self.fleet.advance(1)
            self.fleet.reconnect("a")
        self.fleet.advance(0)
        for work in self.a.manager.work:
            if not work.called:
                work.callback("done")
        self.assertEqual(self.fleet.run(calling), "done")
        self.assertEqual(self.fleet.messages()[0].received_by, ["a"] * 6)

    def test_start(self) -> None:
        """A node whose host has no connection waits for the broker."""
        self.fleet.disconnect("a")
        shelf = self.fleet.add(Stock, host="a", topic="shelf")
        shelf.service.start()
        self.fleet.advance(10)
        self.assertEqual(shelf.service.state, "starting")
        self.fleet.reconnect("a")
        self.fleet.settle()
        self.assertEqual(shelf.service.state, "running")

    def test_stop(self) -> None:
        """A fleet whose hosts are disconnected can be stopped."""
        self.fleet.disconnect("a")
        self.fleet.call("stock.a", "reserve").addErrback(lambda _: None)
        self.fleet.stop()
        self.assertEqual(self.a.service.state, "stopped")

    def test_bound(self) -> None:
        """What a host without a connection sends is bounded."""
        self.patch(transport, "QUEUE_BOUND", 100)  # a Clock sorts all its timers for each
        self.fleet.disconnect("b")
        client = self.fleet.client("b", topic="stock", server="a")
        casts = [client.cast(RequestContext(), "count") for _ in range(101)]
        self.failureResultOf(casts[-1], TransportFullError)
        self.assertNoResult(casts[-2])


class AnyFaultTests(SynchronousTestCase):
    """Any faults together."""

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["drop", "delay", "duplicate"]),
                st.sampled_from([None, "a", "b"]),
                st.booleans(),
                st.integers(0, 3),
            ),
            max_size=6,
        )
    )
    def test_ends(self, faults: list[tuple[str, str | None, bool, int]]) -> None:
        """Whatever happens to messages, each call ends with its result or its timeout, and the fleet stops."""
        with Fleet() as fleet:
            nodes = [fleet.start(Stock, host=host, items=100) for host in ("a", "b")]
            for kind, host, replies, after in faults:
                selection: Any = {"replies": replies, "after": after, "times": 2, "optional": True}
                if host is not None:
                    selection["host"] = host
                if kind == "delay":
                    fleet.faults.delay(5 + after, **selection)
                else:
                    getattr(fleet.faults, kind)(**selection)
            outcomes: list[Any] = []
            for _ in range(6):
                fleet.call("stock", "reserve").addBoth(outcomes.append)
            fleet.settle()
            self.assertEqual(len(outcomes), 6)
            for node in nodes:
                self.assertLessEqual(100 - node.manager.items, 12)
