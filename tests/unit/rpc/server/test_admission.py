"""Tests for novasvc.rpc.server.admission: which requests a draining server runs."""

import json
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import RPCError, RPCTimeoutError, ServiceDrainingError
from novasvc.rpc.message import BODY_LIMIT, ReplyTo, encode_request
from novasvc.rpc.server.admission import MAX_DEFERRED_BYTES, MAX_DEFERRED_CASTS, NOBODY, READY, REQUEUE_DELAY, UNDER_WAY
from novasvc.rpc.target import Target
from novasvc.transport.memory.broker import Message
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase

OTHER = RequestContext(request_id="req-2")


class AdmissionCase(RPCCase):
    """CONTEXT is that of an operation under way."""

    def setUp(self) -> None:
        super().setUp()
        self.operation = self.hang("operation")

    def hang(self, what: str) -> Deferred[Any]:
        """Begin a method that hangs; a test need not handle its outcome."""
        return self.call("hang", what=what).addErrback(lambda failure: failure.trap(RPCError) and None)

    def to_server(self, context: RequestContext, method: str = "note", **args: Any) -> Deferred[Any]:
        calling = self.client.prepare(server=TARGET.server).call(context, method, **args)
        self.clock.advance(0)
        return calling

    def to_topic(self, context: RequestContext, method: str = "note", **args: Any) -> Deferred[Any]:
        calling = self.client.prepare(server=None).call(context, method, **args)
        self.clock.advance(0)
        return calling

    def cast(self, context: RequestContext, method: str = "note", **args: Any) -> None:
        self.successResultOf(self.client.cast(context, method, **args))
        self.clock.advance(0)

    def drain(self) -> None:
        self.successResultOf(self.server.drain())
        self.clock.advance(0)

    def finish(self) -> None:
        self.diary.hanging[0].callback("finished")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(self.operation), "finished")

    def other_server(self, server: str = "h2") -> Diary:
        """Serve the same topic on another host."""
        diary = Diary()
        other = rpc.Server(
            self.make_transport(),
            Target(TARGET.topic, server),
            rpc.Endpoints(diary),
            clock=self.clock,
            run_blocking=self.run_blocking,
        )
        self.successResultOf(other.start())
        self.clock.advance(0)
        return diary


