"""Tests for novasvc.rpc.server.execution: a call from the start of its method to its reply."""

import json
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from novasvc import rpc
from novasvc.context import RequestContext, current_context
from novasvc.errors import (
    BrokerUnavailableError,
    MethodTimeoutError,
    RemoteError,
    ResultNotSerializableError,
    RPCError,
    TransportClosedError,
    UnconfirmedError,
)
from novasvc.reactor.threads import _name as thread_name
from novasvc.rpc.server.execution import REQUEUE_DELAY
from tests.support.flight_rig import record_flight, said
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase

LEFT_BEHIND: ContextVar[str | None] = ContextVar("left_behind", default=None)


class OwnError(Exception):
    pass


class UnreadableError(Exception):
    @property
    def args(self) -> Any:
        raise LookupError("gone")

    def __repr__(self) -> str:
        raise LookupError("gone")


@attrs.define
class Unset:
    size: int = attrs.field(init=False)


class Workshop(Diary):
    """Methods of every kind."""

    @rpc.expose
    def plain(self, context: RequestContext) -> str:
        return "plain"

    @rpc.expose
    def fired(self, context: RequestContext) -> Deferred[str]:
        return succeed("fired")

    @rpc.expose
    async def coroutine(self, context: RequestContext) -> str:
        await self._hang()
        self.see(context)
        return "coroutine"

    @rpc.expose(blocking=True)
    def thread(self, context: RequestContext, function: int, args: int) -> str:
        self.see(context)
        return f"thread {function} {args}"

    @rpc.expose
    def where(self, context: RequestContext) -> Any:
        self.see(context)
        LEFT_BEHIND.set("by a method")
        return context.to_wire()

    def see(self, context: RequestContext) -> None:
        self.calls.append(current_context.get() is context)

    @rpc.expose(expected=(LookupError, UnreadableError))
    def fail(self, context: RequestContext, how: str) -> Any:
        error: BaseException = {
            "expected": KeyError("x"),
            "unexpected": OwnError("x"),
            "exit": SystemExit(3),
            "huge": ValueError("x" * 20_000_000),
            "unset": ValueError(Unset()),
            "unreadable": UnreadableError(),
        }[how]
        raise error

    @rpc.expose
    def fail_later(self, context: RequestContext) -> Deferred[Any]:
        return fail(OwnError("later"))

    @rpc.expose
    def misfit(self, context: RequestContext, what: str) -> Any:
        return {"object": [object()], "bytes": b"\xff", "huge": "x" * 20_000_000, "unset": Unset()}[what]

    @rpc.expose(idempotent=True)
    def misfit_again(self, context: RequestContext) -> Any:
        return Unset()

    @rpc.expose(timeout=5)
    def bounded(self, context: RequestContext) -> Deferred[Any]:
        self.calls.append(context.deadline)
        return self._hang()

    @rpc.expose(timeout=5)
    def chained(self, context: RequestContext) -> Deferred[Any]:
        return succeed(None).addCallback(lambda _: self._hang())

    @rpc.expose(timeout=5)
    def uncancellable(self, context: RequestContext) -> Deferred[Any]:
        def refuse(_: object) -> None:
            raise OwnError("refuses")

        return Deferred(refuse)

    @rpc.expose(timeout=5, blocking=True)
    def bounded_thread(self, context: RequestContext) -> None: ...

    @rpc.expose(timeout=5)
    async def stubborn(self, context: RequestContext) -> str:
        try:
            await self._hang()
        except CancelledError:
            await self._hang()
        return "in the end"

    @rpc.expose(timeout=5, idempotent=True)
    def bounded_again(self, context: RequestContext) -> Deferred[Any]:
        return self._hang()


class ExecutionCase(RPCCase):
    diary: Workshop

    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def make_endpoint(self) -> Workshop:
        return Workshop()

    def logged(self, level: Any) -> Iterator[dict[str, Any]]:
        return (event for event in self.events if event["log_level"] is level and "rpc" in event["log_namespace"])


