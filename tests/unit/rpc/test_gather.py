"""Tests for novasvc.rpc.gather: all servers of a topic answer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import (
    BrokerUnavailableError,
    InvalidArgumentsError,
    InvalidTargetError,
    NoSuchMethodError,
    RPCTimeoutError,
    TooManyCallsError,
    TransportClosedError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.rpc.gathers import MAX_GATHERS
from novasvc.rpc.message import ReplyTo, encode_failure, encode_request, encode_result, read_request, unwrap
from novasvc.rpc.server.call import Call
from novasvc.rpc.server.execution import REQUEUE_DELAY
from novasvc.rpc.server.gather_claims import MAX_CLAIMS, GatherClaims
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase, SlowTransport


class Status(Diary):
    """A server's methods.

    :param host: what ``status`` returns.
    """

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host

    @rpc.expose
    def status(self, context: RequestContext) -> str:
        self.calls.append(context.request_id)
        return f"{self.host} is well"

    @rpc.expose(expected=(LookupError,))
    def fail(self, context: RequestContext) -> None:
        if self.host == "h2":
            raise LookupError("no disk")


class GatherCase(RPCCase):
    """Three hosts, of which the registry knows :attr:`up`."""

    def setUp(self) -> None:
        super().setUp()
        self.up: Callable[[], Deferred[Any]] = lambda: succeed({"h1", "h2", "h3"})
        self.hosts = {"h1": self.diary}
        self.addCleanup(lambda: self.server.close())  # noqa: PLW0108 - a test may replace it
        for host in ("h2", "h3"):
            self.hosts[host] = Status(host)
            self.serve_host(host)
        client = rpc.Client(self.make_transport(), clock=self.clock, timeout=5, hosts=lambda topic: self.up())
        self.client = client.prepare(topic="compute")

    def make_endpoint(self) -> Any:
        return Status("h1")

    def serve_host(self, host: str) -> rpc.Server:
        server = rpc.Server(
            self.make_transport(),
            Target("compute", host),
            rpc.Endpoints(self.hosts[host]),
            clock=self.clock,
            run_blocking=self.run_blocking,
        )
        self.successResultOf(server.start())
        self.addCleanup(server.close)
        return server

    def gather(self, method: str = "status", **args: Any) -> rpc.Gathering:
        gathering = self.client.gather(CONTEXT, method, **args)
        for _ in range(3):
            self.clock.advance(0)
        return gathering

    def taken(self, gathering: rpc.Gathering) -> list[rpc.HostReply]:
        """Return the answers that its iteration yields before it has to wait."""
        found: list[rpc.HostReply] = []

        async def read() -> None:
            async for reply in gathering:
                found.append(reply)  # noqa: PERF401 - each as it arrives

        reading = Deferred.fromCoroutine(read())
        reading.addErrback(lambda failure: failure.trap(CancelledError) and None)
        self.addCleanup(lambda: None if reading.called else reading.cancel())
        return found


class GatherTests(GatherCase):
    def test_all(self) -> None:
        """All servers answer, each with its host; the gather ends when all that are up have."""
        gathering = self.gather()
        gathered = self.successResultOf(gathering.all())
        self.assertEqual(gathered.results, {host: f"{host} is well" for host in ("h1", "h2", "h3")})
        self.assertEqual((gathered.errors, gathered.missing, gathering.ended), ({}, (), True))
        claims = self.clock.getDelayedCalls()  # each server's, until the gather expires
        self.assertEqual(len(claims), len(self.hosts))

    def test_one_by_one(self) -> None:
        """Answers are taken as they arrive."""
        gathering = self.gather("hang")
        found = self.taken(gathering)
        self.assertEqual((found, gathering.missing), ([], ("h1", "h2", "h3")))
        for number, host in enumerate(("h2", "h3", "h1"), 1):
            self.hosts[host].hanging[0].callback(f"from {host}")
            self.clock.advance(0)
            self.assertEqual(found[-1], rpc.HostReply(host, f"from {host}"))
            self.assertEqual(len(found), number)
        self.assertTrue(gathering.ended)

    def test_errors(self) -> None:
        """An error is an answer, with its host and its class."""
        gathered = self.successResultOf(self.gather("fail").all())
        self.assertEqual(gathered.results, {"h1": None, "h3": None})
        self.assertIsInstance(gathered.errors["h2"], LookupError)
        (failed,) = [reply for reply in gathered.replies if reply.error]
        self.assertRaises(LookupError, failed.get)
        self.assertEqual(gathered.missing, ())

    def test_refused(self) -> None:
        """A request that every server refuses is an error of each host."""
        gathered = self.successResultOf(self.gather("nonesuch").all())
        self.assertEqual(set(gathered.errors), {"h1", "h2", "h3"})
        self.assertIsInstance(gathered.errors["h1"], NoSuchMethodError)

    def test_missing(self) -> None:
        """At the timeout the hosts that have not answered are named, and their answers count as late."""
        self.up = lambda: succeed({"h1", "h2", "h9"})
        gathering = self.gather("hang")
        waiting = gathering.all()
        self.hosts["h1"].hanging[0].callback("here")
        self.clock.advance(5)
        gathered = self.successResultOf(waiting)
        self.assertEqual((gathered.results, gathered.missing), ({"h1": "here"}, ("h2", "h9")))
        self.assertEqual(metrics.called.at("compute", "hang", "timed_out").value, 1)

    def test_late(self) -> None:
        """An answer after the end is counted, and kept nowhere."""
        gathering = self.client.prepare(cancels=False).gather(CONTEXT, "hang")
        for _ in range(3):
            self.clock.advance(0)
        gathering.cancel()
        self.hosts["h2"].hanging[0].callback("late")
        self.clock.advance(0)
        self.assertEqual((self.client.unmatched_replies, gathering.missing), (1, ("h1", "h2", "h3")))

    def test_unknown(self) -> None:
        """If the registry cannot be asked, only the timeout ends the gather, and nobody is named as missing."""
        for up in (lambda: fail(LookupError("no registry")), Deferred, lambda: succeed(set())):
            self.up = up
            waiting = self.gather().all()
            self.assertNoResult(waiting)
            self.clock.advance(5)
            gathered = self.successResultOf(waiting)
            self.assertEqual(len(gathered.results), 3)
            self.assertFalse(gathered.missing)

    def test_registry_answers_late(self) -> None:
        """The registry is asked at the same time; if it answers last, that ends the gather."""
        answer: Deferred[Any] = Deferred()
        self.up = lambda: answer
        waiting = self.gather().all()
        self.assertNoResult(waiting)
        answer.callback(["h1", "h2", "h3"])
        self.assertEqual(self.successResultOf(waiting).missing, ())

    def test_more_than_known(self) -> None:
        """A server that the registry does not know answers, too."""
        self.up = lambda: succeed({"h1"})
        gathering = self.gather("hang")
        self.hosts["h3"].hanging[0].callback("here")
        self.clock.advance(0)
        self.hosts["h1"].hanging[0].callback("here")
        self.clock.advance(0)
        self.assertEqual(set(self.successResultOf(gathering.all()).results), {"h1", "h3"})

    def test_workers(self) -> None:
        """Of several processes of a host one runs the method: the first that has room."""
        self.serve_host("h2")
        self.successResultOf(self.gather().all())
        self.assertEqual(len(self.hosts["h2"].calls), 1)
        self.successResultOf(self.gather().all())
        self.assertEqual(len(self.hosts["h2"].calls), 2)

    def test_busy_worker(self) -> None:
        """A process that has no room does not keep its host from answering."""
        self.successResultOf(self.server.close())
        busy = self.server = self.serve()
        for _ in range(self.concurrency):
            self.client.prepare(server="h1").call(CONTEXT, "hang")
            self.clock.advance(0)
        self.assertEqual(busy.in_flight, self.concurrency)
        gathering = self.gather()
        self.assertEqual(gathering.missing, ("h1",))
        free = self.serve()
        self.assertEqual(self.successResultOf(self.gather().all()).missing, ())
        self.successResultOf(free.close())

    def test_two_answers(self) -> None:
        """If a host answers twice all the same, the first answer counts."""
        self.up = lambda: succeed({"h1", "h2", "h3", "h9"})
        requests: list[Any] = []

        def receive(delivery: Any) -> None:
            delivery.ack()
            requests.append(read_request(unwrap(delivery.body)))

        transport = self.make_transport()
        self.successResultOf(transport.listen(Target("compute", "h9"), receive, 10))
        gathering = self.gather("hang")
        reply_to = requests[0].reply_to
        for result in (1, 2):
            transport.reply(reply_to.address, encode_result(reply_to.msg_id, result, "hang", extra={"host": "h9"}))
        # One of another library has no host, and may answer as often as it has workers.
        for text in ("one", "two"):
            transport.reply(reply_to.address, encode_result(reply_to.msg_id, text, "hang"))
        transport.reply(reply_to.address, encode_failure(reply_to.msg_id, "{}", {"host": 7}))
        transport.reply(reply_to.address, b"not json")
        self.clock.advance(0)
        self.assertEqual(self.client.unmatched_replies, 2)
        self.assertEqual(
            [(reply.host, reply.result) for reply in self.taken(gathering)],
            [("h9", 1), (None, "one"), (None, "two"), (None, None)],
        )


class ClaimTests(RPCCase):
    """A host with two processes."""

    concurrency = 1

    def test_redelivered(self) -> None:
        """A redelivered gather that the other process answers leaves the room in its group to others."""
        answered = encode_request("hang_again", {"what": 1}, {}, reply_to=ReplyTo("1", "a"), options={"gather": True})
        other = self.claims()
        self.assertTrue(
            other.claim(cast(Call, SimpleNamespace(request=read_request(unwrap(answered)), expires_at=None)))
        )
        self.redeliver(answered, encode_request("hang_again", {"what": 2}, {}))
        self.assertEqual(self.diary.calls, [2])

    def test_held(self) -> None:
        """A call stays claimed until it expires, however long that is, and however many others are claimed."""
        one, other = self.claims(), self.claims()
        self.assertTrue(all(self.claim(one, number) for number in range(100)))
        self.clock.advance(299)
        self.assertEqual((self.claim(one, 100), self.claim(other, 0)), (True, False))

    def test_expired(self) -> None:
        """A claim is released when its call expires, also if no other gather comes."""
        one, other = self.claims(), self.claims()
        self.claim(one, 0)
        self.clock.advance(299)
        self.assertFalse(self.claim(other, 0))
        self.clock.advance(1)
        self.assertTrue(self.claim(other, 0))

    def test_bounded(self) -> None:
        """The claims of all servers of a process have one bound; beyond it, the oldest is released."""
        one, two, other = self.claims(), self.claims(), self.claims()
        self.assertTrue(all(self.claim((one, two)[number % 2], number) for number in range(MAX_CLAIMS)))
        self.assertFalse(self.claim(other, 1))
        self.assertTrue(self.claim(two, MAX_CLAIMS))
        self.assertEqual([self.claim(other, number) for number in (0, 2, MAX_CLAIMS)], [True, False, False])

    def claims(self) -> GatherClaims:
        """Return the claims of one server."""
        claims = GatherClaims(TARGET, self.clock)
        self.addCleanup(claims.close)
        return claims

    def claim(self, claims: GatherClaims, number: int) -> bool:
        """Claim one of several gathers that expire after 300 s."""
        body = encode_request("note", {}, {}, reply_to=ReplyTo(str(number), "a"), options={"gather": True})
        return claims.claim(cast(Call, SimpleNamespace(request=read_request(unwrap(body)), expires_at=300.0)))

    def test_again(self) -> None:
        """An idempotent method whose answer could not be sent runs again in the process that has claimed the gather."""
        gathering = self.client.prepare(server=None, timeout=5).gather(CONTEXT, "hang_again")
        self.clock.advance(0)
        self.transport.on_reply = lambda: fail(BrokerUnavailableError("b", "away"))
        self.diary.hanging[0].callback("lost")
        self.transport.on_reply = None
        self.clock.pump([REQUEUE_DELAY, *[0] * 3])
        self.assertEqual(len(self.diary.calls), 2)
        self.diary.hanging[1].callback("well")
        self.clock.pump([0] * 3)
        self.assertEqual([reply.result for reply in gathering._replies], ["well"])
        self.successResultOf(self.server.close())
        self.clock.advance(5)


class EndTests(GatherCase):
    def test_cancel(self) -> None:
        """Cancelling the Deferred of all cancels the methods of all servers."""
        waiting = self.gather("hang").all()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual([host.cancelled for host in self.hosts.values()], [1, 1, 1])
        self.assertEqual(metrics.called.at("compute", "hang", "cancelled").value, 1)

    def test_unconfirmed(self) -> None:
        """If the confirm is lost, an answer shows that the message was sent; without one, the gather soon fails."""
        for case in ("answered before", "answered soon", "not answered"):
            slow = SlowTransport(self.broker, self.clock)
            gathering = rpc.Client(slow, clock=self.clock, timeout=5, target=Target("compute")).gather(CONTEXT, "hang")
            waiting = gathering.all()
            slow.release()
            ((_, sending),) = slow.waiting
            reply_to = read_request(unwrap(slow.written[0][1])).reply_to
            assert reply_to is not None
            answer = encode_result(reply_to.msg_id, 1, "hang", extra={"host": "h1"})
            if case == "answered before":
                slow.reply(reply_to.address, answer)
                self.clock.advance(0)
            sending.errback(UnconfirmedError("compute", "the connection was lost"))
            self.clock.advance(0.2)
            self.assertNoResult(waiting)
            if case == "answered soon":
                slow.reply(reply_to.address, answer)
            self.clock.advance(0.1)
            if case == "not answered":
                self.failureResultOf(waiting, UnconfirmedError)
            else:
                self.assertNoResult(waiting)
                self.clock.advance(4.7)
                self.assertEqual(self.successResultOf(waiting).results, {"h1": 1})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ended_unconfirmed(self) -> None:
        """A gather that ends meanwhile leaves no timer."""
        slow = SlowTransport(self.broker, self.clock)
        gathering = rpc.Client(slow, clock=self.clock, timeout=5, target=Target("compute")).gather(CONTEXT, "hang")
        slow.release()
        slow.waiting.pop()[1].errback(UnconfirmedError("compute", "the connection was lost"))
        gathering.cancel()
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel_iteration(self) -> None:
        """So does cancelling the coroutine that iterates."""
        gathering = self.gather("hang")

        async def read() -> None:
            async for _ in gathering:
                pass

        reading = Deferred.fromCoroutine(read())
        reading.cancel()
        self.failureResultOf(reading, CancelledError)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual(self.hosts["h2"].cancelled, 1)
        self.assertTrue(gathering.ended)
        gathering.cancel()

    def test_close(self) -> None:
        """Closing the client ends its gathers, and refuses others."""
        gathering = self.gather("hang")
        waiting = gathering.all()
        self.successResultOf(self.client.close())
        self.failureResultOf(waiting, TransportClosedError)
        self.failureResultOf(self.gather().all(), TransportClosedError)

    def test_deadline(self) -> None:
        """The context's deadline ends it; one that has passed sends nothing."""
        gathering = self.client.gather(RequestContext(deadline=2.0), "hang")
        self.clock.advance(2)
        self.assertTrue(gathering.ended)
        passed = self.client.gather(RequestContext(deadline=1.0), "status")
        self.assertTrue(self.failureResultOf(passed.all(), RPCTimeoutError).value.unsent)

    def test_unopened(self) -> None:
        """One that ends before there is a reply address fails, because it was not sent."""
        slow = SlowTransport(self.broker, self.clock)
        gathering = rpc.Client(slow, clock=self.clock, timeout=5, target=Target("compute")).gather(CONTEXT, "status")
        waiting = gathering.all()
        self.clock.advance(5)
        self.assertIn("the method does not run", str(self.failureResultOf(waiting, RPCTimeoutError).value))
        self.assertEqual(metrics.called.at("compute", "status", "unsent").value, 1)
        slow.release()
        self.assertEqual(slow.written, [])

    def test_drain(self) -> None:
        """Requests of a node that gathers are known to belong to its operation."""
        self.gather("hang")
        self.assertEqual(self.client.request_ids_in_flight(), {CONTEXT.request_id})


