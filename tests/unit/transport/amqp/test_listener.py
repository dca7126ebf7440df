"""Tests for novasvc.transport.amqp.listener and novasvc.transport.amqp.subscriptions."""

import zlib
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from novasvc.errors import BrokerError, BrokerRefusedError, BrokerUnavailableError, DeclarationMismatchError
from novasvc.rpc.target import Target
from novasvc.transport.amqp.codec import decode_properties
from novasvc.transport.amqp.content import DELIVERIES, SENT, sent_value
from novasvc.transport.amqp.moves import MoveTracker
from novasvc.transport.amqp.protocol import BODY_LIMIT
from novasvc.transport.amqp.publisher import FLOW_CHECK_KEY
from tests.support.amqp_rig import AMQPCase, Link, Said


class ListenerCase(AMQPCase):
    """A transport with a listener; ``got`` has its deliveries."""

    target = Target("compute", "h1")

    def setUp(self) -> None:
        super().setUp()
        self.got: list[Any] = []
        self.amqp = self.transport(heartbeat=0.0)

    def listen(self, prefetch: int = 10) -> Any:
        return self.done(self.amqp.listen(self.target, self.got.append, prefetch))

    @property
    def link(self) -> Link:
        return self.broker.link("consuming")

    @property
    def out(self) -> Link:
        return self.broker.link("publishing")

    def deliver(self, *bodies: bytes, **more: Any) -> None:
        channel = self.link.last("basic.consume").channel
        self.link.feed(b"".join(self.link.delivery(channel, body, **more) for body in bodies))
        self.settle()

    def settled(self) -> list[tuple[Any, ...]]:
        """Return the acks and rejects sent: method, delivery tag, flag."""
        names = ("basic.ack", "basic.reject")
        return [(said.name[6:], *said.args.values()) for said in self.link.seen if said.name in names]

    def published(self) -> list[Said]:
        return self.out.all("basic.publish")

    def headers(self) -> Any:
        return decode_properties(self.published()[-1].properties)["headers"]


class ListenTests(ListenerCase):
    """Tests for what is declared and consumed."""

    def test_queues(self) -> None:
        """The topic's, the server's and the listener's fanout queue are declared, bound and consumed."""
        listener = self.listen(prefetch=100_000)
        self.assertTrue(listener.live)
        queues = [said.args["queue"] for said in self.link.all("queue.declare")]
        self.assertEqual(queues[:2], ["compute", "compute.h1"])
        self.assertRegex(queues[2], r"^compute_fanout_[0-9a-f]{32}$")
        self.assertEqual({said.args["queue"] for said in self.link.all("basic.consume")}, set(queues))
        bound = [(said.args["exchange"], said.args["routing_key"]) for said in self.link.all("queue.bind")]
        requests = [("nova", "compute"), ("nova", "compute.h1"), ("compute_fanout", "compute")]
        self.assertEqual(bound[:3], requests)
        self.assertEqual(bound[3:], [("nova", "novasvc.cancel.compute"), ("nova", "novasvc.cancel.compute.h1")])
        self.assertEqual(self.link.last("basic.qos").args["prefetch_count"], 65_535)

    def test_topic_last(self) -> None:
        """The shared topic queue is consumed last, after the listener's own queues."""
        self.broker.unanswered.add("basic.consume")
        listening = self.started(self.amqp.listen(self.target, self.got.append, 10))
        for queue in (r"compute_fanout_", r"compute\.h1$", r"compute$"):
            said = self.link.last("basic.consume")
            self.assertRegex(said.args["queue"], f"^{queue}")
            self.assertNoResult(listening)
            self.link.say(said.channel, "basic.consume-ok", consumer_tag=said.args["consumer_tag"])
            self.settle()
        self.assertTrue(self.successResultOf(listening).live)

    def test_without_a_server(self) -> None:
        """A listener without a server has no server queue."""
        self.target = Target("compute")
        self.listen()
        self.assertEqual(len(self.link.all("queue.declare")), 2)

    def test_closed(self) -> None:
        """A closed listener leaves no reference in the transport."""
        for _ in range(3):
            self.listen()
            self.amqp._listeners[-1].close()
        self.listen()
        self.assertEqual(len(self.amqp._listeners), 1)

    def test_refused(self) -> None:
        """A refused declaration fails the listen with its reason, and leaves no channel."""
        for code, kind in (
            (403, BrokerRefusedError),
            (404, BrokerError),
            (406, DeclarationMismatchError),
            (500, BrokerUnavailableError),
        ):
            self.broker.closing["queue.declare"] = (code, "no")
            error = self.failed(self.amqp.listen(self.target, self.got.append, 1), BrokerError)
            self.assertIs(type(error), kind)
        self.broker.closing.clear()
        self.listen()
        self.assertEqual(self.link.last("channel.open").channel, 1)

    def test_away(self) -> None:
        """A listen during an outage fails with the connection's problem."""
        self.listen()
        self.broker.refusing |= {5672, 5673}
        self.link.lose()
        self.failed(self.amqp.listen(self.target, self.got.append, 1), BrokerUnavailableError)


