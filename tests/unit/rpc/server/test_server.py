"""Tests for the server and its dispatcher: which deliveries run, or are refused or requeued."""

import json
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import current_context
from novasvc.errors import (
    InvalidArgumentsError,
    MethodTimeoutError,
    NoSuchMethodError,
    RPCTimeoutError,
    StateError,
    TransportClosedError,
    UnsupportedVersionError,
)
from novasvc.rpc.message import encode_request
from novasvc.rpc.server.server import Server
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from novasvc.transport.memory.broker import Message
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase


class AdmissionTests(RPCCase):
    def test_call(self) -> None:
        """A call runs the method and replies with its result."""
        self.assertEqual(self.successResultOf(self.call("note", what=[1])), [1])
        self.assertEqual((self.diary.calls, self.outcomes("note")), ([[1]], {"done": 1}))

    def test_cast(self) -> None:
        """A cast runs the method and sends no reply."""
        self.successResultOf(self.client.cast(CONTEXT, "note", what=1))
        self.successResultOf(self.client.fanout(CONTEXT, "note", what=2))
        self.clock.advance(0)
        self.assertEqual((sorted(self.diary.calls), self.client.unmatched_replies), ([1, 2], 0))

    def test_refused(self) -> None:
        """A request for an unknown method, version or argument is refused with a typed error, and nothing runs."""
        for calling, error in (
            (self.call("_hang"), NoSuchMethodError),
            (self.call("__init__"), NoSuchMethodError),
            (self.call("calls"), NoSuchMethodError),
            (self.call("note", wrong=1), InvalidArgumentsError),
            (self.client.prepare(version="1.1").call(CONTEXT, "note"), UnsupportedVersionError),
            (self.client.prepare(version="x").call(CONTEXT, "note"), UnsupportedVersionError),
            (self.client.prepare(namespace="n").call(CONTEXT, "note"), UnsupportedVersionError),
        ):
            self.clock.advance(0)
            self.failureResultOf(calling, error)
        self.assertEqual((self.diary.calls, self.count("refused"), self.server.in_flight), ([], 7, 0))

    def test_refused_cast(self) -> None:
        """A refused cast is dropped with a warning, because its sender is not told; one of a call is no warning."""
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.failureResultOf(self.call("unknown"), NoSuchMethodError)
        self.send(encode_request("unknown", {}, {}))
        levels = [event["log_level"].name for event in events if "was refused" in event["log_format"]]
        self.assertEqual((levels, self.count("refused")), (["info", "warn"], 2))

    def test_malformed(self) -> None:
        """A malformed message is dropped once, and the next one is served."""
        for body in (b"", b"rubbish", b'{"oslo.version": "3.0", "oslo.message": "{}"}', b"[" * 100_000):
            self.send(body)
        self.assertEqual((self.count("malformed"), self.transport.received), (4, 4))
        self.assertEqual(self.successResultOf(self.call("note", what=1)), 1)

    def test_malformed_request(self) -> None:
        """A request with an invalid field gets an error reply if it has a return address."""
        body = json.loads(self.request("note"))
        fields = json.loads(body["oslo.message"])
        for wrong in ({"args": None}, {"args": [1]}, {"method": 1}, {"version": 1}, {"version": None}):
            self.send(json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps({**fields, **wrong})}).encode())
        classes = [json.loads(reply.failure or "")["class"] for reply in self.replies]
        self.assertEqual(classes, ["MessageFormatError"] * 4 + ["UnsupportedVersion"])
        self.assertEqual(self.diary.calls, [])

    def test_old_form(self) -> None:
        """A body without an envelope is served."""
        self.send(b'{"method": "note", "args": {"what": 1}}')
        self.assertEqual(self.diary.calls, [1])

    def test_duplicate(self) -> None:
        """A duplicate message is dropped without a reply."""
        body = self.request("note", what=1)
        for _ in range(3):
            self.send(body)
        self.assertEqual((self.diary.calls, len(self.replies), self.count("duplicates")), ([1], 1, 2))

    def test_answered_again(self) -> None:
        """When a caller sends an idempotent call again, its reply is sent again, and the method does not run again."""
        body = self.request("hang_again", what=1)
        self.send(body)
        self.diary.hanging[0].callback("done")
        self.clock.advance(0)
        self.send(body)
        self.assertEqual((self.diary.calls, [reply.result for reply in self.replies]), ([1], ["done", "done"]))

    def test_no_id(self) -> None:
        """Messages without an id are never duplicates."""
        for _ in range(2):
            self.send(b'{"method": "note"}')
            self.send(b'{"method": "note", "_unique_id": ""}')
        self.assertEqual(len(self.diary.calls), 4)

    def test_refusal_is_logged(self) -> None:
        """A refused request is one line in the log, with the caller's request id."""
        events: list[tuple[str | None, str]] = []

        def observe(event: LogEvent) -> None:
            context = current_context.get()
            events.append((context and context.request_id, formatEvent(event)))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.failureResultOf(self.call("unknown"), NoSuchMethodError)
        ((request_id, text),) = events
        self.assertEqual(request_id, "req-1")
        self.assertIn("refused: ", text)

    def test_expired(self) -> None:
        """A request that has expired before there is room is not begun."""
        hanging = [self.call("hang"), self.call("hang")]
        late = self.client.prepare(timeout=5).call(CONTEXT, "note", what="late")
        self.clock.advance(0)
        self.clock.advance(5)
        self.failureResultOf(late, RPCTimeoutError)
        for waiting, calling in zip(self.diary.hanging, hanging, strict=True):
            waiting.callback(1)
            self.clock.advance(0)
            self.successResultOf(calling)
        self.assertNotIn("late", self.diary.calls)
        self.assertEqual(self.count("expired"), 1)


