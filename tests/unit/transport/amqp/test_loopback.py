"""Tests for novasvc.transport.amqp.loopback: how a listener proves that messages reach it, and what it repairs."""

from typing import Any

from twisted.internet.defer import Deferred

from novasvc.errors import BrokerBlockedError
from novasvc.interfaces import Reachability
from novasvc.rpc.baseapi import write_ping
from novasvc.rpc.message import encode_result, read_request, unwrap
from novasvc.rpc.target import Target
from novasvc.transport.amqp.codec import decode_properties
from novasvc.transport.amqp.publisher import PROBE_KEY
from tests.support.amqp_rig import Said
from tests.unit.transport.amqp.test_listener import ListenerCase

TIMEOUT = 9.0
PROBE = "x-novasvc-probe"


class LoopbackCase(ListenerCase):
    """A listener of compute.h1, whose messages the test carries."""

    def setUp(self) -> None:
        super().setUp()
        self.listener = self.listen()
        self.own = self.link.all("queue.declare")[-1].args["queue"]
        # The broker is known to read: nothing waits for a proof of that.
        self.done(self.amqp.send(Target("compute", "h1"), b"", None, False))
        self.first, self.before = self.out, len(super().published())

    def published(self) -> list[Said]:
        """Return what was sent since, without what proves that the broker reads."""
        before = self.before if self.out is self.first else 0
        return [said for said in super().published()[before:] if said.args["routing_key"] != PROBE_KEY]

    def verify(self) -> Deferred[Reachability]:
        return self.started(self.listener.verify(write_ping, TIMEOUT))

    def probes(self, key: str = "compute.h1") -> list[Said]:
        return [said for said in self.published() if said.args["routing_key"] == key]

    def carry(self, said: Said, queue: str = "compute.h1", *, header: bool = True) -> None:
        """Deliver what was sent, to the consumer of a queue."""
        (tag,) = [one.args["consumer_tag"] for one in self.link.all("basic.consume") if one.args["queue"] == queue][-1:]
        properties: Any = said.properties if header else b"\0\0"
        self.deliver(said.body or b"", consumer=tag, properties=properties)

    def declared(self) -> list[tuple[str, ...]]:
        """Return what was declared on the channel of the probes, since it was asked last."""
        names = ("queue.declare", "queue.bind", "queue.unbind", "exchange.declare")
        seen = [said for said in self.out.seen if said.name in names and said.channel != 1]
        fresh, self._declared = seen[getattr(self, "_declared", 0) :], len(seen)
        return [(said.name, said.args.get("queue") or said.args["exchange"]) for said in fresh]

    def proven(self) -> Reachability:
        """Verify, and carry the last message to the host's queue."""
        verifying = self.verify()
        self.carry(self.probes()[-1])
        return self.successResultOf(verifying)