class MethodTests(ExecutionCase):
    def test_kinds(self) -> None:
        """A method may return a value, a Deferred or a coroutine."""
        self.assertEqual(self.successResultOf(self.call("plain")), "plain")
        self.assertEqual(self.successResultOf(self.call("fired")), "fired")
        calling = self.call("coroutine")
        self.assertNoResult(calling)
        self.diary.hanging[0].callback(None)
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), "coroutine")

    def test_thread_name(self) -> None:
        """A log of the threads names the method."""
        self.call("thread", function=1, args=2)
        ((function, _),) = self.blocking
        self.assertRegex(thread_name(function), r"test_execution\.Workshop\.thread$")
        self.run_threads()

    def test_thread(self) -> None:
        """A blocking method runs in run_blocking, whatever the names of its arguments."""
        calling = self.call("thread", function=1, args=2)
        self.assertNoResult(calling)
        self.run_threads()
        self.assertEqual(self.successResultOf(calling), "thread 1 2")

    def test_context(self) -> None:
        """A method gets the caller's context, and it is the current one while the method runs."""
        wire = self.successResultOf(self.call("where"))
        self.assertEqual(wire, CONTEXT.to_wire())
        self.call("coroutine")
        self.diary.hanging[0].callback(None)
        self.call("thread", function=1, args=2)
        self.run_threads()
        self.assertEqual(self.diary.calls, [True, True, True])
        self.assertEqual((current_context.get(), LEFT_BEHIND.get()), (None, None))

    def test_deadline(self) -> None:
        """The context's deadline is the caller's, or the method's own if that is earlier."""
        self.clock.advance(1)
        self.client = self.client.prepare(timeout=3)
        self.call("bounded")
        self.client = self.client.prepare(timeout=30)
        self.call("bounded")
        self.assertEqual(self.diary.calls, [4.0, 6.0])


class HostileTests(ExecutionCase):
    def test_chained(self) -> None:
        """A Deferred that has fired and is chained to another one is subject to the deadline too."""
        calling = self.call("chained")
        self.clock.pump([5, 0])
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))

    def test_uncancellable(self) -> None:
        """A canceller that raises is logged, and the deadlines of other calls still fire."""
        first = self.call("uncancellable")
        self.clock.advance(1)
        second = self.call("bounded")
        self.clock.pump([4, 1, 0])
        self.failureResultOf(first, MethodTimeoutError)
        self.failureResultOf(second, MethodTimeoutError)
        self.assertEqual(len(self.flushLoggedErrors(OwnError)), 1)

    def test_endless_keepalive(self) -> None:
        """A call with an enormous keepalive interval frees its slot at its end."""
        for _ in range(self.concurrency + 1):
            self.deliver("hang", timeout=10**400)
        self.assertEqual(len(self.diary.calls), self.concurrency)
        for hanging in self.diary.hanging:
            hanging.callback(None)
        self.clock.advance(0)
        self.assertEqual(len(self.diary.calls), self.concurrency + 1)

    def test_long_ids(self) -> None:
        """A call with an oversized message id gets no reply, and one with an oversized unique id is refused."""
        self.deliver("note", msg_id="\u00e9" * 1_000_000)
        self.deliver("note", unique_id="x" * 1_000_000)
        self.assertEqual((len(self.diary.calls), self.count("refused"), self.server.in_flight), (1, 1, 0))

    def deliver(self, method: str, msg_id: str = "m", unique_id: str | None = None, timeout: Any = None) -> None:
        """Send a message that novasvc's client would not send."""
        body = {"method": method, "_msg_id": msg_id, "_reply_q": "nowhere", "_timeout": timeout}
        if unique_id is not None:
            body["_unique_id"] = unique_id
        message = json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(body)}).encode()
        self.successResultOf(self.transport.send(TARGET, message, None, True))
        self.clock.advance(0)