class ArrivingTests(AdmissionCase):
    """Requests that arrive during a drain."""

    def test_operation_under_way(self) -> None:
        """A call or a cast of an operation under way is served."""
        self.drain()
        self.assertEqual(self.successResultOf(self.to_server(CONTEXT, what=1)), 1)
        self.cast(CONTEXT, what=2)
        self.assertEqual(self.diary.calls, ["operation", 1, 2])
        self.finish()
        self.successResultOf(self.server.drained())

    def test_operation_over(self) -> None:
        """After an operation has ended, no request belongs to it."""
        self.drain()
        self.finish()
        self.failureResultOf(self.to_server(CONTEXT), ServiceDrainingError)

    def test_call_to_the_server(self) -> None:
        """A call to the server that belongs to no operation is refused at once; the error names the server."""
        self.drain()
        error = self.failureResultOf(self.to_server(OTHER), ServiceDrainingError).value
        self.assertIn(str(TARGET), str(error))
        self.assertEqual(self.diary.calls, ["operation"])

    def test_strange_ids(self) -> None:
        """A request whose request id is missing or not a string belongs to no operation."""
        self.drain()
        for entries in ({}, {"request_id": None}, {"request_id": ["req-1"]}, {"request_id": {}}):
            address = self.successResultOf(self.transport.open_replies(lambda _: None))
            body = encode_request("note", {}, entries, reply_to=ReplyTo("id", address))
            self.send(body)
        self.assertEqual((self.diary.calls, self.count("refused")), (["operation"], 4))

    def test_call_to_the_topic(self) -> None:
        """A request to the topic is served by another server, or waits for one."""
        self.drain()
        self.assertFalse(self.server.live)
        calling = self.client.prepare(server=None, fanout=False)
        self.successResultOf(calling.cast(OTHER, "note", what=1))
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, ["operation"])
        self.assertEqual(self.other_server().calls, [1])

    def test_cast_to_the_server(self) -> None:
        """A cast to the server that belongs to no operation is deferred for the next server, which runs it as new."""
        self.drain()
        self.cast(OTHER, what=1)
        received = self.transport.received
        self.clock.advance(10)
        self.assertEqual((self.diary.calls, self.transport.received), (["operation"], received))
        self.finish()
        self.successResultOf(self.server.close())
        self.server = self.serve()
        self.clock.advance(0)
        self.assertEqual((self.diary.calls, self.count("refused")), (["operation", 1], 0))

    def test_many_casts(self) -> None:
        """However many casts are deferred, a call of an operation under way is delivered, and no cast is lost."""
        self.drain()
        for number in range(2 * MAX_DEFERRED_CASTS + 200):
            self.successResultOf(self.client.cast(OTHER, "note", what=number))
        calling = self.to_server(CONTEXT, what="nested")
        for _ in range(10):
            self.clock.advance(REQUEUE_DELAY)
        self.assertEqual(self.successResultOf(calling), "nested")
        turns = self.transport.received
        self.clock.advance(REQUEUE_DELAY / 2)
        self.assertLess(self.transport.received - turns, 2 * MAX_DEFERRED_CASTS)  # no fast loop
        self.finish()
        self.successResultOf(self.server.close())
        self.assertEqual(self.diary.calls, ["operation", "nested"])
        self.server = self.serve()
        for _ in range(100):
            self.clock.advance(0)
        self.assertEqual(sorted(self.diary.calls[2:]), list(range(2 * MAX_DEFERRED_CASTS + 200)))

    def test_large_casts(self) -> None:
        """Deferred casts are bounded in bytes too."""
        self.drain()
        large = "x" * (BODY_LIMIT - 1000)
        number = MAX_DEFERRED_BYTES // len(large) + 1
        for _ in range(number):
            self.cast(OTHER, what=large)
        given_back = self.count("given_back")
        self.assertEqual(given_back, 0)
        self.clock.advance(REQUEUE_DELAY)
        self.assertEqual(self.count("given_back"), 1)

    def test_beyond_concurrency(self) -> None:
        """A call that an operation waits for begins even beyond the server's concurrency."""
        self.hang("another")
        self.assertEqual(self.server.in_flight, self.concurrency)
        self.drain()
        self.assertEqual(self.successResultOf(self.to_server(CONTEXT, what=1)), 1)

    def test_other_operations(self) -> None:
        """A call of another operation of the node, such as a periodic task, is served too."""
        self.successResultOf(self.server.close())
        self.server = self.serve(operations=lambda: {"req-2"})
        self.drain()
        self.assertEqual(self.successResultOf(self.to_server(OTHER, what=1)), 1)

    def test_cut_short(self) -> None:
        """The calls of an operation that was cut short are refused like any other."""
        self.drain()
        self.server.cut_short("b@h was shutting down")
        self.clock.advance(0)
        self.failureResultOf(self.to_server(CONTEXT), ServiceDrainingError)

    def test_twice(self) -> None:
        """A second drain has no effect, nor has a drain after the close."""
        self.drain()
        self.drain()
        self.assertEqual(self.successResultOf(self.to_server(CONTEXT, what=1)), 1)
        self.finish()
        self.successResultOf(self.server.close())
        self.drain()


