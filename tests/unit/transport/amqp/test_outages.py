"""Regression tests for failures at an awkward moment; each of them happened once."""

from math import inf

from twisted.internet.defer import CancelledError

from novasvc.errors import BrokerBlockedError, BrokerUnavailableError, TransportClosedError, TransportFullError
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from novasvc.transport.amqp import send_buffer
from novasvc.transport.amqp.frames import BODY, HEADER, pack_frame
from tests.support.amqp_rig import AMQPCase, pack
from tests.unit.transport.amqp.test_transport import TransportCase


class ListenTests(TransportCase):
    def test_cancelled(self) -> None:
        """Cancelling a listen during the connect leaves the connection to the other listeners."""
        self.broker.unanswered.add("connection.open")
        first, second = (self.started(self.amqp.listen(Target(topic), self.got.append, 1)) for topic in ("a", "b"))
        first.cancel()
        self.failed(first, CancelledError)
        self.broker.unanswered.clear()
        self.link.say(0, "connection.open-ok")
        self.settle()
        self.assertTrue(self.successResultOf(second).live)

    def test_node_down(self) -> None:
        """A queue whose node is down is retried."""
        reason = "NOT_FOUND - home node 'r@b' of durable queue 'a' in vhost '/' is down or inaccessible"
        self.broker.closing["queue.declare"] = (404, reason)
        self.failed(self.amqp.listen(Target("a"), self.got.append, 1), BrokerUnavailableError)


class SendTests(TransportCase):
    def test_no_place_to_wait(self) -> None:
        """A message that has to be buffered and finds the bound exceeded fails; one that waits keeps its place."""
        self.patch(send_buffer, "MAX_MESSAGES", 1)
        self.broker.unanswered.add("exchange.declare")
        waiting = self.started(self.amqp.send(Target("a", exchange="other"), b"x", None, True))
        self.out.say(0, "connection.blocked", reason="memory")
        self.failed(self.amqp.send(Target("b"), b"y", None, True), TransportFullError)
        self.out.say(self.out.last("exchange.declare").channel, "exchange.declare-ok")
        self.settle()
        self.assertNoResult(waiting)
        self.wait(16)
        self.failed(waiting, BrokerBlockedError)

    def test_deadline(self) -> None:
        """A request is buffered for a blocked broker nearly as long as its sender waits."""
        self.out.say(0, "connection.blocked", reason="memory")
        buffered = self.started(self.amqp.send(Target("b"), b"y", 60.0, True))
        self.wait(56)
        self.assertNoResult(buffered)
        self.wait(2)
        self.failed(buffered, BrokerBlockedError)

    def test_for_ever(self) -> None:
        """A message with an infinite TTL is sent with the longest expiration."""
        self.done(self.amqp.send(Target("a"), b"x", inf, True))

    def test_new_exchange(self) -> None:
        """Many messages to a new exchange declare it once, on one channel."""
        before = len(self.out.all("channel.open"))
        for sent in [self.started(self.amqp.send(Target("a", exchange="other"), b"x", 9.0, True)) for _ in range(50)]:
            self.settle()
            self.successResultOf(sent)
        self.assertEqual(len(self.out.all("channel.open")) - before, 1)


