"""Tests for novasvc.rpc.cancellation: a caller that cancels its call cancels the method."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.rpc.cancellation import GRACE, MAX_REMEMBERED, REMEMBERED_FOR
from novasvc.rpc.message import ReplyTo, encode_request
from novasvc.rpc.target import Target
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase

INTERNAL = Target("compute", fanout=True, internal=True)


class Workshop(Diary):
    """Methods that take their cancellation in every way."""

    @rpc.expose(cancellable=False)
    def firm(self, context: RequestContext) -> Deferred[Any]:
        return self._hang()

    @rpc.expose
    async def stubborn(self, context: RequestContext) -> str:
        try:
            await self._hang()
        except CancelledError:
            await self._hang()
        return "in the end"

    @rpc.expose(blocking=True)
    def thread(self, context: RequestContext) -> None:
        self.calls.append("thread")

    @rpc.expose
    def refuses(self, context: RequestContext) -> Deferred[Any]:
        def refuse(_: object) -> None:
            raise LookupError("refuses")

        return Deferred(refuse)


class CancellationCase(RPCCase):
    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.sent = 0

    def make_endpoint(self) -> Any:
        return Workshop()

    def send_cancellation(self, msg_id: str, seconds: Any) -> None:
        args = {"msg_id": msg_id, "seconds": seconds}
        self.send_internal(encode_request("cancel", args, {}, namespace="novasvc", version="1.0"))

    def send_internal(self, body: bytes) -> None:
        self.successResultOf(self.transport.send(INTERNAL, body, None, False))
        self.clock.advance(0)

    def warnings(self) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_level"] is LogLevel.warn]

    def cancel(self, calling: Deferred[Any]) -> None:
        """Cancel a call, and let the message arrive."""
        calling.cancel()
        self.failureResultOf(calling, CancelledError)
        self.clock.advance(0)
        self.clock.advance(0)


class RunningTests(CancellationCase):
    def test_cancelled(self) -> None:
        """A running method is cancelled, releases its slot, and is counted as cancelled; no reply is sent."""
        self.cancel(self.call("hang"))
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))
        self.assertEqual(self.outcomes("hang"), {"cancelled": 1})
        self.assertEqual(self.client.unmatched_replies, 0)
        self.assertEqual(self.warnings(), [])

    def test_cleanup(self) -> None:
        """What a cancelled method still does, such as cleaning up, is not cancelled again at its old deadline."""
        self.cancel(self.call("stubborn"))
        self.clock.advance(60)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 1))
        self.diary.hanging[1].callback(None)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))

    def test_only_this_one(self) -> None:
        """Other calls of the same method go on."""
        others = self.call("hang")
        self.cancel(self.call("hang"))
        self.assertEqual(self.diary.cancelled, 1)
        self.diary.hanging[0].callback("done")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(others), "done")
        self.assertEqual(self.outcomes("hang"), {"cancelled": 1, "done": 1})

    def test_idempotent(self) -> None:
        """A cancelled idempotent method is acknowledged: it does not run again, here or elsewhere."""
        self.cancel(self.call("hang_again"))
        self.assertEqual((self.diary.cancelled, self.outcomes("hang_again")), (1, {"cancelled": 1}))
        self.successResultOf(self.server.close())
        self.serve()
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, [None])

    def test_every_worker(self) -> None:
        """The cancellation reaches the server that runs the method, whichever of a topic it is."""
        second = rpc.Server(
            self.make_transport(),
            Target("compute", "h2"),
            rpc.Endpoints(self.diary),
            clock=self.clock,
            run_blocking=self.run_blocking,
        )
        self.successResultOf(second.start())
        client = self.client.prepare(server=None)
        calls = [client.call(CONTEXT, "hang") for _ in range(4)]
        self.clock.advance(0)
        self.assertEqual((self.server.in_flight, second.in_flight), (2, 2))
        for calling in calls:
            self.cancel(calling)
        self.assertEqual((self.server.in_flight, second.in_flight, self.diary.cancelled), (0, 0, 4))

    def test_full_server(self) -> None:
        """A cancellation waits neither for a slot nor for the prefetch."""
        calls = [self.call("hang_again") for _ in range(6)]
        self.assertEqual(len(self.diary.calls), 2)
        self.cancel(calls[0])
        self.assertEqual((self.diary.cancelled, len(self.diary.calls)), (1, 3))

    def test_opt_out(self) -> None:
        """A client with cancels=False discards the reply only."""
        calling = self.client.prepare(cancels=False).call(CONTEXT, "hang")
        self.clock.advance(0)
        self.cancel(calling)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (0, 1))

    def test_not_cancellable(self) -> None:
        """A method that is declared not cancellable goes on; a deadline still cancels it."""
        self.cancel(self.call("firm"))
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (0, 1))
        self.clock.advance(60)
        self.assertEqual((self.diary.cancelled, self.outcomes("firm")), (1, {"timed_out": 1}))

    def test_timeout(self) -> None:
        """A caller's timeout sends no cancellation: the server has the deadline itself."""
        received = self.transport.received
        calling = self.call("hang")
        self.clock.advance(60)
        self.clock.advance(0)
        self.failureResultOf(calling)
        self.assertEqual(self.transport.received, received + 1)
        self.assertEqual(self.outcomes("hang"), {"timed_out": 1})

    def test_nothing_extra(self) -> None:
        """A call that ends in any other way costs no message."""
        calling = self.call("note", what=1)
        self.clock.advance(0)
        self.successResultOf(calling)
        calling.cancel()
        self.successResultOf(self.client.close())
        self.clock.advance(0)
        self.assertEqual(self.transport.received, 1)

    def test_canceller_raises(self) -> None:
        """A canceller that raises is logged, and the call is answered no more."""
        self.cancel(self.call("refuses"))
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.assertEqual((self.server.in_flight, self.outcomes("refuses")), (1, {"cancelled": 1}))


