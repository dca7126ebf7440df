"""Tests for novasvc.rpc.client and novasvc.rpc.replies, against a scripted server."""

import json
import threading
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python import threadable
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    InvalidArgumentsError,
    InvalidTargetError,
    MethodTimeoutError,
    ProblemError,
    RemoteError,
    RPCTimeoutError,
    RPCVersionCapError,
    TooManyCallsError,
    TransportClosedError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.registry.lookup import ServiceLookup
from novasvc.registry.query import ServiceQuery, ServiceTotals
from novasvc.registry.record import ServiceRecord
from novasvc.rpc.failures.failure import encode_error
from novasvc.rpc.message import ReplyTo, Request, encode_failure, encode_keepalive, encode_result, read_request, unwrap
from novasvc.rpc.replies import MAX_PENDING
from novasvc.rpc.resend import MAX_RESENDS
from novasvc.rpc.target import Target
from novasvc.testing import MemoryRegistry
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.support.middleware_rig import Recorder
from tests.support.rpc_rig import SlowTransport

CONTEXT = RequestContext(request_id="req-1", user_id="u1", extra={"roles": ["admin"]})


class SilentRegistry:
    """A lookup whose Deferreds fire when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Deferred[ServiceTotals]] = []

    def count(self, query: ServiceQuery) -> Deferred[ServiceTotals]:
        self.asked.append(Deferred())
        return self.asked[-1]


class ClientCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.transport = MemoryTransport(self.broker, clock=self.clock)
        self.requests: list[Request] = []
        self.deliveries: list[Any] = []
        self.serve("compute", "h1")
        self.client = rpc.Client(self.transport, clock=self.clock, timeout=60.0, target=Target("compute"))

    def serve(self, topic: str, server: str) -> None:
        def receive(delivery: Any) -> None:
            delivery.ack()
            self.deliveries.append(delivery)
            self.requests.append(read_request(unwrap(delivery.body)))

        self.successResultOf(self.transport.listen(Target(topic, server), receiver=receive, prefetch=100))

    def call(self, method: str = "echo", client: rpc.Client | None = None, **args: Any) -> Deferred[Any]:
        calling = (client or self.client).call(CONTEXT, method, **args)
        self.clock.advance(0)
        return calling

    def reply(self, body: bytes, number: int = -1) -> None:
        reply_to = self.requests[number].reply_to
        assert reply_to is not None
        self.transport.reply(reply_to.address, body)
        self.clock.advance(0)

    def msg_id(self, number: int = -1) -> str:
        reply_to = self.requests[number].reply_to
        assert reply_to is not None
        return reply_to.msg_id

    def reply_fields(self, **fields: Any) -> None:
        body = {"result": None, "failure": None, "ending": True, "_msg_id": self.msg_id(), **fields}
        self.reply(json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(body)}).encode())


class CallTests(ClientCase):
    def test_call(self) -> None:
        """A call sends method, arguments and context, and fires with the result."""
        calling = self.client.call(CONTEXT, "echo", x=1, self=2, context=3, method=4)
        self.clock.advance(0)
        request = self.requests[0]
        self.assertEqual((request.method, request.args), ("echo", {"x": 1, "self": 2, "context": 3, "method": 4}))
        self.assertEqual(RequestContext.from_wire(request.context), CONTEXT)
        self.assertEqual((request.namespace, request.version, request.keepalive), (None, "1.0", None))
        self.assertNoResult(calling)
        self.assertEqual(self.client.pending, 1)
        self.reply(encode_result(self.msg_id(), {"y": [None]}, "echo"))
        self.assertEqual(self.successResultOf(calling), {"y": [None]})
        self.assertEqual(self.client.pending, 0)

    def test_each_its_own(self) -> None:
        """Replies match their calls in any order."""
        calls = [self.call("echo", x=number) for number in range(3)]
        for number in (2, 0, 1):
            self.reply(encode_result(self.msg_id(number), number, "echo"), number)
        self.assertEqual([self.successResultOf(call) for call in calls], [0, 1, 2])

    def test_failure(self) -> None:
        """A failure is raised with its own class if that is known, else as a RemoteError."""
        for error, kind in ((ValueError("x"), ValueError), (MethodTimeoutError("m", 1.0), MethodTimeoutError)):
            calling = self.call()
            self.reply(encode_failure(self.msg_id(), encode_error(error)))
            self.assertEqual(self.failureResultOf(calling, kind).value.args, error.args)
        calling = self.call()
        self.reply(encode_failure(self.msg_id(), encode_error(CancelledError("x"))))
        self.assertEqual(self.failureResultOf(calling, RemoteError).value.exc_type, "CancelledError")

    def test_unreadable_failure(self) -> None:
        """A failure that cannot be decoded still fails the call."""
        for failure in ("", "x", "[]", {"class": "ValueError"}, 1):
            calling = self.call()
            self.reply_fields(failure=failure)
            if failure:
                self.failureResultOf(calling, RemoteError)
            else:
                self.assertIsNone(self.successResultOf(calling))

    def test_old_sender(self) -> None:
        """A result may arrive before the reply that ends the call."""
        calling = self.call()
        self.reply_fields(result=[1], ending=False)
        self.assertNoResult(calling)
        self.reply_fields()
        self.assertEqual(self.successResultOf(calling), [1])

    def test_keepalive(self) -> None:
        """A keepalive neither ends a call nor extends its timeout."""
        calling = self.call()
        self.clock.advance(59)
        self.reply(encode_keepalive(self.msg_id()))
        self.assertNoResult(calling)
        self.clock.advance(1)
        self.failureResultOf(calling, RPCTimeoutError)

    def test_unmatched(self) -> None:
        """Late, duplicate, forged and malformed replies are ignored and counted."""
        calling = self.call()
        good = encode_result(self.msg_id(), 1, "echo")
        for reply in (b"rubbish", b"{}", encode_result("forged", 1, "echo"), good, good):
            self.reply(reply)
        self.assertEqual(self.successResultOf(calling), 1)
        late = self.call()
        self.clock.advance(60)
        self.failureResultOf(late, RPCTimeoutError)
        self.reply(encode_result(self.msg_id(), 1, "echo"))
        self.assertEqual(self.client.unmatched_replies, 5)

    def test_undeliverable(self) -> None:
        """A call to a target without a queue fails at once."""
        for target in (Target("unknown"), Target("compute", "h2")):
            calling = self.client.prepare(topic=target.topic, server=target.server).call(CONTEXT, "echo")
            self.assertEqual(self.failureResultOf(calling, UndeliverableError).value.target, str(target))
        self.assertEqual(self.client.pending, 0)

    def test_unserializable(self) -> None:
        """Arguments that JSON cannot hold fail the call, and nothing is sent."""
        calling = self.call(x=object())
        self.failureResultOf(calling, InvalidArgumentsError)
        self.failureResultOf(self.client.cast(CONTEXT, "echo", x=object()), InvalidArgumentsError)
        self.clock.advance(0)
        self.assertEqual((self.requests, self.client.pending), ([], 0))

    def test_bound(self) -> None:
        """The number of pending calls is bounded; one more is refused."""
        calls = [self.client.call(CONTEXT, "echo") for _ in range(MAX_PENDING)]
        self.clock.advance(0)
        self.failureResultOf(self.client.call(CONTEXT, "echo"), TooManyCallsError)
        calls[0].cancel()
        self.failureResultOf(calls[0], CancelledError)
        calls[0] = self.client.call(CONTEXT, "echo")
        self.client.close()
        for calling in calls:
            self.failureResultOf(calling, TransportClosedError)


class MisuseTests(ClientCase):
    """What authors get wrong in their code is an error at once, at that line."""

    def test_by_position(self) -> None:
        """Arguments that are not named, and a forgotten context, are a TypeError that shows how to write it."""
        for send in (self.client.call, self.client.cast, self.client.fanout):
            kind = send.__name__
            error = self.assertRaises(TypeError, send, CONTEXT, "echo", "tea", 2)
            self.assertEqual(
                str(error),
                f"{kind}() of 'echo' takes arguments by name, but got 'tea', 2; "
                f'write {kind}(context, "method", name=value)',
            )
            error = self.assertRaises(TypeError, send, "echo", "tea")
            self.assertIn(f"{kind}() takes a RequestContext first, not 'echo'; write {kind}(", str(error))
            error = self.assertRaises(TypeError, send, "echo", text="tea")
            self.assertIn(f"{kind}() takes a RequestContext first, not 'echo'; write {kind}(", str(error))
            error = self.assertRaises(TypeError, send, CONTEXT)
            self.assertIn(f"{kind}() has no method; write {kind}(", str(error))
        self.assertEqual(self.requests, [])

    def test_times(self) -> None:
        """A time that is no number is named."""
        for given in ({"timeout": "5"}, {"call_monitor_timeout": "5"}, {"timeout": float("nan")}):
            error = self.assertRaises(ValueError, self.client.prepare, **given)
            ((name, value),) = given.items()
            self.assertIn(f"{name} is {value!r}; give ", str(error))

    def test_other_thread(self) -> None:
        """A client that is used in another thread than the reactor's says how to call from there."""
        self.patch(threadable, "ioThread", threading.get_ident() + 1)
        client = self.client
        again = client.prepare(idempotent=True, retry=rpc.Retry())
        within = rpc.Client(self.transport, clock=self.clock, target=Target("t"), middleware=[Recorder()])
        for send in (client.call, client.cast, client.fanout, client.gather, again.call, within.call):
            error = self.assertRaises(ProblemError, send, CONTEXT, "echo", x=1)
            self.assertIn("manager.attachments.blocking", str(error))
        self.assertEqual((self.requests, self.client.pending), ([], 0))


