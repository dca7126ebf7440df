"""Tests for novasvc.transport.amqp.publisher."""

from functools import partial
from math import inf
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from novasvc.errors import (
    BrokerBlockedError,
    BrokerError,
    BrokerRefusedError,
    BrokerUnavailableError,
    DeclarationMismatchError,
    TransportClosedError,
    TransportFullError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.transport import buffering
from novasvc.transport.amqp import BrokerAddress, BrokerOptions, send_buffer
from novasvc.transport.amqp.codec import decode_properties
from novasvc.transport.amqp.connection import Connection
from novasvc.transport.amqp.content import SENT, sent_value
from novasvc.transport.amqp.publisher import FLOW_CHECK_AGE, FLOW_CHECK_KEY, Message, Publisher
from tests.support.amqp_rig import AMQPCase, Link, Said


class PublisherCase(AMQPCase):
    """A publisher on its connection; the test sends the publisher confirms.

    :cvar flow_check_age: see Publisher; infinite sends no probes.
    """

    flow_check_age = inf

    def setUp(self) -> None:
        super().setUp()
        self.broker.confirming = False
        options = BrokerOptions(heartbeat=0)
        address = BrokerAddress.parse("amqp://nova:secret@one/cell")
        connect = partial(
            Connection, "publishing", address, options, self.reactor, client_name="test", retry=lambda _: 1.0
        )
        self.publisher = Publisher(
            "nova", options, self.reactor, connect, self.flow_check_age, lambda returns: returns / 2
        )
        self.connection = self.publisher.connection
        self.done(self.connection.open())
        self.addCleanup(self.nothing_is_left)

    def nothing_is_left(self) -> None:
        self.publisher.close()
        closing = self.started(self.connection.close())
        self.wait(30, step=1)
        self.successResultOf(closing)
        self.assert_idle()

    @property
    def link(self) -> Link:
        return self.broker.links[-1]

    def publish(self, body: bytes = b"{}", key: str = "compute", exchange: str = "nova", **more: Any) -> Deferred[None]:
        message = Message(exchange, key, body, more.pop("ttl", None), more.pop("mandatory", False), key, **more)
        return self.started(self.publisher.publish(message))

    def published(self) -> list[Said]:
        return self.link.all("basic.publish")

    def bodies(self) -> list[bytes | None]:
        return [said.body for said in self.published()]

    def confirm(self, tag: int, name: str = "basic.ack", *, channel: int = 1, multiple: bool = False) -> None:
        self.link.say(channel, name, delivery_tag=tag, multiple=multiple)


class ConfirmTests(PublisherCase):
    """Tests for publisher confirms."""

    def test_prepared(self) -> None:
        """The channel is in confirm mode, and the control exchange is declared, before the first message."""
        self.assertEqual(self.link.names()[-3:], ["channel.open", "confirm.select", "exchange.declare"])
        self.assertEqual(self.link.last("exchange.declare").args["exchange"], "nova")

    def test_message(self) -> None:
        """A message is published with its body, exchange, routing key and mandatory flag unchanged."""
        body = "é".encode() + b"\xff" * 200_000
        sent = self.publish(body, mandatory=True)
        said = self.published()[0]
        self.assertEqual(said.body, body)
        self.assertEqual((said.args["exchange"], said.args["routing_key"]), ("nova", "compute"))
        self.assertEqual((said.args["mandatory"], said.args["immediate"]), (True, False))
        self.confirm(1)
        self.assertIsNone(self.successResultOf(sent))
        self.assertEqual(len(self.publisher), 0)

    def test_single(self) -> None:
        """A confirm settles its own message, whatever the order."""
        sent = [self.publish() for _ in range(3)]
        self.confirm(2)
        self.assertEqual([one.called for one in sent], [False, True, False])
        self.confirm(2)  # again
        self.confirm(99)
        self.assertEqual([one.called for one in sent], [False, True, False])
        self.assertEqual(len(self.publisher), 2)
        self.confirm(3, multiple=True)

    def test_multiple(self) -> None:
        """A confirm with "multiple" settles all messages up to its delivery tag."""
        sent = [self.publish() for _ in range(4)]
        self.confirm(3, multiple=True)
        self.assertEqual([one.called for one in sent], [True, True, True, False])
        self.confirm(4, multiple=True)
        self.successResultOf(sent[3])

    def test_not_taken(self) -> None:
        """A message that the broker nacks fails, and the next one does not."""
        first, second = self.publish(), self.publish()
        self.confirm(1, "basic.nack")
        self.assertIn("rejected the message", self.failed(first, BrokerError).problem)
        self.confirm(2)
        self.successResultOf(second)

    def test_cannot_be_encoded(self) -> None:
        """A message that cannot be encoded fails and sends nothing; the next one is published and confirmed."""
        for message in (
            Message("nova", "x" * 256, b"", None, mandatory=False, target="long"),
            Message("nova", "compute", b"", None, mandatory=False, target="long", headers={"a": object()}),
        ):
            error = self.failed(self.publisher.publish(message), BrokerError)
            self.assertEqual(error.broker, "long")
        sent = self.publish(b"next")
        self.assertEqual(self.bodies(), [b"next"])
        self.confirm(1)
        self.successResultOf(sent)

    def test_expiration(self) -> None:
        """The expiration is the remaining TTL in milliseconds, with and without headers, with the time of sending."""
        self.publish(ttl=1.5)
        self.publish(ttl=1.5, headers={"x-novasvc-deliveries": 2})
        self.publish()
        plain, with_headers, without = (decode_properties(said.properties) for said in self.published())
        self.confirm(3, multiple=True)
        sent = {SENT: sent_value(self.publisher.sender, self.reactor.seconds()).decode()}
        self.assertEqual((plain["headers"], plain["expiration"]), (sent, "1500"))
        self.assertEqual(plain | {"headers": {"x-novasvc-deliveries": 2} | sent}, with_headers)
        self.assertEqual(without["headers"], {})

    def test_cancelled(self) -> None:
        """A cancelled message keeps its delivery tag, so the confirms of the others stay right."""
        first, second = self.publish(), self.publish()
        first.cancel()
        self.failed(first, CancelledError)
        self.confirm(1)
        self.assertNoResult(second)
        self.confirm(2)
        self.successResultOf(second)

    def test_sent_from_a_confirmation(self) -> None:
        """Publishing from a confirm's callback leaves the other messages alone."""
        sent = [self.publish() for _ in range(3)]
        again: list[Deferred[None]] = []
        for one in sent:
            one.addCallback(lambda _: again.append(self.publisher.publish(Message("nova", "c", b"", None, False, "c"))))
        self.confirm(3, multiple=True)
        self.settle()
        self.assertEqual((len(again), len(self.publisher)), (3, 3))
        self.confirm(6, multiple=True)
        for one in again:
            self.successResultOf(one)


class ReturnTests(PublisherCase):
    """Tests for basic.return."""

    def test_undeliverable(self) -> None:
        """The returned message fails at its confirm, and no other one does."""
        first, second, third = (self.publish(body, mandatory=True) for body in (b"1", b"2", b"3"))
        self.link.give_back(self.published()[1])
        self.assertNoResult(second)
        self.confirm(3, multiple=True)
        self.assertEqual(self.failed(second, UndeliverableError).target, "compute")
        self.successResultOf(first)
        self.successResultOf(third)

    def test_same_body(self) -> None:
        """Of several messages with one body the oldest counts as returned, and each return counts once."""
        sent = [self.publish(mandatory=True) for _ in range(3)]
        self.link.give_back(self.published()[0])
        self.link.give_back(self.published()[1])
        self.confirm(3, multiple=True)
        self.failed(sent[0], UndeliverableError)
        self.failed(sent[1], UndeliverableError)
        self.successResultOf(sent[2])

    def test_unknown(self) -> None:
        """A return that matches no unconfirmed message is ignored."""
        sent = self.publish(b"1", mandatory=True)
        self.link.give_back(self.published()[0]._replace(body=b"2"))
        self.confirm(1)
        self.successResultOf(sent)

    def test_cancelled(self) -> None:
        """A return of a cancelled message is ignored."""
        sent = self.publish(b"1", mandatory=True)
        sent.cancel()
        self.failed(sent, CancelledError)
        self.link.give_back(self.published()[0])
        self.confirm(1)
        self.assertEqual(len(self.publisher), 0)


class ReturnedPeersTests(PublisherCase):
    """Tests for unroutable requests shortly after a reconnect."""

    def setUp(self) -> None:
        super().setUp()
        self.link.lose()
        self.wait(1)  # the connection is back

    def request(self, ttl: float | None = 60.0, **more: Any) -> Deferred[None]:
        return self.publish(ttl=ttl, mandatory=True, request=True, **more)

    def not_routed(self) -> None:
        """Return the last message as unroutable, and confirm it."""
        self.link.give_back(self.published()[-1])
        self.confirm(len(self.published()))
        self.settle()

    def test_peers_return(self) -> None:
        """An unroutable request is sent again with its remaining TTL, and delivered once its queue exists."""
        sent = self.request(ttl=10.0)
        self.not_routed()
        self.wait(0.4, step=0.1)
        self.assertEqual(len(self.published()), 1)
        self.wait(0.1)
        self.assertEqual(len(self.publisher), 1)
        first, second = self.published()
        self.assertEqual((second.body, second.args), (first.body, first.args))
        self.assertEqual(decode_properties(second.properties)["expiration"], "9500")
        self.confirm(2)
        self.successResultOf(sent)

    def test_they_do_not(self) -> None:
        """It fails within five seconds of the reconnect, after pauses that grow."""
        sent = self.request()
        for pause in (0.5, 1.0, 1.5):
            self.not_routed()
            self.wait(pause)
            self.assertNoResult(sent)
        self.not_routed()  # 3 s have passed, and the next pause would end at 5 s
        self.failed(sent, UndeliverableError)
        self.assertEqual(len(self.published()), 4)
        late = self.request()
        self.wait(2)
        self.not_routed()
        self.failed(late, UndeliverableError)

    def test_deadline(self) -> None:
        """It fails before its sender's timeout."""
        sent = self.request(ttl=1.2)
        self.not_routed()
        self.wait(0.5)
        self.not_routed()
        self.failed(sent, UndeliverableError)

    def test_others(self) -> None:
        """Only requests are retried: the sender of any other message declares its queue, or retries by itself."""
        sent = self.publish(mandatory=True)
        self.not_routed()
        self.failed(sent, UndeliverableError)

    def test_cancelled(self) -> None:
        """A cancelled request is not sent again."""
        sent = self.request()
        self.not_routed()
        sent.cancel()
        self.failed(sent, CancelledError)
        self.wait(1)
        self.assertEqual((len(self.published()), len(self.publisher)), (1, 0))

    def test_lost_again(self) -> None:
        """A request whose connection is lost meanwhile is buffered, and the retry window starts again."""
        sent = self.request()
        self.not_routed()
        self.link.lose()
        self.wait(1)
        self.not_routed()
        self.assertNoResult(sent)
        self.wait(1)
        self.confirm(2)
        self.successResultOf(sent)

    def test_bound(self) -> None:
        """Requests that wait for a retry count towards the bound on buffered messages."""
        self.patch(send_buffer, "MAX_BYTES", 10)
        first, second = self.request(body=b"123456"), self.request(body=b"7890ab")
        for said in self.published():
            self.link.give_back(said)
        self.confirm(2, multiple=True)
        self.assertNoResult(first)
        self.failed(second, UndeliverableError)
        self.wait(0.5)
        self.confirm(3)
        self.successResultOf(first)
        self.assertEqual(self.publisher._send_buffer._bytes, 0)

    def test_closed(self) -> None:
        """Requests that wait for a retry fail on close, and leave no timer."""
        sent, cancelled = self.request(body=b"1"), self.request(body=b"2")
        for said in self.published():
            self.link.give_back(said)
        self.confirm(2, multiple=True)
        cancelled.cancel()
        self.failed(cancelled, CancelledError)
        self.publisher.close()
        self.failed(sent, TransportClosedError)
        self.assert_idle()


class ProofTests(PublisherCase):
    """Tests for Note [Only what is read is written]: a message with a TTL is written only while the broker reads."""

    flow_check_age = FLOW_CHECK_AGE

    def request(self, ttl: float | None = 60.0, **more: Any) -> Deferred[None]:
        return self.publish(ttl=ttl, request=True, **more)

    def confirm(self, tag: int, name: str = "basic.ack", *, channel: int = 1, multiple: bool = False) -> None:
        super().confirm(tag, name, channel=channel, multiple=multiple)
        self.settle()

    def proven(self) -> None:
        """Have a first request confirmed."""
        sent = self.request()
        self.confirm(1)
        self.confirm(2)
        self.successResultOf(sent)

    def keys(self) -> list[str]:
        return [said.args["routing_key"] for said in self.published()]

    def test_probe(self) -> None:
        """The first request of a connection waits for the confirm of an empty, unroutable probe."""
        sent = self.request(body=b"1")
        other = self.request(body=b"2")
        (probe,) = self.published()
        self.assertEqual((probe.args["exchange"], probe.args["routing_key"], probe.body), ("nova", FLOW_CHECK_KEY, b""))
        self.assertEqual((probe.args["mandatory"], decode_properties(probe.properties)["expiration"]), (False, "1"))
        self.confirm(1)
        self.assertEqual(self.bodies(), [b"", b"1", b"2"])
        self.confirm(3, multiple=True)
        self.successResultOf(sent)
        self.successResultOf(other)

    def test_fresh(self) -> None:
        """A confirm is a proof for one second, and no longer."""
        sent = [self.publish(key="reply_1", exchange="")]
        self.confirm(1)
        self.wait(1)
        sent.append(self.request())
        self.assertEqual(self.keys(), ["reply_1", "compute"])
        self.wait(0.1)
        sent.append(self.request())
        self.assertEqual(self.keys(), ["reply_1", "compute", FLOW_CHECK_KEY])
        self.confirm(3, multiple=True)
        self.confirm(4)
        for one in sent:
            self.successResultOf(one)

    def test_who_needs_none(self) -> None:
        """Replies are published without a proof; casts, and copies of messages with a TTL, wait for one."""
        sent = [self.publish(exchange="", key="reply_1")]
        sent.append(self.publish(exchange="", key="compute", ttl=0.0))  # expires at once in any queue
        self.assertEqual(self.keys(), ["reply_1", "compute"])
        sent.append(self.publish(exchange="", key="compute", ttl=60.0))
        sent.append(self.request(ttl=None, key="cast"))
        self.assertEqual(self.keys(), ["reply_1", "compute", FLOW_CHECK_KEY])
        self.assertEqual(self.published()[-1].args["exchange"], "")
        self.confirm(3, multiple=True)
        self.assertEqual(self.keys()[3:], ["compute", "cast"])
        self.confirm(5, multiple=True)
        for one in sent:
            self.successResultOf(one)

    def test_unproven(self) -> None:
        """A sender whose message waited for a proof in vain gets that reason, not the connection's state."""
        sent = self.request(ttl=2.0)
        self.wait(2)
        problem = self.failed(sent, BrokerUnavailableError).problem
        self.assertEqual(problem, "no publisher confirm for over 1 s, so the message was not sent")
        self.confirm(1)

    def test_alarm(self) -> None:
        """A broker in alarm gets no request, and the senders fail in time with the alarm as the reason."""
        sent, kept = self.request(ttl=2.0), self.request(ttl=60.0)
        self.link.say(0, "connection.blocked", reason="low on memory")
        self.wait(2)
        self.assertIn("low on memory", self.failed(sent, BrokerBlockedError).problem)
        self.wait(20)  # the probe's own confirm is not waited for
        self.link.say(0, "connection.unblocked")
        self.settle()
        self.assertEqual(set(self.keys()), {FLOW_CHECK_KEY})
        self.confirm(len(self.published()), multiple=True)
        self.assertEqual(self.keys()[-1], "compute")
        self.confirm(len(self.published()))
        self.successResultOf(kept)

    def test_lost(self) -> None:
        """After a lost connection the next one is probed."""
        sent = self.request()
        self.link.lose()
        self.assertNoResult(sent)
        self.wait(1)
        self.assertEqual(self.keys(), [FLOW_CHECK_KEY])
        self.confirm(1)
        self.assertEqual(self.keys(), [FLOW_CHECK_KEY, "compute"])
        self.confirm(2)
        self.successResultOf(sent)

    def test_refused(self) -> None:
        """If the broker refuses the probe of an exchange, the requests to it fail with the reason, and no others."""
        sent = self.request(exchange="cinder")
        other = self.request()
        text = "ACCESS_REFUSED - write access to exchange 'cinder' in vhost 'cell' refused for user 'nova'"
        self.link.say(1, "channel.close", reply_code=403, reply_text=text)
        self.assertIn("write access", self.failed(sent, BrokerRefusedError).problem)
        self.wait(1)
        self.confirm(1, channel=self.published()[-1].channel)
        self.confirm(2, channel=self.published()[-1].channel)
        self.successResultOf(other)

    def test_silent(self) -> None:
        """A broker that does not confirm the probe loses its connection after 15 s, as for any message."""
        sent = self.request()
        self.wait(16)
        self.assertEqual(len(self.broker.links), 2)
        self.confirm(1)
        self.confirm(2)
        self.successResultOf(sent)

    def test_fanout(self) -> None:
        """A fanout waits for a proof as well; the probe goes to the control exchange."""
        sent = self.started(self.publisher.fanout("compute", b"{}", None, "all of compute"))
        self.assertEqual((self.keys(), self.published()[0].args["exchange"]), ([FLOW_CHECK_KEY], "nova"))
        self.confirm(1)
        self.settle()
        self.assertEqual(self.keys(), [FLOW_CHECK_KEY, ""])
        self.confirm(1, channel=2)
        self.successResultOf(sent)

    def test_too_late(self) -> None:
        """A message that has expired when it could be written is not written."""
        self.patch(buffering, "TTL_FRACTION", 2.0)
        sent = self.request(ttl=1.0)
        self.wait(1.5)
        self.confirm(1)
        self.failed(sent, BrokerUnavailableError)
        self.assertEqual(self.keys(), [FLOW_CHECK_KEY])

    def test_busy_sender(self) -> None:
        """A connection that was blocked with messages on it is dropped when one of their senders cancels."""
        self.proven()
        sent, other = self.request(), self.request()
        self.link.say(0, "connection.blocked", reason="low on memory")
        buffered = self.request()
        sent.cancel()
        self.failed(sent, CancelledError)
        self.assertIn("had not read: low on memory", self.failed(other, UnconfirmedError).problem)
        self.assertTrue(self.link.transport.disconnecting)
        self.wait(1)
        self.assertEqual((len(self.broker.links), self.keys()), (2, [FLOW_CHECK_KEY]))
        self.confirm(1)
        self.confirm(2)
        self.successResultOf(buffered)

    def test_not_dropped(self) -> None:
        """A connection that is not blocked stays when a sender cancels, as does one unblocked in the same turn."""
        self.proven()
        first, second, third = (self.request() for _ in range(3))
        first.cancel()
        self.failed(first, CancelledError)
        self.link.say(0, "connection.blocked", reason="low on memory")
        second.cancel()
        self.link.say(0, "connection.unblocked")
        self.failed(second, CancelledError)
        self.wait(1)
        self.assertEqual(len(self.broker.links), 1)
        self.confirm(5, multiple=True)
        self.successResultOf(third)

    def test_closed_when_dropped(self) -> None:
        """A publisher that is closed before the drop leaves no timer."""
        self.proven()
        sent = self.request()
        self.link.say(0, "connection.blocked", reason="low on memory")
        sent.cancel()
        self.publisher.close()
        self.failed(sent, CancelledError)
        self.assert_idle()


class ExchangeTests(PublisherCase):
    """Tests for exchanges other than the transport's own."""

    def test_declared_once(self) -> None:
        """Another exchange is declared before its first message, on a channel of its own."""
        sent = self.publish(b"1", exchange="cinder")
        self.assertEqual(self.link.last("exchange.declare").args["exchange"], "cinder")
        self.assertNotEqual(self.link.last("exchange.declare").channel, self.published()[0].channel)
        self.assertEqual(self.link.names()[-2:], ["channel.close", "basic.publish"])
        again = self.publish(b"2", exchange="cinder")
        self.assertEqual(len(self.link.all("exchange.declare")), 2)
        self.confirm(2, multiple=True)
        self.successResultOf(sent)
        self.successResultOf(again)

    def test_many_at_once(self) -> None:
        """Any number of messages may wait for one declaration."""
        sent = [self.publisher.publish(Message("cinder", "c", b"", None, False, "c")) for _ in range(1000)]
        self.settle()
        self.assertEqual((len(self.published()), len(self.link.all("exchange.declare"))), (1000, 2))
        self.confirm(1000, multiple=True)
        for one in sent:
            self.successResultOf(one)

    def test_default(self) -> None:
        """The default exchange is not declared."""
        self.publish(exchange="", key="reply_1")
        self.assertEqual(len(self.published()), 1)
        self.confirm(1)

    def test_refused(self) -> None:
        """An exchange that the broker refuses fails its message, and no other one."""
        for code, kind in ((403, BrokerRefusedError), (406, DeclarationMismatchError), (405, BrokerError)):
            self.broker.closing["exchange.declare"] = (code, "no")
            self.assertIs(type(self.failed(self.publish(exchange="cinder"), BrokerError)), kind)
        sent = self.publish(b"next")
        self.confirm(1)
        self.successResultOf(sent)

    def test_lost_meanwhile(self) -> None:
        """A connection that is lost before the exchange is declared fails its message."""
        self.broker.unanswered.add("exchange.declare")
        sent = self.publish(exchange="cinder")
        self.link.lose()
        self.failed(sent, BrokerUnavailableError)

    def test_cancelled_meanwhile(self) -> None:
        """A message that is cancelled during the declaration is not sent, whether the declaration succeeds or fails."""
        self.broker.unanswered.add("exchange.declare")
        sent, other = self.publish(exchange="cinder"), self.publish(exchange="glance")
        for one in (sent, other):
            one.cancel()
            self.failed(one, CancelledError)
        first, second = self.link.all("exchange.declare")[-2:]
        self.link.say(first.channel, "exchange.declare-ok")
        self.link.say(second.channel, "channel.close", reply_code=403)
        self.settle()
        self.assertEqual(self.published(), [])

    def test_expired_meanwhile(self) -> None:
        """A message whose exchange is not declared in time fails, and counts as buffered until then."""
        self.broker.unanswered.add("exchange.declare")
        sent = self.publish(exchange="cinder", ttl=4.0)
        self.assertEqual(len(self.publisher), 1)
        self.wait(4)
        self.failed(sent, BrokerUnavailableError)
        self.link.say(self.link.last("exchange.declare").channel, "exchange.declare-ok")
        self.settle()
        self.assertEqual((self.published(), len(self.publisher)), ([], 0))

    def test_blocked_meanwhile(self) -> None:
        """A message whose exchange is declared when the broker is blocked is buffered."""
        self.broker.unanswered.add("exchange.declare")
        sent = self.publish(exchange="cinder", ttl=10.0)
        self.link.say(0, "connection.blocked", reason="low")
        self.link.say(self.link.last("exchange.declare").channel, "exchange.declare-ok")
        self.settle()
        self.assertEqual(self.published(), [])
        self.link.say(0, "connection.unblocked")
        self.settle()
        self.confirm(1)
        self.successResultOf(sent)


class HeldTests(PublisherCase):
    """Tests for messages that cannot be sent at once."""

    def block(self) -> None:
        self.link.say(0, "connection.blocked", reason="low on memory")

    def unblock(self) -> None:
        self.link.say(0, "connection.unblocked")
        self.settle()

    def test_blocked(self) -> None:
        """While the broker is blocked messages are buffered, and then sent in order with their remaining TTL."""
        self.block()
        sent = [self.publish(body, ttl=10.0) for body in (b"1", b"2", b"3")]
        self.assertEqual((self.published(), len(self.publisher)), ([], 3))
        self.wait(4)
        self.unblock()
        self.assertEqual(self.bodies(), [b"1", b"2", b"3"])
        self.assertEqual(decode_properties(self.published()[0].properties)["expiration"], "6000")
        self.confirm(3, multiple=True)
        for one in sent:
            self.successResultOf(one)

    def test_blocked_for_too_long(self) -> None:
        """A sender fails with the alarm as the reason before its TTL is over; without a TTL after 15 s."""
        self.block()
        short, endless = self.publish(ttl=2.0), self.publish()
        self.reactor.advance(1.8)
        self.assertNoResult(short)
        self.reactor.advance(0.1)
        error = self.failed(short, BrokerBlockedError)
        self.assertIn("it blocks publishing: low on memory", error.problem)
        self.reactor.advance(13)
        self.assertNoResult(endless)
        self.reactor.advance(0.1)
        self.failed(endless, BrokerBlockedError)
        self.unblock()
        self.assertEqual(self.published(), [])

    def test_away(self) -> None:
        """While there is no connection messages are buffered for the next one."""
        self.link.lose()
        sent = self.publish(ttl=10.0)
        self.wait(1)
        self.assertEqual(len(self.broker.links), 2)
        self.assertEqual(decode_properties(self.published()[0].properties)["expiration"], "9000")
        self.confirm(1)
        self.successResultOf(sent)

    def test_away_for_too_long(self) -> None:
        """A sender that waits for a connection fails with the connection's problem."""
        self.broker.refusing.add(5672)
        self.link.lose()
        sent = self.publish(ttl=4.0)
        self.wait(4)
        self.assertIn("refused", self.failed(sent, BrokerUnavailableError).problem)

    def test_no_channel_for_too_long(self) -> None:
        """A sender that waits for a channel fails with that reason."""
        self.broker.closing["confirm.select"] = (403, "no")
        self.link.say(1, "channel.close", reply_code=404, reply_text="no exchange")
        sent = self.publish(ttl=4.0)
        self.wait(4)
        self.assertIn("the message was not sent", self.failed(sent, BrokerUnavailableError).problem)

    def test_congested(self) -> None:
        """While the socket's buffer is full messages are buffered, and the buffer does not grow."""
        valve = self.link.transport.producer
        valve.pauseProducing()
        sent = [self.publish(b"x" * 1000) for _ in range(100)]
        self.assertEqual((self.published(), len(self.publisher)), ([], 100))
        valve.resumeProducing()
        self.settle()
        self.assertEqual(len(self.published()), 100)
        self.confirm(100, multiple=True)
        for one in sent:
            self.successResultOf(one)

    def test_congested_by_many(self) -> None:
        """While the broker is known to read, no buffered message is looked at because another one is buffered."""
        looked: list[Message] = []
        self.patch(Message, "needs_reading_broker", lambda message, _: looked.append(message))
        valve = self.link.transport.producer
        valve.pauseProducing()
        sent = [self.publish(ttl=10.0) for _ in range(100)]
        valve.resumeProducing()
        self.settle()
        self.confirm(100, multiple=True)
        for one in sent:
            self.successResultOf(one)
        self.assertEqual(looked, [])

    def test_congested_again(self) -> None:
        """If the buffer is full again midway, the rest keeps its place before later messages."""
        valve = self.link.transport.producer
        valve.pauseProducing()
        for number in range(4):
            self.publish(b"%d" % number, ttl=10.0).addErrback(lambda _: None)
        write = self.protocol_write()
        valve.resumeProducing()
        self.link.transport.write = write  # type: ignore[method-assign]
        self.publish(b"later", ttl=10.0).addErrback(lambda _: None)
        self.settle()
        self.assertEqual(self.bodies(), [b"0", b"1"])
        valve.resumeProducing()
        self.settle()
        self.assertEqual(self.bodies(), [b"0", b"1", b"2", b"3", b"later"])
        self.confirm(5, multiple=True)

    def protocol_write(self) -> Any:
        """Fill the socket's buffer after two messages; return the real write."""
        transport = self.link.transport
        write, written = transport.write, []

        def limited(data: bytes) -> None:
            write(data)
            written.append(data)
            if len(written) == 2:
                transport.producer.pauseProducing()

        transport.write = limited  # type: ignore[method-assign]
        return write

    def test_bound_of_messages(self) -> None:
        """The number of buffered messages is bounded."""
        self.patch(send_buffer, "MAX_MESSAGES", 100)  # a Clock sorts all its timers for each
        self.block()
        for _ in range(100):
            self.publisher.publish(Message("nova", "c", b"", 1.0, mandatory=False, target="c")).addErrback(
                lambda _: None
            )
        refused = self.failed(self.publish(), TransportFullError)
        self.assertEqual(refused.bound, 100)
        self.assertIn("the send buffer of this process is full with 100 messages (the broker blocks pub", str(refused))
        self.reactor.advance(1)
        self.assertEqual(len(self.publisher), 0)
        sent = self.publish()
        self.unblock()
        self.confirm(1)
        self.successResultOf(sent)

    def test_bound_of_bytes(self) -> None:
        """The bytes of buffered messages are bounded."""
        self.block()
        sent = self.publish(bytes(send_buffer.MAX_BYTES))
        self.failed(self.publish(b"x"), TransportFullError)
        sent.cancel()
        self.failed(sent, CancelledError)

    def test_cancelled(self) -> None:
        """A cancelled message is not sent."""
        self.block()
        sent, other = self.publish(ttl=1.0), self.publish()
        for one in (sent, other):
            one.cancel()
            self.failed(one, CancelledError)
        self.reactor.advance(1)
        self.unblock()
        self.assertEqual((self.published(), len(self.publisher)), ([], 0))


class ChannelClosedTests(PublisherCase):
    """Tests for channel.close by the broker."""

    def test_not_found(self) -> None:
        """The message to a missing exchange fails with that; the others are unconfirmed; a new channel is opened."""
        other = self.publish(exchange="")
        mine = self.publish(b"1")
        self.link.say(1, "channel.close", reply_code=404, reply_text="NOT_FOUND - no exchange 'nova' in vhost 'cell'")
        error = self.failed(mine, BrokerError)
        self.assertIn("no exchange 'nova'", error.problem)
        self.assertIn("404", self.failed(other, UnconfirmedError).problem)
        sent = self.publish(b"2")
        self.wait(1)
        self.assertEqual(
            self.link.names()[-4:], ["channel.open", "confirm.select", "exchange.declare", "basic.publish"]
        )
        self.confirm(1)
        self.successResultOf(sent)
        self.assertEqual(len(self.broker.links), 1)

    def test_refused(self) -> None:
        """A missing write permission is reported to the sender."""
        sent = self.publish()
        text = "ACCESS_REFUSED - access to exchange 'nova' in vhost 'cell' refused for user 'nova'"
        self.link.say(1, "channel.close", reply_code=403, reply_text=text)
        self.failed(sent, BrokerRefusedError)
        self.wait(1)

    def test_sent_again_at_once(self) -> None:
        """A message that is published from the errback is buffered until there is a channel."""
        sent = self.publish()
        again: list[Deferred[None]] = []
        sent.addErrback(lambda _: again.append(self.publish(b"again")))
        self.link.say(1, "channel.close", reply_code=404, reply_text="no exchange 'nova'")
        self.wait(1)
        self.assertEqual(self.bodies(), [b"{}", b"again"])
        self.confirm(1)
        self.successResultOf(again[0])

    def test_no_channel(self) -> None:
        """Opening a channel is retried with backoff until it succeeds, and logged once."""
        self.broker.closing["exchange.declare"] = (406, "PRECONDITION_FAILED - inequivalent arg")
        self.link.say(1, "channel.close", reply_code=404, reply_text="gone")
        self.wait(20)
        tries = len(self.link.all("channel.open")) - 1
        self.assertTrue(3 <= tries <= 10, tries)
        self.assertEqual(len([line for line in self.log if "cannot open a publishing channel" in line]), 1)
        self.broker.closing.clear()
        sent = self.publish()
        self.wait(10)
        self.confirm(1)
        self.successResultOf(sent)

    def test_silent(self) -> None:
        """A channel whose opening got no answer is retried."""
        self.broker.unanswered.add("confirm.select")
        self.link.say(1, "channel.close", reply_code=404, reply_text="gone")
        self.wait(1)
        self.broker.unanswered.clear()
        self.wait(20)
        sent = self.publish()
        self.confirm(1, channel=self.published()[-1].channel)
        self.successResultOf(sent)

    def test_closed_meanwhile(self) -> None:
        """Closing the publisher ends the retries."""
        self.link.say(1, "channel.close", reply_code=404, reply_text="gone")
        self.publisher.close()
        self.wait(5)
        self.assertEqual(len(self.link.all("channel.open")), 1)

    def test_closed_when_it_is_open(self) -> None:
        """A channel that was opened, and is not in confirm mode yet, is closed with the publisher."""
        self.broker.unanswered.add("confirm.select")
        self.link.say(1, "channel.close", reply_code=404, reply_text="gone")
        self.wait(1)
        self.assertEqual(self.link.names()[-1], "confirm.select")
        self.publisher.close()
        self.settle()
        self.assertEqual(self.link.names()[-1], "channel.close")

    def test_lost_meanwhile(self) -> None:
        """After a lost connection the next one opens its own channel."""
        self.link.say(1, "channel.close", reply_code=404, reply_text="gone")
        self.link.lose()
        self.wait(10)
        self.assertEqual(len(self.link.all("channel.open")), 1)
        sent = self.publish()
        self.confirm(1)
        self.successResultOf(sent)


class LostTests(PublisherCase):
    """Tests for connections that are lost with unconfirmed messages."""

    def test_unconfirmed(self) -> None:
        """Unconfirmed messages fail with UnconfirmedError."""
        sent, cancelled = self.publish(), self.publish()
        cancelled.cancel()
        self.failed(cancelled, CancelledError)
        self.link.lose()
        self.assertIn("lost", self.failed(sent, UnconfirmedError).problem)
        self.assertEqual(len(self.publisher), 0)

    def test_silence(self) -> None:
        """A broker that does not confirm for 15 s is disconnected, and connected to again."""
        sent = self.publish()
        self.wait(14.5)
        self.assertNoResult(sent)
        self.wait(4)
        self.assertIn("was not confirmed within", self.failed(sent, UnconfirmedError).problem)
        self.assertEqual(len(self.broker.links), 2)

    def test_silence_when_blocked(self) -> None:
        """Messages to a blocked broker fail in time with that reason; the connection stays."""
        early = self.publish()
        self.wait(10)
        self.link.say(0, "connection.blocked", reason="low on memory")
        self.wait(13)
        self.assertIn("low on memory", self.failed(early, UnconfirmedError).problem)
        self.link.say(0, "connection.unblocked")
        self.confirm(1)
        self.wait(0)
        self.assertEqual((len(self.broker.links), len(self.publisher)), (1, 0))

    def test_end_of_an_alarm(self) -> None:
        """A broker has the whole timeout again when it unblocks, since it begins to read only then."""
        sent = self.publish(ttl=3600.0)
        self.link.say(0, "connection.blocked", reason="low on memory")
        self.wait(100)
        self.link.say(0, "connection.unblocked")
        self.wait(14.5)
        self.assertNoResult(sent)
        self.assertEqual(len(self.broker.links), 1)
        self.wait(4)
        self.failed(sent, UnconfirmedError)
        self.assertEqual(len(self.broker.links), 2)

    def test_no_silence(self) -> None:
        """A broker that confirms keeps its connection, and the timer ends with the last message."""
        for _ in range(10):
            sent = self.publish()
            self.wait(5)
            self.confirm(len(self.published()))
            self.successResultOf(sent)
        self.wait(10)
        self.assert_idle()
        self.assertEqual(len(self.broker.links), 1)


class FanoutTests(PublisherCase):
    """Tests for fanouts."""

    def fanout(self, body: bytes = b"{}", ttl: float | None = None) -> Deferred[None]:
        return self.started(self.publisher.fanout("compute", body, ttl, "all of compute"))

    def waiting(self) -> int:
        """Return how many fanouts, with their bodies, wait for the declaration of their exchange."""
        return sum(len(waiters.waiting) for waiters in self.publisher._fanout_exchanges._waiting.values())

    def test_sent(self) -> None:
        """A fanout goes to the topic's fanout exchange, declared each time on a channel of its own."""
        for number in (1, 2):
            sent = self.fanout()
            said = self.published()[-1]
            self.assertEqual((said.args["exchange"], said.args["routing_key"], said.channel), ("compute_fanout", "", 2))
            self.assertEqual(self.link.last("exchange.declare").channel, 2)
            self.confirm(number, channel=2)
            self.successResultOf(sent)
        self.assertEqual(len(self.link.all("channel.open")), 2)

    def test_at_once(self) -> None:
        """Concurrent fanouts open one channel."""
        sent = [self.publisher.fanout("compute", b"", None, "t") for _ in range(3)]
        self.settle()
        self.assertEqual(len(self.link.all("channel.open")), 2)
        self.confirm(3, channel=2, multiple=True)
        for one in sent:
            self.successResultOf(one)

    def test_many_while_away(self) -> None:
        """Any number of fanouts may wait for the connection, and then for one channel."""
        self.link.lose()
        sent = [self.publisher.fanout("compute", b"", None, "t") for _ in range(1000)]
        self.wait(1)
        self.assertEqual((len(self.published()), len(self.link.all("channel.open"))), (1000, 2))
        self.confirm(1000, channel=2, multiple=True)
        for one in sent:
            self.successResultOf(one)

    def test_one_declaration(self) -> None:
        """Fanouts that wait for the answer to a declaration share it; each topic has its own, and so has the next."""
        self.broker.unanswered.add("exchange.declare")
        before = len(self.link.all("exchange.declare"))
        sent = [self.publisher.fanout(topic, b"", None, "t") for topic in ("compute", "volume", "compute")]
        self.settle()
        self.link.say(2, "exchange.declare-ok")
        self.settle()
        self.assertEqual([said.args["exchange"] for said in self.published()], ["compute_fanout"] * 2)
        self.link.say(2, "exchange.declare-ok")
        self.broker.unanswered.clear()
        sent.append(self.fanout())
        declared = [said.args["exchange"] for said in self.link.all("exchange.declare")[before:]]
        self.assertEqual(declared, ["compute_fanout", "volume_fanout", "compute_fanout"])
        self.confirm(4, channel=2, multiple=True)
        for one in sent:
            self.successResultOf(one)

    def test_bound(self) -> None:
        """Fanouts that wait for a declaration count towards the bound on buffered messages, until it is answered."""
        self.patch(send_buffer, "MAX_MESSAGES", 2)
        self.broker.unanswered.add("exchange.declare")
        sent = [self.fanout(b"1"), self.fanout(b"2")]
        self.assertEqual(self.failed(self.fanout(b"3"), TransportFullError).bound, 2)
        self.assertEqual(len(self.publisher), 2)
        self.link.say(2, "exchange.declare-ok")
        self.broker.unanswered.clear()
        sent.append(self.fanout(b"3"))
        self.assertEqual(self.bodies(), [b"1", b"2", b"3"])
        self.confirm(3, channel=2, multiple=True)
        for one in sent:
            self.successResultOf(one)
        self.assertEqual((len(self.publisher), self.publisher._send_buffer._bytes), (0, 0))

    def test_expired(self) -> None:
        """A fanout that waits for a declaration fails nearly at the end of its TTL, and is not sent."""
        self.broker.unanswered.add("exchange.declare")
        sent = self.fanout(ttl=4.0)
        self.assertEqual(self.waiting(), 1)
        self.wait(4)
        self.assertEqual(self.waiting(), 0)
        problem = self.failed(sent, BrokerUnavailableError).problem
        self.assertEqual(problem, "it answers or reads too slowly, so the message was not sent")
        self.link.say(2, "exchange.declare-ok")
        self.settle()
        self.assertEqual((self.published(), len(self.publisher)), ([], 0))

    def test_exchange_gone(self) -> None:
        """An exchange that is deleted between declaration and publish closes only this channel."""
        direct = self.publish()
        sent = self.fanout()
        text = "NOT_FOUND - no exchange 'compute_fanout' in vhost 'cell'"
        self.link.say(2, "channel.close", reply_code=404, reply_text=text)
        self.failed(sent, BrokerError)
        self.assertNoResult(direct)
        again = self.fanout()
        self.confirm(1, channel=2)
        self.confirm(1)
        self.successResultOf(again)
        self.successResultOf(direct)

    def test_refused(self) -> None:
        """An exchange that the broker refuses fails the fanout with the reason."""
        self.broker.closing["exchange.declare"] = (406, "PRECONDITION_FAILED")
        self.failed(self.fanout(), DeclarationMismatchError)
        self.broker.closing.clear()
        sent = self.fanout()
        self.confirm(1, channel=self.published()[-1].channel)
        self.successResultOf(sent)

    def test_no_channel(self) -> None:
        """A fanout that gets no channel fails with the reason."""
        self.broker.tune = (1, 0, 0)
        self.link.lose()
        self.wait(1)
        self.failed(self.fanout(), BrokerUnavailableError)

    def test_held(self) -> None:
        """A fanout waits for a blocked broker, and is sent with its remaining TTL."""
        self.link.say(0, "connection.blocked", reason="low")
        sent = self.fanout(ttl=10.0)
        self.wait(4)
        self.assertEqual(self.published(), [])
        self.link.say(0, "connection.unblocked")
        self.settle()
        self.assertEqual(decode_properties(self.published()[0].properties)["expiration"], "6000")
        self.confirm(1, channel=2)
        self.successResultOf(sent)

    def test_cancelled(self) -> None:
        """A fanout that is cancelled during the declaration is not sent."""
        self.broker.unanswered.add("exchange.declare")
        sent = self.fanout()
        sent.cancel()
        self.failed(sent, CancelledError)
        self.assertEqual((self.waiting(), len(self.publisher)), (0, 0))
        self.link.say(2, "exchange.declare-ok")
        self.settle()
        self.assertEqual(self.published(), [])

    def test_lost(self) -> None:
        """A fanout in flight fails with the lost connection, and the next one gets a new channel."""
        sent = self.fanout()
        self.link.lose()
        self.failed(sent, UnconfirmedError)
        self.wait(1)
        again = self.fanout()
        self.confirm(1, channel=2)
        self.successResultOf(again)

    def test_closed(self) -> None:
        """After close a fanout fails."""
        self.publisher.close()
        self.failed(self.fanout(), TransportClosedError)


class CloseTests(PublisherCase):
    """Tests for close."""

    def test_waiting(self) -> None:
        """Held messages fail, cancelled ones do not, and no timer is left."""
        self.link.say(0, "connection.blocked", reason="low")
        sent, cancelled = self.publish(), self.publish()
        cancelled.cancel()
        self.failed(cancelled, CancelledError)
        self.publisher.close()
        self.failed(sent, TransportClosedError)
        self.assert_idle()

    def test_under_way(self) -> None:
        """Unconfirmed messages can still be confirmed until the connection is closed."""
        first, second = self.publish(), self.publish()
        self.publisher.close()
        self.confirm(1)
        self.successResultOf(first)
        self.done(self.connection.close())
        self.failed(second, UnconfirmedError)

    def test_written_at_once(self) -> None:
        """Until the connection is closed a message that can be written at once is published, and leaves no timer."""
        self.publisher.close()
        first, second = self.publish(), self.publish()
        self.confirm(1)
        self.successResultOf(first)
        self.done(self.connection.close())
        self.failed(second, UnconfirmedError)
        self.assert_idle()

    def test_after(self) -> None:
        """After the connection is closed every publish fails."""
        self.publisher.close()
        self.done(self.connection.close())
        self.failed(self.publish(), TransportClosedError)


class UnpreparedTests(AMQPCase):
    """Tests for a connection whose preparation fails."""

    def test_refused_exchange(self) -> None:
        """A control exchange that the broker refuses fails the open with the reason."""
        for code, kind in ((406, DeclarationMismatchError), (403, BrokerRefusedError)):
            self.broker.closing["exchange.declare"] = (code, "no")
            options = BrokerOptions(heartbeat=0)
            address = BrokerAddress.parse("amqp://one/cell")
            connect = partial(Connection, "p", address, options, self.reactor, client_name="test")
            publishing = Publisher("nova", options, self.reactor, connect)
            self.assertIs(type(self.failed(publishing.connection.open(), BrokerError)), kind)
            self.assert_idle()