class DeliveryTests(ListenerCase):
    """Tests for deliveries."""

    def setUp(self) -> None:
        super().setUp()
        self.listen()

    def test_octets(self) -> None:
        """A body is delivered unchanged."""
        self.deliver("é".encode(), b"\xff\x00", b"")
        self.assertEqual([one.body for one in self.got], ["é".encode(), b"\xff\x00", b""])

    def test_first_time(self) -> None:
        """A new message has no earlier deliveries, and its sender's TTL."""
        self.deliver(b"x", properties={"expiration": "1500"})
        one = self.got[0]
        self.assertEqual((one.expires_in, one.deliveries, one.counts_death), (1.5, 0, True))

    def test_expires_in(self) -> None:
        """expires_in is what is left when it is read, however long the message waited here."""
        self.deliver(b"x", properties={"expiration": "1500"})
        self.deliver(b"y")
        left = []
        for seconds in (0.5, 2.0):
            self.wait(seconds)
            left.append([one.expires_in for one in self.got])
        self.assertEqual(left, [[1.0, None], [0.0, None]])

    def test_deliveries(self) -> None:
        """deliveries is our own count; "redelivered" adds one that is not counted yet."""
        for headers, redelivered, expected in (
            ({"x-delivery-count": 2}, True, (1, False)),
            ({"x-novasvc-deliveries": 3}, False, (3, False)),  # it was requeued as a copy
            ({"x-novasvc-deliveries": 3, "x-novasvc-deaths": 3}, False, (3, True)),
            ({"x-novasvc-deliveries": 3, "x-delivery-count": 1}, True, (4, False)),
            ({}, True, (1, False)),
            ({"x-novasvc-deliveries": 3}, True, (4, False)),
            ({"x-delivery-count": "many"}, False, (0, True)),
        ):
            self.deliver(b"x", properties={"headers": headers}, redelivered=redelivered)
            one = self.got.pop()
            self.assertEqual((one.deliveries, one.counts_death), expected, headers)

    def test_unreadable(self) -> None:
        """An unreadable message is rejected and counted: too long, wrongly compressed, malformed properties."""
        packed = {"headers": {"compression": "zlib"}}
        listener = self.amqp._listeners[0]
        self.deliver(bytes(BODY_LIMIT + 1))
        self.deliver(zlib.compress(bytes(BODY_LIMIT + 1)), properties=packed)
        self.deliver(zlib.compress(b"x" * 100)[:-5], properties=packed)
        self.deliver(b"no stream", properties=packed)
        self.deliver(b"x", properties=b"\xff\xff")
        self.assertEqual((self.got, listener.unreadable), ([], 5))
        self.assertEqual(self.settled(), [("reject", tag, False) for tag in range(1, 6)])
        self.assertEqual(len([line for line in self.log if "dropped a message from compute" in line]), 5)

    def test_compressed(self) -> None:
        """A compressed body is delivered uncompressed."""
        self.deliver(zlib.compress(b"plain"), properties={"headers": {"compression": "zlib"}})
        self.assertEqual(self.got[0].body, b"plain")


