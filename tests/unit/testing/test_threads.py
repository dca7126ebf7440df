"""Blocking methods of a fleet, which wait for calls of their own."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.errors import RemoteError, RPCTimeoutError
from novasvc.testing import FleetMixin
from tests.unit.testing.parts import Stock


class Desk(Manager):
    """Asks the stock, from threads."""

    @rpc.expose(blocking=True)
    def ask(self, context: RequestContext, method: str, args: dict[str, Any]) -> Any:
        client = self.attachments.blocking.prepare(topic="stock", timeout=20)
        return client.call(context, method, **args)

    @rpc.expose(blocking=True)
    def ask_itself(self, context: RequestContext) -> str:
        return str(self.attachments.blocking.prepare(topic="desk").call(RequestContext(), "name"))

    @rpc.expose
    def name(self, context: RequestContext) -> str:
        return f"{self.host} {context.request_id}"

    @rpc.expose
    def wrong(self, context: RequestContext) -> Any:
        return self.attachments.blocking.prepare(topic="stock").call(context, "count")

    @rpc.expose
    async def with_thread(self, context: RequestContext) -> Any:
        return await self.attachments.run_blocking(self.ask, context, "count", {})


class ThreadTests(FleetMixin, SynchronousTestCase):
    def ask(self, method: str, **args: Any) -> Any:
        return self.fleet.run(self.fleet.call("desk", "ask", method=method, args=args))

    def fails(self, problem: str, topic: str, name: str, /, **args: Any) -> None:
        with self.assertRaises(RemoteError) as raised:
            self.fleet.run(self.fleet.call(topic, name, **args))
        self.assertIn(problem, str(raised.exception))
        self.assertTrue(self.flushLoggedErrors())

    def setUp(self) -> None:
        self.stock = self.fleet.start(Stock)
        self.fleet.start(Desk)

    def test_result(self) -> None:
        """A blocking method gets the result of its call, and so does a function of run_blocking."""
        self.assertEqual(self.ask("reserve", amount=2), 1)
        self.assertEqual(self.fleet.run(self.fleet.call("desk", "with_thread")), 1)

    def test_time(self) -> None:
        """Its wait advances the time, in which heartbeats are written, and ends with the call's timeout."""
        self.assertEqual((self.ask("wait", seconds=15), self.fleet.seconds()), (15, 15))
        self.assertEqual(self.stock.row.report_count, 2)
        self.fails("RPCTimeoutError no reply from stock to 'hang' within 20 s", "desk", "ask", method="hang", args={})
        self.assertEqual(self.fleet.seconds(), 35)

    def test_itself(self) -> None:
        """It may call its own node, in the request of its caller."""
        answer = self.fleet.run(self.fleet.call("desk", "ask_itself"))
        self.assertEqual(answer, f"host1 {self.fleet.messages('desk', 'ask_itself')[0].context.request_id}")

    def test_reactor_thread(self) -> None:
        """A method without a thread must not wait, as on a reactor; neither may one that runs during a wait."""
        self.fails("ReactorThreadError", "desk", "wrong")
        self.fleet.start(Nested, topic="nested")
        self.fails("ReactorThreadError", "nested", "ask")

    def test_endless(self) -> None:
        """A wait that nothing ends is given up after a day of the fleet's time, though heartbeats are always due."""
        calls = self.stock.service.runtime.reactor.blocking_calls  # type: ignore[attr-defined]
        waiting = self.fleet.runtime().run_blocking(calls.run, Deferred, "stock", "count")
        self.assertRaisesRegex(RPCTimeoutError, "after 86400 s .* nothing has ended", self.fleet.run, waiting)

    def test_given_up(self) -> None:
        """A blocking function that nobody waits for any more before its turn does not run."""
        ran: list[str] = []
        waiting: Deferred[Any] = self.fleet.runtime().run_blocking(ran.append, "ran")
        waiting.cancel()
        self.fleet.advance(0)
        self.failureResultOf(waiting)
        self.assertEqual(ran, [])


class Nested(Desk):
    """Calls from a thread a method that must not wait."""

    @rpc.expose(blocking=True)
    def ask(self, context: RequestContext) -> Any:  # type: ignore[override]
        return self.attachments.blocking.prepare(topic="desk").call(context, "wrong")