class TimeTests(ClientCase):
    def test_timeout(self) -> None:
        """A call without a reply fails at its timeout; the error names the target and the method."""
        calling = self.call("slow", self.client.prepare(server="h1", timeout=5))
        self.assertEqual(self.deliveries[0].expires_in, 5)
        self.clock.advance(4.9)
        self.assertNoResult(calling)
        self.clock.advance(0.1)
        error = self.failureResultOf(calling, RPCTimeoutError).value
        self.assertEqual((error.target, error.method, error.timeout), ("compute.h1", "slow", 5))

    def test_deadline(self) -> None:
        """The context's deadline can shorten a call's timeout, and never extends it."""
        self.clock.advance(1)
        for deadline, seconds in ((4.0, 3.0), (100.0, 60.0)):
            context = RequestContext(deadline=deadline)
            calling = self.client.call(context, "echo")
            self.clock.advance(0)
            self.assertEqual(self.deliveries[-1].expires_in, seconds)
            calling.cancel()
            self.failureResultOf(calling, CancelledError)

    def test_passed_deadline(self) -> None:
        """A call whose deadline has passed is not sent."""
        self.clock.advance(5)
        calling = self.client.call(RequestContext(deadline=5.0), "echo")
        self.assertEqual(
            str(self.failureResultOf(calling, RPCTimeoutError).value),
            "the call of 'echo' to compute was not sent within 0 s, and the method does not run: its deadline has "
            "passed",
        )
        self.clock.advance(0)
        self.assertEqual(self.requests, [])

    def test_cancelled(self) -> None:
        """Cancelling a call discards its reply."""
        calling = self.call()
        calling.cancel()
        self.failureResultOf(calling, CancelledError)
        self.assertEqual(self.client.pending, 0)
        self.reply(encode_result(self.msg_id(), 1, "echo"))
        self.assertEqual(self.client.unmatched_replies, 1)

    def test_one_timer(self) -> None:
        """Calls share one timer, which closing the client stops."""
        calls = [self.call() for _ in range(10)]
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.client.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for calling in calls:
            self.failureResultOf(calling, TransportClosedError)