class RedeliveryTests(RPCCase):
    def answers(self) -> list[Any]:
        self.clock.advance(0)
        return [json.loads(r.failure)["class"] if r.failure else r.result for r in self.replies]

    def test_redelivered(self) -> None:
        """A redelivery from another server is refused, unless its method is idempotent."""
        self.redeliver(self.request("note", what=1), self.request("hang_again", what=2))
        self.assertEqual((self.diary.calls, self.count("refused")), ([2], 1))
        self.diary.hanging[0].callback(3)
        self.assertEqual(self.answers(), ["RedeliveredError", 3])

    def test_quarantined(self) -> None:
        """A call that killed max_deliveries processes is quarantined, and its caller gets an error."""
        body = self.request("hang_again", what=1)
        self.redeliver(body, times=3)
        self.assertEqual(self.answers(), ["QuarantinedError"])
        self.assertEqual(
            (
                self.diary.calls,
                self.count("quarantined"),
                self.count("refused"),
            ),
            ([], 1, 0),
        )
        ((quarantined, reason),) = self.broker.quarantine
        self.assertEqual(quarantined, body)
        self.assertIn("3 processes died", reason)
        self.successResultOf(self.server.close())
        self.assertEqual(self.take(), [])

    def test_moved_out_of_quarantine(self) -> None:
        """A quarantined message runs when it is moved back, in the same server too, and after a death elsewhere."""
        for move_back in (self.send, self.redeliver_here):
            body = self.request("hang_again", what=1)
            self.redeliver(body, times=3)
            self.assertEqual(self.diary.calls, [])
            move_back(body)
            self.assertEqual((self.diary.calls, self.count("duplicates")), ([1], 0))
            self.diary.hanging.pop().callback(2)
            self.assertEqual(self.answers(), ["QuarantinedError", 2])
            self.diary.calls.clear()
            self.replies.clear()

    def test_not_yet(self) -> None:
        """A call with fewer deaths than max_deliveries runs once more; max_deliveries can be set."""
        self.redeliver(self.request("hang_again", what=1), times=2)
        self.assertEqual((self.diary.calls, len(self.broker.quarantine)), ([1], 0))
        self.successResultOf(self.server.close())
        self.server = self.serve(max_deliveries=10)
        self.clock.advance(0)
        self.assertEqual((self.diary.calls, len(self.broker.quarantine)), ([1, 1], 0))

    def test_uncounted(self) -> None:
        """A redelivery that is not counted is moved to this process's own queue before it runs; then it runs once."""
        self.transport.counting = False
        self.redeliver(self.request("hang_again", what=1), times=2)
        self.clock.advance(0)
        self.assertEqual((self.diary.calls, self.count("given_back")), ([1], 0))
        self.assertEqual(self.transport.received, 2)
        self.diary.hanging[0].callback(2)
        self.assertEqual(self.answers(), [2])

    def lose_connection(self) -> None:
        """Lose the session: the transport redelivers all unsettled messages to the same server."""
        listener = self.server._listener
        assert listener is not None
        target, receive = listener._topic, listener._receiver
        self.successResultOf(listener.close())
        self.assertEqual(target, TARGET.topic)
        self.server._listener = self.successResultOf(self.transport.listen(TARGET, receive, self.concurrency))
        self.clock.advance(0)

    def test_lost_while_running(self) -> None:
        """An idempotent method whose connection is lost while it runs runs once, and is acknowledged at its end."""
        calling = self.call("hang_again", what=1)
        self.lose_connection()
        self.diary.hanging[0].callback(2)
        self.clock.advance(0)
        self.assertEqual((self.successResultOf(calling), self.diary.calls), (2, [1]))
        self.assertEqual(self.count("duplicates"), 0)
        self.successResultOf(self.server.close())
        self.assertEqual(self.take(), [])

    def test_lost_while_waiting(self) -> None:
        """A call that waits when its connection is lost is neither refused, nor run twice, nor lost."""
        for what in range(2):
            self.call("hang", what=what)
        calls = [self.call("hang", what=2), self.call("hang_again", what=3)]
        self.lose_connection()
        self.assertEqual((self.count("refused"), self.count("given_back")), (0, 0))
        self.diary.hanging[0].callback(None)
        self.diary.hanging[2].callback("done")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calls[0]), "done")
        self.assertEqual(self.diary.calls, [0, 1, 2, 3])

    def test_lost_and_given_back(self) -> None:
        """A call that had not begun when its connection was lost is requeued as new."""
        for what in range(3):
            self.client.cast(CONTEXT, "hang", what=what)
        self.clock.advance(0)
        self.lose_connection()
        self.successResultOf(self.server.close())
        self.assertEqual([delivery.deliveries for delivery in self.take()], [0])

    def test_begun_and_redelivered(self) -> None:
        """A method that has begun, and is not idempotent, does not begin again, and its redelivery gets no reply."""
        body = self.request("hang", what=1)
        self.send(body)
        self.redeliver_here(body)
        self.assertEqual((self.diary.calls, self.count("duplicates"), self.answers()), ([1], 1, []))

    def redeliver_here(self, body: bytes) -> None:
        queue = self.broker.queue("nova", TARGET.topic, TARGET.server)
        queue.requeue_at_head(Message(body, None), lost=False)
        self.clock.advance(0)


