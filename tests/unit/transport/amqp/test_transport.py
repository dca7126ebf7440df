"""Tests for novasvc.transport.amqp.transport and novasvc.transport.amqp.retries."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from zope.interface.verify import verifyObject

from novasvc.errors import (
    BrokerError,
    BrokerUnavailableError,
    TransportClosedError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.rpc.target import Target
from novasvc.transport.amqp import AMQPTransport, BrokerAddress, BrokerOptions, retries
from novasvc.transport.amqp.private_names import PrivateNames
from novasvc.transport.amqp.protocol import BODY_LIMIT
from tests.support.amqp_rig import URL, AMQPCase, Link, Said


class TransportCase(AMQPCase):
    """An open transport."""

    def setUp(self) -> None:
        super().setUp()
        self.got: list[Any] = []
        self.amqp = self.transport(heartbeat=0.0)

    @property
    def out(self) -> Link:
        return self.broker.link("publishing")

    @property
    def link(self) -> Link:
        return self.broker.link("consuming")

    def published(self) -> list[Said]:
        return self.out.all("basic.publish")

    def nobody_is_there(self) -> None:
        """Return all messages as unroutable from now on, one at a time."""
        said = self.published()[-1]
        self.out.give_back(said)
        self.out.say(said.channel, "basic.ack", delivery_tag=len(self.published()))


class NamesTests(AMQPCase):
    """Tests for the names of private queues."""

    def test_after_failures(self) -> None:
        """Reply and fanout queues have their stable names at the first attempt that succeeds."""
        holder = TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        amqp = self.transport(heartbeat=0.0, private_names=PrivateNames(Path(holder.name, "queues"), "h1", "agent"))
        begin = (lambda: amqp.open_replies(lambda _: None), lambda: amqp.listen(Target("compute"), lambda _: None, 1))
        self.broker.refusing |= {5672, 5673}
        for attempt in begin:
            failing = self.started(attempt())
            self.wait(2)
            self.failed(failing, BrokerUnavailableError)
        self.broker.refusing.clear()
        self.broker.closing["queue.declare"] = (403, "ACCESS_REFUSED")
        for attempt in begin:
            self.failed(attempt(), BrokerUnavailableError)
        self.broker.closing.clear()
        self.broker.counts = (0, 0)  # no other process consumes from the queues
        for attempt in begin:
            self.done(attempt())
        declared = " ".join(said.args["queue"] for said in self.broker.link("consuming").all("queue.declare")[2:])
        self.assertRegex(declared, "reply_h1:agent:.*compute_fanout_h1:agent:")


class OpenTests(TransportCase):
    """Tests for connecting."""

    def test_interfaces(self) -> None:
        """A transport, its listeners and its deliveries provide their interfaces."""
        self.assertTrue(verifyObject(ITransport, self.amqp))
        listener = self.done(self.amqp.listen(Target("compute"), self.got.append, 1))
        self.assertTrue(verifyObject(IListener, listener))
        self.link.deliver(1, b"x")
        self.assertTrue(verifyObject(IDelivery, self.got[0]))

    def test_two_connections(self) -> None:
        """open connects for publishing, the first listener connects for consuming, once each."""
        self.assertEqual([link.name for link in self.broker.links], ["novasvc (publishing)"])
        both = [self.amqp.listen(Target(topic), self.got.append, 1) for topic in ("compute", "cert")]
        for one in both:
            self.done(one)
        self.assertEqual([link.name for link in self.broker.links][1:], ["novasvc (consuming)"])
        self.assertEqual([connection.state for connection in self.amqp.connections], ["ready", "ready"])

    def test_no_broker(self) -> None:
        """Without a broker open fails, and leaves nothing behind."""
        self.broker.refusing |= {5672, 5673}
        amqp = AMQPTransport(BrokerAddress.parse(URL), reactor=self.reactor, options=BrokerOptions(heartbeat=0))
        opening = self.started(amqp.open())
        self.wait(2)
        self.failed(opening, BrokerUnavailableError)
        self.done(amqp.close())

    def test_no_broker_for_consuming(self) -> None:
        """After a failed listen the same transport can listen again."""
        self.broker.refusing |= {5672, 5673}
        listening = self.started(self.amqp.listen(Target("compute"), self.got.append, 1))
        self.wait(2)
        self.failed(listening, BrokerUnavailableError)
        self.broker.refusing.clear()
        self.assertTrue(self.done(self.amqp.listen(Target("compute"), self.got.append, 1)).live)


class SendTests(TransportCase):
    """Tests for requests."""

    def test_addresses(self) -> None:
        """Exchange and routing key of a target are those of OpenStack's services."""
        for target, exchange, key in (
            (Target("compute"), "nova", "compute"),
            (Target("compute", "h1"), "nova", "compute.h1"),
            (Target("volume", exchange="cinder"), "cinder", "volume"),
            (Target("compute", "h1", fanout=True), "compute_fanout", ""),
        ):
            self.done(self.amqp.send(target, b"{}", 5.0, True))
            said = self.published()[-1]
            self.assertEqual((said.args["exchange"], said.args["routing_key"]), (exchange, key))
            self.assertEqual(said.args["mandatory"], not target.fanout)

    def test_undeliverable(self) -> None:
        """An unroutable mandatory request fails with its target's name."""
        self.done(self.amqp.send(Target("compute"), b"", None, False))  # the broker is known to read
        self.broker.confirming = False
        sent = self.started(self.amqp.send(Target("compute", "h1"), b"{}", None, True))
        self.nobody_is_there()
        self.assertEqual(self.failed(sent, UndeliverableError).target, "compute.h1")