class SlowTransportCase(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.slow = SlowTransport(self.broker, self.clock)
        self.client = rpc.Client(self.slow, clock=self.clock, timeout=60.0, target=Target("compute"))

    def sent_call(self, client: rpc.Client | None = None) -> Deferred[Any]:
        """Make a call whose message is sent and not confirmed."""
        calling = self.call(client=client)
        while not any(what == "send" for what, _ in self.slow.waiting):
            self.slow.release()
        return calling

    def lose(self, *, arrived: bool = False) -> None:
        """Lose the connection: all unconfirmed messages fail.

        :param arrived: the messages are with the broker all the same.
        """
        waiting, self.slow.waiting = self.slow.waiting, []
        for (target, body, ttl), (_, sending) in zip(self.slow.written[-len(waiting) :], waiting, strict=True):
            if arrived:
                MemoryTransport.send(self.slow, target, body, ttl, mandatory=True)
            sending.errback(UnconfirmedError("compute", "the connection was lost"))
        self.clock.advance(0)

    def answer(self, number: int = -1) -> None:
        self.reply(encode_result(self.msg_id(number), 1, "echo"), number)


class SlowTransportTests(SlowTransportCase):
    def test_opened_once(self) -> None:
        """The first calls wait for the shared reply address, and are sent in order."""
        for number in range(3):
            self.call("echo", x=number)
        self.assertEqual([what for what, _ in self.slow.waiting], ["open_replies"])
        self.slow.release()
        self.slow.release()
        self.clock.advance(0)
        self.assertEqual([request.args["x"] for request in self.requests], [0, 1, 2])
        self.assertEqual(len({request.reply_to.address for request in self.requests if request.reply_to}), 1)

    def test_timeout_while_opening(self) -> None:
        """A call that times out before there is an address is not sent later, and its error says that it was not."""
        calling, beating = self.call(), self.call(client=self.client.prepare(call_monitor_timeout=10))
        self.clock.advance(10)
        self.assertIn(
            "was not sent within 10 s, and the method does not run: the reply queue of this process is not open yet",
            str(self.failureResultOf(beating, RPCTimeoutError).value),
        )
        self.slow.trouble = "the connection is waiting"
        self.clock.advance(50)
        self.assertEqual(self.failureResultOf(calling, RPCTimeoutError).value.unsent, "the connection is waiting")
        self.slow.release()
        self.slow.release()
        self.clock.advance(0)
        self.assertEqual(self.requests, [])

    def test_not_opened(self) -> None:
        """If the reply address cannot be opened, the calls fail, and the next call tries again."""
        calls = [self.call(), self.call()]
        self.slow.release(Failure(TransportClosedError("receiving replies")))
        for calling in calls:
            self.failureResultOf(calling, TransportClosedError)
        self.call()
        self.slow.release()
        self.slow.release()
        self.clock.advance(0)
        self.assertEqual(len(self.requests), 1)

    def test_not_encoded(self) -> None:
        """An error of one call's encoding, whichever, fails that call only, and not those that wait with it."""

        def encode(*, reply_to: ReplyTo) -> bytes:
            raise LookupError(reply_to.msg_id)

        good, bad, better = self.call(), self.client._calls.call(Target("compute"), "m", encode, 60.0), self.call()
        self.slow.release()
        self.failureResultOf(bad, LookupError)
        self.failureResultOf(self.client._calls.call(Target("compute"), "m", encode, 60.0), LookupError)
        self.slow.release()
        self.clock.advance(0)
        self.assertEqual((len(self.requests), self.client.pending), (2, 2))
        for number, calling in enumerate((good, better)):
            self.answer(number)
            self.successResultOf(calling)

    def test_ended_by_another(self) -> None:
        """A call that ends when another one cannot be encoded, cancelled or closed by its caller, is not sent."""
        for end in (lambda: calling.cancel(), lambda: self.client.close()):  # noqa: PLW0108, B023 - the call comes later
            bad, calling = self.call(x=object()), self.call()
            bad.addErrback(lambda _, end=end: end() and None)
            self.slow.release()
            self.failureResultOf(calling, CancelledError, TransportClosedError)
            self.assertEqual((self.slow.written, self.client.pending), ([], 0))
            self.client = rpc.Client(self.slow, clock=self.clock, timeout=60.0, target=Target("compute"))

    def test_not_sent(self) -> None:
        """A call whose message could not be sent fails with the reason."""
        calling = self.call()
        self.slow.release()
        self.slow.release(Failure(UndeliverableError("compute")))
        self.failureResultOf(calling, UndeliverableError)

    def test_cancelled_while_sending(self) -> None:
        """A call that ends while its message waits to be sent cancels the message."""
        cancelled = self.call()
        self.slow.release()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.assertEqual(self.slow.cancelled, ["send"])
        late = self.call()
        self.clock.advance(60)
        self.failureResultOf(late, RPCTimeoutError)
        self.assertEqual(self.slow.cancelled, ["send", "send"])

    def test_remaining_time(self) -> None:
        """The time that passes before a message is sent counts towards the timeout, and towards the first keepalive."""
        self.call()
        self.call(client=self.client.prepare(call_monitor_timeout=30))
        self.clock.advance(10)
        self.slow.release()
        self.slow.release()
        self.clock.advance(0)
        self.assertEqual([delivery.expires_in for delivery in self.deliveries], [50, 20])

    def test_closed_while_opening(self) -> None:
        """A client that is closed while its reply address is being opened closes the address when it is open."""
        calling = self.call()
        self.successResultOf(self.client.close())
        self.failureResultOf(calling, TransportClosedError)
        self.slow.release()
        self.assertEqual((self.slow.waiting, self.slow.cancelled), ([], []))
        self.assertEqual(self.broker._reply_queues, {})

    def test_not_opened_when_closed(self) -> None:
        """A reply address that could not be opened for a closed client raises and logs nothing."""
        calling = self.call()
        self.successResultOf(self.client.close())
        self.failureResultOf(calling, TransportClosedError)
        self.slow.release(Failure(TransportClosedError("receiving replies")))

    def test_reply_before_the_answer(self) -> None:
        """A reply that arrives before the broker's confirm ends the call; the confirm is ignored."""
        calling = self.call()
        self.slow.release()
        ((_, sending),) = self.slow.waiting
        msg_id = next(iter(self.client._calls._pending))
        address = self.client._calls._address
        assert address is not None
        self.transport.reply(address, encode_result(msg_id, 1, "echo"))
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), 1)
        sending.errback(UnconfirmedError("compute", "the connection was lost"))
        self.assertEqual((self.slow.cancelled, self.client.pending), ([], 0))

    def test_not_confirmed_in_time(self) -> None:
        """The timeout error of a call whose message was not confirmed says so, and why."""
        calling = self.sent_call()
        self.slow.trouble = "the broker blocks publishing: low on memory"
        self.clock.advance(60)
        error = self.failureResultOf(calling, RPCTimeoutError).value
        self.assertEqual(error.unconfirmed, "the broker blocks publishing: low on memory")
        self.assertIn("it is unknown whether the broker accepted the message: the broker blocks publishing", str(error))
        self.slow.trouble = None
        silent = self.sent_call(self.client.prepare(call_monitor_timeout=10))
        self.clock.advance(10)
        self.assertIn("has not confirmed it", self.failureResultOf(silent, RPCTimeoutError).value.unconfirmed)

    def test_confirmed(self) -> None:
        """The timeout error of a call whose message was confirmed late does not mention the confirm."""
        calling = self.sent_call()
        self.slow.release()
        self.clock.advance(60)
        self.assertEqual(self.failureResultOf(calling, RPCTimeoutError).value.unconfirmed, "")

    # -- the connection is lost before the message is confirmed --------------------------------

    def test_lost(self) -> None:
        """A call that is not idempotent fails soon after the loss, not at its timeout."""
        calling = self.sent_call()
        self.lose()
        self.clock.advance(0.2)
        self.assertNoResult(calling)
        self.clock.advance(0.1)
        self.assertEqual(self.failureResultOf(calling, UnconfirmedError).value.problem, "the connection was lost")
        self.assertEqual((len(self.slow.written), self.client.pending), (1, 0))

    def test_lost_near_the_deadline(self) -> None:
        """An unconfirmed call never waits longer than its timeout."""
        calling = self.sent_call(self.client.prepare(timeout=1.0))
        self.clock.advance(0.9)
        self.lose()
        self.clock.advance(0.1)
        self.failureResultOf(calling, UnconfirmedError)

    def test_lost_and_answered(self) -> None:
        """A reply that has arrived ends the call, not the loss of the connection."""
        calling = self.sent_call()
        self.lose(arrived=True)
        self.answer()
        self.assertEqual((self.successResultOf(calling), self.client.unmatched_replies), (1, 0))

    def test_lost_and_begun(self) -> None:
        """A call with a keepalive before the loss waits on: a server has the message."""
        calling = self.sent_call(self.client.prepare(call_monitor_timeout=10))
        MemoryTransport.send(self.slow, *self.slow.written[0], mandatory=True)
        self.clock.advance(0)
        self.reply(encode_keepalive(self.msg_id()))
        self.lose()
        self.clock.advance(5)
        self.answer()
        self.assertEqual(self.successResultOf(calling), 1)

    def test_shown_life_after_the_loss(self) -> None:
        """A call with a keepalive just after the loss waits on; its error then reports the missing keepalive."""
        calling = self.sent_call(self.client.prepare(call_monitor_timeout=10))
        self.lose(arrived=True)
        self.reply(encode_keepalive(self.msg_id()))
        self.clock.advance(9)
        self.assertNoResult(calling)
        self.clock.advance(1)
        error = self.failureResultOf(calling, RPCTimeoutError).value
        self.assertEqual((error.silent, error.unconfirmed), (True, ""))

    def test_sent_again(self) -> None:
        """An idempotent call is sent again unchanged, with the remaining TTL, and the first reply ends it."""
        calling = self.sent_call(self.client.prepare(idempotent=True))
        self.clock.advance(20)
        self.lose(arrived=True)
        self.assertEqual([what for what, _ in self.slow.waiting], ["send"])
        (_, first, _), (_, second, ttl) = self.slow.written
        self.assertEqual((second, ttl), (first, 40))
        self.slow.release()
        self.clock.advance(0)
        self.assertEqual(len({request.unique_id for request in self.requests}), 1)
        self.assertEqual(len(self.requests), 2)
        self.answer(0)
        self.assertEqual(self.successResultOf(calling), 1)
        self.answer(1)
        self.assertEqual(self.client.unmatched_replies, 1)

    def test_sent_again_and_timed_out(self) -> None:
        """The timeout error of a resent call reports a missing confirm, unless the second copy was confirmed."""
        confirmed, other = (self.sent_call(self.client.prepare(idempotent=True)) for _ in range(2))
        self.lose()
        self.slow.waiting.pop(0)[1].callback(None)
        self.clock.advance(60)
        self.assertEqual(self.failureResultOf(confirmed, RPCTimeoutError).value.unconfirmed, "")
        self.assertIn("has not confirmed", self.failureResultOf(other, RPCTimeoutError).value.unconfirmed)

    def test_not_sent_again(self) -> None:
        """If a call cannot be sent again, the error says why, and that the first copy may have arrived."""
        calling = self.sent_call(self.client.prepare(idempotent=True))
        self.lose()
        self.slow.release(Failure(BrokerUnavailableError("amqp://one", "refused")))
        error = self.failureResultOf(calling, UnconfirmedError).value
        self.assertIn("the connection was lost; it could not be sent again: broker amqp://one: refused", str(error))

    def test_sent_again_bounded(self) -> None:
        """A message that kills each connection is not sent again for ever."""
        calling = self.sent_call(self.client.prepare(idempotent=True))
        cast = self.client.prepare(idempotent=True).cast(CONTEXT, "note")
        for _ in range(MAX_RESENDS):
            self.lose()
        self.assertNoResult(calling)
        self.assertNoResult(cast)
        self.lose()
        self.clock.advance(0.3)
        self.failureResultOf(calling, UnconfirmedError)
        self.failureResultOf(cast, UnconfirmedError)
        self.assertEqual(len(self.slow.written), 2 * (MAX_RESENDS + 1))

    def test_cast_again(self) -> None:
        """An unconfirmed idempotent cast is sent again unchanged; any other cast fails."""
        once, again = self.client.cast(CONTEXT, "note"), self.client.prepare(idempotent=True).cast(CONTEXT, "note")
        self.lose(arrived=True)
        self.failureResultOf(once, UnconfirmedError)
        self.slow.release()
        self.successResultOf(again)
        self.clock.advance(0)
        self.assertEqual([r.unique_id for r in self.requests[1:]], [self.requests[1].unique_id] * 2)

    def test_closed_when_lost(self) -> None:
        """An unconfirmed call ends when the client is closed, and leaves no timer."""
        calls = [self.sent_call(), self.sent_call(self.client.prepare(idempotent=True))]
        self.lose()
        self.client.close()
        for calling in calls:
            self.failureResultOf(calling, TransportClosedError)
        self.assertEqual((self.slow.cancelled, self.clock.getDelayedCalls()), (["send"], []))