class RepeatedTests(AdmissionCase):
    """Redeliveries during a drain: their methods may have run before."""

    def answers(self) -> list[str]:
        self.clock.advance(0)
        return [json.loads(r.failure)["class"] for r in self.replies if r.failure]

    def put_back(self, body: bytes) -> None:
        """Deliver a message as a redelivery after a server's death or a lost acknowledgement."""
        self.broker.queue("nova", TARGET.topic, TARGET.server).requeue_at_head(Message(body, None), lost=False)
        self.clock.advance(0)

    def test_may_have_run(self) -> None:
        """A call that may have run is refused with RedeliveredError, so that its caller knows before it calls again."""
        self.drain()
        self.put_back(self.request("note", what=1))
        self.assertEqual((self.answers(), self.diary.calls), (["RedeliveredError"], ["operation"]))

    def test_idempotent(self) -> None:
        """An idempotent call is refused like a new one."""
        self.drain()
        self.put_back(self.request("hang_again", what=1))
        self.assertEqual((self.answers(), self.diary.calls), (["ServiceDrainingError"], ["operation"]))

    def test_ran_here(self) -> None:
        """A call that has run here is dropped: its caller has its reply."""
        body = self.request("note", what=1)
        self.send(body)
        self.drain()
        self.put_back(body)
        self.send(body)
        self.assertEqual((self.answers(), self.diary.calls), ([], ["operation", 1]))
        self.assertEqual(self.count("duplicates"), 2)

    def test_deferred(self) -> None:
        """A deferred cast that is redelivered, because the connection was lost, is deferred once, and still as new."""
        self.drain()
        body = encode_request("note", {"what": 1}, {})
        self.send(body)
        self.put_back(body)
        self.finish()
        self.successResultOf(self.server.close())
        self.server = self.serve()
        self.clock.advance(0)
        self.assertEqual((self.diary.calls, self.count("refused")), (["operation", 1], 0))


class WaitingTests(AdmissionCase):
    """Requests that arrived before the drain and have not begun."""

    def setUp(self) -> None:
        super().setUp()
        self.hang("another")  # as many run as may

    def test_operation_under_way(self) -> None:
        """A waiting call of an operation under way begins."""
        calling = self.to_server(CONTEXT, what=1)
        self.assertNoResult(calling)
        self.drain()
        self.assertEqual(self.successResultOf(calling), 1)

    def test_call_to_the_server(self) -> None:
        """A call to the server is refused."""
        calling = self.to_server(OTHER)
        self.drain()
        self.failureResultOf(calling, ServiceDrainingError)

    def test_call_to_the_topic(self) -> None:
        """A call to the topic is requeued, and another server serves it as new."""
        calling = self.to_topic(OTHER, what=1)
        self.drain()
        self.assertEqual(self.other_server().calls, [1])
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), 1)
        self.assertEqual(self.count("given_back"), 1)

    def test_cast_to_the_server(self) -> None:
        """A cast to the server is deferred for its successor, even if the connection is lost meanwhile."""
        self.cast(OTHER, what=1)
        self.drain()
        self.lose_connection()
        self.successResultOf(self.server.close())
        self.assertEqual([delivery.deliveries for delivery in self.take()], [0])

    def lose_connection(self) -> None:
        """Lose the session: the transport redelivers all unsettled messages to the same server."""
        listener = self.server._listener
        assert listener is not None
        receive = listener._receiver
        self.successResultOf(listener.close())
        listener = self.successResultOf(self.transport.listen(TARGET, receive, self.concurrency))
        self.server._listener = listener
        self.successResultOf(listener.cancel_topic(100))
        self.clock.advance(0)

    def test_fanout(self) -> None:
        """A fanout is dropped: every other server has its own copy."""
        other = self.other_server()
        self.successResultOf(self.client.prepare(server=None).fanout(OTHER, "note", what=1))
        self.clock.advance(0)
        self.drain()
        self.finish()
        self.assertEqual((self.diary.calls, other.calls), (["operation", "another"], [1]))

    def test_redelivered(self) -> None:
        """A redelivered idempotent call that did not begin is requeued with its count."""
        self.redeliver(self.request("hang_again", what=1))
        self.hang("2")
        self.hang("3")
        self.send(self.request("hang_again", what=4))
        self.drain()
        self.assertEqual(self.count("quarantined"), 0)

    def test_idempotent_operation_redelivered(self) -> None:
        """An idempotent operation that runs while its connection is lost runs once, and is acknowledged at its end."""
        self.diary.hanging[1].callback(None)
        running = self.to_server(OTHER, "hang_again", what="again")
        self.drain()
        self.lose_connection()
        self.diary.hanging[2].callback("done")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(running), "done")
        self.assertEqual(self.diary.calls.count("again"), 1)