class ProbeTests(LoopbackCase):
    """Tests for what is sent, and what becomes of it."""

    def test_message(self) -> None:
        """A ping goes the way of a caller's message: by the exchange, mandatory, for as long as it is waited for."""
        verifying = self.verify()
        (said,) = self.probes()
        self.assertEqual((said.args["exchange"], said.args["mandatory"]), ("nova", True))
        properties = decode_properties(said.properties)
        self.assertEqual((properties["headers"], properties["expiration"]), ({PROBE: self.own}, "7200"))
        request = read_request(unwrap(said.body or b""))
        self.assertEqual((request.namespace, request.method, request.version), ("baseapi", "ping", "1.0"))
        self.assertEqual(request.back.address, self.own)  # type: ignore[union-attr]  # it is a call
        self.assertNoResult(verifying)
        self.carry(said)
        self.assertEqual(self.successResultOf(verifying), Reachability())
        self.assertEqual((self.got, self.settled()), ([], [("ack", 1, True)]))
        self.wait(15)
        self.assert_idle()

    def test_an_earlier_one(self) -> None:
        """A message of an earlier verification proves nothing, and is not handed on either."""
        self.verify()
        self.wait(TIMEOUT)
        early = self.probes()[-1]
        verifying = self.verify()
        self.carry(early)
        self.assertNoResult(verifying)
        self.carry(self.probes()[-1])
        self.assertEqual(self.successResultOf(verifying), Reachability())
        self.assertEqual(self.got, [])

    def test_siblings(self) -> None:
        """A sibling's message is passed on to it, once; one that comes by the queue for fanouts is not."""
        sibling = "compute_fanout_5"
        headers = {"headers": {PROBE: sibling}}
        self.deliver(b"ping", properties=headers)
        (said,) = self.published()
        self.assertEqual((said.args["exchange"], said.args["routing_key"], said.body), ("", sibling, b"ping"))
        self.assertEqual(self.headers(), {PROBE: sibling})
        self.deliver(b"ping", consumer=self.link.consumer("compute_fanout_"), properties=headers)
        self.assertEqual((len(self.published()), self.got), (1, []))

    def test_strangers(self) -> None:
        """What says that it is a probe, and names a queue of something else, goes nowhere."""
        for address in ("reply_5", "volume_fanout_5", "compute"):
            self.deliver(b"ping", properties={"headers": {PROBE: address}})
        self.assertEqual((self.published(), self.got), ([], []))

    def test_passed_on(self) -> None:
        """What a sibling has passed on proves it."""
        verifying = self.verify()
        self.carry(self.probes()[-1], self.own)
        self.assertEqual(self.successResultOf(verifying), Reachability())

    def test_answered(self) -> None:
        """A peer that does not know probes answers the call; that proves it, and is not handed on, late or not."""
        verifying = self.verify()
        request = read_request(unwrap(self.probes()[-1].body or b""))
        answer = encode_result(request.back.msg_id, {"service": "compute"}, "ping")  # type: ignore[union-attr]
        self.deliver(answer, consumer=self.link.consumer("compute_fanout_"))
        self.assertEqual(self.successResultOf(verifying), Reachability())
        self.deliver(answer, consumer=self.link.consumer("compute_fanout_"))
        self.assertEqual(self.got, [])

    def test_fanouts(self) -> None:
        """Fanouts are handed on while an answer is waited for."""
        self.verify()
        self.deliver(b"news", consumer=self.link.consumer("compute_fanout_"))
        self.assertEqual([one.body for one in self.got], [b"news"])

    def test_no_server(self) -> None:
        """Who serves a topic alone, or one queue, has nothing of its own to be reached by, and sends nothing."""
        queue = self.done(self.amqp.consume("notes", self.got.append, 1))
        self.assertEqual(self.done(queue.verify(write_ping, TIMEOUT)), Reachability())
        self.assertEqual(self.published(), [])

    def test_refused(self) -> None:
        """A verification that the broker refuses costs no fanout that is not confirmed yet."""
        self.done(self.amqp.send(Target("compute", fanout=True), b"warm", None, False))
        self.broker.confirming = False
        sending = self.started(self.amqp.send(Target("compute", fanout=True), b"news", None, False))
        fanout = self.published()[-1]
        self.broker.closing["queue.declare"] = (404, "NOT_FOUND - no queue 'compute' in vhost 'cell'")
        self.verify()
        self.assertNoResult(sending)
        self.out.say(fanout.channel, "basic.ack", delivery_tag=2)
        self.done(sending)
        self.broker.closing.clear()

    def test_cancelled(self) -> None:
        """Who does not want to know any more leaves no timer behind."""
        verifying = self.verify()
        verifying.cancel()
        self.failureResultOf(verifying)
        self.wait(15)
        self.assert_idle()