class ProblemTests(TransportCase):
    """Tests for how an outage is logged and counted."""

    def setUp(self) -> None:
        metrics.reset()
        self.addCleanup(metrics.reset)
        super().setUp()

    def counted(self) -> list[float]:
        families = (metrics.broker_connected, metrics.broker_blocked, metrics.broker_lost, metrics.broker_reconnects)
        return [family.at("publishing").value for family in families]

    def test_outage(self) -> None:
        """An outage is reported with the broker's address, the password masked, until it is over."""
        self.assertEqual(self.counted(), [1, 0, 0, 0])
        self.broker.refusing |= {5672, 5673}
        self.out.lose()
        self.wait(5)
        problem = self.amqp.problem()
        assert problem is not None
        self.assertRegex(problem, r"^the publishing connection is \w+: .*:567[23]")
        self.assertNotIn("secret", problem)
        self.assertEqual(self.counted(), [0, 0, 1, 0])
        self.broker.refusing.clear()
        self.wait(5)
        self.assertIsNone(self.amqp.problem())
        self.assertEqual(self.counted(), [1, 0, 1, 1])

    def test_blocked(self) -> None:
        """A blocked broker is a problem, although it is connected."""
        self.out.say(0, "connection.blocked", reason="low on memory")
        self.settle()
        self.assertEqual(self.amqp.problem(), "the broker blocks publishing: low on memory")
        self.assertEqual(self.counted(), [1, 1, 0, 0])
        self.out.say(0, "connection.unblocked")
        self.settle()
        self.assertIsNone(self.amqp.problem())
        self.assertEqual(self.counted(), [1, 0, 0, 0])


class ReplyTests(TransportCase):
    def test_outage(self) -> None:
        """A reply is buffered for an outage of most of a minute: a finished method is not run again."""
        self.broker.refusing |= {5672, 5673}
        self.out.lose()
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.wait(50)
        self.assertNoResult(replied)
        self.broker.refusing.clear()
        self.wait(5)
        self.successResultOf(replied)

    def test_back_again(self) -> None:
        """A caller that counted as gone gets its replies once its queue exists again."""
        self.broker.confirming = False
        gone = self.started(self.amqp.reply("reply_1", b"r"))
        for _ in range(5):
            self.nobody_is_there()
            self.wait(2)
        self.successResultOf(gone)
        again = self.started(self.amqp.reply("reply_1", b"s"))
        self.out.say(1, "basic.ack", delivery_tag=len(self.published()))
        self.successResultOf(again)
        self.assertEqual((len(self.published()), self.amqp.dropped_replies), (6, 1))
        third = self.started(self.amqp.reply("reply_1", b"t"))
        self.nobody_is_there()
        self.wait(1)
        self.assertNoResult(third)  # and gets all its attempts again
        third.addErrback(lambda failure: failure.trap(TransportClosedError))


class ReconnectTests(TransportCase):
    def test_refused_once(self) -> None:
        """A broker that refuses once as it starts, after a long outage, is retried soon."""
        self.broker.refusing |= {5672, 5673}
        self.out.lose()
        self.wait(60)
        self.broker.closing["connection.open"] = (530, "NOT_ALLOWED - vhost is down")
        self.broker.refusing.clear()
        self.wait(3)
        self.broker.closing.clear()
        self.wait(5)
        self.assertEqual(self.amqp.connections[0].state, "ready")


class StreamTests(AMQPCase):
    def test_split(self) -> None:
        """A connection.start that is split before bytes that look like another protocol is still understood."""
        self.broker.unanswered.add("protocol header")
        link = self.linked(open_it=False)
        link.pump()
        frame = pack(0, "connection.start", version_minor=9, mechanisms="AMQPLAIN PLAIN", locales="en_US")
        at = frame.index(b"AMQPLAIN")
        link.feed(frame[:at])
        link.feed(frame[at:])
        self.assertEqual(self.owner.heard, [])

    def test_channels_that_are_not_open(self) -> None:
        """Content on a channel that is not open ends the connection and is not kept."""
        link = self.linked()
        link.feed(pack(100, "basic.deliver", consumer_tag="x", delivery_tag=1, exchange="", routing_key=""))
        header = b"\0\x3c\0\0" + (2**20).to_bytes(8, "big") + b"\0\0"
        link.feed(pack_frame(HEADER, 100, header) + pack_frame(BODY, 100, b"z" * 1000))
        self.assertTrue(self.protocol.closed)
        self.assertIn("channel 100", str(self.protocol.reason))


