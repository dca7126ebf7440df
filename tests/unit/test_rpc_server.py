"""Tests for novasvc.rpc.server: what is taken in, when, and how much of it."""

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
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
from novasvc.rpc.server import Server
from novasvc.target import Target
from novasvc.transport.memory import MemoryBroker, MemoryTransport
from tests.unit.rpc_rig import CONTEXT, TARGET, Diary, RPCCase


class AdmissionTests(RPCCase):
    def test_call(self) -> None:
        """A call runs the method and answers with what it returns."""
        self.assertEqual(self.successResultOf(self.call("note", what=[1])), [1])
        self.assertEqual((self.diary.calls, self.server.counts.completed), ([[1]], 1))

    def test_cast(self) -> None:
        """A cast runs the method and answers nothing."""
        self.successResultOf(self.client.cast(CONTEXT, "note", what=1))
        self.successResultOf(self.client.fanout(CONTEXT, "note", what=2))
        self.clock.advance(0)
        self.assertEqual((sorted(self.diary.calls), self.client.unmatched_replies), ([1, 2], 0))

    def test_refused(self) -> None:
        """What is not exposed, served, or fitting is refused with a typed error, and nothing runs."""
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
        self.assertEqual((self.diary.calls, self.server.counts.refused, self.server.in_flight), ([], 7, 0))

    def test_refused_cast(self) -> None:
        """A refused cast is dropped."""
        self.send(encode_request("unknown", {}, {}))
        self.assertEqual(self.server.counts.refused, 1)

    def test_malformed(self) -> None:
        """What is no message is dropped, once, and the next one is served."""
        for body in (b"", b"rubbish", b'{"oslo.version": "3.0", "oslo.message": "{}"}', b"[" * 100_000):
            self.send(body)
        self.assertEqual((self.server.counts.malformed, self.server.counts.received), (4, 4))
        self.assertEqual(self.successResultOf(self.call("note", what=1)), 1)

    def test_malformed_request(self) -> None:
        """A request with a wrong field is answered if there is a way back."""
        body = json.loads(self.request("note"))
        fields = json.loads(body["oslo.message"])
        for wrong in ({"args": None}, {"args": [1]}, {"method": 1}, {"version": 1}, {"version": None}):
            self.send(json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps({**fields, **wrong})}).encode())
        classes = [json.loads(reply.failure or "")["class"] for reply in self.replies]
        self.assertEqual(classes, ["MessageFormatError"] * 4 + ["UnsupportedVersionError"])
        self.assertEqual(self.diary.calls, [])

    def test_old_form(self) -> None:
        """A body without an envelope is served."""
        self.send(b'{"method": "note", "args": {"what": 1}}')
        self.assertEqual(self.diary.calls, [1])

    def test_duplicate(self) -> None:
        """A message that comes again is dropped without an answer."""
        body = self.request("note", what=1)
        for _ in range(3):
            self.send(body)
        self.assertEqual((self.diary.calls, len(self.replies), self.server.counts.duplicates), ([1], 1, 2))

    def test_no_id(self) -> None:
        """Messages without an id are not taken for duplicates."""
        for _ in range(2):
            self.send(b'{"method": "note"}')
        self.assertEqual(len(self.diary.calls), 2)

    def test_redelivered(self) -> None:
        """A message that another server had is refused, unless its method is idempotent."""
        self.redeliver(self.request("note", what=1), self.request("hang_again", what=2))
        self.assertEqual((self.diary.calls, self.server.counts.refused), ([2], 1))
        self.diary.hanging[0].callback(3)
        self.clock.advance(0)
        self.assertEqual(
            [json.loads(r.failure)["class"] if r.failure else r.result for r in self.replies], ["RedeliveredError", 3]
        )

    def test_expired(self) -> None:
        """A request whose caller waits no longer when its turn comes is not begun."""
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
        self.assertEqual(self.server.counts.expired, 1)