class SettleTests(ListenerCase):
    """Tests for ack, requeue, hold and quarantine."""

    def setUp(self) -> None:
        super().setUp()
        self.listen()

    def test_batch(self) -> None:
        """The acks of one turn are one frame with "multiple", if no earlier delivery is unsettled."""
        self.deliver(b"1", b"2", b"3")
        for one in reversed(self.got):
            one.ack()
        self.settle()
        self.assertEqual(self.settled(), [("ack", 3, True)])

    def test_not_a_prefix(self) -> None:
        """An ack after an unsettled delivery is a frame of its own."""
        self.deliver(*[b"x"] * 6)
        for number in (0, 1, 3, 5):
            self.got[number].ack()
        self.settle()
        self.assertEqual(self.settled(), [("ack", 2, True), ("ack", 4, False), ("ack", 6, False)])

    def test_only_later_ones(self) -> None:
        """While the first delivery is unsettled there is no batch."""
        self.deliver(b"1", b"2")
        self.got[1].ack()
        self.settle()
        self.assertEqual(self.settled(), [("ack", 2, False)])

    def test_once(self) -> None:
        """A delivery is settled once; later calls have no effect."""
        self.deliver(b"1", b"2")
        self.got[0].ack()
        self.got[1].reject()
        for one in self.got:
            one.ack()
            one.reject()
            one.requeue(1)
            one.quarantine("why")
        self.settle()
        self.assertEqual(self.settled(), [("reject", 2, False), ("ack", 1, True)])
        self.assertEqual(self.published(), [])

    def test_within_a_read(self) -> None:
        """An ack from the receiver is written when the read is handled."""
        self.amqp._listeners[0].receiver = lambda one: one.ack()
        self.deliver(*[b"x"] * 100)
        self.assertEqual(self.settled(), [("ack", 100, True)])

    def test_requeue(self) -> None:
        """A requeue publishes a copy with count and remaining TTL, and acks the original after its confirm."""
        self.broker.confirming = False
        self.deliver(b"x", properties={"expiration": "1500"})
        self.wait(0.5)
        self.got[0].requeue(2)
        self.settle()
        probe = self.published()[0]
        self.assertEqual((probe.args["exchange"], probe.args["routing_key"]), ("", FLOW_CHECK_KEY))
        self.out.say(probe.channel, "basic.ack", delivery_tag=1)
        self.settle()
        said = self.published()[1]
        self.assertEqual((said.args["exchange"], said.args["routing_key"], said.body), ("", "compute", b"x"))
        headers = self.headers()
        self.assertEqual((headers.pop(DELIVERIES), list(headers)), (2, [SENT]))
        self.assertEqual(decode_properties(said.properties)["expiration"], "1000")
        self.assertEqual(self.settled(), [])
        self.out.say(said.channel, "basic.ack", delivery_tag=2)
        self.settle()
        self.assertEqual(self.settled(), [("ack", 1, True)])

    def sent(self, ago: float, sender: str = "abcdef01", **headers: Any) -> dict[str, Any]:
        """Return properties of a message with a TTL of 30 s that was sent some seconds ago."""
        value = sent_value(sender.encode(), self.reactor.seconds() - ago).decode()
        return {"expiration": "30000", "headers": {SENT: value, **headers}}

    def test_waited_in_the_queue(self) -> None:
        """What a message has waited in its queue is taken from its TTL, and from that of each later copy."""
        self.wait(10)
        self.deliver(b"at once", properties=self.sent(0.1))
        for _ in range(9):
            self.deliver(b"no room for more", properties=self.sent(0.1))
        self.wait(8)
        for delivery in self.got:
            delivery.ack()
        self.settle()
        self.deliver(b"waited", properties=self.sent(8.1))
        waited = self.got[-1]
        self.assertAlmostEqual(waited.expires_in, 21.9)
        self.wait(1)
        waited.requeue(0)
        self.settle()
        copy = decode_properties(self.published()[-1].properties)
        self.assertEqual(copy["expiration"], "20900")
        self.assertTrue(copy["headers"][SENT].endswith(":0000000019000"), copy)

    def test_backlog(self) -> None:
        """Messages that came without a pause may all have waited, however soon each of them is settled."""
        self.wait(10)
        self.deliver(b"a cast")
        for number in range(40):
            self.wait(0.25)
            self.deliver(b"waited", properties=self.sent(8.0))
            self.got[-1].ack()
            self.assertAlmostEqual(self.got[-1].expires_in, 22.0, msg=number)

    def test_clocks_differ(self) -> None:
        """Two messages after lulls have not waited, and show how much the clocks differ; not if they came before."""
        for again in ({"redelivered": True}, {"headers": {DELIVERIES: 1}}):
            self.wait(10)
            properties = self.sent(8.0, **again.pop("headers", {}))
            self.deliver(b"again", properties=properties, **again)
            self.assertAlmostEqual(self.got[-1].expires_in, 22.0)
        for left in (22.0, 30.0):
            self.wait(10)
            self.deliver(b"at once", properties=self.sent(8.0))
            self.assertAlmostEqual(self.got[-1].expires_in, left)
        self.deliver(b"another", properties=self.sent(9.0))
        self.assertAlmostEqual(self.got[-1].expires_in, 29.0)

    def test_waited_for_a_start(self) -> None:
        """A consumer that has just started takes the clocks for equal: its queue may have been full."""
        self.wait(10)
        self.link.lose()
        self.wait(1)
        self.deliver(b"waited", properties=self.sent(8.0))
        self.assertAlmostEqual(self.got[-1].expires_in, 22.0)

    def test_requeue_of_what_was_not_begun(self) -> None:
        """A message that was not begun is requeued without a count."""
        self.deliver(b"x")
        self.got[0].requeue(0)
        self.settle()
        self.assertEqual(self.headers(), {})

    def test_worn(self) -> None:
        """A message that nears its quorum queue's delivery limit is published anew, with its delivery count."""
        for number, (headers, handed_on) in enumerate(
            (
                ({"x-delivery-count": 9}, True),
                ({"x-delivery-count": 10}, False),
                ({"x-delivery-count": 2, "x-acquired-count": 10, "x-novasvc-deliveries": 3}, False),
            )
        ):
            self.deliver(b"%d" % number, redelivered=True, properties={"headers": headers})
            self.settle()
            self.assertEqual(bool(self.got), handed_on, headers)
            self.got.clear()
        self.assertEqual([said.body for said in self.published()], [b"1", b"2"])
        self.assertEqual(self.headers(), {"x-novasvc-deliveries": 4})

    def test_requeue_fails(self) -> None:
        """If the copy cannot be published, the message is rejected with requeue after a pause."""
        self.broker.confirming = False
        self.deliver(b"x")
        self.got[0].requeue(2)
        self.settle()
        self.out.give_back(self.published()[0])
        self.out.say(self.published()[0].channel, "basic.ack", delivery_tag=1)
        self.wait(29)
        self.assertEqual(self.settled(), [])
        self.wait(1)
        self.assertEqual(self.settled(), [("reject", 1, True)])
        self.assertEqual(len([line for line in self.log if "cannot move messages to compute" in line]), 1)

    def test_settled_in_the_pause(self) -> None:
        """During that pause the message can still be acknowledged."""
        self.broker.closing["queue.declare"] = (403, "ACCESS_REFUSED")
        self.deliver(b"x")
        self.got[0].quarantine("why")
        self.settle()
        self.got[0].ack()
        self.wait(3)
        self.assertEqual(self.settled(), [("ack", 1, True)])

    def test_channel_gone_in_the_pause(self) -> None:
        """If the channel is lost during that pause, the requeue is left to the broker."""
        self.broker.closing["queue.declare"] = (403, "ACCESS_REFUSED")
        self.deliver(b"x", b"y")
        for one in self.got:
            one.quarantine("why")
            self.wait(0.5)
        self.broker.closing.clear()
        self.link.say(1, "channel.close", reply_code=404, reply_text="gone")
        self.wait(5)
        self.assertEqual(self.settled(), [])

    def test_settled_while_it_moves(self) -> None:
        """A message that is being moved cannot be settled otherwise."""
        self.broker.confirming = False
        self.deliver(b"x")
        one = self.got[0]
        one.requeue(1)
        one.ack()
        one.reject()
        one.quarantine("why")
        self.settle()
        self.assertEqual((self.settled(), len(self.published())), ([], 1))

    def test_copies_wait(self) -> None:
        """A copy that arrives before its original is acknowledged waits; other messages do not."""
        self.broker.unanswered.add("basic.qos")
        self.deliver(b"x")
        self.got[0].requeue(1)
        self.settle()
        self.deliver(b"copy", properties={"headers": {"x-novasvc-deliveries": 1}})
        self.deliver(b"other")
        self.assertEqual([one.body for one in self.got], [b"x", b"other"])
        self.link.say(self.link.last("basic.qos").channel, "basic.qos-ok")
        self.assertEqual([one.body for one in self.got], [b"x", b"other", b"copy"])

    def test_no_answer_after_a_move(self) -> None:
        """A channel without an answer after a move is replaced; its connection stays."""
        self.broker.unanswered.add("basic.qos")
        self.deliver(b"x")
        self.got[0].requeue(1)
        self.wait(15)
        self.broker.unanswered.clear()
        self.wait(5)
        self.assertTrue(self.amqp._listeners[0].live)
        self.assertEqual(len(self.link.all("basic.consume")), 6)

    def test_quarantine(self) -> None:
        """A quarantined message goes to a bounded queue, with the reason and its origin, and without its counts."""
        self.deliver(b"x", redelivered=True, properties={"headers": {"x-novasvc-deliveries": 2, "x-novasvc-deaths": 2}})
        self.got[0].quarantine("why" * 1000)
        self.settle()
        declared = self.link.last("queue.declare").args
        self.assertEqual((declared["queue"], declared["durable"]), ("compute_quarantine", True))
        self.assertEqual(declared["arguments"], {"x-max-length": 1000})
        self.assertEqual(self.published()[0].args["routing_key"], "compute_quarantine")
        reason = ("why" * 1000)[:500]
        self.assertEqual(self.headers(), {"x-novasvc-queue": "compute", "x-novasvc-reason": reason})
        self.assertEqual(self.settled(), [("ack", 1, True)])

    def test_no_quarantine(self) -> None:
        """If the quarantine queue is refused, the message is requeued after a pause, and consuming goes on."""
        self.broker.closing["queue.declare"] = (403, "ACCESS_REFUSED")
        self.deliver(b"x")
        self.got[0].quarantine("why")
        self.wait(30)
        self.assertEqual(self.settled(), [("reject", 1, True)])
        self.assertEqual(self.published(), [])
        self.deliver(b"y")
        self.assertEqual(len(self.got), 2)
        self.assertTrue(any("cannot move messages to compute_quarantine" in line for line in self.log))

    def test_channel_gone(self) -> None:
        """Settling a delivery of a lost channel has no effect."""
        self.deliver(b"1", b"2", b"3", b"4", b"5")
        self.got[0].ack()  # its ack is pending
        self.link.say(self.link.last("basic.consume").channel, "channel.close", reply_code=404, reply_text="gone")
        self.got[1].ack()
        self.got[2].reject()
        self.got[3].requeue(1)
        self.got[4].quarantine("why")
        self.wait(5)
        self.assertEqual((self.settled(), self.published()), ([], []))

    def test_gone_while_it_moves(self) -> None:
        """A move that outlives its channel is not acknowledged on the next one."""
        self.broker.confirming = False
        self.deliver(b"x")
        self.got[0].requeue(1)
        self.settle()
        self.link.say(self.link.last("basic.consume").channel, "channel.close", reply_code=404, reply_text="gone")
        self.out.say(self.published()[0].channel, "basic.ack", delivery_tag=1)
        self.wait(5)
        self.assertEqual(self.settled(), [])


