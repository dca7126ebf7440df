import contextlib
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred

from novasvc import rpc
from novasvc.context import RequestContext, current_context
from novasvc.errors import MethodTimeoutError, MiddlewareError, RPCTimeoutError
from novasvc.middleware import RECEIVING, SENDING, Invocation
from tests.support.middleware_rig import Around, Failing, Hanging, Recorder, Silent, Twice
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase


class Stock(Diary):
    @rpc.expose(blocking=True)
    def count(self, context: RequestContext, item: str) -> str:
        return f"{item} {current_context.get() is context} {context.user_id}"

    @rpc.expose(blocking=True)
    def append(self, context: RequestContext, item: str) -> None:
        self.calls.append(item)

    @rpc.expose(timeout=5.0, blocking=True)
    def take(self, context: RequestContext, item: str) -> None:
        self.calls.append(item)

    @rpc.expose(timeout=5.0)
    async def wait(self, context: RequestContext) -> None:
        await self._hang()

    @rpc.expose
    async def user(self, context: RequestContext) -> Any:
        return [context.user_id, current_context.get() is context]


class MiddlewareCase(RPCCase):
    def make_endpoint(self) -> Any:
        return Stock()

    def wrap_server(self, *middleware: Any) -> None:
        self.successResultOf(self.server.close())
        self.server = self.serve(middleware=middleware)

    def wrap_client(self, *middleware: Any, **given: Any) -> None:
        self.client = rpc.Client(self.make_transport(), clock=self.clock, target=TARGET, middleware=middleware, **given)

    def result(self, calling: Deferred[Any]) -> Any:
        self.clock.pump([0] * 5)
        return self.successResultOf(calling)