class ExplainedTests(ClientCase):
    """Tests for what the registry adds to the errors of undeliverable and unanswered calls."""

    def setUp(self) -> None:
        super().setUp()
        self.registry: Any = MemoryRegistry(self.clock)
        lookup = ServiceLookup(lambda: self.registry, self.clock, 60.0)
        self.client = rpc.Client(self.transport, clock=self.clock, target=Target("cert"), explain=lookup)

    def undeliverable(self, **target: Any) -> UndeliverableError:
        error: UndeliverableError = self.failureResultOf(
            self.call(client=self.client.prepare(**target)), UndeliverableError
        ).value
        return error

    def register(self, host: str) -> ServiceRecord:
        record: ServiceRecord = self.successResultOf(self.registry.register(host, "nova-cert", "cert", 0))
        return record

    def test_unknown(self) -> None:
        """If no service is registered for the target, the error says that."""
        self.assertEqual(attrs.astuple(self.undeliverable()), ("cert", 0, 0))
        self.assertIn("no server for cert: no queue is bound for it, and no such service is", str(self.undeliverable()))

    def test_up(self) -> None:
        """If the service is up, the error does not ask to start it."""
        self.register("h1")
        error = self.undeliverable(server="h1")
        self.assertEqual(attrs.astuple(error), ("cert.h1", 1, 1))
        self.assertIn("no queue is bound for it, although 1 of 1 such services are up", str(error))
        self.assertNotIn("start", str(error))

    def test_down(self) -> None:
        """If all services of the target are down, the error says that; another host's service does not count."""
        self.register("h1")
        self.clock.advance(61)
        self.register("h2")
        self.assertEqual(
            str(self.undeliverable(server="h1")),
            "no server for cert.h1: no queue is bound for it, and the only such service is down or still starting; "
            "start one, or wait for it",
        )
        self.assertEqual(attrs.astuple(self.undeliverable()), ("cert", 2, 1))

    def timed_out(self, timeout: float = 10.0, **target: Any) -> RPCTimeoutError:
        """Return the error of a call whose message is queued and never answered."""
        calling = self.call(client=self.client.prepare(topic="compute", timeout=timeout, **target))
        self.clock.pump([timeout - 0.25, 0])
        self.assertNoResult(calling)
        self.clock.advance(0.25)
        error: RPCTimeoutError = self.failureResultOf(calling, RPCTimeoutError).value
        return error

    def test_timed_out(self) -> None:
        """The timeout error of an unanswered call says, without delay, if all services of its target are down."""
        error = self.timed_out()
        self.assertEqual((error.registered, error.up), (0, 0))
        self.assertIn("it may still be running", str(error))
        self.successResultOf(self.registry.register("h1", "nova-compute", "compute", 0))
        self.clock.advance(61)
        error = self.timed_out(server="h1")
        self.assertEqual((error.registered, error.up), (1, 0))
        self.assertIn("according to the registry the only such service is down or still starting: start", str(error))
        self.successResultOf(self.registry.register("h2", "nova-compute", "compute", 0))
        error = self.timed_out()
        self.assertEqual((error.registered, error.up), (2, 1))
        self.assertIn("it may still be running", str(error))
        self.client.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timed_out_without_an_answer(self) -> None:
        """A registry that fails or does not answer neither changes the timeout error nor delays it."""
        self.registry.outage = DatabaseUnavailableError("sqlite:", "gone")
        self.assertIsNone(self.timed_out().registered)
        self.registry = SilentRegistry()
        self.assertIsNone(self.timed_out().registered)
        self.assertEqual(len(self.registry.asked), 1)

    def test_not_asked(self) -> None:
        """The registry is not asked about calls that have a short timeout, a reply or a keepalive."""
        self.registry = SilentRegistry()
        self.assertIsNone(self.timed_out(timeout=0.9).registered)
        answered = self.call(client=self.client.prepare(topic="compute", timeout=10))
        self.clock.advance(9)
        self.reply(encode_result(self.msg_id(), 1, "echo"))
        self.assertEqual(self.successResultOf(answered), 1)
        seen = self.call(client=self.client.prepare(topic="compute", timeout=10, call_monitor_timeout=8))
        self.clock.advance(5)
        self.reply(encode_keepalive(self.msg_id()))
        self.clock.pump([4.6, 0.4])
        self.assertIn("it may still be running", str(self.failureResultOf(seen, RPCTimeoutError).value))
        self.assertEqual(self.registry.asked, [])

    def test_no_answer(self) -> None:
        """A registry that fails or does not answer leaves the error as it is; it has 0.5 s, within the timeout."""
        plain = ("cert", None, 0)
        self.registry.outage = DatabaseUnavailableError("sqlite:", "gone")
        self.assertEqual(attrs.astuple(self.undeliverable()), plain)
        self.registry = None
        self.assertEqual(attrs.astuple(self.undeliverable()), plain)
        self.registry = SilentRegistry()
        for timeout, delay in ((60, 0.5), (0.2, 0.2)):
            calling = self.call(client=self.client.prepare(timeout=timeout))
            self.clock.advance(delay - 0.1)
            self.assertNoResult(calling)
            self.clock.advance(0.1)
            self.assertEqual(attrs.astuple(self.failureResultOf(calling, UndeliverableError).value), plain)

    def test_asked_once(self) -> None:
        """Failing calls share one lookup per target and second, for a bounded number of targets."""
        self.registry = SilentRegistry()
        calls = [self.call() for _ in range(1000)]
        calls += [self.call(client=self.client.prepare(topic=f"t{n}")) for n in range(200)]
        self.assertEqual(len(self.registry.asked), 201)
        self.registry.asked.pop(0).callback(ServiceTotals(1, 1, 1))
        for calling in calls[:1000]:
            self.assertEqual(self.failureResultOf(calling, UndeliverableError).value.up, 1)
        self.clock.advance(1)
        for calling in calls[1000:]:
            self.failureResultOf(calling, UndeliverableError)
        self.client.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_given_up(self) -> None:
        """Cancelling the call or closing the client does not wait for the registry."""
        self.registry = SilentRegistry()
        cancelled, closed = self.call(), self.call()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.client.close()
        self.failureResultOf(closed, TransportClosedError)
        self.registry.asked.pop(0).callback(ServiceTotals())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ExplainedSlowlyTests(SlowTransportCase):
    """Tests for what the registry does not change: how long a call waits, and the errors that need no explanation."""

    def setUp(self) -> None:
        super().setUp()
        self.registry = SilentRegistry()
        lookup = ServiceLookup(lambda: self.registry, self.clock, 60.0)
        self.client = rpc.Client(self.slow, clock=self.clock, target=Target("compute"), explain=lookup)

    def test_lost(self) -> None:
        """A call whose message was not confirmed fails soon after the loss of the connection."""
        calling = self.sent_call()
        self.lose()
        self.clock.advance(0.3)
        self.failureResultOf(calling, UnconfirmedError)
        self.assertEqual(self.registry.asked, [])

    def test_not_confirmed_in_time(self) -> None:
        """A call whose message waits for its confirm is not cut short, and gets the error of its message."""
        calling, other = (self.sent_call(self.client.prepare(timeout=5)) for _ in range(2))
        self.clock.pump([4.5, 0.2])
        self.assertNoResult(calling)
        self.slow.waiting.pop(0)[1].errback(BrokerUnavailableError("amqp://one", "refused"))
        self.failureResultOf(calling, BrokerUnavailableError)
        self.clock.advance(0.3)
        error = self.failureResultOf(other, RPCTimeoutError).value
        self.assertEqual((error.timeout, error.silent), (5.0, False))
        self.assertIn("has not confirmed", error.unconfirmed)
        self.assertEqual(self.registry.asked, [])

    def test_silence(self) -> None:
        """A call without keepalives fails after one interval."""
        calling = self.sent_call(self.client.prepare(call_monitor_timeout=10))
        self.slow.release()
        self.clock.advance(9.9)
        self.assertNoResult(calling)
        self.clock.advance(0.1)
        self.assertTrue(self.failureResultOf(calling, RPCTimeoutError).value.silent)

    def test_unopened(self) -> None:
        """A call without a reply address is not explained."""
        calling = self.call(client=self.client.prepare(timeout=5))
        self.clock.pump([4.5, 0.5])
        self.assertTrue(self.failureResultOf(calling, RPCTimeoutError).value.unsent)
        self.assertEqual(self.registry.asked, [])