class CancelTests(ListenerCase):
    """Tests for cancel and close."""

    def test_cancel(self) -> None:
        """After cancel there is no consumer, and deliveries can be acknowledged."""
        listener = self.listen()
        self.deliver(b"x")
        self.done(listener.cancel())
        self.assertFalse(listener.live)
        self.assertEqual([said.args["consumer_tag"] for said in self.link.all("basic.cancel")], ["1", "2", "3"])
        self.got[0].ack()
        self.settle()
        self.assertEqual(self.settled(), [("ack", 1, True)])

    def test_close(self) -> None:
        """close writes the pending acks, deletes the fanout queue only, and then closes the channel."""
        listener = self.listen()
        self.deliver(b"x")
        self.done(listener.cancel())
        self.got[0].ack()
        self.done(listener.close())
        self.assertEqual(self.link.names()[-3:], ["basic.ack", "queue.delete", "channel.close"])
        self.assertRegex(self.link.last("queue.delete").args["queue"], "^compute_fanout_")
        self.done(listener.close())
        self.done(listener.cancel())
        self.assertEqual(len(self.link.all("queue.delete")), 1)

    def test_close_waits_for_moves(self) -> None:
        """close waits for the moves under way, so that no message is delivered twice."""
        listener = self.listen()
        self.broker.confirming = False
        self.deliver(b"x")
        self.got[0].requeue(1)
        closing = self.started(listener.close())
        self.assertNoResult(closing)
        self.out.say(self.published()[0].channel, "basic.ack", delivery_tag=1)
        self.done(closing)
        self.assertEqual(self.settled(), [("ack", 1, True)])

    def test_wait_for_moves_cancelled(self) -> None:
        """A wait for moves that is cancelled fails with that, and leaves the moves alone."""
        tracker, moving = MoveTracker(self.reactor), Deferred[None]()
        tracker.add(moving)
        waiting = tracker.wait(5.0)
        waiting.cancel()
        self.failed(waiting, CancelledError)
        self.assertFalse(moving.called)
        late = tracker.wait(5.0)
        moving.callback(None)
        self.successResultOf(late)

    def test_close_does_not_wait_for_ever(self) -> None:
        """Without confirms close ends after the operation timeout, and no reject follows."""
        listener, _ = self.listen(), self.listen()
        self.broker.confirming = False
        self.deliver(b"x")
        self.link.deliver(1, b"y")
        self.got[1].requeue(1)
        self.amqp._publisher.close()  # which ends its timer for overdue confirms
        closing = self.started(listener.close())
        self.wait(14.5, step=0.5)
        self.assertNoResult(closing)
        self.wait(1)
        self.successResultOf(closing)
        self.out.lose()
        self.wait(5)
        self.assertEqual(self.settled(), [])

    def test_lost(self) -> None:
        """cancel and close end when the connection is lost."""
        listener = self.listen()
        self.broker.unanswered |= {"basic.cancel", "queue.delete"}
        cancelling, closing = self.started(listener.cancel()), self.started(listener.close())
        self.link.lose()
        self.done(cancelling)
        self.done(closing)
        self.wait(5)
        self.assertEqual(self.link.all("basic.consume"), [])

    def test_silent_broker(self) -> None:
        """A silent broker is waited for once, for 2 s; its late answers are ignored."""
        listener = self.listen()
        self.broker.unanswered.add("basic.qos")
        narrowing = self.started(listener.cancel_topic(100))
        self.wait(1.9)
        self.assertNoResult(narrowing)
        self.wait(0.2)
        self.successResultOf(narrowing)
        self.done(listener.cancel())
        self.done(listener.close())
        self.assertEqual(self.link.all("queue.delete"), [])
        self.assertTrue(any("no reply from the broker to the listener of compute.h1" in line for line in self.log))

    def test_cancelled_before_it_consumes(self) -> None:
        """A listener that is cancelled while its queues are declared starts no consumer."""
        listener = self.listen()
        self.link.lose()
        self.done(listener.cancel())
        self.wait(5)
        self.assertEqual((self.link.all("basic.consume"), listener.live), ([], False))