class FailureTests(ExecutionCase):
    def test_expected(self) -> None:
        """An expected error reaches the caller, and the log without a traceback."""
        error = self.failureResultOf(self.call("fail", how="expected"), KeyError).value
        self.assertEqual(error.args, ("x",))
        (event,) = self.logged(LogLevel.debug)
        self.assertNotIn("log_failure", event)

    def test_unexpected(self) -> None:
        """Any other error is logged once with its traceback, in the request's context; the caller gets no traceback."""
        seen: list[Any] = []
        globalLogPublisher.addObserver(
            observer := lambda event: seen.append((event["log_level"], current_context.get()))
        )
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        error = self.failureResultOf(self.call("fail", how="unexpected"), RemoteError).value
        self.assertEqual((error.exc_type, error.value, error.traceback), ("OwnError", "x", ("OwnError: x\n",)))
        self.assertEqual(len(self.flushLoggedErrors(OwnError)), 1)
        self.assertEqual([context.request_id for level, context in seen if level is LogLevel.error], ["req-1"])

    def test_later(self) -> None:
        """An asynchronous error is handled as a synchronous one."""
        self.failureResultOf(self.call("fail_later"), RemoteError)
        self.assertEqual(len(self.flushLoggedErrors(OwnError)), 1)
        self.assertEqual(self.outcomes("fail_later"), {"failed": 1})

    def test_tracebacks(self) -> None:
        """A server can be told to send tracebacks."""
        self.successResultOf(self.server.close())
        self.server = self.serve(send_tracebacks=True)
        error = self.failureResultOf(self.call("fail", how="unexpected"), RemoteError).value
        self.assertIn("in fail\n", "".join(error.traceback))
        self.flushLoggedErrors(OwnError)

    def test_exit(self) -> None:
        """A method that raises SystemExit does not end the server, and its caller gets the error."""
        error = self.failureResultOf(self.call("fail", how="exit"), RemoteError).value
        self.assertEqual(error.exc_type, "SystemExit")
        self.flushLoggedErrors(SystemExit)
        self.successResultOf(self.call("plain"))

    def test_misfit(self) -> None:
        """A result that JSON cannot hold, that is too large or whose own code raises, is an error at once."""
        problems = {
            "object": "type object",
            "bytes": "not valid UTF-8",
            "huge": "the limit is",
            "unset": "AttributeError",
        }
        for what, problem in problems.items():
            error = self.failureResultOf(self.call("misfit", what=what), ResultNotSerializableError).value
            self.assertEqual(error.method, "misfit")
            self.assertIn(problem, error.problem)

    def test_misfit_settled(self) -> None:
        """Idempotent calls whose results cannot be encoded are settled, so that the server takes further ones."""
        for _ in range(2 * self.concurrency):
            self.failureResultOf(self.call("misfit_again"), ResultNotSerializableError)
        self.assertEqual(self.successResultOf(self.call("plain")), "plain")

    def test_unreadable_error(self) -> None:
        """An error that cannot be encoded is sent as its text, or replaced by an error that says so."""
        error = self.failureResultOf(self.call("fail", how="unset"), ValueError).value
        self.assertIn("Unset(", str(error))
        self.flushLoggedErrors(ValueError)
        error = self.failureResultOf(self.call("fail", how="unreadable"), ResultNotSerializableError).value
        self.assertEqual(error.problem, "it raised UnreadableError; gone")

    def test_huge_error(self) -> None:
        """An error that is too large to send is replaced by one that says so."""
        error = self.failureResultOf(self.call("fail", how="huge"), ResultNotSerializableError).value
        self.assertIn("raised ValueError", error.problem)
        self.flushLoggedErrors(ValueError)

    def test_cast(self) -> None:
        """A failed cast is logged, and no reply is sent."""
        self.client.cast(CONTEXT, "fail", how="unexpected")
        self.client.cast(CONTEXT, "misfit", what="object")
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(OwnError)), 1)
        self.assertEqual(self.client.unmatched_replies, 0)