class SiblingTests(AdmissionCase):
    """A draining worker asks its siblings before it refuses or holds a request."""

    def setUp(self) -> None:
        super().setUp()
        self.answers: list[Deferred[str]] = []
        self.asked: list[str] = []

    def serve(self, **given: Any) -> rpc.Server:
        return super().serve(siblings=self.ask, **given)

    def ask(self, request_id: str) -> Deferred[str]:
        self.asked.append(request_id)
        self.answers.append(Deferred())
        return self.answers[-1]

    def answer(self, answer: str) -> None:
        self.answers.pop(0).callback(answer)
        self.clock.advance(0)

    def test_not_asked(self) -> None:
        """A call of an operation under way in this worker is served without asking the siblings."""
        self.drain()
        self.assertEqual(self.successResultOf(self.to_server(CONTEXT, what=1)), 1)
        self.assertEqual(self.asked, [])

    def test_under_way_elsewhere(self) -> None:
        """A call of an operation that is under way in another worker is served: it is the same node."""
        self.drain()
        calling = self.to_server(OTHER, what=1)
        self.assertNoResult(calling)
        self.assertEqual(self.asked, ["req-2"])
        self.answer(UNDER_WAY)
        self.assertEqual(self.successResultOf(calling), 1)

    def test_nobody(self) -> None:
        """A call that belongs to no operation in any worker is refused."""
        self.drain()
        calling = self.to_server(OTHER)
        self.answer(NOBODY)
        self.failureResultOf(calling, ServiceDrainingError)

    def test_ready(self) -> None:
        """If another worker is ready, waiting calls and casts are requeued for it at once."""
        self.hang("another")
        calling = self.to_server(OTHER, what=1)
        self.cast(OTHER, what=2)
        self.server.drain()
        self.successResultOf(self.server._listener.cancel())  # type: ignore[union-attr]  # it has one
        sibling = self.other_server(server=TARGET.server or "")
        self.answer(READY)
        self.answer(READY)
        self.clock.advance(REQUEUE_DELAY)
        self.assertEqual(sorted(sibling.calls), [1, 2])
        self.assertEqual(self.successResultOf(calling), 1)

    def test_ready_but_full(self) -> None:
        """A request that arrives although another worker is ready, and so full, is requeued after REQUEUE_DELAY."""
        self.drain()
        self.to_server(OTHER, what=1)
        self.answer(READY)
        given_back = self.count("given_back")
        self.clock.advance(REQUEUE_DELAY / 2)
        self.assertEqual(self.count("given_back"), given_back)
        self.clock.advance(REQUEUE_DELAY / 2)
        self.assertEqual(self.count("given_back"), given_back + 1)

    def test_no_answer_before_the_end(self) -> None:
        """Undecided requests are requeued when the worker ends."""
        self.drain()
        self.to_server(OTHER, what=1)
        self.finish()
        self.successResultOf(self.server.close())
        self.answer(UNDER_WAY)
        self.assertEqual(self.diary.calls, ["operation"])
        self.assertEqual(len(self.take()), 1)

    def test_without_an_id(self) -> None:
        """A call without a request id is requeued if another worker is ready."""
        self.drain()
        self.cast(attrs.evolve(OTHER, request_id=None), what=1)  # type: ignore[arg-type]  # as of a careless peer
        self.assertEqual(self.asked, [""])


class DeadlineTests(AdmissionCase):
    def test_expired(self) -> None:
        """A call that expires while the siblings are asked is not begun."""
        self.successResultOf(self.server.close())
        waiting: Deferred[str] = Deferred()
        self.server = self.serve(siblings=lambda _: waiting)
        self.drain()
        calling = self.client.prepare(timeout=1.0).call(OTHER, "note", what="late")
        self.clock.advance(1.0)
        self.failureResultOf(calling, RPCTimeoutError)
        waiting.callback(UNDER_WAY)
        self.assertNotIn("late", self.diary.calls)
