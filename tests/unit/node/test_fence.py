"""Tests for novasvc.node.fence and novasvc.node.registration, with nodes in memory."""

from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import LogLevel

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    MethodTimeoutError,
    RPCError,
    ServiceTwinError,
    StartError,
)
from novasvc.interfaces import Reachability
from novasvc.manager import Manager
from novasvc.node.node import FENCE_CLEANUP_TIMEOUT
from novasvc.node.registration import Registration
from novasvc.periodic import periodic_task
from novasvc.registry.incarnation import Incarnation, ServiceStart
from novasvc.registry.liveness import is_up
from novasvc.registry.record import ServiceChanges
from novasvc.rpc import EventListener, Server
from novasvc.service import Service
from novasvc.testing import MemoryRegistry
from tests.unit.node.test_service import ServiceTestCase


class Shop(Manager):
    """Sells, unless it is cancelled."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.runs = 0
        self.work: list[Deferred[None]] = []
        self.cancelled: list[str] = []
        self.events: list[str] = []
        self.numbers: list[int | None] = []
        self.undoing: Deferred[None] = Deferred()
        self.done: list[str] = []

    def init_host(self) -> None:
        self.numbers.append(self.attachments.incarnation)

    @rpc.expose
    def sell(self, context: RequestContext) -> str:
        return f"sold by {self.host}"

    @rpc.expose
    def count(self, context: RequestContext) -> Deferred[None]:
        self.work.append(Deferred(lambda _: self.cancelled.append("count")))
        return self.work[-1]

    @rpc.expose
    async def undo(self, context: RequestContext) -> None:
        try:
            await Deferred()
        finally:
            await self.undoing
            self.done.append("undone")

    def cleanup_host(self) -> None:
        self.done.append("cleanup_host")

    @rpc.event("order.placed")
    def placed(self, context: RequestContext, payload: Any) -> None:
        self.events.append(payload)

    @periodic_task(spacing=5)
    def open(self, context: RequestContext) -> None:
        self.runs += 1


class FenceCase(ServiceTestCase):
    """A shop on h1, and a caller on h2."""

    def started(self, **settings: Any) -> Any:
        self.make(**settings)
        self.shop = self.start("h1")
        return self.shop

    def start(self, host: str) -> Any:
        shop = self.fleet.add(Shop, host=host, binary="nova-shop", topic="shop")
        self.successResultOf(shop.service.start())
        return shop

    def update(self, **changes: Any) -> None:
        self.successResultOf(self.fleet.registry.update(self.row().id, ServiceChanges(**changes)))

    def row(self, host: str = "h1") -> Any:
        return self.fleet.row("nova-shop", host)

    def state(self) -> str:
        incarnation: Incarnation = self.row().incarnation
        return incarnation.state

    def supersede(self, machine: str = "m2") -> Incarnation:
        start = ServiceStart(
            host="h1",
            binary="nova-shop",
            topic="shop",
            version=0,
            owner=machine,
            machine=machine,
            pid=99,
            service_down_time=-1.0,
        )
        incarnation = self.successResultOf(self.fleet.registry.begin(start)).incarnation
        assert isinstance(incarnation, Incarnation)
        return incarnation

    def asked(self, method: str = "sell", timeout: float = 60.0) -> Deferred[Any]:
        # Without the check, which does not send calls to a service that is down, whether it consumes or not.
        calls = self.caller.rpc.prepare(topic="shop", server="h1", check_liveness=False, timeout=timeout)
        calling = calls.call(RequestContext(), method)
        self.fleet.advance(0)
        return calling

    def serves(self) -> bool:
        # The queue of a node that does not consume keeps the call until its timeout. Before the start there is none.
        answer = self.asked(timeout=0.5).addErrback(lambda failure: failure.trap(RPCError))
        if not answer.called:
            received = [message.received_by for message in self.fleet.messages("shop", "sell")[-1:]]
            self.assertIn(received, ([], [[]]), "received and not answered")
            return False
        return bool(self.successResultOf(answer) == "sold by h1")

    @property
    def caller(self) -> Service:
        if not hasattr(self, "_caller"):
            self._caller = self.fleet.start(Manager, host="h2", topic="caller").service
        return self._caller


class FenceTests(FenceCase):
    """Nodes that the registry refuses."""

    def test_forced_down(self) -> None:
        """A node that is forced down takes in nothing within an interval, says why, and goes on when it is let up."""
        shop = self.started()
        self.assertTrue(self.serves())
        told = self.told(LogLevel.critical)
        self.update(forced_down=True)
        self.fleet.advance(10)
        self.assertFalse(self.serves())
        self.assertEqual(len(told), 1)
        self.assertIn("nova-shop@h1 is fenced, and takes in no calls, events or tasks: service nova-shop@h1", told[0])
        before, runs = self.row().report_count, shop.manager.runs
        self.fleet.advance(60)
        self.assertEqual((self.row().report_count, shop.manager.runs), (before, runs))
        self.assertEqual(shop.service.state, "running")
        self.update(forced_down=False)
        self.fleet.advance(10)
        self.assertTrue(self.serves())
        self.fleet.advance(10)
        self.assertGreater(self.row().report_count, before)
        self.assertGreater(shop.manager.runs, runs)
        self.assertEqual(len(told), 1)
        self.assertIsNone(shop.service.node.fence.reason)

    def test_health(self) -> None:
        """The health of a fenced node says why it is not ready."""
        shop = self.started()
        self.update(forced_down=True)
        self.fleet.advance(10)
        checks = self.fleet.run(shop.service.health())["legs"]
        details = {check["name"]: check["detail"] for check in checks if not check["ready"]}
        self.assertLessEqual({"service", "consumers"}, set(details))
        self.assertIn("it is fenced: service nova-shop@h1 is forced down", details["service"])
        self.assertIn("no messages reach it: it is fenced", details["consumers"])

    def test_work_under_way(self) -> None:
        """What is under way is cancelled at once; its caller is told why."""
        shop = self.started()
        working = self.asked("count")
        self.update(forced_down=True)
        self.fleet.advance(10)
        self.assertEqual(shop.manager.cancelled, ["count"])
        self.assertIn("nova-shop@h1 is fenced", str(self.failureResultOf(working, MethodTimeoutError).value))

    def test_events_wait(self) -> None:
        """Events are left to other nodes of the topic, or wait."""
        shop = self.started()
        self.update(forced_down=True)
        self.fleet.advance(10)
        emitting = self.caller.manager.attachments.events.emit(RequestContext(), "order.placed", "tea")
        self.fleet.advance(1)
        self.successResultOf(emitting)
        self.assertEqual(shop.manager.events, [])
        self.update(forced_down=False)
        self.fleet.advance(11)
        self.assertEqual(shop.manager.events, ["tea"])

    def test_start_while_forced_down(self) -> None:
        """A node that starts while it is forced down runs its hooks, and serves when it is let up."""
        shop = self.started()
        self.update(forced_down=True)
        shop.stop()
        self.successResultOf(shop.service.start())
        self.assertEqual(shop.manager.numbers, [1, 2])
        self.fleet.advance(30)
        self.assertFalse(self.serves())
        self.assertEqual(shop.manager.runs, 0)
        self.update(forced_down=False)
        self.fleet.advance(10)
        self.assertTrue(self.serves())
        self.fleet.advance(10)
        self.assertGreater(shop.manager.runs, 0)

    def test_start_while_forced_down_without_heartbeats(self) -> None:
        """A node without heartbeats that starts while it is forced down serves when it is let up, and sends none."""
        self.make()
        shop = self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop", report_interval=0)
        self.successResultOf(shop.service.start())
        self.update(forced_down=True)
        self.successResultOf(shop.service.stop())
        self.successResultOf(shop.service.start())
        self.fleet.advance(30)
        self.assertFalse(self.serves())
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "gone")
        self.fleet.advance(30)
        self.fleet.registry.outage = None
        self.update(forced_down=False)
        self.fleet.advance(10)
        self.assertTrue(self.serves())
        self.fleet.advance(60)
        self.assertEqual(self.row().report_count, 0)
        self.assertFalse(shop.service.node.heartbeat.is_running)

    def test_superseded(self) -> None:
        """A node that was superseded is fenced for good, does not end its process, and leaves the row alone."""
        shop = self.started()
        told = self.told(LogLevel.critical)
        latest = self.supersede()
        self.fleet.advance(60)
        self.assertFalse(self.serves())
        self.assertEqual(len(told), 1)
        self.assertIn("incarnation 1 of service nova-shop@h1 was superseded by incarnation 2", told[0])
        self.assertEqual(self.row().incarnation, latest)
        self.assertEqual(shop.service.state, "running")
        shop.stop()
        self.assertEqual(self.row().incarnation, latest)

    def test_deleted(self) -> None:
        """The row of a running node that an operator deletes stays deleted, and the node is fenced."""
        shop = self.started()
        self.successResultOf(self.fleet.registry.delete(self.row().id))
        self.fleet.advance(60)
        self.assertEqual([row for row in self.fleet.rows() if row.host == "h1"], [])
        self.assertIn("an operator has deleted its row", shop.service.node.fence.reason)
        self.assertFalse(self.serves())
        shop.stop()
        self.successResultOf(shop.service.start())
        self.assertEqual(self.row().incarnation.number, 2)
        self.assertTrue(self.serves())

    def test_outage(self) -> None:
        """A node that cannot write its heartbeats goes on, as Nova's do."""
        self.started()
        self.assertTrue(self.serves())
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "gone")
        self.fleet.advance(600)
        self.assertTrue(self.serves())

    def test_fence_after(self) -> None:
        """With fence_after a node that cannot write its heartbeats for so long is fenced until it can."""
        shop = self.started(fence_after=45)
        self.assertTrue(self.serves())
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "gone")
        self.fleet.advance(44)
        self.assertTrue(self.serves())
        self.fleet.advance(2)
        self.assertFalse(self.serves())
        self.assertIn("no heartbeat was written for 45 s", shop.service.node.fence.reason)
        self.fleet.registry.outage = None
        self.fleet.advance(10)
        self.assertTrue(self.serves())
        self.fleet.advance(100)
        self.assertTrue(self.serves())

    def silenced(self) -> Any:
        """Return a shop that has lost only the broker for so long that it has fenced itself, and is down."""
        shop = self.started(fence_after=45)
        self.fleet.disconnect("h1")
        self.fleet.advance(46)
        self.assertIn("no heartbeat was written for 45 s", shop.service.node.fence.reason)
        return shop

    def test_only_the_broker_is_away(self) -> None:
        """With fence_after a node that has lost only the broker is down, and says so once, until it serves again."""
        shop = self.silenced()
        before, told = self.row().report_count, self.told(LogLevel.error)
        self.fleet.advance(300)
        row = self.row()
        self.assertEqual((row.report_count, is_up(row, 60)), (before, False))
        self.assertEqual(len(told), 1, told)
        self.assertIn("no heartbeat is sent while the node is fenced: ", told[0])
        checks = self.fleet.run(shop.service.health())["legs"]
        self.assertTrue({check["name"]: check["ready"] for check in checks}["database"])
        self.fleet.reconnect("h1")
        self.fleet.advance(10)
        self.assertTrue(self.serves())
        row = self.row()
        self.assertEqual((row.report_count, is_up(row, 60), row.incarnation.reason), (before + 1, True, None))
        self.fleet.advance(100)
        self.assertEqual((self.row().report_count, shop.service.node.fence.reason), (before + 11, None))

    def test_broker_and_database_are_away(self) -> None:
        """With fence_after a node that has lost both serves when both are back, whichever is first."""
        shop = self.started(fence_after=45)
        outage = DatabaseUnavailableError("memory:", "gone")

        def count() -> int:
            (row,) = [row for row in self.fleet.registry._rows if row.host == "h1"]
            return row.report_count

        for broker_first in (True, False):
            self.fleet.disconnect("h1")
            self.fleet.registry.outage = outage
            self.fleet.advance(100)
            self.assertIn("no heartbeat was written for 45 s", shop.service.node.fence.reason)
            before = count()
            if broker_first:
                self.fleet.reconnect("h1")
            else:
                self.fleet.registry.outage = None
            self.fleet.advance(100)
            self.assertIsNone(shop.service.node.server)
            self.assertEqual(count(), before)
            self.fleet.reconnect("h1")
            self.fleet.registry.outage = None
            self.fleet.advance(10)
            self.assertTrue(self.serves())
            self.fleet.advance(10)
            self.assertGreater(self.row().report_count, before)

    def test_no_message_reaches_it(self) -> None:
        """With fence_after a node that consumes in vain is fenced, and beats again when messages reach it."""
        found = Reachability("the queue shop.h1 is gone")
        self.patch(Server, "verify", lambda *_: succeed(found))
        shop = self.started(fence_after=45)
        told = self.told(LogLevel.error)
        self.fleet.advance(80)
        before = self.row().report_count
        self.assertIsNotNone(shop.service.node.fence.reason)
        self.fleet.advance(300)
        row = self.row()
        self.assertEqual((row.report_count, is_up(row, 60), shop.service.node.server), (before, False, None))
        self.assertIn("is fenced: no messages reach nova-shop@h1: the queue shop.h1 is gone", told[-1])
        found = Reachability()
        self.fleet.advance(10)
        self.assertTrue(self.serves())
        self.fleet.advance(20)
        self.assertGreater(self.row().report_count, before)

    def test_stop_while_it_is_verified(self) -> None:
        """A fenced node that is stopped while its first verification runs stops without an error."""
        found = [Reachability("the queue shop.h1 is gone")]
        self.patch(Server, "verify", lambda *_: succeed(found[0]) if found else Deferred())
        shop = self.started(fence_after=45)
        while not shop.service.node.fence.is_fenced:
            self.fleet.advance(1)
        found.clear()
        self.fleet.advance(10)
        self.assertIsNotNone(shop.service.node.server)
        told = self.told(LogLevel.error)
        stopping = shop.service.stop()
        self.fleet.advance(5)
        self.successResultOf(stopping)
        self.assertEqual(told, [])

    def test_topic_while_it_is_verified(self) -> None:
        """A fenced node that no message reaches does not keep the topic's calls from the other nodes."""
        found = Reachability("a message to shop.h1 was confirmed and did not arrive")

        def verify(server: Server, _: float) -> Deferred[Reachability]:
            if server._target.server != "h1":
                return succeed(Reachability())
            return deferLater(self.clock, 7.0, lambda: found) if verifying else succeed(found)

        verifying: list[bool] = []
        self.patch(Server, "verify", verify)
        shop = self.started(fence_after=45)
        self.start("h3")
        while not shop.service.node.fence.is_fenced:
            self.fleet.advance(1)
        verifying.append(True)
        self.fleet.advance(11)
        calls = self.caller.rpc.prepare(topic="shop", check_liveness=False, timeout=5.0)
        answers = []
        for _ in range(20):
            answers.append(calls.call(RequestContext(), "sell"))
            self.fleet.advance(1)
        self.fleet.advance(5)
        self.assertIsNotNone(shop.service.node.fence.reason)
        self.assertEqual([self.successResultOf(answer) for answer in answers], ["sold by h3"] * 20)

    def test_forced_down_when_fenced(self) -> None:
        """A node that was forced down while it was silent serves only when it is let up."""
        self.silenced()
        self.update(forced_down=True)
        self.fleet.reconnect("h1")
        before = self.row().report_count
        self.fleet.advance(100)
        self.assertFalse(self.serves())
        self.assertEqual(self.row().report_count, before)
        self.update(forced_down=False)
        self.fleet.advance(10)
        self.assertTrue(self.serves())

    def test_superseded_when_fenced(self) -> None:
        """A node that was superseded while it was silent neither serves nor beats."""
        shop = self.silenced()
        self.fleet.advance(50)
        latest = self.supersede()
        self.fleet.reconnect("h1")
        self.fleet.advance(100)
        self.assertFalse(self.serves())
        self.assertTrue(shop.service.node.fence.final)
        self.assertEqual(self.row().incarnation, latest)

    def entering(self) -> tuple[Any, Deferred[None]]:
        """Return a shop that consumes again, and the heartbeat that it waits for; a call and an event have arrived."""
        shop = self.silenced()
        beating: Deferred[None] = Deferred()
        self.patch(MemoryRegistry, "beat", lambda registry, row, _: beating if row == 1 else succeed(None))
        self.assertEqual(self.row().id, 1)
        self.fleet.reconnect("h1")
        self.fleet.advance(10)
        working = self.asked("count")
        working.addErrback(lambda failure: failure.trap(RPCError))
        self.caller.manager.attachments.events.emit(RequestContext(), "order.placed", "tea")
        self.fleet.advance(3)
        self.assertEqual((shop.manager.work, shop.manager.events), ([], []))
        self.assertNoResult(working)
        return shop, beating

    def test_nothing_before_the_heartbeat(self) -> None:
        """A fenced node begins what it receives when a heartbeat is written, and not before."""
        shop, beating = self.entering()
        runs = shop.manager.runs
        beating.callback(None)
        self.fleet.advance(6)
        self.assertEqual((len(shop.manager.work), shop.manager.events), (1, ["tea"]))
        self.assertGreater(shop.manager.runs, runs)

    def test_broker_is_lost_before_the_heartbeat(self) -> None:
        """What a fenced node has received, and receives again from another connection, begins once."""
        shop, beating = self.entering()
        self.fleet.disconnect("h1")
        self.fleet.advance(1)
        self.fleet.reconnect("h1")
        self.fleet.advance(1)
        self.assertEqual((shop.manager.work, shop.manager.events), ([], []))
        beating.callback(None)
        self.fleet.advance(6)
        self.assertEqual((len(shop.manager.work), shop.manager.events), (1, ["tea"]))

    def test_heartbeat_fails_when_it_enters_service(self) -> None:
        """A fenced node whose heartbeat cannot be written gives back what it has received, and stays fenced."""
        shop, beating = self.entering()
        beating.errback(DatabaseUnavailableError("memory:", "gone"))
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "gone")
        self.fleet.advance(100)
        self.assertEqual((shop.manager.work, shop.manager.events, shop.service.node.server), ([], [], None))
        self.assertIsNotNone(shop.service.node.fence.reason)
        self.patch(MemoryRegistry, "beat", lambda *_: succeed(None))
        self.fleet.registry.outage = None
        self.fleet.advance(12)
        self.assertEqual(shop.manager.events, ["tea"])
        self.assertTrue(self.serves())

    def test_stop_when_it_enters_service(self) -> None:
        """A fenced node that is stopped before its heartbeat is written begins nothing, and leaves nothing."""
        shop, _ = self.entering()
        stopping = shop.service.stop()
        self.fleet.advance(5)
        self.successResultOf(stopping)
        self.assertEqual((shop.manager.work, shop.manager.events), ([], []))
        self.fleet.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_operation_under_way_when_it_stops(self) -> None:
        """A fenced node that stops before its heartbeat is written begins nothing, not even for its own calls."""
        shop, _ = self.entering()
        self.start("h3")
        context = RequestContext()
        calls = shop.manager.attachments.rpc.prepare(topic="shop", server="h3", check_liveness=False)
        calls.call(context, "count").addErrback(lambda failure: failure.trap(RPCError))
        back = self.caller.rpc.prepare(topic="shop", server="h1", check_liveness=False)
        back.call(context, "count").addErrback(lambda failure: failure.trap(RPCError))
        self.fleet.advance(1)
        stopping = shop.service.stop()
        self.fleet.advance(5)
        self.successResultOf(stopping)
        self.assertEqual(shop.manager.work, [])

    def test_stop_by_what_has_arrived(self) -> None:
        """A fenced node that is stopped by the first event that it begins leaves nothing."""
        shop, beating = self.entering()
        stopping: list[Deferred[None]] = []
        fenced: list[bool] = []

        class Events(list[str]):
            def append(self, _: str) -> None:
                fenced.append(shop.service.node.fence.is_fenced)
                stopping.append(shop.service.stop())

        shop.manager.events = Events()
        beating.callback(None)
        self.fleet.advance(5)
        self.successResultOf(stopping[0])
        self.assertEqual(fenced, [False])
        self.assertIsNone(shop.service.node.reachability)
        self.fleet.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_broker_is_away_when_let_up(self) -> None:
        """A node that is let up while it cannot reach the broker beats only when it serves again."""
        self.started()
        self.update(forced_down=True)
        self.fleet.advance(10)
        before = self.row().report_count
        self.fleet.disconnect("h1")
        self.update(forced_down=False)
        self.fleet.advance(30)
        self.fleet.reconnect("h1")
        self.fleet.advance(20)
        self.assertTrue(self.serves())
        self.assertGreater(self.row().report_count, before)

    def test_let_up_during_the_start(self) -> None:
        """A node that is let up while it still starts serves, and runs its tasks."""
        shop = self.started()
        self.update(forced_down=True)
        shop.stop()
        waiting: Deferred[None] = Deferred()
        shop.manager.post_start_hook = lambda: waiting
        starting = shop.service.start()
        self.update(forced_down=False)
        waiting.callback(None)
        self.fleet.advance(10)
        self.successResultOf(starting)
        self.assertTrue(self.serves())
        runs = shop.manager.runs
        self.fleet.advance(10)
        self.assertGreater(shop.manager.runs, runs)

    def starting(self, fence_after: float = 0.0, **hooks: Deferred[None]) -> tuple[Any, Deferred[None]]:
        """Begin to start a shop on h1 whose hooks wait; return it, and the start."""
        self.make(fence_after=fence_after)
        shop = self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop")
        for name, waiting in hooks.items():
            setattr(shop.manager, name, lambda waiting=waiting: waiting)
        return shop, shop.service.start()

    def test_forced_down_during_the_start(self) -> None:
        """A node that is forced down while init_host runs does not consume, and serves when it is let up."""
        init, post = Deferred[None](), Deferred[None]()
        _, starting = self.starting(init_host=init, post_start_hook=post)
        self.fleet.advance(50)
        self.update(forced_down=True)
        told = self.told(LogLevel.critical)
        init.callback(None)
        self.assertFalse(self.serves())
        self.assertEqual(len(told), 1)
        post.callback(None)
        self.fleet.advance(10)
        self.successResultOf(starting)
        self.assertFalse(self.serves())
        self.update(forced_down=False)
        self.fleet.advance(10)
        self.assertTrue(self.serves())

    def test_forced_down_during_post_start_hook(self) -> None:
        """A node that is forced down while post_start_hook runs takes in nothing within an interval."""
        post = Deferred[None]()
        _, starting = self.starting(post_start_hook=post)
        self.fleet.advance(50)
        self.assertTrue(self.serves())
        self.update(forced_down=True)
        self.fleet.advance(10)
        self.assertFalse(self.serves())
        post.callback(None)
        self.successResultOf(starting)
        self.assertFalse(self.serves())

    def test_replaced_during_the_start(self) -> None:
        """A node that is superseded, or whose row is deleted, while init_host runs does not consume."""
        for replace in (self.supersede, lambda: self.fleet.registry.delete(self.row().id)):
            init, post = Deferred[None](), Deferred[None]()
            shop, _ = self.starting(init_host=init, post_start_hook=post)
            self.fleet.advance(50)
            replace()
            init.callback(None)
            self.assertFalse(self.serves())
            self.assertTrue(shop.service.node.fence.final)
            post.callback(None)
            shop.stop()

    def test_outage_during_the_start(self) -> None:
        """A node that cannot read its row before it consumes goes on, and so it does while post_start_hook runs."""
        init, post = Deferred[None](), Deferred[None]()
        _, starting = self.starting(init_host=init, post_start_hook=post)
        self.assertFalse(self.serves())
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "gone")
        init.callback(None)
        self.fleet.advance(30)
        self.assertTrue(self.serves())
        self.fleet.registry.outage = None
        post.callback(None)
        self.successResultOf(starting)

    def test_fence_after_during_the_start(self) -> None:
        """With fence_after a node is fenced while post_start_hook runs, if its row cannot be read for so long."""
        post = Deferred[None]()
        shop, starting = self.starting(fence_after=45, post_start_hook=post)
        self.fleet.advance(100)
        self.assertTrue(shop.service.node.server.live)
        self.fleet.registry.outage = DatabaseUnavailableError("memory:", "gone")
        self.fleet.advance(34)
        self.assertTrue(shop.service.node.server.live)
        self.fleet.advance(12)
        self.assertIsNone(shop.service.node.server)
        self.assertIn("no heartbeat was written for 45 s", shop.service.node.fence.reason)
        self.fleet.registry.outage = None
        post.callback(None)
        self.successResultOf(starting)
        self.assertTrue(self.serves())
        self.fleet.advance(100)
        self.assertTrue(self.serves())
        self.assertGreater(shop.manager.runs, 0)

    def test_row_lost_during_the_start(self) -> None:
        """A node whose row was lost by the database while it starts registers again, and goes on."""
        init, post = Deferred[None](), Deferred[None]()
        shop, starting = self.starting(init_host=init, post_start_hook=post)
        registry = self.fleet.registry
        registry._by_id.clear()
        registry._hosts.clear()
        registry._incarnations._rows.clear()
        init.callback(None)
        self.assertTrue(self.serves())
        self.assertEqual((self.state(), self.row().incarnation.number), ("starting", 2))
        self.assertEqual(shop.manager.attachments.incarnation, 2)
        post.callback(None)
        self.successResultOf(starting)
        self.assertEqual((self.state(), self.row().incarnation.number), ("ready", 2))

    def test_older_conductor_during_the_start(self) -> None:
        """A node that reads its row from a conductor that keeps no incarnations is not superseded, nor lost."""
        read = MemoryRegistry.get

        def read_as_older(registry: MemoryRegistry, service: str) -> Deferred[Any]:
            return read(registry, service).addCallback(lambda record: attrs.evolve(record, incarnation=None))

        self.patch(MemoryRegistry, "get", read_as_older)
        post = Deferred[None]()
        _, starting = self.starting(post_start_hook=post)
        self.fleet.advance(30)
        self.assertTrue(self.serves())
        self.assertEqual(self.row().incarnation.number, 1)
        self.update(forced_down=True)
        self.fleet.advance(10)
        self.assertFalse(self.serves())
        self.update(forced_down=False)
        self.fleet.advance(10)
        post.callback(None)
        self.successResultOf(starting)
        self.assertTrue(self.serves())

    def test_row_lost_and_older_conductor(self) -> None:
        """A node whose lost row is registered by a conductor that numbers no starts goes on, with a warning."""
        shop = self.started()
        registry = self.fleet.registry
        registry._by_id.clear()
        registry._hosts.clear()
        registry._incarnations._rows.clear()

        def begin_as_older(_: MemoryRegistry, start: ServiceStart) -> Deferred[Any]:
            return registry.register(start.host, start.binary, start.topic, start.version)

        self.patch(MemoryRegistry, "begin", begin_as_older)
        told = self.told(LogLevel.warn)
        self.fleet.advance(20)
        self.assertEqual((self.row().report_count, shop.manager.attachments.incarnation), (2, None))
        self.assertEqual(len([text for text in told if "numbers no starts of nova-shop@h1" in text]), 1, told)

    def test_stop_while_the_row_is_read(self) -> None:
        """A stop while the row is read before the node consumes begins no server."""
        init, reading = Deferred[None](), Deferred[Any]()
        shop, starting = self.starting(init_host=init)
        begun: list[Server] = []
        self.patch(Server, "start", lambda server: begun.append(server) or succeed(None))
        self.patch(MemoryRegistry, "get", lambda *_: reading)
        reading.addErrback(lambda _: self.row())  # the registry answers nevertheless
        init.callback(None)
        self.successResultOf(shop.service.stop())
        self.failureResultOf(starting)
        self.assertEqual(begun, [])

    def test_stop_during_post_start_hook(self) -> None:
        """A stop while post_start_hook runs reads the row no more."""
        shop, starting = self.starting(post_start_hook=Deferred[None]())
        reads: list[Deferred[Any]] = []
        self.patch(MemoryRegistry, "get", lambda *_: reads.append(Deferred()) or reads[-1])
        self.fleet.advance(10)
        self.successResultOf(shop.service.stop())
        self.failureResultOf(starting)
        self.assertEqual([reading.called for reading in reads], [True])
        self.fleet.advance(30)
        self.assertEqual(len(reads), 1)

    def test_stop_after_post_start_hook(self) -> None:
        """A stop while the row is still read after post_start_hook begins no tasks and sends no heartbeat."""
        post = Deferred[None]()
        shop, starting = self.starting(post_start_hook=post)
        self.patch(MemoryRegistry, "get", lambda *_: Deferred())
        self.fleet.advance(10)
        post.callback(None)
        self.assertNoResult(starting)
        self.successResultOf(shop.service.stop())
        self.failureResultOf(starting)
        self.fleet.advance(60)
        self.assertEqual((self.state(), self.row().report_count, shop.manager.runs), ("stopped", 0, 0))

    def test_fenced_while_it_drains(self) -> None:
        """A node that is forced down while it drains cancels its work, and its stop goes on to the end."""
        shop = self.started(graceful_shutdown_timeout=60)
        self.asked("count").addErrback(lambda failure: failure.trap(MethodTimeoutError))
        stopping = shop.service.stop()
        self.assertEqual(self.state(), "draining")
        self.update(forced_down=True)
        self.fleet.advance(10)
        self.assertEqual(shop.manager.cancelled, ["count"])
        self.successResultOf(stopping)
        self.assertEqual(self.state(), "stopped")
        self.assertIsNone(shop.service.node.registry)

    def test_stop_while_it_is_let_up(self) -> None:
        """A node that is stopped while it enters service again begins no tasks, and leaves nothing."""
        shop = self.started()
        self.update(forced_down=True)
        self.fleet.advance(10)
        entering, cleaning = Deferred[None](), Deferred[None]()
        self.patch(Server, "start", lambda _: entering)
        shop.manager.cleanup_host = lambda: cleaning
        self.update(forced_down=False)
        self.fleet.advance(10)
        stopping = shop.service.stop()
        entering.callback(None)
        cleaning.callback(None)
        self.successResultOf(stopping)
        runs = shop.manager.runs
        self.fleet.advance(30)
        self.assertEqual(shop.manager.runs, runs)
        self.fleet.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_let_up_in_vain(self) -> None:
        """A listener that was begun when the rest failed is closed before the next attempt."""
        self.started()
        self.assertTrue(self.serves())
        self.update(forced_down=True)
        self.fleet.advance(10)
        listeners = self.fail_twice()
        self.update(forced_down=False)
        self.fleet.advance(30)
        self.assertTrue(self.serves())
        self.assertEqual([listener.live for listener in listeners], [False, False, True])

    def test_started_in_vain(self) -> None:
        """So it is at the start: an event that comes afterwards is handled once."""
        self.make()
        listeners = self.fail_twice()
        shop = self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop")
        starting = shop.service.start()
        self.fleet.advance(30)
        self.successResultOf(starting)
        self.assertEqual([listener.live for listener in listeners], [False, False, True])
        self.caller.manager.attachments.events.emit(RequestContext(), "order.placed", "tea")
        self.fleet.advance(1)
        self.assertEqual(shop.manager.events, ["tea"])

    def fail_twice(self) -> list[EventListener]:
        """Let two servers fail to start; return the listeners that are started, as they are."""
        listeners: list[EventListener] = []
        failures = [fail(BrokerUnavailableError("memory:", "away")) for _ in range(2)]
        start, listen = Server.start, EventListener.start

        def listening(listener: EventListener) -> Deferred[None]:
            listeners.append(listener)
            return listen(listener)

        self.patch(EventListener, "start", listening)
        self.patch(Server, "start", lambda each: failures.pop() if failures else start(each))
        return listeners

    def test_cleanup(self) -> None:
        """A method that is cancelled cleans up before cleanup_host."""
        shop = self.started()
        working = self.asked("undo")
        self.update(forced_down=True)
        self.fleet.advance(10)
        self.failureResultOf(working, MethodTimeoutError)
        stopping = shop.service.stop()
        self.assertNoResult(stopping)
        shop.manager.undoing.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(shop.manager.done, ["undone", "cleanup_host"])

    def test_long_cleanup(self) -> None:
        """What takes longer for that than a few seconds is not waited for."""
        shop = self.started()
        self.asked("undo").addErrback(lambda _: None)
        self.update(forced_down=True)
        self.fleet.advance(10)
        stopping = shop.service.stop()
        self.assertNoResult(stopping)
        self.fleet.advance(FENCE_CLEANUP_TIMEOUT)
        self.successResultOf(stopping)
        self.assertEqual(shop.manager.done, ["cleanup_host"])

    def test_stop_while_fenced(self) -> None:
        """A fenced node stops cleanly, and nothing is left."""
        shop = self.started()
        self.update(forced_down=True)
        self.fleet.advance(10)
        shop.stop()
        self.assertEqual(self.state(), "stopped")
        self.fleet.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StateTests(FenceCase):
    """The states that a node tells the registry."""

    def test_states(self) -> None:
        """A node is starting, ready, draining with its deadline and calls, and stopped: then it is down at once."""
        self.make(graceful_shutdown_timeout=30)
        shop = self.shop = self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop")
        waiting: Deferred[None] = Deferred()
        shop.manager.init_host = lambda: waiting
        starting = shop.service.start()
        self.assertEqual(self.state(), "starting")
        waiting.callback(None)
        self.successResultOf(starting)
        self.assertEqual(self.state(), "ready")
        working = [self.asked("count") for _ in range(2)]
        stopping = shop.service.stop()
        incarnation = self.row().incarnation
        self.assertEqual((incarnation.state, incarnation.calls), ("draining", 2))
        self.assertEqual((incarnation.until - incarnation.since).total_seconds(), 30)
        shop.manager.work.pop().callback(None)
        self.fleet.advance(10)
        later = self.row().incarnation
        self.assertEqual(later, attrs.evolve(incarnation, calls=1))
        self.fleet.advance(21)
        self.successResultOf(stopping)
        self.failureResultOf(working[0], MethodTimeoutError)
        self.assertEqual(self.state(), "stopped")
        self.assertFalse(is_up(self.row(), 60))
        self.assertLess(self.row().age, 60)

    def test_failed(self) -> None:
        """A node whose start fails has said why."""
        self.make()
        shop = self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop")
        shop.manager.init_host = lambda: fail(ZeroDivisionError())
        self.failureResultOf(shop.service.start(), StartError)
        self.flushLoggedErrors(ZeroDivisionError)
        incarnation = self.row().incarnation
        self.assertEqual(incarnation.state, "failed")
        self.assertIn("step init_host failed: ZeroDivisionError", incarnation.reason)

    def test_not_told(self) -> None:
        """A node that could not tell that it is ready tells it later."""
        self.make()
        enter, late = MemoryRegistry.enter, [Deferred(), Deferred()]
        self.patch(MemoryRegistry, "enter", lambda *args, **given: late.pop() if late else enter(*args, **given))
        shop = self.shop = self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop")
        starting = shop.service.start()
        self.fleet.advance(2)
        self.successResultOf(starting)
        self.assertEqual(self.state(), "starting")
        self.fleet.advance(30)
        self.assertEqual(self.state(), "ready")
        late += [Deferred()]
        shop.service.node._tell_withheld("unreachable")
        stopping = shop.service.stop()
        self.fleet.advance(30)
        self.successResultOf(stopping)
        self.assertEqual(self.state(), "stopped")
        self.fleet.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_without_the_registry(self) -> None:
        """A stop waits two seconds for a registry that does not answer, and its warning says what was not written."""
        shop = self.started()
        told = self.told(LogLevel.warn)
        self.patch(MemoryRegistry, "enter", lambda *_, **__: Deferred())
        stopping = shop.service.stop()
        self.fleet.advance(4.1)
        self.successResultOf(stopping)
        self.assertEqual(len(told), 1)
        self.assertIn("the registry was not told that nova-shop@h1 is draining", told[0])

    def test_numbers(self) -> None:
        """Each start of a node has the next number, and its manager is given it."""
        shop = self.started()
        for _ in range(2):
            shop.stop()
            self.successResultOf(shop.service.start())
        self.assertEqual(shop.manager.numbers, [1, 2, 3])
        self.assertEqual(self.row().incarnation.number, 3)

    def test_zone_and_tags(self) -> None:
        """The zone and tags of the settings are in the registry."""
        self.started(zone="az1", tags=("gpu", "ssd"))
        incarnation = self.row().incarnation
        self.assertEqual((incarnation.zone, incarnation.tags, incarnation.machine), ("az1", ("gpu", "ssd"), "h1"))

    def test_workers(self) -> None:
        """The workers of a host are one start, which is ready when the first of them is."""
        self.make()
        one, two = (
            self.fleet.start(Shop, host="h1", binary="nova-shop", topic="shop", worker=number) for number in (1, 2)
        )
        self.assertEqual((one.manager.numbers, two.manager.numbers), ([1], [1]))
        self.assertEqual(self.state(), "ready")
        two.stop()
        self.assertEqual(self.state(), "ready")
        self.fleet.advance(30)
        self.assertEqual(one.service.node.fence.reason, None)