class ConcurrencyTests(RPCCase):
    def test_bounded(self) -> None:
        """As many run as may, as many wait here, and the others wait in the transport."""
        calls = [self.call("hang", what=number) for number in range(6)]
        self.assertEqual((self.diary.calls, self.server.in_flight), ([0, 1], 2))
        self.assertEqual(self.server.counts.received, 4)
        for number, calling in enumerate(calls):
            self.diary.hanging[number].callback(number)
            self.clock.advance(0)
            self.assertEqual(self.successResultOf(calling), number)
        self.assertEqual((self.diary.calls, self.server.in_flight), ([0, 1, 2, 3, 4, 5], 0))

    def test_many_at_once(self) -> None:
        """Methods that return at once follow each other without end, and without depth."""
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
        """A reply that is being published keeps its call's place."""
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
        self.assertEqual((self.server.in_flight, self.server.counts.unanswered), (0, 1))


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
        """A server is started once."""
        self.failureResultOf(self.server.start(), StateError)
        self.successResultOf(self.server.close())
        self.failureResultOf(self.server.start(), StateError)

    def test_not_started(self) -> None:
        """A server that could not listen fails to start with the transport's reason."""
        transport = MemoryTransport(MemoryBroker(), clock=self.clock)
        transport.close()
        endpoints = rpc.Endpoints(Diary())
        server = Server(transport, TARGET, endpoints, clock=self.clock, run_blocking=self.run_blocking)
        self.failureResultOf(server.start(), TransportClosedError)
        self.successResultOf(server.close())

    def test_drain(self) -> None:
        """A draining server takes in nothing, and finishes and answers all that it has."""
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
        """A closed server cancels what runs, whose callers hear of it at once, and gives back what was not begun."""
        calls = [self.call("hang", what=number) for number in range(4)]
        self.clock.advance(3)
        self.successResultOf(self.server.close())
        self.clock.advance(0)
        errors = [self.failureResultOf(calling).value for calling in calls[:2]]
        self.assertEqual([type(e) for e in errors], [MethodTimeoutError] * 2)
        self.assertEqual(self.server.counts.given_back, 2)
        self.assertEqual(errors[0].args, ("hang", 3.0))
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (2, 0))
        self.client.close()
        for calling in calls[2:]:
            self.failureResultOf(calling, TransportClosedError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_idempotent(self) -> None:
        """Idempotent calls of a closed server run again on another one."""
        calls = [self.call("hang_again", what=number) for number in range(4)]
        self.successResultOf(self.server.close())
        self.server = self.serve(transport=self.make_transport())
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, [0, 1, 0, 1])
        for number in range(4):
            self.diary.hanging[2 + number].callback("done")  # the first two were cancelled
            self.clock.advance(0)
        self.assertEqual([self.successResultOf(calling) for calling in calls], ["done"] * 4)

    def test_close_publishes(self) -> None:
        """A closing server waits until what it has to say is published, before it gives up its queues."""
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
        """A closed server leaves what still arrives to others."""
        self.server._state = "closed"  # between the closing and the transport's noticing
        self.send(encode_request("note", {"what": 1}, {}))
        self.assertEqual(self.diary.calls, [])
        self.successResultOf(self.server.close())
        taken: list[Any] = []
        self.successResultOf(self.make_transport().listen(Target("compute", "h1"), taken.append, 1))
        self.clock.advance(0)
        self.assertEqual(len(taken), 1)


class BaseAPITests(SynchronousTestCase):
    def test_answers(self) -> None:
        """Every node answers ping and get_backdoor_port as Nova's do."""
        for port in (None, 4444):
            endpoints = rpc.Endpoints(rpc.BaseAPI("compute", port))
            ping = endpoints.find("baseapi", "ping", "1.0").function(CONTEXT, arg=[1])
            backdoor = endpoints.find("baseapi", "get_backdoor_port", "1.1").function(CONTEXT)
            self.assertEqual((ping, backdoor), ({"service": "compute", "arg": [1]}, port))
