"""Tests for novasvc.transport.amqp.loopback: how a listener proves that messages reach it, and what it repairs."""

from typing import Any

from twisted.internet.defer import Deferred

from novasvc.errors import BrokerBlockedError
from novasvc.interfaces import Reachability
from novasvc.rpc.baseapi import write_ping
from novasvc.rpc.message import encode_result, read_request, unwrap
from novasvc.rpc.target import Target
from novasvc.transport.amqp.codec import decode_properties
from novasvc.transport.amqp.publisher import FLOW_CHECK_KEY
from tests.support.amqp_rig import Said
from tests.unit.transport.amqp.test_listener import ListenerCase

TIMEOUT = 9.0
PROBE = "x-novasvc-probe"


class LoopbackCase(ListenerCase):
    """A listener of compute.h1; the test routes its messages."""

    def setUp(self) -> None:
        super().setUp()
        self.listener = self.listen()
        self.own = self.link.all("queue.declare")[-1].args["queue"]
        # This message's confirm proves that the broker reads, so no later message waits for a probe of the publisher.
        self.done(self.amqp.send(Target("compute", "h1"), b"", None, False))
        self.first, self.before = self.out, len(super().published())

    def published(self) -> list[Said]:
        """Return what was published since, without the publisher's own probes."""
        before = self.before if self.out is self.first else 0
        return [said for said in super().published()[before:] if said.args["routing_key"] != FLOW_CHECK_KEY]

    def verify(self) -> Deferred[Reachability]:
        return self.started(self.listener.verify(write_ping, TIMEOUT))

    def probes(self, key: str = "compute.h1") -> list[Said]:
        return [said for said in self.published() if said.args["routing_key"] == key]

    def carry(self, said: Said, queue: str = "compute.h1", *, header: bool = True) -> None:
        """Deliver a published message to the consumer of a queue."""
        (tag,) = [one.args["consumer_tag"] for one in self.link.all("basic.consume") if one.args["queue"] == queue][-1:]
        properties: Any = said.properties if header else b"\0\0"
        self.deliver(said.body or b"", consumer=tag, properties=properties)

    def declared(self) -> list[tuple[str, ...]]:
        """Return what was declared on the probes' channel since the last call."""
        names = ("queue.declare", "queue.bind", "queue.unbind", "exchange.declare")
        seen = [said for said in self.out.seen if said.name in names and said.channel != 1]
        fresh, self._declared = seen[getattr(self, "_declared", 0) :], len(seen)
        return [(said.name, said.args.get("queue") or said.args["exchange"]) for said in fresh]

    def proven(self) -> Reachability:
        """Verify, and deliver the last message to the host's queue."""
        verifying = self.verify()
        self.carry(self.probes()[-1])
        return self.successResultOf(verifying)


class ProbeTests(LoopbackCase):
    """Tests for probes and their routes."""

    def test_message(self) -> None:
        """A probe is a ping that takes a caller's route: by the exchange, mandatory, with the verification's TTL."""
        verifying = self.verify()
        (said,) = self.probes()
        self.assertEqual((said.args["exchange"], said.args["mandatory"]), ("nova", True))
        properties = decode_properties(said.properties)
        self.assertEqual((properties["headers"][PROBE], properties["expiration"]), (self.own, "7200"))
        request = read_request(unwrap(said.body or b""))
        self.assertEqual((request.namespace, request.method, request.version), ("baseapi", "ping", "1.0"))
        self.assertEqual(request.reply_to.address, self.own)  # type: ignore[union-attr]  # it is a call
        self.assertNoResult(verifying)
        self.carry(said)
        self.assertEqual(self.successResultOf(verifying), Reachability())
        self.assertEqual((self.got, self.settled()), ([], [("ack", 1, True)]))
        self.wait(15)
        self.assert_idle()

    def test_an_earlier_one(self) -> None:
        """A probe of an earlier verification proves nothing, and does not reach the receiver."""
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
        """A sibling's probe is forwarded to it, once; one that came by the fanout queue is not."""
        sibling = "compute_fanout_5"
        headers = {"headers": {PROBE: sibling}}
        self.deliver(b"ping", properties=headers)
        (said,) = self.published()
        self.assertEqual((said.args["exchange"], said.args["routing_key"], said.body), ("", sibling, b"ping"))
        self.assertEqual(self.headers()[PROBE], sibling)
        self.deliver(b"ping", consumer=self.link.consumer("compute_fanout_"), properties=headers)
        self.assertEqual((len(self.published()), self.got), (1, []))

    def test_strangers(self) -> None:
        """A probe header that names another kind of queue is not followed."""
        for address in ("reply_5", "volume_fanout_5", "compute"):
            self.deliver(b"ping", properties={"headers": {PROBE: address}})
        self.assertEqual((self.published(), self.got), ([], []))

    def test_passed_on(self) -> None:
        """A probe that a sibling forwarded is a proof."""
        verifying = self.verify()
        self.carry(self.probes()[-1], self.own)
        self.assertEqual(self.successResultOf(verifying), Reachability())

    def test_answered(self) -> None:
        """A peer without probes answers the ping: a proof, which does not reach the receiver, late or not."""
        verifying = self.verify()
        request = read_request(unwrap(self.probes()[-1].body or b""))
        answer = encode_result(request.reply_to.msg_id, {"service": "compute"}, "ping")  # type: ignore[union-attr]
        self.deliver(answer, consumer=self.link.consumer("compute_fanout_"))
        self.assertEqual(self.successResultOf(verifying), Reachability())
        self.deliver(answer, consumer=self.link.consumer("compute_fanout_"))
        self.assertEqual(self.got, [])

    def test_fanouts(self) -> None:
        """Fanouts reach the receiver during a verification."""
        self.verify()
        self.deliver(b"news", consumer=self.link.consumer("compute_fanout_"))
        self.assertEqual([one.body for one in self.got], [b"news"])

    def test_no_server(self) -> None:
        """A listener without a server, or of one queue, has no route of its own and sends no probe."""
        queue = self.done(self.amqp.consume("notes", self.got.append, 1))
        self.assertEqual(self.done(queue.verify(write_ping, TIMEOUT)), Reachability())
        self.assertEqual(self.published(), [])

    def test_refused(self) -> None:
        """A refused verification loses no unconfirmed fanout."""
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
        """A cancelled verification leaves no timer."""
        verifying = self.verify()
        verifying.cancel()
        self.failureResultOf(verifying)
        self.wait(15)
        self.assert_idle()