class TimeoutTests(ExecutionCase):
    def test_own_timeout(self) -> None:
        """A method that exceeds its timeout is cancelled, and its caller gets MethodTimeoutError."""
        calling = self.call("bounded")
        self.clock.advance(5)
        self.assertEqual(self.failureResultOf(calling, MethodTimeoutError).value.args, ("bounded", 5.0, ""))
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))
        self.assertEqual(self.outcomes("bounded"), {"timed_out": 1})

    def test_callers_deadline(self) -> None:
        """A method is cancelled at its caller's deadline."""
        self.failureResultOf(self.call_for(3, "hang"))
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))

    def call_for(self, seconds: float, method: str) -> Deferred[Any]:
        calling = self.client.prepare(timeout=seconds).call(CONTEXT, method)
        self.clock.advance(0)
        self.clock.advance(seconds)
        return calling

    def test_cast(self) -> None:
        """A cast is cancelled at its method's timeout, too."""
        self.client.cast(CONTEXT, "bounded")
        self.clock.advance(0)
        self.clock.advance(5)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))

    def test_in_time(self) -> None:
        """A method that has ended is not cancelled, and its deadline has no effect."""
        calling = self.call("bounded")
        self.diary.hanging[0].callback(1)
        self.clock.advance(5)
        self.assertEqual(self.successResultOf(calling), 1)
        self.assertEqual((self.diary.cancelled, self.outcomes("bounded")), (0, {"done": 1}))

    def test_stubborn(self) -> None:
        """A method that ignores its cancellation keeps its slot until it ends; the one reply is at the timeout."""
        calling = self.call("stubborn")
        self.clock.advance(5)
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual(self.server.in_flight, 1)
        self.diary.hanging[1].callback(None)
        self.clock.advance(0)
        self.assertEqual((self.server.in_flight, self.client.unmatched_replies), (0, 0))

    def test_thread(self) -> None:
        """A blocking method keeps its slot until its thread ends; its caller gets a reply at the timeout."""
        calling = self.call("bounded_thread")
        self.clock.advance(5)
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual(self.server.in_flight, 1)
        self.run_threads()
        self.assertEqual((self.server.in_flight, self.client.unmatched_replies), (0, 0))

    def test_logged(self) -> None:
        """A timeout is one line in the log, without a traceback."""
        self.failureResultOf(self.call_for(5, "bounded"))
        (event,) = self.logged(LogLevel.warn)
        self.assertNotIn("log_failure", event)


class FlightTests(ExecutionCase):
    """Calls in the flight recorder and in running_calls."""

    def setUp(self) -> None:
        super().setUp()
        self.recorder = record_flight(self)

    def noted(self) -> list[str]:
        return said(self.recorder, "call")

    def test_done(self) -> None:
        """The start and the end of a call are recorded, with its method and request id."""
        calling = self.call("coroutine")
        self.assertEqual(self.noted(), ["coroutine began req-1"])
        self.diary.hanging[0].callback(None)
        self.clock.advance(0)
        self.successResultOf(calling)
        self.assertEqual(self.noted()[1:], ["coroutine done req-1"])

    def test_failed(self) -> None:
        """The type of an error is recorded, not its text."""
        self.failureResultOf(self.call("fail", how="unexpected"), RemoteError)
        self.failureResultOf(self.call("fail", how="exit"), RemoteError)
        self.flushLoggedErrors(OwnError, SystemExit)
        self.assertEqual(
            self.noted(),
            ["fail began req-1", "fail failed req-1 OwnError", "fail began req-1", "fail failed req-1 SystemExit"],
        )

    def test_timed_out(self) -> None:
        """A timeout is recorded, and later the real end of the method."""
        calling = self.call("stubborn")
        self.clock.advance(5)
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual(self.noted(), ["stubborn began req-1", "stubborn timed out req-1"])
        self.diary.hanging[1].callback(None)
        self.assertEqual(self.noted()[2:], ["stubborn done req-1"])

    def test_secrets(self) -> None:
        """Arguments and results are not recorded."""
        self.successResultOf(self.call("note", what="hunter2"))
        self.assertEqual(self.noted(), ["note began req-1", "note done req-1"])

    def test_running_calls(self) -> None:
        """running_calls lists the running calls and their durations, without calls that have ended."""
        self.assertEqual(self.server.running_calls(), [])
        calling = self.call("coroutine")
        self.clock.advance(1.5)
        self.client.cast(RequestContext(request_id="req-2"), "hang")
        self.clock.advance(0)
        self.clock.advance(0.25)
        self.assertEqual(
            self.server.running_calls(),
            [
                {"method": "coroutine", "request_id": "req-1", "seconds": 1.75},
                {"method": "hang", "request_id": "req-2", "seconds": 0.25},
            ],
        )
        self.diary.hanging[0].callback(None)
        self.clock.advance(0)
        self.successResultOf(calling)
        self.assertEqual([call["method"] for call in self.server.running_calls()], ["hang"])

    def test_running_thread(self) -> None:
        """A blocking method that exceeds its timeout is still listed as running."""
        calling = self.call("bounded_thread")
        self.clock.advance(6)
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual([call["seconds"] for call in self.server.running_calls()], [6.0])
        self.run_threads()
        self.assertEqual(self.server.running_calls(), [])


