"""Nodes that stop in the midst of operations: A calls B, and B calls A back. On a Clock and in memory."""

import contextlib
import random
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.context import current_context
from novasvc.errors import MethodTimeoutError, RPCError, ServiceDrainingError, UndeliverableError
from novasvc.periodic import periodic_task
from novasvc.testing import FleetMixin

SECONDS = 2.0
"""That B takes before it calls A back."""
STEP = 0.25


class Origin(Manager):
    """A."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.began: list[str] = []
        self.outcomes: list[Any] = []

    async def _through(self, context: RequestContext, depth: int = 1) -> Any:
        client = self.attachments.rpc.prepare(topic="middle", server="b", timeout=30.0)
        return await client.call(context, "receive", server=self.host, depth=depth)

    @rpc.expose
    async def operate(self, context: RequestContext, depth: int = 1) -> Any:
        self.began.append("operate")
        return await self._through(context, depth)

    @rpc.expose(idempotent=True)
    async def operate_again(self, context: RequestContext) -> Any:
        return await self._through(context)

    @rpc.expose
    async def operate_with_own_context(self, context: RequestContext) -> Any:
        return await self._through(RequestContext())

    @rpc.expose
    async def operate_with_own_id(self, context: RequestContext) -> Any:
        return await self._through(RequestContext(request_id="req-own"))

    @rpc.expose
    async def operate_and_tell_nobody(self, context: RequestContext) -> None:
        self.outcomes.append(await self._through(context))

    @rpc.expose
    async def confirm(self, context: RequestContext, depth: int) -> Any:
        self.began.append("confirm")
        return "confirmed" if depth <= 1 else await self._through(context, depth - 1)

    @rpc.expose
    def unrelated(self, context: RequestContext) -> str:
        self.began.append("unrelated")
        return self.host

    @periodic_task(spacing=5)
    async def task(self, context: RequestContext) -> None:
        self.began.append("task")
        self.outcomes.append(await self._through(context))


class Middle(Manager):
    """B; it makes a context of its own, as a careless author does."""

    @rpc.expose
    async def receive(self, context: RequestContext, server: str, depth: int) -> Any:
        waited: Deferred[None] = deferLater(self.attachments.reactor, SECONDS, lambda: None)
        await waited
        client = self.attachments.rpc.prepare(topic="origin", server=server, timeout=30.0)
        return await client.call(RequestContext(), "confirm", depth=depth)


class DrainCase(FleetMixin, SynchronousTestCase):
    """Two nodes A and one B; the first A is the one that stops."""

    fleet_settings: ClassVar[dict[str, Any]] = {"periodic_enable": False}

    def setUp(self) -> None:
        self.b, self.other, self.a = (
            self.fleet.start(manager, host=host).service
            for manager, host in ((Middle, "b"), (Origin, "other"), (Origin, "a"))
        )
        self.client: rpc.Client = self.other.rpc.prepare(topic="origin", timeout=50.0)

    def call(self, method: str, server: str | None = "a", **args: Any) -> Deferred[Any]:
        calling = self.client.prepare(server=server).call(RequestContext(), method, **args)
        self.fleet.advance(0)
        return calling

    def drain(self) -> Deferred[None]:
        stopping = self.a.stop()
        self.fleet.advance(0)
        return stopping


class OperationTests(DrainCase):
    def test_operations(self) -> None:
        """An operation that depends on a call back ends well while its node drains, however it passes on who asks."""
        kinds = ("operate", "operate_again", "operate_with_own_context", "operate_with_own_id")
        calls = {kind: self.call(kind) for kind in kinds}
        stopped = self.drain()
        self.assertNoResult(stopped)
        self.fleet.advance(SECONDS + 1)
        for kind, calling in calls.items():
            self.assertEqual(self.successResultOf(calling), "confirmed", kind)
        self.successResultOf(stopped)

    def test_deep(self) -> None:
        """So does one whose calls go to and fro more than once."""
        calling = self.call("operate", depth=4)
        stopped = self.drain()
        self.fleet.advance(4 * SECONDS + 1)
        self.assertEqual(self.successResultOf(calling), "confirmed")
        self.successResultOf(stopped)

    def test_cast(self) -> None:
        """So does one for which nobody waits."""
        self.client.prepare(server="a").cast(RequestContext(), "operate_and_tell_nobody")
        self.fleet.advance(0)
        self.drain()
        self.fleet.advance(SECONDS + 1)
        self.assertEqual(self.a.manager.outcomes, ["confirmed"])

    def test_task(self) -> None:
        """So does the run of a periodic task."""
        self.a.tasks.begin("task")
        self.drain()
        self.fleet.advance(SECONDS + 1)
        self.assertEqual(self.a.manager.outcomes, ["confirmed"])

    def test_both_drain(self) -> None:
        """So does one whose nodes all drain, if it had reached them before."""
        calling = self.call("operate", depth=3)
        self.drain()
        stopped = self.b.stop()
        self.fleet.advance(3 * SECONDS + 1)
        self.assertEqual(self.successResultOf(calling), "confirmed")
        self.successResultOf(stopped)

    def test_any_moment(self) -> None:
        """A hundred stops at moments that chance chooses, under load: no operation fails, and each node ends."""
        chance = random.Random(12)
        pending: list[Deferred[Any]] = []
        for _ in range(100):
            for _ in range(chance.randrange(8)):
                pending.append(self.call("operate", chance.choice(("a", None)), depth=chance.randint(1, 3)))
                self.fleet.advance(chance.randrange(8) * STEP)
            stopped = self.drain()
            self.fleet.advance(6 * SECONDS + 1)
            self.successResultOf(stopped)
            for calling in pending:
                self.assertEqual(self.successResultOf(calling), "confirmed")
            pending.clear()
            self.successResultOf(self.a.start())


class NothingNewTests(DrainCase):
    def test_from_the_moment(self) -> None:
        """Nothing begins from the moment at which the node says that it is draining."""
        self.call("operate")
        calls: list[Deferred[Any]] = [
            self.client.prepare(server=server).call(RequestContext(), "unrelated") for server in ("a", None, None)
        ]
        stopped = self.a.stop()
        self.assertEqual(self.a.state, "draining")
        self.fleet.advance(1.0)
        self.failureResultOf(calls[0], ServiceDrainingError)
        for calling in calls[1:]:
            self.assertEqual(self.successResultOf(calling), "other")
        self.fleet.advance(SECONDS)
        self.successResultOf(stopped)
        self.assertEqual(self.a.manager.began, ["operate", "confirm"])

    def test_while_it_starts(self) -> None:
        """Nor does anything when its start is cut short after it has begun to consume."""
        starting = self.fleet.add(SlowStarter, host="slow", topic="origin").service
        starting.start().addErrback(lambda _: None)
        self.fleet.advance(0)
        starting.stop()
        self.failureResultOf(self._called("slow"), ServiceDrainingError)

    def _called(self, server: str) -> Deferred[Any]:
        calling = self.call("unrelated", server)
        self.fleet.advance(STEP)
        return calling

    def test_after_the_end(self) -> None:
        """When it has ended, nobody is there."""
        self.fleet.run(self.a.stop())
        self.failureResultOf(self._called("a"), UndeliverableError)

    def test_restarted(self) -> None:
        """After a restart all is served again, and what was cast meanwhile is run."""
        self.call("operate")
        self.drain()
        self.client.prepare(server="a").cast(RequestContext(), "unrelated")
        self.fleet.advance(SECONDS + 1)
        self.assertNotIn("unrelated", self.a.manager.began)
        self.successResultOf(self.a.start())
        self.fleet.advance(0)
        self.assertIn("unrelated", self.a.manager.began)


class SlowStarter(Origin):
    """Takes its time when it serves already, and to give up."""

    async def post_start_hook(self) -> None:
        for _ in range(2):
            waited: Deferred[None] = Deferred()
            with contextlib.suppress(CancelledError):
                await waited


class PeriodicTests(DrainCase):
    fleet_settings: ClassVar[dict[str, Any]] = {}

    def test_no_run(self) -> None:
        """No periodic task begins while its node drains."""
        self.call("operate", depth=5)
        stopped = self.drain()
        before = self.a.manager.began.count("task")
        self.fleet.advance(4 * SECONDS)
        self.assertNoResult(stopped)
        self.assertEqual(self.a.manager.began.count("task"), before)


class DeadlineTests(DrainCase):
    fleet_settings: ClassVar[dict[str, Any]] = {**DrainCase.fleet_settings, "graceful_shutdown_timeout": 3.0}

    def test_bounded(self) -> None:
        """An operation that goes on by calling back has no longer than any other."""
        calling = self.call("operate", depth=20)
        stopped = self.drain()
        self.fleet.advance(3.0 + STEP)
        self.successResultOf(stopped)
        self.failureResultOf(calling, MethodTimeoutError)
        self.fleet.advance(SECONDS)
        self.flushLoggedErrors(MethodTimeoutError, UndeliverableError)  # in B, of its calls back


class ContextTests(SynchronousTestCase):
    """What a context that is made while another one is served has of it."""

    def test_id(self) -> None:
        """It has the request id of what is served, unless it is given one, and nothing else."""
        served = RequestContext(user_id="u", is_admin=True, deadline=1.0)
        token = current_context.set(served)
        self.addCleanup(current_context.reset, token)
        made = RequestContext()
        self.assertEqual(made, RequestContext(request_id=served.request_id))
        self.assertEqual((made.user_id, made.is_admin, made.deadline), (None, False, None))
        self.assertEqual(RequestContext.admin().request_id, served.request_id)
        self.assertEqual(RequestContext(request_id="req-1").request_id, "req-1")
        self.assertNotEqual(RequestContext.from_wire({}).request_id, served.request_id)

    def test_outside(self) -> None:
        """Where nothing is served, each has an id of its own."""
        self.assertNotEqual(RequestContext().request_id, RequestContext().request_id)


class ErrorTests(SynchronousTestCase):
    def test_wire(self) -> None:
        """The error of a draining service says who it is, and is rebuilt by its arguments."""
        error = ServiceDrainingError("compute.host1")
        self.assertIsInstance(error, RPCError)
        self.assertEqual(str(ServiceDrainingError(*error.args)), str(error))
        self.assertIn("compute.host1 is draining", str(error))
        self.assertEqual(attrs.asdict(error), {"target": "compute.host1"})