class ConcurrencyTests(RPCCase):
    def test_bounded(self) -> None:
        """As many calls run as the concurrency allows, the prefetch waits here, and the rest waits in the transport."""
        calls = [self.call("hang", what=number) for number in range(6)]
        self.assertEqual((self.diary.calls, self.server.in_flight), ([0, 1], 2))
        self.assertEqual(self.transport.received, 4)
        for number, calling in enumerate(calls):
            self.diary.hanging[number].callback(number)
            self.clock.advance(0)
            self.assertEqual(self.successResultOf(calling), number)
        self.assertEqual((self.diary.calls, self.server.in_flight), ([0, 1, 2, 3, 4, 5], 0))

    def test_many_at_once(self) -> None:
        """Any number of methods that return at once run one after the other, without recursion."""
        hanging = [self.call("hang"), self.call("hang")]
        calls = [self.client.call(CONTEXT, "note", what=number) for number in range(3000)]
        self.clock.advance(0)
        for waiting in self.diary.hanging:
            waiting.callback(None)
        self.clock.advance(0)
        self.assertEqual([self.successResultOf(calling) for calling in calls], list(range(3000)))
        for calling in hanging:
            self.successResultOf(calling)

    def test_slow_replies(self) -> None:
        """A call keeps its slot while its reply is being published."""
        published: list[Deferred[None]] = []

        def publish() -> Deferred[None]:
            published.append(Deferred())
            return published[-1]

        self.transport.on_reply = publish
        for number in range(3):
            self.call("note", what=number)
        self.assertEqual((self.diary.calls, self.server.in_flight), ([0, 1], 2))
        drained = self.server.drained()
        published[0].callback(None)
        self.assertEqual((self.diary.calls, self.server.in_flight), ([0, 1, 2], 2))
        published[1].errback(TransportClosedError("replying"))
        self.assertNoResult(drained)
        published[2].callback(None)
        self.successResultOf(drained)
        self.assertEqual((self.server.in_flight, self.count("unanswered")), (0, 1))