class BindingTests(LoopbackCase):
    """Tests for the bindings that the probe does not use."""

    def test_turns(self) -> None:
        """With other consumers on the topic, its binding and the fanout queue's are made again in turns."""
        self.broker.counts = (0, 2)
        expected = [
            [("queue.declare", "compute"), ("queue.bind", "compute")],
            [("queue.bind", self.own)] * 3,  # to the fanout exchange, and for cancellations of topic and host
        ]
        for number in range(4):
            self.assertEqual(self.proven(), Reachability())
            self.assertEqual(self.declared(), expected[number % 2])
        self.assertEqual(self.probes("compute"), [])

    def test_alone(self) -> None:
        """The only consumer of a topic sends a probe to the topic as well, which detects a missing binding."""
        self.proven()
        self.assertEqual(self.declared(), [("queue.declare", "compute")])
        self.assertEqual(len(self.probes("compute")), 1)

    def test_topic_not_taken(self) -> None:
        """A full listener that has cancelled its topic consumer does not miss it."""
        self.listener.prefetch = 1
        self.deliver(b"long")
        self.got[0].hold()
        self.settle()
        holding = next(said for said in self.link.all("basic.consume") if "_running_" in said.args["queue"])
        self.link.feed(self.link.delivery(holding.channel, b"long", consumer=holding.args["consumer_tag"]))
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
        """The topic's binding is made again when the probe to it is returned."""
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

    def test_server_missing(self) -> None:
        """The server's binding is removed first, as it may exist and route nowhere, and all are made again."""
        self.broker.confirming = False
        verifying = self.verify()
        self.declared()
        self.give_back(self.probes()[-1], 1)
        made = [("queue.unbind", "compute.h1"), *[("queue.bind", name) for name in ("compute.h1", "compute", self.own)]]
        made += [("queue.bind", self.own)] * 2  # for cancellations
        self.assertEqual(self.declared(), made)
        self.confirm(self.probes()[-1], 2)
        self.carry(self.probes()[-1])
        binding = "the binding of the queue compute.h1 to the exchange nova"
        self.assertEqual(self.successResultOf(verifying), Reachability(repaired=(binding,)))

    def test_missing_still(self) -> None:
        """A binding that was made again and still routes nowhere is the problem."""
        self.broker.confirming = False
        verifying = self.verify()
        for tag in (1, 2):
            self.give_back(self.probes()[-1], tag)
        found = self.successResultOf(verifying)
        problem = "the binding of the queue compute.h1 to the exchange nova is still missing after it was redeclared"
        self.assertEqual(found, Reachability(problem))

    def test_exchange_missing(self) -> None:
        """A missing exchange is declared again, with all bindings."""
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
        return f"the exchange {exchange} is still missing after it was redeclared"

    def test_refused(self) -> None:
        """A refused repair is the problem, with the broker's reason."""
        self.broker.confirming = False
        verifying = self.verify()
        self.broker.closing["queue.bind"] = (403, "ACCESS_REFUSED - no")
        self.give_back(self.probes()[-1], 1)
        problem = str(self.successResultOf(verifying).problem)
        self.assertRegex(
            problem, r"compute\.h1 .*is missing, and the broker amqp://.* refused to redeclare it: ACCESS_REFUSED"
        )
        self.assertTrue(self.listener.live)

    def test_refused_and_there(self) -> None:
        """A refused declaration of something that exists is no problem."""
        self.broker.counts = (0, 2)
        self.broker.closing["queue.bind"] = (403, "ACCESS_REFUSED - no")
        self.assertEqual(self.proven(), Reachability())

    def test_not_taken(self) -> None:
        """A probe that the broker nacks is the problem."""
        self.broker.confirming = False
        verifying = self.verify()
        for tag in (1, 2):
            said = self.probes()[-1]
            self.out.say(said.channel, "basic.nack", delivery_tag=tag)
            self.settle()
        self.assertIn("rejected the message", str(self.successResultOf(verifying).problem))