class MistakeTests(GatherCase):
    def test_server(self) -> None:
        """A target with a server is a mistake."""
        gathering = self.client.prepare(server="h1").gather(CONTEXT, "status")
        self.assertIn("leave the server out", str(self.failureResultOf(gathering.all(), InvalidTargetError).value))
        nothing = rpc.Client(self.transport, clock=self.clock).gather(CONTEXT, "status")
        self.failureResultOf(nothing.all(), InvalidTargetError)

    def test_no_server(self) -> None:
        """A topic that nobody serves is an error, as for a call, also of the iteration."""
        client = self.client.prepare(topic="nobody")
        self.failureResultOf(client.gather(CONTEXT, "status").all(), UndeliverableError)

        async def read() -> list[Any]:
            return [reply async for reply in client.gather(CONTEXT, "status")]

        self.failureResultOf(Deferred.fromCoroutine(read()), UndeliverableError)

    def test_arguments(self) -> None:
        """Arguments that JSON cannot hold are an error before anything is sent."""
        self.failureResultOf(self.gather("status", what=object()).all(), InvalidArgumentsError)

    def test_parameters(self) -> None:
        """A missing context and an argument without a name are told as for a call."""
        gather: Any = self.client.gather
        cases: list[tuple[Any, ...]] = [({}, "status"), (CONTEXT, "status", 3)]
        for given in cases:
            error = self.assertRaises(TypeError, gather, *given)
            self.assertIn('write gather(context, "method", name=value)', str(error))

    def test_no_timeout(self) -> None:
        """A gather without a timeout would not end."""
        client = self.client.prepare(timeout=None, call_monitor_timeout=5)
        self.assertRaises(ValueError, client.gather, CONTEXT, "status")

    def test_bounded(self) -> None:
        """The number of gathers is bounded."""
        for _ in range(MAX_GATHERS):
            self.client.gather(CONTEXT, "hang")
        self.failureResultOf(self.client.gather(CONTEXT, "hang").all(), TooManyCallsError)
        self.successResultOf(self.client.close())
        self.clock.advance(0)