class NarrowTests(ListenerCase):
    """Tests for cancel_topic: what a draining server still consumes."""

    def consumed(self) -> list[tuple[Any, ...]]:
        """Return the consumed queues, with their arguments."""
        return [(said.args["queue"], said.args["arguments"]) for said in self.link.all("basic.consume")]

    def test_narrow(self) -> None:
        """The server's queue always has a consumer; the new one has a lower priority and its own prefetch."""
        listener = self.listen()
        self.link.seen.clear()
        self.done(listener.cancel_topic(100))
        self.assertEqual(self.link.names(), ["basic.qos", "basic.consume", *["basic.cancel"] * 2])
        self.assertEqual(self.link.last("basic.qos").args["prefetch_count"], 100)
        self.assertEqual(self.consumed(), [("compute.h1", {"x-priority": -1})])
        self.assertEqual([said.args["consumer_tag"] for said in self.link.all("basic.cancel")], ["2", "3"])
        self.deliver(b"x", consumer="4")
        self.assertEqual(self.got[-1].sent_to, "server")
        self.done(listener.cancel())
        self.assertEqual([said.args["consumer_tag"] for said in self.link.all("basic.cancel")[2:]], ["1", "4"])

    def test_fanout(self) -> None:
        """A fanout is acknowledged and dropped: of the fanout queue a draining server reads orders only."""
        listener = self.listen()
        fanout_consumer = self.link.consumer("compute_fanout_")
        self.deliver(b"before", consumer=fanout_consumer)
        self.done(listener.cancel_topic(100))
        self.deliver(b"after", consumer=fanout_consumer)
        self.assertEqual([one.body for one in self.got], [b"before"])
        self.assertEqual(self.settled(), [("ack", 2, False)])

    def test_alarm(self) -> None:
        """An unstarted message is rejected with requeue, if the broker is blocked and others consume its queue."""
        listener = self.listen(prefetch=300)
        self.deliver(*[b"x"] * 200)  # of the topic
        self.deliver(b"own", consumer=self.link.consumer("compute.h1"))
        self.deliver(b"begun")
        self.done(listener.cancel_topic(100))
        self.out.say(0, "connection.blocked", reason="low on memory")
        for one in self.got:
            one.requeue(int(one.body == b"begun"))
        self.settle()
        self.assertEqual(self.settled(), [("reject", tag, True) for tag in range(1, 201)])
        self.done(listener.cancel())
        closing = self.started(listener.close())
        self.wait(2.1)
        self.successResultOf(closing)
        self.wait(15)
        self.assertEqual(len([line for line in self.log if "cannot move messages to compute" in line]), 2)

    def test_alarm_at_the_end(self) -> None:
        """close waits only briefly for a blocked broker, and logs once that no message could be moved."""
        listener = self.listen(prefetch=300)
        self.deliver(*[b"x"] * 200)
        self.out.say(0, "connection.blocked", reason="low on memory")
        for one in self.got:
            one.requeue(0)
        closing = self.started(listener.close())
        self.wait(2.1)
        self.successResultOf(closing)
        self.wait(15)
        self.assertEqual(len([line for line in self.log if "cannot move messages to compute" in line]), 1)

    def test_without_a_server(self) -> None:
        """A narrowed listener without a server consumes no requests, and is not re-established."""
        self.target = Target("compute")
        listener = self.listen()
        self.done(listener.cancel_topic(100))
        self.assertEqual(len(self.link.all("basic.cancel")), 1)
        self.link.lose()
        self.wait(5)
        self.assertEqual(self.consumed(), [])

    def test_lost(self) -> None:
        """After a reconnect it is still narrow: of the fanout queue it reads orders only."""
        listener = self.listen()
        self.done(listener.cancel_topic(100))
        self.link.lose()
        self.wait(5)
        fanout_queue, own = [queue for queue, _ in self.consumed()]
        self.assertTrue(fanout_queue.startswith("compute_fanout_"))
        self.assertEqual((own, self.consumed()[-1][1]), ("compute.h1", {"x-priority": -1}))
        self.assertEqual([said.args["queue"] for said in self.link.all("queue.declare")], [own, fanout_queue])
        self.assertTrue(listener.live)
        self.deliver(b"x", consumer=self.link.consumer("compute_fanout_"))
        self.assertEqual((self.got, self.settled()), ([], [("ack", 1, True)]))

    def test_lost_meanwhile(self) -> None:
        """cancel_topic ends when the connection is lost, and the listener is narrow after the reconnect."""
        listener = self.listen()
        self.broker.unanswered.add("basic.cancel")
        narrowing = self.started(listener.cancel_topic(100))
        self.link.lose()
        self.done(narrowing)
        self.broker.unanswered.clear()
        self.wait(5)
        self.assertEqual(self.consumed()[-1], ("compute.h1", {"x-priority": -1}))
        self.assertFalse(listener.consumes_from("compute"))

    def test_while_it_is_established(self) -> None:
        """A listener that is narrowed while it is established ends up narrow."""
        listener = self.listen()
        self.broker.unanswered.add("basic.consume")
        self.link.lose()
        self.wait(3)
        channel = self.link.last("basic.consume").channel
        self.done(listener.cancel_topic(100))
        self.broker.unanswered.clear()
        self.link.say(channel, "basic.consume-ok", consumer_tag="1")
        self.wait(1)
        self.assertEqual(self.consumed()[-1], ("compute.h1", {"x-priority": -1}))
        self.assertEqual([said.args["consumer_tag"] for said in self.link.all("basic.cancel")], ["2", "3"])

    def test_refused_while_it_is_established(self) -> None:
        """If that closes its channel, it is not live until it is re-established."""
        listener = self.listen()
        self.broker.unanswered.add("basic.consume")
        self.link.lose()
        self.wait(3)
        said = self.link.last("basic.consume")
        self.done(listener.cancel_topic(100))
        self.broker.unanswered.clear()
        self.link.say(said.channel, "basic.consume-ok", consumer_tag="1")
        self.broker.closing["basic.cancel"] = (404, "NOT_FOUND - no")
        self.settle()
        self.assertFalse(listener.live)
        self.broker.closing.clear()
        self.wait(5)
        self.assertTrue(listener.live)