class EstablishTests(TransportCase):
    """Tests for a listener that is interrupted while it is established."""

    def again(self, *unanswered: str) -> None:
        """Lose the consuming connection; the next one leaves some methods unanswered."""
        self.broker.unanswered |= set(unanswered)
        self.link.lose()
        self.wait(3)

    def test_lost_while_others_begin(self) -> None:
        """A listener that loses its channel while others are being established gets another one."""
        first = self.done(self.amqp.listen(Target("a"), self.got.append, 1))
        self.done(self.amqp.listen(Target("b"), self.got.append, 1))
        self.link.lose()
        while len(self.link.all("basic.consume")) < 2:  # the first listener consumes, the second does not yet
            self.wait(0.05, step=0.05)
        self.assertFalse(self.amqp.connections[1].protocol)
        channel = self.link.all("basic.consume")[0].channel
        self.link.say(channel, "channel.close", reply_code=404, reply_text="NOT_FOUND", class_id=0, method_id=0)
        self.wait(10)
        self.assertTrue(first.live)

    def test_cancelled_while_it_begins(self) -> None:
        """A listener that is cancelled while it is established keeps no consumer, and requeues deliveries unchanged."""
        listener = self.done(self.amqp.listen(Target("a"), self.got.append, 5))
        self.again("basic.consume")
        channel = self.link.last("basic.consume").channel
        self.done(listener.cancel())
        self.link.deliver(channel, b"x")
        self.broker.unanswered.clear()
        self.link.say(channel, "basic.consume-ok", consumer_tag="1")
        self.wait(1)
        self.assertEqual(self.got, [])
        self.assertEqual([said.body for said in self.published()], [b"x"])
        self.assertEqual(self.link.last("channel.close").channel, channel)
        self.done(listener.close())

    def test_broken_while_it_begins(self) -> None:
        """Deliveries of a channel that could not be set up are not settled on it."""
        self.done(self.amqp.listen(Target("a"), self.got.append, 5))
        self.again("basic.consume")
        channel = self.link.last("basic.consume").channel
        self.link.deliver(channel, b"x")
        self.wait(16)  # no answer: the channel is closed
        (one,) = self.got
        before = len(self.published())
        one.requeue(0)
        one.reject()
        one.ack()
        self.settle()
        self.assertEqual(len(self.published()), before)
        self.broker.unanswered.clear()
        self.wait(10)


class CloseTests(TransportCase):
    def test_silent_broker(self) -> None:
        """A transport with many listeners closes within seconds, though the broker answers nothing."""
        for number in range(5):
            self.done(self.amqp.listen(Target(f"t{number}", "h"), self.got.append, 1))
        self.done(self.amqp.open_replies(self.got.append))
        self.broker.unanswered |= {"queue.delete", "connection.close"}
        closing = self.started(self.amqp.close())
        self.wait(12)
        self.successResultOf(closing)


class ReceiverTests(TransportCase):
    def test_raises(self) -> None:
        """An exception of a receiver is logged, and affects no other consumer."""

        def raising(_: object) -> None:
            raise LookupError("no")

        listener = self.done(self.amqp.listen(Target("a"), raising, 5))
        address = self.done(self.amqp.open_replies(raising))
        channels = [said.channel for said in self.link.all("basic.consume")]
        self.assertTrue(address)
        for channel in {channels[0], channels[-1]}:
            self.link.deliver(channel, b"x")
        self.settle()
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 2)
        self.assertTrue(listener.live)


class QuarantineTests(TransportCase):
    def test_while_it_begins(self) -> None:
        """A message that arrives before all consumers are started can be quarantined."""
        self.broker.unanswered.add("basic.consume")
        listening = self.started(self.amqp.listen(Target("a"), self.got.append, 5))
        channel = self.link.last("basic.consume").channel
        self.link.deliver(channel, b"x")
        self.got[0].quarantine("it took the process down")
        self.settle()
        self.assertEqual(self.published()[-1].args["routing_key"], "a_quarantine")
        self.broker.unanswered.clear()
        self.link.say(channel, "basic.consume-ok", consumer_tag="1")
        self.settle()
        self.assertTrue(self.successResultOf(listening).live)