class EventTests(TransportCase):
    """Tests for messages to all queues that are bound with a routing key."""

    def read(self) -> None:
        """Have the broker be known to read; from then on it confirms nothing by itself."""
        self.broker.confirming = True
        self.done(self.amqp.send(Target("compute"), b"", None, False))
        self.broker.confirming = False

    def test_subscribers_return(self) -> None:
        """After a reconnect an event that nobody is subscribed to is sent again, until the subscribers had 5 s."""
        self.out.lose()
        self.wait(1)
        self.read()
        event = self.started(self.amqp.publish("notifications.info", b"e"))
        self.nobody_is_there()
        self.wait(1)
        self.out.say(self.published()[-1].channel, "basic.ack", delivery_tag=len(self.published()))
        self.successResultOf(event)
        self.assertEqual([said.args["routing_key"] for said in self.published()[-2:]], ["notifications.info"] * 2)
        self.wait(5)
        self.read()
        late = self.started(self.amqp.publish("notifications.info", b"l"))
        self.nobody_is_there()
        self.failed(late, UndeliverableError)


class ReturningCallerTests(TransportCase):
    """Tests for replies to callers that lost the broker when we did."""

    def setUp(self) -> None:
        super().setUp()
        self.out.lose()
        self.wait(1)
        self.broker.confirming = False

    def test_late(self) -> None:
        """A caller whose queue is declared again some seconds after our reconnect gets its reply."""
        replying = self.started(self.amqp.reply("reply_1", b"r"))
        for _ in range(6):
            self.nobody_is_there()
            self.wait(2)
        self.assertNoResult(replying)
        self.out.say(self.published()[-1].channel, "basic.ack", delivery_tag=len(self.published()))
        self.successResultOf(replying)
        self.assertEqual((self.amqp.dropped_replies, self.amqp._retries.gone), (0, {}))

    def test_gone(self) -> None:
        """A caller that does not come back within 15 s counts as gone."""
        replying = self.started(self.amqp.reply("reply_1", b"r"))
        for _ in range(8):
            self.nobody_is_there()
            self.wait(2)
        self.nobody_is_there()
        self.successResultOf(replying)
        self.assertEqual(self.amqp.dropped_replies, 1)