class TwinTests(FenceCase):
    """Two starts of one service."""

    def twin(self) -> Any:
        return self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop")

    def test_living_twin(self) -> None:
        """A start is refused when the other one has sent a heartbeat; both say so, and the first serves on."""
        self.started()
        errors, critical = self.told(LogLevel.error), self.told(LogLevel.critical)
        twin = self.twin()
        starting = twin.service.start()
        self.assertNoResult(starting)
        self.assertEqual(twin.service.waiting_for, "end of another start")
        self.fleet.advance(15)
        error = self.failureResultOf(starting, StartError).value
        self.assertIsInstance(error.__cause__, ServiceTwinError)
        self.assertTrue(error.is_final)
        self.assertEqual(len(critical), 1)
        self.assertIn("service nova-shop@h1 runs already: on machine 'h1', process", critical[0])
        self.assertEqual(len(errors), 1)
        self.assertIn("another start of nova-shop@h1 was refused on machine 'h1'", errors[0])
        self.assertTrue(self.serves())
        self.assertEqual(twin.manager.numbers, [])

    def test_dead_twin(self) -> None:
        """A start waits for one that was killed until that is silent for service_down_time, and supersedes it."""
        self.started()
        self.shop.service.node.heartbeat.stop()  # as after kill -9
        twin = self.twin()
        starting = twin.service.start()
        self.fleet.advance(58)
        self.assertNoResult(starting)
        self.fleet.advance(5)
        self.successResultOf(starting)
        self.assertEqual(twin.manager.numbers, [2])

    def test_twin_that_starts(self) -> None:
        """A start whose init_host takes longer than service_down_time is not superseded; its twin is refused then."""
        self.make()
        shop = self.shop = self.fleet.add(Shop, host="h1", binary="nova-shop", topic="shop")
        waiting: Deferred[None] = Deferred()
        shop.manager.init_host = lambda: waiting
        starting = shop.service.start()
        twin = self.twin()
        waits = twin.service.start()
        self.fleet.advance(300)
        self.assertNoResult(waits)
        self.assertEqual((self.row().incarnation.number, self.state()), (1, "starting"))
        waiting.callback(None)
        self.successResultOf(starting)
        self.fleet.advance(12)
        self.failureResultOf(waits, StartError)
        self.assertTrue(self.serves())
        self.assertEqual((self.row().incarnation.until, self.state()), (None, "ready"))

    def test_twin_that_stops(self) -> None:
        """A start begins as soon as the other one has stopped."""
        shop = self.started()
        twin = self.twin()
        starting = twin.service.start()
        shop.stop()
        self.fleet.advance(2)
        self.successResultOf(starting)

    def test_fail_fast(self) -> None:
        """With fail_fast a start does not wait for another one."""
        self.started(fail_fast=True)
        self.failureResultOf(self.twin().service.start(), StartError)
        self.fleet.advance(0)

    def test_stop_while_waiting(self) -> None:
        """A start that waits for another one can be stopped, and leaves that one alone."""
        self.started()
        twin = self.twin()
        starting = twin.service.start()
        self.successResultOf(twin.service.stop())
        self.failureResultOf(starting, Exception)
        self.assertEqual(self.state(), "ready")

    def test_same_lock(self) -> None:
        """A start that holds the lock of one that was killed supersedes it at once."""
        self.started()
        start = self.shop.service.node.registration._start
        self.assertIsNone(start.lock)  # no file on a Clock
        self.fleet.registry._incarnations._rows["h1", "nova-shop"] = _locked(self.fleet.registry, "boot:1:2")
        twin = self.twin()
        self.patch(Registration, "_lock_identity", lambda _: "boot:1:2")
        self.successResultOf(twin.service.start())
        self.assertEqual(twin.manager.numbers, [2])

    def test_same_lock_later(self) -> None:
        """A start that waits for one on its machine supersedes it as soon as that is killed, and its lock is free."""
        self.started()
        self.fleet.registry._incarnations._rows["h1", "nova-shop"] = _locked(self.fleet.registry, "boot:1:2")
        locks = ["boot:1:2", None]
        self.patch(Registration, "_lock_identity", lambda _: locks.pop())
        twin = self.twin()
        starting = twin.service.start()
        self.assertNoResult(starting)
        self.fleet.advance(2)
        self.successResultOf(starting)
        self.assertEqual((twin.manager.numbers, locks), ([2], []))


def _locked(registry: Any, lock: str) -> Any:
    return attrs.evolve(registry._incarnations._rows["h1", "nova-shop"], lock=lock)