class ServerTests(MiddlewareCase):
    def test_method(self) -> None:
        """A method runs within the middleware, which sees the call and its result."""
        recorder = Recorder(kinds=RECEIVING)
        self.wrap_server(recorder)
        self.assertEqual(self.result(self.call("note", what=3)), 3)
        self.assertEqual(recorder.seen, [">serve compute.note", "<3"])
        invocation = recorder.invocations[0]
        self.assertEqual((invocation.args, invocation.server, invocation.namespace), ({"what": 3}, "h1", None))
        self.assertEqual((invocation.context.request_id, len(invocation.message_id)), ("req-1", 32))

    def test_context(self) -> None:
        """A method gets the context that the middleware passes on, also as the current one, and in a thread."""

        async def impersonate(invocation: Invocation, proceed: Any) -> Any:
            return await proceed(attrs.evolve(invocation, context=attrs.evolve(invocation.context, user_id="u7")))

        self.wrap_server(Around(impersonate))
        self.assertEqual(self.result(self.call("user")), ["u7", True])
        counting = self.call("count", item="tea")
        self.run_threads()
        self.assertEqual(self.result(counting), "tea True u7")

    def test_thread_too_late(self) -> None:
        """A blocking method that still waits for a thread when its call ends does not run, as without middleware."""
        self.wrap_server(Recorder(kinds=RECEIVING))
        timed_out = self.client.prepare(timeout=5.0).call(CONTEXT, "append", item="late")
        cancelled = self.call("append", item="cancelled")
        self.clock.pump([0] * 5)
        self.assertEqual(len(self.blocking), 2)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.clock.pump([0, 0, 5.0])
        self.failureResultOf(timed_out, RPCTimeoutError)
        self.run_threads()
        self.assertEqual(self.diary.calls, [])
        self.assertEqual(self.server.in_flight, 0)

    def test_waits_before_thread(self) -> None:
        """A middleware that waits around a blocking method ends with the caller's time, and its slot is free."""
        self.wrap_server(Hanging())
        calling = self.client.prepare(timeout=5.0).call(CONTEXT, "append", item="late")
        self.clock.pump([0, 0, 5.0])
        self.failureResultOf(calling, RPCTimeoutError)
        self.assertEqual((self.blocking, self.server.in_flight), ([], 0))

    def test_raises(self) -> None:
        """What a middleware raises goes to the caller, as if the method had raised it; the method does not run."""
        self.wrap_server(Failing())
        calling = self.call("note", what=1)
        self.clock.pump([0] * 5)
        self.failureResultOf(calling, LookupError)
        self.assertEqual((self.diary.calls, self.outcomes("note")), ([], {"failed": 1}))
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_misuse(self) -> None:
        """A middleware that does not call next once fails the call with an error that names it."""
        for middleware in (Silent(), Twice()):
            self.wrap_server(middleware)
            calling = self.call("note", what=1)
            self.clock.pump([0] * 5)
            error = self.failureResultOf(calling, MiddlewareError).value
            self.assertIn(type(middleware).__name__, str(error))
        self.assertEqual(len(self.flushLoggedErrors(MiddlewareError)), 2)

    def test_deadline(self) -> None:
        """A middleware that never goes on is cancelled when the method's time is up, and its slot is free."""
        self.wrap_server(Hanging())
        calling = self.call("wait")
        self.clock.pump([0] * 3)
        self.clock.advance(5.0)
        self.clock.advance(0)
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual(self.server.in_flight, 0)

    def test_deadline_of_the_method(self) -> None:
        """A method within middleware is cancelled when its time is up."""
        self.wrap_server(Recorder())
        calling = self.call("wait")
        self.clock.pump([0] * 3)
        self.clock.advance(5.0)
        self.clock.advance(0)
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))

    def test_deadline_of_a_blocking_method(self) -> None:
        """A blocking method that waits for its thread within middleware is not begun after its time is up."""
        self.wrap_server(Recorder())
        self.stock_waits()
        ((begin, _),) = self.blocking
        self.assertRaises(CancelledError, begin)
        self.assertEqual(self.diary.calls, [])

    def test_deadline_before_a_blocking_method(self) -> None:
        """A middleware that never goes on to a blocking method is cancelled when the time is up, and its slot free."""
        self.wrap_server(Hanging())
        self.stock_waits()
        self.assertEqual((self.blocking, self.server.in_flight), ([], 0))

    def stock_waits(self) -> None:
        """Call a blocking method, and let its time pass."""
        calling = self.call("take", item="tea")
        self.clock.pump([0] * 3)
        self.clock.advance(5.0)
        self.clock.advance(0)
        self.failureResultOf(calling, MethodTimeoutError)

    def test_without(self) -> None:
        """Middleware for other kinds adds nothing to a method."""
        self.wrap_server(Recorder(kinds=SENDING))
        self.assertIsNone(self.server._dispatcher.execution._chain)