class RestoreTests(ListenerCase):
    """Tests for recovery."""

    def consumed(self) -> int:
        return len(self.link.all("basic.consume"))

    def gone(self) -> None:
        """Send basic.cancel for the topic's queue."""
        said = self.link.last("basic.consume")
        self.link.say(said.channel, "basic.cancel", consumer_tag=self.link.consumer("compute$"), no_wait=True)

    def test_queue_deleted(self) -> None:
        """A deleted queue is declared and consumed again; the connection stays."""
        listener = self.listen()
        self.gone()
        self.assertFalse(listener.live)
        self.wait(1)
        self.assertEqual((listener.live, self.consumed(), len(self.broker.links)), (True, 6, 2))
        self.assertTrue(any("the broker cancelled the consumer of compute" in line for line in self.log))
        self.deliver(b"x")
        self.assertEqual(len(self.got), 1)

    def test_learned_limit(self) -> None:
        """The broker's own consumer_timeout is logged once, with the setting's value."""
        problem = (
            "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms"
        )
        for ours, told in ((0.0, "and none is set here"), (3600.0, "not 3600 s")):
            self.done(self.amqp.close())
            self.amqp = self.transport(heartbeat=0.0, consumer_timeout=ours)
            listener = self.listen()
            for _ in range(2):
                channel = self.link.last("basic.consume").channel
                self.link.say(channel, "channel.close", reply_code=406, reply_text=problem)
                self.wait(5)
            self.assertEqual(listener.hold_after, 600)
            (line,) = [line for line in self.log if told in line]
            self.assertIn(f"consumer_timeout is 1800 s, {told}; set rabbit_consumer_timeout to the same value", line)

    def test_refused_for_a_while(self) -> None:
        """A refused declaration is retried with backoff until it succeeds, and logged once."""
        listener = self.listen()
        self.broker.closing["queue.declare"] = (404, "NOT_FOUND - node down")
        self.gone()
        self.wait(30)
        attempts = len(self.link.all("channel.open")) - 1
        self.assertTrue(7 <= attempts <= 20, attempts)
        self.assertEqual(len([line for line in self.log if "cannot consume; retrying" in line]), 1)
        self.broker.closing.clear()
        self.wait(5)
        self.assertTrue(listener.live)
        self.assertTrue(any("consumes again" in line for line in self.log))

    def test_closed_while_it_is_tried(self) -> None:
        """Closing the listener ends the retries."""
        listener = self.listen()
        self.gone()
        self.done(listener.close())
        self.wait(5)
        self.assertEqual(self.consumed(), 3)

    def test_lost_while_it_is_tried(self) -> None:
        """A connection that is lost during the retries restores the listener once, when it is back."""
        listener = self.listen()
        self.gone()
        self.link.lose()
        self.wait(10)
        self.assertEqual((listener.live, self.consumed()), (True, 3))

    def test_connection_lost(self) -> None:
        """After a reconnect everything is consumed again, with the same fanout queue."""
        listener = self.listen()
        before = self.link.last("queue.declare").args["queue"]
        self.link.lose()
        self.assertFalse(listener.live)
        self.wait(2)
        self.assertTrue(listener.live)
        self.assertEqual(self.link.last("queue.declare").args["queue"], before)
        self.assertEqual(self.consumed(), 3)

    def test_refused_after_a_reconnect(self) -> None:
        """A refusal on the next connection affects no other subscription, and is retried."""
        refused = self.listen()
        replies: list[bytes] = []
        address = self.done(self.amqp.open_replies(replies.append))
        self.broker.closing["basic.qos"] = (406, "PRECONDITION_FAILED")
        self.link.lose()
        self.wait(2)
        self.assertFalse(refused.live)
        self.assertEqual(self.link.last("basic.consume").args["queue"], address)
        self.broker.closing.clear()
        self.wait(5)
        self.assertTrue(refused.live)

    def test_closed_while_others_are_restored(self) -> None:
        """A listener that is closed while others are restored is not restored."""
        stays, goes = self.listen(), self.listen()
        self.broker.unanswered.add("basic.qos")
        self.link.lose()
        self.wait(2)
        self.done(goes.close())
        self.broker.unanswered.clear()
        self.link.say(1, "basic.qos-ok")
        self.settle()
        self.assertEqual((stays.live, goes.live, self.consumed()), (True, False, 3))

    def test_lost_again_while_it_is_restored(self) -> None:
        """A connection that is lost during the restore counts as a failed attempt."""
        listener = self.listen()
        self.broker.unanswered.add("queue.declare")
        self.link.lose()
        self.wait(2)
        self.link.lose()
        self.broker.unanswered.clear()
        self.wait(3)
        self.assertTrue(listener.live)