class AcknowledgementTests(ExecutionCase):
    def left(self) -> list[bytes]:
        """Lose the server's connection; return the messages that another server receives."""
        taken: list[Any] = []
        self.successResultOf(self.transport.close())
        self.successResultOf(self.make_transport().listen(self.client._target, taken.append, 100))
        self.clock.advance(0)
        return [json.loads(json.loads(delivery.body)["oslo.message"])["method"] for delivery in taken]

    def test_at_most_once(self) -> None:
        """A method is acknowledged when it begins."""
        self.call("hang")
        self.assertEqual(self.left(), [])

    def test_waiting(self) -> None:
        """A waiting call is not acknowledged."""
        for _ in range(3):
            self.call("hang")
        self.assertEqual(self.left(), ["hang"])

    def test_at_least_once(self) -> None:
        """An idempotent method is not acknowledged while it runs."""
        self.call("hang_again")
        self.assertEqual(self.left(), ["hang_again"])

    def test_idempotent_done(self) -> None:
        """An idempotent method is acknowledged when its reply is published, result or error."""
        calls = [self.call("hang_again") for _ in range(2)]
        self.diary.hanging[0].callback(1)
        self.diary.hanging[1].errback(LookupError("x"))
        self.clock.advance(0)
        self.successResultOf(calls[0])
        self.failureResultOf(calls[1], LookupError)
        self.flushLoggedErrors(LookupError)
        self.assertEqual(self.left(), [])

    def test_idempotent_cast(self) -> None:
        """An idempotent cast is acknowledged when its method has ended."""
        self.client.cast(CONTEXT, "hang_again")
        self.client.cast(CONTEXT, "hang_again")
        self.clock.advance(0)
        self.diary.hanging[0].callback(1)
        self.assertEqual(self.left(), ["hang_again"])

    def test_idempotent_timeout(self) -> None:
        """An idempotent method that timed out is acknowledged: its caller has a reply."""
        calling = self.call("bounded_again")
        self.clock.advance(5)
        self.failureResultOf(calling, MethodTimeoutError)
        self.assertEqual(self.left(), [])

    def test_unpublished(self) -> None:
        """An idempotent call whose reply could not be published is requeued, to run again."""
        self.transport.on_reply = lambda: fail(TransportClosedError("replying"))
        calling = self.call("hang_again", what=1)
        self.diary.hanging[0].callback("lost")
        self.transport.on_reply = None
        self.clock.advance(0)
        self.diary.hanging[1].callback("found")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), "found")
        self.assertEqual((self.diary.calls, self.count("unanswered")), ([1, 1], 1))

    def test_refused(self) -> None:
        """An idempotent call whose reply the broker refuses runs again after REQUEUE_DELAY, and not all the time."""
        self.transport.on_reply = lambda: fail(UnconfirmedError("reply_1", "the broker rejected the message"))
        calling = self.call("hang_again", what=1)
        self.diary.hanging[0].callback("lost")
        self.clock.advance(REQUEUE_DELAY / 2)
        self.assertEqual((self.diary.calls, self.server.in_flight), ([1], 1))
        self.clock.advance(REQUEUE_DELAY / 2)
        self.transport.on_reply = None
        self.clock.advance(0)
        self.diary.hanging[1].callback("found")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), "found")
        self.assertEqual((self.diary.calls, self.left()), ([1, 1], []))


