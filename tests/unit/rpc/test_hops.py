"""Tests for deadlines that pass on: from a caller to the calls that its call makes."""

import random
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext, current_context, without_deadline
from novasvc.errors import MethodTimeoutError, RPCTimeoutError
from novasvc.periodic import TaskRunner, periodic_task
from novasvc.rpc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport

SCHEDULER = RequestContext.admin()
"""Made long before the calls that use it, and without a deadline."""


class First:
    """Calls the second service in every way."""

    client: rpc.Client

    def __init__(self) -> None:
        self.background: list[Deferred[Any]] = []

    @rpc.expose
    async def on(self, context: RequestContext, how: str) -> Any:
        given = {"given": context, "new": RequestContext(), "old": SCHEDULER}[how]
        return await self.client.call(given, "on")

    @rpc.expose(timeout=3)
    async def limited(self, context: RequestContext) -> Any:
        return await self.client.call(RequestContext(), "left")

    @rpc.expose
    async def thread(self, context: RequestContext) -> Any:
        with without_deadline():
            self.background.append(Deferred.fromCoroutine(self._later()))
        return await self.client.call(context, "left")

    async def _later(self) -> Any:
        return await self.client.call(RequestContext(), "left")


class Second(First):
    """Calls the third service, and tells how much time it has."""

    @rpc.expose
    async def on(self, context: RequestContext) -> Any:  # type: ignore[override]
        return await self.client.prepare(topic="third").call(RequestContext(), "left")

    @rpc.expose
    def left(self, context: RequestContext) -> float | None:
        return None if context.deadline is None else context.deadline - self.client._clock.seconds()

    @rpc.expose
    def hang(self, context: RequestContext) -> Deferred[Any]:
        return Deferred()


class Third(Second):
    pass


class Tasks:
    def __init__(self, client: rpc.Client) -> None:
        self.client = client
        self.lefts: list[Any] = []

    @periodic_task(spacing=10, timeout=4)
    async def bounded(self, context: RequestContext) -> None:
        self.lefts.append(await self.client.call(RequestContext(), "left"))
        self.lefts.append(await self.client.call(context, "left"))

    @periodic_task(spacing=10, enabled=True)
    async def unbounded(self, context: RequestContext) -> None:
        self.lefts.append(await self.client.call(RequestContext(), "left"))


class HopCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = MemoryTransport(MemoryBroker(), clock=self.clock)
        self.client = rpc.Client(self.transport, clock=self.clock, timeout=60)
        self.services = {"first": First(), "second": Second(), "third": Third()}
        for topic, service in self.services.items():
            service.client = self.client.prepare(topic="second")
            server = rpc.Server(
                self.transport,
                Target(topic, "h1"),
                rpc.Endpoints(service),
                clock=self.clock,
                run_blocking=lambda _: fail(AssertionError()),
            )
            self.successResultOf(server.start())

    def call(self, method: str, timeout: float, context: RequestContext | None = None, **args: Any) -> Deferred[Any]:
        client = self.client.prepare(topic="first", timeout=timeout)
        calling = client.call(context or RequestContext(), method, **args)
        self.turns()
        return calling

    def turns(self) -> None:
        for _ in range(12):
            self.clock.advance(0)


class HopTests(HopCase):
    def test_two_hops(self) -> None:
        """The third service has as much time as the first caller has left, whatever context the second one makes."""
        for how in ("given", "new", "old"):
            self.assertEqual(self.successResultOf(self.call("on", 7, how=how)), 7)
        self.assertEqual(self.successResultOf(self.call("on", 90, how="new")), 60)

    def test_time_passes(self) -> None:
        """A nested call ends at the first caller's deadline, not at its own timeout."""
        nested: list[Deferred[Any]] = []

        def hang(context: RequestContext) -> Any:
            calling = self.client.prepare(topic="second").call(RequestContext(), "hang")
            nested.append(calling.addErrback(lambda failure: failure.value))
            return Deferred()

        scope = RequestContext(deadline=self.clock.seconds() + 5)
        token = current_context.set(scope)
        hang(scope)
        current_context.reset(token)
        self.clock.advance(4.9)
        self.assertNoResult(nested[0])
        self.clock.advance(0.1)
        self.turns()
        self.assertIsInstance(self.successResultOf(nested[0]), RPCTimeoutError | MethodTimeoutError)

    def test_method_timeout(self) -> None:
        """A method's own timeout counts as well."""
        self.assertEqual(self.successResultOf(self.call("limited", 60)), 3)

    def test_monitored(self) -> None:
        """A call with keepalives passes its timeout on, although the message says only how long to wait for a start."""
        client = self.client.prepare(topic="first", timeout=20, call_monitor_timeout=10)
        calling = client.call(RequestContext(), "on", how="new")
        self.turns()
        self.assertEqual(self.successResultOf(calling), 20)
        calling = client.call(RequestContext(), "on", how="new")
        self.clock.advance(4)  # while it is in the queue
        self.turns()
        self.assertEqual(self.successResultOf(calling), 16)
        calling = client.prepare(timeout=None).call(RequestContext(), "on", how="new")
        self.turns()
        self.assertEqual(self.successResultOf(calling), 60)

    def test_passed(self) -> None:
        """After the deadline a nested call sends nothing, and fails at once."""
        token = current_context.set(RequestContext(deadline=-1.0))
        self.addCleanup(current_context.reset, token)
        self.failureResultOf(self.client.prepare(topic="second").call(RequestContext(), "left"), RPCTimeoutError)

    def test_background(self) -> None:
        """Work that begins in without_deadline() keeps the request id, and not the deadline."""
        self.assertEqual(self.successResultOf(self.call("thread", 7)), 7)
        self.assertEqual(self.successResultOf(self.services["first"].background[0]), 60)
        with without_deadline():
            self.assertIs(current_context.get(), None)
        token = current_context.set(RequestContext(request_id="req-7", deadline=1.0))
        self.addCleanup(current_context.reset, token)
        with without_deadline():
            self.assertEqual(RequestContext().request_id, "req-7")
            current = current_context.get()
            self.assertEqual(None if current is None else current.deadline, None)

    def test_periodic_task(self) -> None:
        """The calls of a periodic task have no more time than its timeout leaves them."""
        tasks = Tasks(self.client.prepare(topic="second"))
        runner = TaskRunner(tasks, clock=self.clock, random_source=random.Random(7))
        runner.start()
        self.clock.advance(10)
        self.turns()
        self.assertEqual(sorted(tasks.lefts), [4, 4, 60])
        self.successResultOf(runner.stop())