class BindingTests(LoopbackCase):
    """Tests for the bindings that the message does not need."""

    def test_turns(self) -> None:
        """With others on the topic its binding and that of the own queue for fanouts are made in turns."""
        self.broker.counts = (0, 2)
        expected = [
            [("queue.declare", "compute"), ("queue.bind", "compute")],
            [("queue.bind", self.own)],
        ]
        for number in range(4):
            self.assertEqual(self.proven(), Reachability())
            self.assertEqual(self.declared(), expected[number % 2])
        self.assertEqual(self.probes("compute"), [])

    def test_alone(self) -> None:
        """Who is alone on its topic sends a message to that, too, so that a missing binding is seen."""
        self.proven()
        self.assertEqual(self.declared(), [("queue.declare", "compute")])
        self.assertEqual(len(self.probes("compute")), 1)

    def test_topic_not_taken(self) -> None:
        """A listener that takes nothing from its topic now, being full, does not miss its consumer there."""
        self.listener.prefetch = 1
        self.deliver(b"long")
        self.got[0].hold()
        self.settle()
        running = next(said for said in self.link.all("basic.consume") if "_running_" in said.args["queue"])
        self.link.feed(self.link.delivery(running.channel, b"long", consumer=running.args["consumer_tag"]))
        self.wait(0.3)
        self.assertEqual(len(self.link.all("basic.cancel")), 1)
        for consumers in (0, 0, 1):
            self.broker.counts = (0, consumers)
            verifying = self.verify()
            said = self.probes()[-1]
            self.link.feed(self.link.delivery(1, said.body or b"", self.link.consumer("compute.h1"), said.properties))
            self.assertEqual(self.successResultOf(verifying), Reachability())
        self.assertEqual((self.probes("compute"), self.link.all("channel.close")), ([], []))

    def test_topic_missing(self) -> None:
        """The topic's binding is made again when the message to it comes back unsent."""
        self.broker.confirming = False
        verifying = self.verify()
        self.confirm(self.probes()[-1], 1)
        self.give_back(self.probes("compute")[-1], 2)
        self.broker.confirming = True
        self.confirm(self.probes()[-1], 3)
        self.carry(self.probes()[-1])
        binding = "the binding of the queue compute to the exchange nova"
        self.assertEqual(self.successResultOf(verifying), Reachability(repaired=(binding,)))

    def confirm(self, said: Said, tag: int) -> None:
        self.out.say(said.channel, "basic.ack", delivery_tag=tag)
        self.settle()

    def give_back(self, said: Said, tag: int) -> None:
        self.out.give_back(said)
        self.confirm(said, tag)

    def test_host_missing(self) -> None:
        """The host's binding is removed, for it may be there and lead nowhere, and all are made again."""
        self.broker.confirming = False
        verifying = self.verify()
        self.declared()
        self.give_back(self.probes()[-1], 1)
        made = [("queue.unbind", "compute.h1"), *[("queue.bind", name) for name in ("compute.h1", "compute", self.own)]]
        self.assertEqual(self.declared(), made)
        self.confirm(self.probes()[-1], 2)
        self.carry(self.probes()[-1])
        binding = "the binding of the queue compute.h1 to the exchange nova"
        self.assertEqual(self.successResultOf(verifying), Reachability(repaired=(binding,)))

    def test_missing_still(self) -> None:
        """A binding that was made again and leads nowhere is the problem."""
        self.broker.confirming = False
        verifying = self.verify()
        for tag in (1, 2):
            self.give_back(self.probes()[-1], tag)
        found = self.successResultOf(verifying)
        problem = "the binding of the queue compute.h1 to the exchange nova is missing, though it was declared again"
        self.assertEqual(found, Reachability(problem))

    def test_exchange_missing(self) -> None:
        """An exchange that is gone is declared again, with all bindings."""
        self.proven()
        self.broker.closing["queue.bind"] = (404, "NOT_FOUND - no exchange 'compute_fanout' in vhost 'cell'")
        verifying = self.verify()
        self.assertEqual(self.successResultOf(verifying).problem, self.gone("compute_fanout"))
        self.broker.closing.clear()
        self.broker.closing["basic.publish"] = (404, "NOT_FOUND - no exchange 'nova' in vhost 'cell'")
        self.assertEqual(self.successResultOf(self.verify()).problem, self.gone("nova"))
        self.broker.closing.clear()
        self.assertEqual(self.proven(), Reachability())
        names = [said.args["exchange"] for said in self.out.all("exchange.declare")]
        self.assertEqual(names, ["nova", "compute_fanout", "nova"])

    @staticmethod
    def gone(exchange: str) -> str:
        return f"the exchange {exchange} is missing, though it was declared again"

    def test_refused(self) -> None:
        """A broker that refuses the repair is the problem, with its reason."""
        self.broker.confirming = False
        verifying = self.verify()
        self.broker.closing["queue.bind"] = (403, "ACCESS_REFUSED - no")
        self.give_back(self.probes()[-1], 1)
        problem = str(self.successResultOf(verifying).problem)
        self.assertRegex(
            problem, r"compute\.h1 .*is missing, and the broker amqp://.* refuses to restore it: ACCESS_REFUSED"
        )
        self.assertTrue(self.listener.live)

    def test_refused_and_there(self) -> None:
        """A broker that refuses a declaration of what is there is none."""
        self.broker.counts = (0, 2)
        self.broker.closing["queue.bind"] = (403, "ACCESS_REFUSED - no")
        self.assertEqual(self.proven(), Reachability())

    def test_not_taken(self) -> None:
        """A broker that cannot take the message is the problem."""
        self.broker.confirming = False
        verifying = self.verify()
        for tag in (1, 2):
            said = self.probes()[-1]
            self.out.say(said.channel, "basic.nack", delivery_tag=tag)
            self.settle()
        self.assertIn("could not take the message", str(self.successResultOf(verifying).problem))