class PatienceTests(ExecutionCase):
    """The time for which the transport may hold a reply."""

    def setUp(self) -> None:
        super().setUp()
        self.replies_under_way: list[Deferred[None]] = []
        self.transport.on_reply = self.reply
        self.log: list[str] = []

        def observe(event: LogEvent) -> None:
            self.log.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def reply(self) -> Deferred[None]:
        self.replies_under_way.append(Deferred())
        return self.replies_under_way[-1]

    def begin(self, method: str, timeout: float = 10.0) -> None:
        calling = self.client.prepare(timeout=timeout).call(CONTEXT, method, what=1)
        calling.addErrback(lambda failure: failure.trap(RPCError) and None)
        self.clock.advance(0)

    def test_of_the_caller(self) -> None:
        """A reply may be held for the rest of the caller's timeout."""
        self.begin("hang")
        self.clock.advance(4)
        self.diary.hanging[0].callback(1)
        self.assertEqual(self.transport.reply_timeout, 6.0)

    def test_of_a_refusal(self) -> None:
        """The reply to a refused request may be held for the rest of the caller's timeout too."""
        self.begin("unknown")
        self.assertEqual(self.transport.reply_timeout, 10.0)

    def test_unknown(self) -> None:
        """The time is unknown if the request has no TTL."""
        self.send(self.request("note"))
        self.assertIsNone(self.transport.reply_timeout)

    def test_over(self) -> None:
        """A call whose reply was not published before its caller gave up does not run again; the log says so."""
        self.begin("hang_again")
        self.diary.hanging[0].callback(1)
        self.clock.advance(10)
        self.replies_under_way[0].errback(BrokerUnavailableError("amqp://h", "refused"))
        self.assertEqual(self.server.in_flight, 0)
        self.successResultOf(self.server.close())
        self.assertEqual(self.take(), [])
        (line,) = [line for line in self.log if "was dropped" in line]
        self.assertIn("the reply to hang_again was dropped: its caller has stopped waiting", line)
        self.assertIn("amqp://h", line)

    def test_cut_short(self) -> None:
        """When a service is cut short while its transport has a problem, held replies are dropped."""
        self.begin("hang_again")
        self.diary.hanging[0].callback(1)
        drained = self.server.drained()
        self.successResultOf(self.transport.close())
        self.assertNoResult(drained)
        self.server.cut_short("b@h was shutting down")
        self.successResultOf(drained)
        self.assertTrue(any("the service is shutting down" in line for line in self.log))

    def test_cut_short_with_a_transport(self) -> None:
        """When a service is cut short, a transport without a problem still publishes the replies."""
        self.begin("hang")
        self.diary.hanging[0].callback(1)
        self.server.cut_short("b@h was shutting down")
        drained = self.server.drained()
        self.assertNoResult(drained)
        self.replies_under_way[0].callback(None)
        self.successResultOf(drained)


class KeepaliveTests(ExecutionCase):
    def ask(self, seconds: object, method: str = "hang") -> None:
        body = json.loads(self.request(method))
        fields = {**json.loads(body["oslo.message"]), "_timeout": seconds}
        self.send(json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(fields)}).encode())

    def test_asked_for(self) -> None:
        """A caller that asks for keepalives gets two in each interval, until the reply."""
        self.ask(4)
        self.clock.pump([2, 2])
        self.assertEqual([(r.result, r.failure, r.final) for r in self.replies], [(None, None, False)] * 2)
        self.diary.hanging[0].callback("done")
        self.clock.pump([2, 2])
        self.assertEqual([(r.result, r.final) for r in self.replies[2:]], [("done", True)])

    def test_not_asked_for(self) -> None:
        """Other callers get no keepalives."""
        self.ask(None)
        self.clock.pump([30] * 3)
        self.assertEqual(self.replies, [])

    def test_short(self) -> None:
        """A method that returns at once sends no keepalive."""
        self.ask(4, "plain")
        self.assertEqual(len(self.replies), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unreachable(self) -> None:
        """A caller that cannot be reached gets no further keepalives."""
        tries: list[str] = []

        def refuse() -> Deferred[None]:
            tries.append("refused")
            return fail(TransportClosedError("replying"))

        self.ask(4)
        self.transport.on_reply = refuse
        self.clock.pump([2] * 5)
        self.assertEqual(len(tries), 1)

    def test_deadline(self) -> None:
        """With keepalives, a short TTL is no deadline for the reply; a TTL longer than the interval is."""
        for ttl, cancelled in ((4.0, 0), (5.0, 1)):
            body = json.loads(self.request("hang"))
            fields = {**json.loads(body["oslo.message"]), "_timeout": 4}
            self.send(json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(fields)}).encode(), ttl)
            self.clock.pump([2] * 5)
            self.assertEqual(self.diary.cancelled, cancelled)

    def test_client(self) -> None:
        """A call with keepalives can run for much longer than its interval."""
        calling = self.client.prepare(timeout=None, call_monitor_timeout=4).call(CONTEXT, "hang")
        self.clock.pump([1] * 60)
        self.assertNoResult(calling)
        self.diary.hanging[0].callback("done")
        self.clock.pump([0, 1, 1, 1])
        self.assertEqual((self.successResultOf(calling), self.client.unmatched_replies), ("done", 0))

    def test_closed(self) -> None:
        """A closed server leaves no timer behind."""
        self.ask(4, "hang_again")
        self.successResultOf(self.server.close())
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