class ReplyTests(TransportCase):
    """Tests for publishing replies."""

    def setUp(self) -> None:
        super().setUp()
        self.broker.confirming = False

    def vanish(self, address: str = "reply_1") -> Deferred[None]:
        """Reply to a caller whose queue does not exist, until the reply is dropped."""
        replying = self.started(self.amqp.reply(address, b"r"))
        for _ in range(5):
            self.nobody_is_there()
            self.wait(2)
        return replying

    def test_sent(self) -> None:
        """A reply goes to its queue by the default exchange, and is mandatory."""
        replied = self.started(self.amqp.reply("reply_1", b"\xff"))
        said = self.published()[0]
        self.assertEqual((said.args["exchange"], said.args["routing_key"]), ("", "reply_1"))
        self.assertEqual((said.args["mandatory"], said.body), (True, b"\xff"))
        self.out.say(said.channel, "basic.ack", delivery_tag=1)
        self.successResultOf(replied)

    def test_comes_back(self) -> None:
        """A caller whose queue exists again a moment later gets its reply."""
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.nobody_is_there()
        self.wait(1)
        self.out.say(1, "basic.ack", delivery_tag=2)
        self.successResultOf(replied)
        self.assertEqual((len(self.published()), self.amqp.dropped_replies), (2, 0))

    def test_vanished(self) -> None:
        """A caller that is gone costs five attempts, then one for each reply; it is logged once, and is no error."""
        self.successResultOf(self.vanish())
        self.assertEqual((len(self.published()), self.amqp.dropped_replies), (5, 1))
        for number in range(3):
            replied = self.started(self.amqp.reply("reply_1", b"r%d" % number))
            self.nobody_is_there()
            self.successResultOf(replied)
        self.assertEqual((len(self.published()), self.amqp.dropped_replies), (8, 4))
        self.assertEqual(len([line for line in self.log if "dropping replies to this caller" in line]), 1)

    def test_others(self) -> None:
        """A caller that is gone delays no other caller's reply."""
        self.successResultOf(self.vanish())
        self.started(self.amqp.reply("reply_2", b"r")).addErrback(lambda _: None)
        self.assertEqual(self.published()[-1].args["routing_key"], "reply_2")

    def test_remembered_bound(self) -> None:
        """The callers remembered as gone are bounded; the oldest are forgotten first."""
        self.patch(retries, "RETRIES_BOUND", 2)
        for number in range(3):
            self.successResultOf(self.vanish(f"reply_{number}"))
        self.assertEqual(list(self.amqp._retries.gone), ["reply_1", "reply_2"])

    def test_two_at_once(self) -> None:
        """Two replies to a caller that is gone are both dropped, and it is logged once."""
        replying = [self.started(self.amqp.reply("reply_1", body)) for body in (b"a", b"b")]
        tag = 0
        for _ in range(5):
            for said in self.published()[tag:]:
                tag += 1
                self.out.give_back(said)
                self.out.say(said.channel, "basic.ack", delivery_tag=tag)
            self.wait(2)
        for one in replying:
            self.successResultOf(one)
        self.assertEqual(self.amqp.dropped_replies, 2)
        self.assertEqual(len([line for line in self.log if "dropping replies to this caller" in line]), 1)

    def test_retried_bound(self) -> None:
        """Beyond the bound on retries a reply gets one attempt."""
        self.patch(retries, "RETRIES_BOUND", 0)
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.nobody_is_there()
        self.successResultOf(replied)
        self.assertEqual((len(self.published()), self.amqp.dropped_replies), (1, 1))

    def test_unconfirmed(self) -> None:
        """A reply that was unconfirmed when the connection was lost is sent again."""
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.out.lose()
        self.broker.confirming = True
        self.wait(3)
        self.successResultOf(replied)

    def test_never_confirmed(self) -> None:
        """After five attempts without a confirm the reply fails, and the caller does not count as gone."""
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        for _ in range(5):
            self.out.lose()
            self.wait(4)
        self.failed(replied, UnconfirmedError)
        self.assertEqual(self.amqp._retries.gone, {})

    def test_refused(self) -> None:
        """A reply that the broker refuses fails at once."""
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.out.say(1, "basic.nack", delivery_tag=1)
        self.failed(replied, BrokerError)

    def test_patience(self) -> None:
        """A reply is buffered as long as its caller waits, and then fails with the reason."""
        self.broker.refusing |= {5672, 5673}
        self.out.lose()
        late, soon = (self.started(self.amqp.reply("reply_1", b"r", patience)) for patience in (0.0, 5.0))
        self.wait(0.1)
        self.failed(late, BrokerUnavailableError)
        self.wait(4)
        self.assertNoResult(soon)
        self.wait(2)
        self.failed(soon, BrokerUnavailableError)

    def test_cancelled_while_buffered(self) -> None:
        """A buffered reply that is cancelled is not sent later."""
        self.broker.refusing |= {5672, 5673}
        self.out.lose()
        buffered = self.started(self.amqp.reply("reply_1", b"r", 60.0))
        buffered.cancel()
        self.failed(buffered, CancelledError)
        self.broker.refusing.clear()
        self.wait(10)
        self.assertEqual(self.published(), [])

    def test_impatient_caller(self) -> None:
        """A missing reply queue is not retried after its caller's timeout, and the caller does not count as gone."""
        replied = self.started(self.amqp.reply("reply_1", b"r", 0.0))
        self.nobody_is_there()
        self.successResultOf(replied)
        self.wait(5)
        self.assertEqual((len(self.published()), self.amqp._retries.gone), (1, {}))

    def test_cancelled(self) -> None:
        """Cancelling a reply ends its retries."""
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.nobody_is_there()
        replied.cancel()
        self.failed(replied, CancelledError)
        self.wait(5)
        self.assertEqual(len(self.published()), 1)
        self.assertEqual(self.amqp._retries._pending, set())

    def test_closed_between_attempts(self) -> None:
        """Closing the transport ends the retries, and the waiting replies fail."""
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.nobody_is_there()
        self.done(self.amqp.close())
        self.failed(replied, TransportClosedError)
        self.assert_idle()

    def test_closed_in_an_attempt(self) -> None:
        """Closing during an attempt makes it the last one."""
        replied = self.started(self.amqp.reply("reply_1", b"r"))
        self.done(self.amqp.close())
        self.failed(replied, UnconfirmedError)
        self.assert_idle()