class CallMonitorTests(ClientCase):
    def monitored(self, **given: Any) -> Deferred[Any]:
        return self.call("slow", self.client.prepare(call_monitor_timeout=10, **given))

    def live(self) -> None:
        self.reply(encode_keepalive(self.msg_id()))

    def test_sent(self) -> None:
        """A call sends its keepalive interval, and its message expires when no keepalive could arrive in time."""
        self.monitored()
        self.monitored(timeout=4)
        self.call("slow", self.client.prepare(call_monitor_timeout=2.9))
        self.call("slow")
        sent = [(r.keepalive, d.expires_in) for r, d in zip(self.requests, self.deliveries, strict=True)]
        self.assertEqual(sent, [(10, 10), (10, 4), (2, 2), (None, 60)])

    def test_silence(self) -> None:
        """A call fails when no keepalive arrives within the interval, and the error says so."""
        calling = self.monitored()
        self.clock.advance(9.9)
        self.assertNoResult(calling)
        self.clock.advance(0.1)
        error = self.failureResultOf(calling, RPCTimeoutError).value
        self.assertEqual((error.target, error.method, error.timeout, error.silent), ("compute", "slow", 10.0, True))
        self.assertIn("no RPC heartbeat", str(error))

    def test_life(self) -> None:
        """Each keepalive extends the wait by an interval, within the timeout."""
        calling = self.monitored(timeout=60)
        for _ in range(6):
            self.clock.advance(9)
            self.live()
        self.clock.advance(5.9)
        self.assertNoResult(calling)
        self.clock.advance(0.1)
        error = self.failureResultOf(calling, RPCTimeoutError).value
        self.assertEqual((error.timeout, error.silent), (60.0, False))

    def test_result(self) -> None:
        """A reply ends a call with keepalives, and leaves no timer that fires an error."""
        calling = self.monitored()
        self.live()
        self.reply(encode_result(self.msg_id(), 1, "slow"))
        self.assertEqual(self.successResultOf(calling), 1)
        self.clock.advance(100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_as_long_as_it_lives(self) -> None:
        """Without a timeout a call waits as long as keepalives arrive, or until its context's deadline."""
        calling = self.monitored(timeout=None)
        for _ in range(100):
            self.clock.advance(9)
            self.live()
        self.assertNoResult(calling)
        self.clock.advance(10)
        self.failureResultOf(calling, RPCTimeoutError)
        bounded = self.client.prepare(timeout=None, call_monitor_timeout=10)
        late = bounded.call(RequestContext(deadline=self.clock.seconds() + 3), "slow")
        self.clock.pump([0, 3])
        self.assertFalse(self.failureResultOf(late, RPCTimeoutError).value.silent)

    def test_flood(self) -> None:
        """Any number of keepalives takes a bounded amount of memory."""
        calling = self.monitored(timeout=None)
        for _ in range(1000):
            self.clock.advance(0.001)
            self.live()
        self.assertLess(len(self.client._calls._deadlines._heap), 100)
        self.client.close()
        self.failureResultOf(calling, TransportClosedError)

    def test_for_ever(self) -> None:
        """A client without any timeout, or with an interval that servers ignore, is refused."""
        self.assertRaises(ValueError, self.client.prepare, timeout=None)
        for endless in (float("inf"), float("nan")):
            self.assertRaises(ValueError, self.client.prepare, timeout=endless)
            self.assertRaises(ValueError, self.client.prepare, call_monitor_timeout=endless)
        self.assertRaises(ValueError, self.client.prepare, call_monitor_timeout=1)
        self.assertRaises(ValueError, rpc.Client, self.transport, clock=self.clock, timeout=None)
        unbounded = self.client.prepare(timeout=None, call_monitor_timeout=10)
        self.assertRaises(ValueError, unbounded.prepare, call_monitor_timeout=None)
        unbounded.prepare(timeout=5, call_monitor_timeout=None)


class AddressTests(ClientCase):
    def test_prepare(self) -> None:
        """A prepared client has the changed parameters, and the first client's otherwise."""
        client = self.client.prepare(server="h1", namespace="n", version="1.4")
        self.call("echo", client)
        self.call("echo", client.prepare(namespace=None))
        self.call("echo")
        seen = [(request.namespace, request.version) for request in self.requests]
        self.assertEqual(seen, [("n", "1.4"), (None, "1.4"), (None, "1.0")])

    def test_shared(self) -> None:
        """Prepared clients share the reply address and the pending calls."""
        self.call("echo", self.client.prepare(server="h1"))
        self.call("echo", self.client.prepare(timeout=1))
        self.assertEqual(len({request.reply_to.address for request in self.requests if request.reply_to}), 1)
        self.assertEqual(self.client.pending, 2)

    def test_no_target(self) -> None:
        """A call of a client without a target fails with InvalidTargetError."""
        client = rpc.Client(self.transport, clock=self.clock)
        for sending in (client.call(CONTEXT, "m"), client.cast(CONTEXT, "m"), client.fanout(CONTEXT, "m")):
            self.failureResultOf(sending, InvalidTargetError)
        self.assertRaises(InvalidTargetError, client.prepare, server="h1")
        self.assertRaises(InvalidTargetError, client.prepare, topic="a*")
        self.successResultOf(client.prepare(topic="compute").cast(CONTEXT, "m"))

    def test_call_of_fanout(self) -> None:
        """A fanout cannot be called."""
        self.failureResultOf(self.client.prepare(fanout=True).call(CONTEXT, "m"), InvalidTargetError)

    def test_cast(self) -> None:
        """A cast has no return address, and succeeds without a server."""
        self.successResultOf(self.client.cast(CONTEXT, "note", x=1))
        self.successResultOf(self.client.prepare(topic="unknown").cast(CONTEXT, "note"))
        self.clock.advance(0)
        self.assertEqual((self.requests[0].method, self.requests[0].args), ("note", {"x": 1}))
        self.assertIsNone(self.requests[0].reply_to)
        self.assertIsNone(self.deliveries[0].expires_in)

    def test_mandatory_cast(self) -> None:
        """A mandatory cast fails if no queue is bound for its target; a fanout may reach no server."""
        client = rpc.Client(self.transport, clock=self.clock, target=Target("unknown"), mandatory=True)
        for sender in (client, client.prepare(server="h1"), client.prepare(idempotent=True)):
            error = self.failureResultOf(sender.cast(CONTEXT, "note"), UndeliverableError).value
            self.assertIn("no server for unknown", str(error))
        self.successResultOf(client.fanout(CONTEXT, "note"))
        self.successResultOf(client.prepare(topic="compute").cast(CONTEXT, "note"))

    def test_fanout(self) -> None:
        """A fanout reaches every server of the topic; so does a cast of a client prepared for it."""
        self.serve("compute", "h2")
        self.successResultOf(self.client.fanout(CONTEXT, "note"))
        self.successResultOf(self.client.prepare(fanout=True).cast(CONTEXT, "note"))
        self.clock.advance(0)
        self.assertEqual(len(self.requests), 4)

    def test_version_cap(self) -> None:
        """A message with a version over the cap is not sent."""
        capped = self.client.prepare(version="1.3", version_cap="1.2")
        for sending in (capped.call(CONTEXT, "m"), capped.cast(CONTEXT, "m"), capped.fanout(CONTEXT, "m")):
            error = self.failureResultOf(sending, RPCVersionCapError).value
            self.assertEqual((error.version, error.version_cap), ("1.3", "1.2"))
        self.failureResultOf(self.client.prepare(version_cap="1.2").call(CONTEXT, "m"), RPCVersionCapError)
        self.successResultOf(capped.prepare(version="1.2").cast(CONTEXT, "m"))
        self.successResultOf(capped.prepare(version_cap=None).cast(CONTEXT, "m"))

    def test_can_send_version(self) -> None:
        """can_send_version tells which versions are within the cap."""
        capped = self.client.prepare(version_cap="1.2")
        self.assertEqual(
            [capped.can_send_version(v) for v in ("1.2", "1.2.1", "2.0", None)], [True, False, False, False]
        )
        self.assertTrue(self.client.can_send_version("9.9"))


class CloseTests(ClientCase):
    def test_closed(self) -> None:
        """A closed client fails its pending calls and sends nothing more; the transport stays open."""
        calling = self.call()
        prepared = self.client.prepare(server="h1")
        self.successResultOf(self.client.close())
        self.successResultOf(self.client.close())
        self.failureResultOf(calling, TransportClosedError)
        for sending in (prepared.call(CONTEXT, "m"), prepared.cast(CONTEXT, "m"), prepared.fanout(CONTEXT, "m")):
            self.failureResultOf(sending, TransportClosedError)
        self.successResultOf(self.transport.send(Target("compute"), b"{}", None, False))

    def test_calls_from_within(self) -> None:
        """A call made in the errback of a call that the close failed is refused."""
        again: list[Deferred[Any]] = []
        calling = self.call().addErrback(lambda _: again.append(self.call()))
        self.client.close()
        self.successResultOf(calling)
        self.failureResultOf(again[0], TransportClosedError)

    def test_callers_error(self) -> None:
        """An error in a caller's callback does not affect other calls."""
        first, second = self.call(), self.call()
        first.addCallback(lambda _: 1 / 0)
        for number in (0, 1):
            self.reply(encode_result(self.msg_id(number), 1, "echo"), number)
        self.failureResultOf(first, ZeroDivisionError)
        self.assertEqual(self.successResultOf(second), 1)