class LateTests(LoopbackCase):
    """Tests for probes that are confirmed and do not come back."""

    def late(self) -> Reachability:
        verifying = self.verify()
        self.wait(TIMEOUT)
        return self.successResultOf(verifying)

    def channels(self) -> int:
        return len(self.link.all("basic.consume")) // 3

    def test_late(self) -> None:
        """An overdue probe is the problem. After the second in a row the listener consumes anew, once."""
        for number, channels in enumerate((1, 2, 2, 2)):
            problem = str(self.late().problem)
            self.assertEqual(problem, "a message to compute.h1 was confirmed and did not arrive")
            self.wait(1)
            self.assertEqual(self.channels(), channels, number)
        self.assertEqual(self.proven(), Reachability())

    def test_same_text(self) -> None:
        """The problem's text does not depend on the queue's length, so that it is logged once."""
        found = set()
        for messages in (3, 4, 5):
            self.broker.counts = (messages, 1)
            found.add(self.late().problem)
        self.assertEqual(len(found), 1)

    def test_not_in_a_row(self) -> None:
        """A probe that comes back in between resets the count."""
        for _ in range(3):
            self.late()
            self.proven()
        self.assertEqual(self.channels(), 1)

    def test_no_consumer(self) -> None:
        """A queue without a consumer is consumed anew at once, if the consuming connection's broker node agrees."""
        self.proven()  # the next verification does not check the topic
        verifying = self.verify()
        self.broker.counts = (0, 0)
        self.wait(TIMEOUT)
        self.assertEqual(self.successResultOf(verifying).problem, "the queue compute.h1 has no consumer")
        self.assertEqual(self.channels(), 2)

    def test_queue_missing(self) -> None:
        """A missing queue is declared and consumed anew, and then verified."""
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

    def test_broker_nodes_disagree(self) -> None:
        """A queue that only the publishing connection's broker node does not know is not consumed anew."""
        self.proven()
        for text in (
            "no queue 'compute' in vhost 'cell'",
            "home node 'r@b' of durable queue 'compute' in vhost 'cell'",
        ):
            self.broker.closing["queue.bind"] = (404, f"NOT_FOUND - {text} is down or inaccessible")
            problem = str(self.successResultOf(self.verify()).problem)
            self.assertRegex(
                problem, "^the broker nodes disagree: the service consumes at one:5672, and one:5672 does not know"
            )
            self.broker.closing.clear()
            self.proven()
        self.assertEqual(self.channels(), 1)

    def test_full(self) -> None:
        """A full listener is not at fault for a probe that queues."""
        self.deliver(*[b"x"] * 10)
        self.assertEqual(self.late(), Reachability())

    def test_backlog(self) -> None:
        """Nor is a listener with a long backlog, as long as it makes progress."""
        self.broker.counts = (100, 1)
        for queue, problem in (("compute$", True), ("compute.h1", False)):
            verifying = self.verify()
            self.deliver(b"x", consumer=self.link.consumer(queue))
            self.wait(TIMEOUT)
            self.assertEqual(self.successResultOf(verifying).problem is not None, problem)

    def test_quorum(self) -> None:
        """A quorum queue's consumer count of 0 is not trusted."""
        self.done(self.amqp.close())
        self.amqp = self.transport(heartbeat=0.0, quorum_queue=True)
        self.listener = self.listen()
        self.own = self.link.all("queue.declare")[-1].args["queue"]
        self.broker.counts = (0, 0)
        self.assertEqual(self.proven(), Reachability())
        self.assertRegex(str(self.late().problem), "did not arrive")

    def test_silent(self) -> None:
        """A verification ends in time if the broker does not answer."""
        self.broker.unanswered.add("queue.declare")
        verifying = self.verify()
        self.wait(TIMEOUT)
        self.assertEqual(self.successResultOf(verifying).problem, "the broker did not answer within 9 s")

    def test_publishing_away(self) -> None:
        """A node that cannot publish cannot reply, and counts as unreachable."""
        self.broker.refusing |= {5672, 5673}
        self.out.lose()
        self.assertRegex(str(self.late().problem), "the service cannot publish to itself: .*refused")

    def test_reconnected(self) -> None:
        """A reconnect in time makes no difference."""
        self.broker.confirming = False
        verifying = self.verify()
        self.out.lose()
        self.broker.confirming = True
        self.wait(2)
        self.assertNoResult(verifying)
        self.carry(self.probes()[-1])
        self.assertEqual(self.successResultOf(verifying), Reachability())

    def test_blocked(self) -> None:
        """While the broker is blocked there is no finding."""
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
        """A listener that does not consume is not reachable."""
        self.listener.cancel()
        self.assertEqual(self.late().problem, "the listener is not consuming")
        self.assertEqual(self.published(), [])