class ReplyBoxTests(TransportCase):
    """Tests for receiving replies."""

    def setUp(self) -> None:
        super().setUp()
        self.address = self.done(self.amqp.open_replies(self.got.append))

    @property
    def box(self) -> Any:
        return self.amqp._reply_queues[self.address]

    def channel(self) -> int:
        return self.link.last("basic.consume").channel

    def test_queue(self) -> None:
        """A client's private queue is consumed without acknowledgements, and expires when unused."""
        self.assertRegex(self.address, "^reply_[0-9a-f]{32}$")
        declared, consumed = self.link.last("queue.declare").args, self.link.last("basic.consume").args
        self.assertEqual((declared["queue"], declared["arguments"]), (self.address, {"x-expires": 1_800_000}))
        self.assertEqual((consumed["queue"], consumed["no_ack"]), (self.address, True))

    def test_received(self) -> None:
        """The body of a reply is passed to the receiver unchanged."""
        self.link.deliver(self.channel(), "é".encode())
        self.assertEqual(self.got, ["é".encode()])

    def test_unreadable(self) -> None:
        """An unreadable reply is dropped and counted."""
        self.link.deliver(self.channel(), bytes(BODY_LIMIT + 1))
        self.link.deliver(self.channel(), b"x")
        self.assertEqual((self.got, self.box.unreadable), ([b"x"], 1))

    def test_queue_deleted(self) -> None:
        """A deleted queue is declared again by the same name."""
        self.link.say(self.channel(), "basic.cancel", consumer_tag="1", no_wait=True)
        self.wait(1)
        self.assertEqual([said.args["queue"] for said in self.link.all("queue.declare")], [self.address] * 2)
        self.link.deliver(self.channel(), b"x")
        self.assertEqual(self.got, [b"x"])

    def test_queue_deleted_at_once(self) -> None:
        """A queue that is deleted before consume-ok is declared again."""
        self.broker.unanswered.add("basic.consume")
        self.link.lose()
        self.wait(2)
        self.link.say(self.channel(), "basic.cancel", consumer_tag="1", no_wait=True)
        self.broker.unanswered.clear()
        self.link.say(self.channel(), "basic.consume-ok", consumer_tag="1")
        self.wait(20)
        self.link.deliver(self.channel(), b"x")
        self.assertEqual(self.got, [b"x"])

    def test_channel_closed(self) -> None:
        """A channel that the broker closes is replaced."""
        self.link.say(self.channel(), "channel.close", reply_code=406, reply_text="delivery ack timed out")
        self.wait(1)
        self.link.deliver(self.channel(), b"x")
        self.assertEqual(self.got, [b"x"])

    def test_connection_lost(self) -> None:
        """After a reconnect the same queue is consumed."""
        self.link.lose()
        self.wait(2)
        self.assertEqual(self.link.last("queue.declare").args["queue"], self.address)

    def test_refused(self) -> None:
        """A refused declaration fails with its reason, and leaves no channel."""
        self.broker.closing["basic.consume"] = (403, "ACCESS_REFUSED")
        self.failed(self.amqp.open_replies(self.got.append), BrokerError)
        self.broker.closing.clear()
        self.done(self.amqp.open_replies(self.got.append))
        self.assertEqual(self.link.last("channel.open").channel, 2)

    def test_closed(self) -> None:
        """close deletes the queue; later deliveries are ignored, and a second close is no error."""
        channel = self.channel()
        closing = self.amqp.close_replies(self.address)
        self.link.deliver(channel, b"late")
        self.done(closing)
        self.assertEqual((self.got, self.link.last("queue.delete").args["queue"]), ([], self.address))
        self.done(self.amqp.close_replies(self.address))

    def test_closed_when_lost(self) -> None:
        """close ends when the connection is lost before or during it."""
        self.broker.unanswered.add("queue.delete")
        other = self.done(self.amqp.open_replies(self.got.append))
        closing = self.started(self.amqp.close_replies(self.address))
        self.link.lose()
        self.done(closing)
        self.done(self.amqp.close_replies(other))
        self.wait(2)
        self.assertEqual(self.link.all("queue.declare"), [])