class LifeTests(RPCCase):
    def test_live(self) -> None:
        """A server is live from its start until it stops consuming."""
        endpoints = rpc.Endpoints(Diary())
        server = Server(self.transport, TARGET, endpoints, clock=self.clock, run_blocking=self.run_blocking)
        self.assertFalse(server.live)
        self.successResultOf(server.stop_consuming())
        self.successResultOf(server.start())
        self.assertTrue(server.live)
        self.successResultOf(server.stop_consuming())
        self.assertFalse(server.live)
        self.successResultOf(server.close())

    def test_started_once(self) -> None:
        """A second start fails."""
        self.failureResultOf(self.server.start(), StateError)
        self.successResultOf(self.server.close())
        self.failureResultOf(self.server.start(), StateError)

    def test_closed_while_it_starts(self) -> None:
        """A server that is closed before its start has ended does not consume when it has."""
        self.successResultOf(self.server.close())
        listen, begun = self.transport.listen, Deferred[None]()
        self.patch(self.transport, "listen", lambda *args: begun.addCallback(lambda _: listen(*args)))
        endpoints = rpc.Endpoints(Diary())
        server = Server(self.transport, TARGET, endpoints, clock=self.clock, run_blocking=self.run_blocking)
        starting = server.start()
        self.successResultOf(server.close())
        begun.callback(None)
        self.successResultOf(starting)
        self.assertFalse(server.live)
        self.assertEqual(self.broker.queue("nova", TARGET.topic, TARGET.server).consumers, deque())

    def test_not_started(self) -> None:
        """If the transport cannot listen, the start fails with its error."""
        transport = MemoryTransport(MemoryBroker(), clock=self.clock)
        transport.close()
        endpoints = rpc.Endpoints(Diary())
        server = Server(transport, TARGET, endpoints, clock=self.clock, run_blocking=self.run_blocking)
        self.failureResultOf(server.start(), TransportClosedError)
        self.successResultOf(server.close())

    def test_drain(self) -> None:
        """A draining server admits nothing new, and finishes and answers its running calls."""
        self.successResultOf(self.server.drained())
        calls = [self.call("hang", what=number) for number in range(4)]
        self.successResultOf(self.server.stop_consuming())
        self.successResultOf(self.client.cast(CONTEXT, "note", what="for another"))
        self.clock.advance(0)
        drained, given_up = self.server.drained(), self.server.drained()
        given_up.cancel()
        self.failureResultOf(given_up)
        for number, calling in enumerate(calls):
            self.assertNoResult(drained)
            self.diary.hanging[number].callback(number)
            self.clock.advance(0)
            self.assertEqual(self.successResultOf(calling), number)
        self.successResultOf(drained)
        self.successResultOf(self.server.close())
        self.assertEqual(self.diary.calls, [0, 1, 2, 3])

    def test_close(self) -> None:
        """A closed server cancels running calls, replies at once, and requeues calls that were not begun."""
        calls = [self.call("hang", what=number) for number in range(4)]
        self.clock.advance(3)
        self.successResultOf(self.server.close())
        self.clock.advance(0)
        errors = [self.failureResultOf(calling).value for calling in calls[:2]]
        self.assertEqual([type(e) for e in errors], [MethodTimeoutError] * 2)
        self.assertEqual(self.count("given_back"), 2)
        self.assertEqual(errors[0].args[:2], ("hang", 3.0))
        self.assertRegex(str(errors[0]), r"'hang' was cancelled after 3 s: the RPC server of .* was closed; see what")
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (2, 0))
        self.client.close()
        for calling in calls[2:]:
            self.failureResultOf(calling, TransportClosedError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_given_back(self) -> None:
        """A call that was not begun when its server closed runs once on the next server, as new."""
        calls = [self.call("hang", what=number) for number in range(4)]
        self.successResultOf(self.client.cast(CONTEXT, "note", what="cast"))
        self.successResultOf(self.server.close())
        self.server = self.serve(transport=self.make_transport())
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, [0, 1, "cast", 2, 3])
        for hanging in self.diary.hanging[2:]:
            hanging.callback("done")
            self.clock.advance(0)
        self.assertEqual([self.successResultOf(calling) for calling in calls[2:]], ["done"] * 2)
        for calling in calls[:2]:
            self.failureResultOf(calling, MethodTimeoutError)

    def test_given_back_to_itself(self) -> None:
        """A message that a server requeued, and receives again, is not a duplicate."""
        for number in range(3):
            self.client.cast(CONTEXT, "hang", what=number)
        self.clock.advance(0)
        self.server.cut_short("b@h was shutting down")
        self.clock.advance(0)
        self.assertEqual((self.diary.calls, self.count("duplicates")), ([0, 1, 2], 0))

    def test_expired_when_closed(self) -> None:
        """An expired call that was not begun is not requeued."""
        for number in range(2):
            self.client.cast(CONTEXT, "hang", what=number)
        late = self.client.prepare(timeout=5).call(CONTEXT, "hang", what=2)
        self.clock.pump([0, 5])
        self.failureResultOf(late, RPCTimeoutError)
        self.successResultOf(self.server.close())
        self.assertEqual((self.count("expired"), self.count("given_back")), (1, 0))

    def test_close_idempotent(self) -> None:
        """Idempotent calls of a closed server run again on another one, and no death is counted for them."""
        calls = [self.call("hang_again", what=number) for number in range(4)]
        self.successResultOf(self.server.close())
        self.server = self.serve(transport=self.make_transport())
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, [0, 1, 2, 3])
        for number in range(4):
            self.diary.hanging[2 + number].callback("done")  # the first two were cancelled
            self.clock.advance(0)
        self.assertEqual([self.successResultOf(calling) for calling in calls], ["done"] * 4)
        self.assertEqual(self.diary.calls, [0, 1, 2, 3, 0, 1])

    def test_close_publishes(self) -> None:
        """A closing server publishes its replies before it closes its listener."""
        published: list[Deferred[None]] = []

        def publish() -> Deferred[None]:
            published.append(Deferred())
            return published[-1]

        self.transport.on_reply = publish
        self.call("hang")
        closed = self.server.close()
        self.assertNoResult(closed)
        published[0].callback(None)
        self.successResultOf(closed)

    def test_closed(self) -> None:
        """A closed server requeues deliveries that still arrive."""
        self.server._dispatcher._closed = True  # between the closing and the transport's noticing
        self.send(encode_request("note", {"what": 1}, {}))
        self.assertEqual(self.diary.calls, [])
        self.successResultOf(self.server.close())
        self.assertEqual([delivery.deliveries for delivery in self.take()], [0])


class BaseAPITests(SynchronousTestCase):
    def test_answers(self) -> None:
        """Every node answers ping and get_backdoor_port as Nova's services do."""
        for port in (None, 4444):
            endpoints = rpc.Endpoints(rpc.BaseAPI("compute", port))
            ping = endpoints.find("baseapi", "ping", "1.0").function(CONTEXT, arg=[1])
            backdoor = endpoints.find("baseapi", "get_backdoor_port", "1.1").function(CONTEXT)
            self.assertEqual((ping, backdoor), ({"service": "compute", "arg": [1]}, port))