class LateTests(LoopbackCase):
    """Tests for messages that are confirmed and do not come back."""

    def late(self) -> Reachability:
        verifying = self.verify()
        self.wait(TIMEOUT)
        return self.successResultOf(verifying)

    def channels(self) -> int:
        return len(self.link.all("basic.consume")) // 3

    def test_late(self) -> None:
        """A message that does not come back is the problem. At the second in a row the listener consumes anew, once."""
        for number, channels in enumerate((1, 2, 2, 2)):
            problem = str(self.late().problem)
            self.assertEqual(problem, "a message to compute.h1 was confirmed and did not arrive")
            self.wait(1)
            self.assertEqual(self.channels(), channels, number)
        self.assertEqual(self.proven(), Reachability())

    def test_same_text(self) -> None:
        """However many messages wait, the problem is the same: who compares it says it once."""
        found = set()
        for messages in (3, 4, 5):
            self.broker.counts = (messages, 1)
            found.add(self.late().problem)
        self.assertEqual(len(found), 1)

    def test_not_in_a_row(self) -> None:
        """One that comes back in between makes the next one the first."""
        for _ in range(3):
            self.late()
            self.proven()
        self.assertEqual(self.channels(), 1)

    def test_no_consumer(self) -> None:
        """A queue without a consumer is consumed anew at once, if the host says so where that is done."""
        self.proven()  # the next one does not look at the topic
        verifying = self.verify()
        self.broker.counts = (0, 0)
        self.wait(TIMEOUT)
        self.assertEqual(self.successResultOf(verifying).problem, "the queue compute.h1 has no consumer")
        self.assertEqual(self.channels(), 2)

    def test_queue_missing(self) -> None:
        """A queue that is gone is declared and consumed anew, and then it is proven."""
        self.proven()
        self.broker.closing["queue.bind"] = (404, f"NOT_FOUND - no queue '{self.own}' in vhost 'cell'")
        self.broker.closing["queue.declare"] = self.broker.closing["queue.bind"]
        verifying = self.verify()
        self.broker.closing.clear()
        self.wait(1)
        self.assertEqual(self.channels(), 2)
        self.carry(self.probes()[-1])
        self.assertEqual(self.successResultOf(verifying), Reachability())
        (line,) = [line for line in self.log if "lost its channel" in line]
        self.assertIn(f"the queue {self.own} is missing", line)

    def test_hosts_disagree(self) -> None:
        """A queue that only the host of the publishing connection does not know is not consumed anew."""
        self.proven()
        for text in (
            "no queue 'compute' in vhost 'cell'",
            "home node 'r@b' of durable queue 'compute' in vhost 'cell'",
        ):
            self.broker.closing["queue.bind"] = (404, f"NOT_FOUND - {text} is down or inaccessible")
            problem = str(self.successResultOf(self.verify()).problem)
            self.assertRegex(
                problem, "^the broker's hosts disagree: it consumes at one:5672, and one:5672 does not know"
            )
            self.broker.closing.clear()
            self.proven()
        self.assertEqual(self.channels(), 1)

    def test_full(self) -> None:
        """A listener that takes in no more is not to blame for what waits."""
        self.deliver(*[b"x"] * 10)
        self.assertEqual(self.late(), Reachability())

    def test_backlog(self) -> None:
        """Nor is one whose queue is long, as long as it gets on with it."""
        self.broker.counts = (100, 1)
        for queue, problem in (("compute$", True), ("compute.h1", False)):
            verifying = self.verify()
            self.deliver(b"x", consumer=self.link.consumer(queue))
            self.wait(TIMEOUT)
            self.assertEqual(self.successResultOf(verifying).problem is not None, problem)

    def test_quorum(self) -> None:
        """A quorum queue that cannot count is not taken at its word."""
        self.done(self.amqp.close())
        self.amqp = self.transport(heartbeat=0.0, quorum_queue=True)
        self.listener = self.listen()
        self.own = self.link.all("queue.declare")[-1].args["queue"]
        self.broker.counts = (0, 0)
        self.assertEqual(self.proven(), Reachability())
        self.assertRegex(str(self.late().problem), "did not arrive")

    def test_silent(self) -> None:
        """A broker that does not answer ends it in time."""
        self.broker.unanswered.add("queue.declare")
        verifying = self.verify()
        self.wait(TIMEOUT)
        self.assertEqual(self.successResultOf(verifying).problem, "the broker did not answer within 9 s")

    def test_publishing_away(self) -> None:
        """A node that can send nothing can answer nothing, and is not reached."""
        self.broker.refusing |= {5672, 5673}
        self.out.lose()
        self.assertRegex(str(self.late().problem), "no message can be sent to it: .*refused")

    def test_reconnected(self) -> None:
        """A connection that is there again in time makes no difference."""
        self.broker.confirming = False
        verifying = self.verify()
        self.out.lose()
        self.broker.confirming = True
        self.wait(2)
        self.assertNoResult(verifying)
        self.carry(self.probes()[-1])
        self.assertEqual(self.successResultOf(verifying), Reachability())

    def test_blocked(self) -> None:
        """While the broker takes no messages nothing is known."""
        for waits in (True, False):
            if waits:
                self.out.say(0, "connection.blocked", reason="low on memory")
            else:
                self.broker.confirming = False
                verifying = self.verify()
                self.out.say(0, "connection.blocked", reason="low on memory")
            verifying = self.verify() if waits else verifying
            self.wait(TIMEOUT)
            error = self.failureResultOf(verifying, BrokerBlockedError).value
            self.assertIn("low on memory", str(error))
            self.out.say(0, "connection.unblocked")
            self.settle()

    def test_not_live(self) -> None:
        """A listener that does not consume is not reached."""
        self.listener.cancel()
        self.assertEqual(self.late().problem, "its consumers are not live")
        self.assertEqual(self.published(), [])