class IgnoringTests(CancellationCase):
    def test_told_once(self) -> None:
        """A method that ignores its cancellation keeps its slot, and the log says so, once for each method."""
        for _ in range(2):
            self.cancel(self.call("stubborn"))
            self.clock.advance(GRACE)
        self.assertEqual(self.server.in_flight, 2)
        (warning,) = self.warnings()
        self.assertIn("stubborn", warning)
        self.assertIn(f"ignores its cancellation: it still runs {GRACE:g} s after", warning)
        for hanging in self.diary.hanging[1::2]:
            hanging.callback(None)
        self.clock.advance(0)
        self.assertEqual((self.server.in_flight, self.outcomes("stubborn")), (0, {"cancelled": 2}))

    def test_in_time(self) -> None:
        """A method that takes a while to clean up, and ends, is not reported."""
        self.cancel(self.call("stubborn"))
        self.clock.advance(GRACE - 1)
        self.diary.hanging[1].callback(None)
        self.clock.advance(GRACE)
        self.assertEqual(self.warnings(), [])

    def test_twice(self) -> None:
        """A cancellation that arrives twice, because the broker delivers it again, is one."""
        self.send(encode_request("stubborn", {}, {}, reply_to=ReplyTo("id", "nowhere")))
        for _ in range(2):
            self.send_cancellation("id", 60)
        self.assertEqual(self.diary.cancelled, 1)  # what the method does after that is not cut short
        self.clock.advance(GRACE)
        self.assertEqual(len(self.warnings()), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close(self) -> None:
        """A server that is closed leaves no timer behind."""
        self.cancel(self.call("stubborn"))
        self.server.close()
        self.successResultOf(self.client.close())
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_blocking(self) -> None:
        """A blocking method that runs in its thread cannot be cancelled, and the log says so at once."""
        self.cancel(self.call("thread"))
        (warning,) = self.warnings()
        self.assertIn("is a blocking method, which cannot be cancelled once its thread has begun", warning)
        self.assertEqual(self.server.in_flight, 1)

    def test_blocking_not_begun(self) -> None:
        """A blocking method that waits for a thread is not begun any more."""
        self.cancel(self.call("thread"))
        self.run_threads()
        self.assertEqual((self.diary.calls, self.server.in_flight), ([], 0))
        self.assertEqual(self.outcomes("thread"), {"cancelled": 1})


class WaitingTests(CancellationCase):
    def test_queued(self) -> None:
        """A request that waits for a slot never begins, and is settled."""
        running = [self.call("hang"), self.call("hang")]
        self.cancel(self.call("note", what="never"))
        self.assertEqual(self.count("cancelled"), 1)
        for hanging in self.diary.hanging:
            hanging.callback(None)
        self.clock.advance(0)
        self.assertEqual([self.successResultOf(calling) for calling in running], [None, None])
        self.assertEqual(self.diary.calls, [None, None])
        self.successResultOf(self.server.close())
        self.serve()
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, [None, None])

    def test_in_the_broker(self) -> None:
        """A request that no server has received yet is dropped when it arrives."""
        for _ in range(2):  # as many as are prefetched
            self.call("hang_again")
        waiting = self.call("note", what="never")
        self.assertEqual(self.transport.received, 2)
        self.cancel(waiting)
        self.assertEqual(self.count("cancelled"), 0)
        for _ in range(2):
            self.diary.hanging.pop(0).callback(None)
            self.clock.advance(0)
        self.assertEqual((self.diary.calls, self.count("cancelled")), ([None] * 2, 1))

    def test_redelivered(self) -> None:
        """A redelivered request that waits for its turn never begins."""
        bodies = [
            encode_request("hang_again", {"what": number}, {}, reply_to=ReplyTo(f"id{number}", "nowhere"))
            for number in range(3)
        ]
        self.redeliver(*bodies)
        waiting = ({0, 1, 2} - set(self.diary.calls)).pop()
        self.send_cancellation(f"id{waiting}", 60)
        for hanging in self.diary.hanging:
            hanging.callback(None)
        self.clock.advance(10)
        self.assertNotIn(waiting, self.diary.calls)
        self.assertEqual(self.count("cancelled"), 1)

    def test_before_the_request(self) -> None:
        """A cancellation may overtake its request."""
        self.send_cancellation("id", 60)
        self.send(self.request("note"))
        self.assertEqual((self.diary.calls, self.count("cancelled")), ([], 1))

    def test_forgotten(self) -> None:
        """A server remembers a cancelled call for as long as its request may be in a queue."""
        for seconds, kept in ((5, 5), (None, REMEMBERED_FOR), (1e9, REMEMBERED_FOR), ("x", REMEMBERED_FOR)):
            self.send_cancellation("id", seconds)
            self.clock.advance(kept - 1)
            self.send(self.request("note"))
            self.assertEqual(self.diary.calls, [])
            self.clock.advance(1)
            self.send(self.request("note"))
            self.assertEqual(self.diary.calls.pop(), None)

    def test_bounded(self) -> None:
        """A server remembers a bounded number of calls, the latest ones."""
        for number in range(MAX_REMEMBERED + 1):
            self.send_cancellation("id" if not number else f"other{number}", 60)
        self.send(self.request("note"))
        self.assertEqual(self.diary.calls, [None])

    def test_malformed(self) -> None:
        """A malformed cancellation, and an unknown internal message, are dropped and counted."""
        for method, args in (("cancel", {}), ("cancel", {"msg_id": 7}), ("cancel", {"msg_id": "x" * 999}), ("x", {})):
            self.send_internal(encode_request(method, args, {}, namespace="novasvc", version="1.0"))
        self.assertEqual((self.count("malformed"), self.server.in_flight), (4, 0))
        self.assertEqual(self.successResultOf(self.call("note")), None)