class ClientTests(MiddlewareCase):
    def test_call(self) -> None:
        """A call and its reply pass through the middleware, of prepared clients too."""
        recorder = Recorder(kinds=SENDING)
        self.wrap_client(recorder)
        prepared = self.client.prepare(server="h1", timeout=5.0)
        self.assertEqual(self.result(prepared.call(CONTEXT, "note", what=3)), 3)
        self.assertEqual(recorder.seen, [">call compute.note", "<3"])
        self.assertEqual((recorder.invocations[0].args, recorder.invocations[0].server), ({"what": 3}, "h1"))

    def test_casts(self) -> None:
        """Casts and fanouts pass through it too."""
        recorder = Recorder(kinds=SENDING)
        self.wrap_client(recorder)
        self.result(self.client.cast(CONTEXT, "note", what=1))
        self.result(self.client.fanout(CONTEXT, "note", what=2))
        self.assertEqual(recorder.seen, [">cast compute.note", "<None"] * 2)
        self.assertEqual(self.diary.calls, [1, 2])

    def test_casts_after_the_deadline(self) -> None:
        """A cast has no deadline: with middleware, too, it waits for the broker after that of its context."""
        sending: Deferred[None] = Deferred()
        self.wrap_client(Recorder(kinds=SENDING), timeout=5.0)
        self.patch(self.client._transport, "send", lambda *_: sending)
        for cast in (self.client.cast, self.client.fanout):
            casting = cast(RequestContext(deadline=1.0), "note", what=1)
            self.clock.advance(2.0)
            self.assertNoResult(casting)
        sending.callback(None)
        self.successResultOf(casting)

    def test_changes(self) -> None:
        """A middleware may send other arguments, and with another context."""

        async def change(invocation: Invocation, proceed: Any) -> Any:
            context = attrs.evolve(invocation.context, user_id="u7")
            return await proceed(attrs.evolve(invocation, context=context, args={}))

        self.wrap_client(Around(change))
        self.assertEqual(self.result(self.client.call(CONTEXT, "user", surplus=1)), ["u7", True])

    def test_errors(self) -> None:
        """What a middleware raises, or does wrong, fails the call; nothing is sent."""
        for middleware, expected in ((Failing(), LookupError), (Silent(), MiddlewareError)):
            self.wrap_client(middleware)
            self.failureResultOf(self.client.call(CONTEXT, "note"), expected)
        self.assertEqual(self.diary.calls, [])

    def test_deadline(self) -> None:
        """A middleware that never goes on ends with the call's timeout, even if it ignores its cancellation."""
        hanging: Deferred[None] = Deferred(lambda _: None)

        async def stubborn(invocation: Invocation, proceed: Any) -> Any:
            for _ in range(2):
                with contextlib.suppress(CancelledError):
                    await Deferred()
            await hanging

        for middleware in (Hanging(), Around(stubborn)):
            self.wrap_client(middleware, timeout=5.0)
            calling = self.client.call(CONTEXT, "note")
            self.clock.advance(5.0)
            self.assertNoResult(calling)
            self.clock.advance(0.25)
            self.assertIn("within 5 s", str(self.failureResultOf(calling, RPCTimeoutError).value))

    def test_deadline_of_a_cast(self) -> None:
        """A cast has no deadline but that for a middleware that never goes on, whatever its context says."""
        hanging = Hanging()
        self.wrap_client(hanging, timeout=5.0)
        late = attrs.evolve(CONTEXT, deadline=self.clock.seconds() - 1)
        casting = self.client.cast(late, "note", what=1)
        self.clock.advance(59.0)
        hanging.waiting.callback(None)
        self.result(casting)
        self.assertEqual(self.diary.calls, [1])
        self.wrap_client(Hanging(), timeout=5.0)
        casting = self.client.cast(late, "note", what=2)
        self.clock.advance(60.25)
        error = str(self.failureResultOf(casting, RPCTimeoutError).value)
        self.assertIn("within 60 s, and it is unknown whether the broker accepted the message", error)

    def test_time_of_middleware(self) -> None:
        """What a middleware takes is taken from the time of the call."""
        hanging = Hanging()
        self.wrap_client(hanging, timeout=5.0)
        calling = self.client.call(CONTEXT, "hang")
        self.clock.advance(4.0)
        hanging.waiting.callback(None)
        self.clock.pump([0] * 3)
        self.assertEqual(len(self.diary.hanging), 1)
        self.clock.advance(1.0)
        self.failureResultOf(calling, RPCTimeoutError)

    def test_cancelled(self) -> None:
        """Cancelling the call cancels it within the middleware."""
        self.wrap_client(Recorder())
        calling = self.client.call(CONTEXT, "hang")
        self.clock.pump([0] * 3)
        self.assertEqual(self.client.pending, 1)
        calling.cancel()
        self.failureResultOf(calling)
        self.assertEqual(self.client.pending, 0)

    def test_without(self) -> None:
        """Without middleware for calls there is no chain, in prepared clients neither."""
        self.wrap_client(Recorder(kinds=RECEIVING))
        self.assertIsNone(self.client.prepare(server="h1")._chain)