class CloseTests(TransportCase):
    """Tests for close."""

    def test_after(self) -> None:
        """After close every operation fails with TransportClosedError."""
        self.done(self.amqp.close())
        for doing in (
            self.amqp.send(Target("compute"), b"", None, False),
            self.amqp.send(Target("compute", fanout=True), b"", None, False),
            self.amqp.reply("reply_1", b""),
            self.amqp.listen(Target("compute"), self.got.append, 1),
            self.amqp.open_replies(self.got.append),
        ):
            self.failed(doing, TransportClosedError)
        self.done(self.amqp.close())

    def test_order(self) -> None:
        """close deletes the private queues first, and then closes both connections."""
        self.done(self.amqp.listen(Target("compute"), self.got.append, 1))
        self.done(self.amqp.open_replies(self.got.append))
        self.done(self.amqp.close())
        self.assertEqual(len(self.link.all("queue.delete")), 2)
        self.assertEqual(self.link.names()[-1], "connection.close")
        self.assertEqual(self.out.names()[-1], "connection.close")

    def test_while_it_listens(self) -> None:
        """A listen under way fails, whether it has its connection or not."""
        self.broker.unanswered.add("queue.declare")
        first = self.started(self.amqp.listen(Target("compute"), self.got.append, 1))
        self.done(self.amqp.close())
        self.failed(first, BrokerUnavailableError, TransportClosedError)

    def test_while_it_connects(self) -> None:
        """A caller that waits for the consuming connection fails."""
        self.broker.deaf |= {5672, 5673}
        waiting = [self.started(self.amqp.listen(Target("compute"), self.got.append, 1)) for _ in range(2)]
        self.done(self.amqp.close())
        for one in waiting:
            self.failed(one, BrokerUnavailableError, TransportClosedError)

    def test_with_messages_under_way(self) -> None:
        """Unconfirmed messages fail, and no timer is left."""
        self.done(self.amqp.send(Target("compute"), b"", None, False))
        self.broker.confirming = False
        sent = self.started(self.amqp.send(Target("compute"), b"", 60.0, False))
        self.done(self.amqp.close())
        self.failed(sent, UnconfirmedError)
        self.assert_idle()