class SendingTests(CancellationCase):
    def test_before_the_address(self) -> None:
        """A call that was not sent yet is only forgotten."""
        transport = self.make_transport()
        opening: Deferred[str] = Deferred()
        transport.open_replies = lambda receiver: opening  # type: ignore[method-assign]
        client = rpc.Client(transport, clock=self.clock, target=TARGET)
        self.cancel(client.call(CONTEXT, "note"))
        opening.callback("address")
        self.clock.advance(0)
        self.assertEqual((self.transport.received, self.diary.calls), (0, []))

    def test_broker_away(self) -> None:
        """A call whose message was not confirmed by a broker that is away needs no cancellation."""
        sends: list[Deferred[None]] = []
        transport = self.make_transport()
        transport.problem = lambda: "away"  # type: ignore[method-assign]

        def send(*_: object) -> Deferred[None]:
            sends.append(Deferred())
            return sends[-1]

        transport.send = send  # type: ignore[method-assign]
        client = rpc.Client(transport, clock=self.clock, target=TARGET)
        self.cancel(client.call(CONTEXT, "note"))
        self.assertEqual(len(sends), 1)

    def test_refused(self) -> None:
        """A cancellation that cannot be sent disturbs nobody."""
        transport = self.failing_transport(lambda: LookupError("no"))
        self.cancel(rpc.Client(transport, clock=self.clock, target=TARGET).call(CONTEXT, "hang"))
        self.assertEqual(self.server.in_flight, 1)

    def test_close(self) -> None:
        """Closing the client waits a moment until the transport has the cancellations."""
        sending: list[Deferred[None]] = []

        def slow() -> Deferred[None]:
            sending.append(Deferred())
            return sending[-1]

        for confirmed, gathers in ((True, False), (False, False), (True, True)):
            client = rpc.Client(self.failing_transport(slow), clock=self.clock, target=TARGET)
            if gathers:
                self.cancel(client.prepare(server=None).gather(CONTEXT, "hang").all())
            else:
                self.cancel(client.call(CONTEXT, "hang"))
            closing = client.close()
            self.assertNoResult(closing)
            if confirmed:
                sending.pop().callback(None)
            else:
                self.clock.advance(1)
            self.assertIs(self.successResultOf(closing), None)

    def failing_transport(self, result: Callable[[], Any]) -> Any:
        """Make a transport on which internal messages have another result."""

        class Transport(type(self.transport)):  # type: ignore[misc]
            def send(self, target: Target, *args: Any) -> Any:
                if not target.internal:
                    return super().send(target, *args)
                made = result()
                if isinstance(made, Exception):
                    failed: Deferred[None] = Deferred()
                    failed.errback(made)
                    return failed
                return made

        return Transport(self.broker, self.clock)


class DrainTests(CancellationCase):
    def test_draining(self) -> None:
        """A draining server no longer hears cancellations; its methods end at their deadline."""
        calling = self.call("hang")
        self.server.drain()
        self.cancel(calling)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (0, 1))
