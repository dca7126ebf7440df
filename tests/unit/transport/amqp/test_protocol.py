"""Tests for novasvc.transport.amqp.protocol."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone

from novasvc.transport.amqp.channel import AMQPClosedError, Channel, ChannelReceiver
from novasvc.transport.amqp.frames import HEARTBEAT_FRAME, METHOD, PROTOCOL_HEADER, Deliver, pack_frame
from novasvc.transport.amqp.protocol import BODY_LIMIT, AMQPProtocol
from tests.support.amqp_rig import LOGIN, AMQPCase, Link, Owner, pack


class Keeper(ChannelReceiver):
    """A receiver that keeps the bodies of deliveries."""

    def __init__(self) -> None:
        self.got: list[bytes | None] = []

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        self.got.append(body)


class HandshakeTests(AMQPCase):
    """Tests for the handshake."""

    def test_open(self) -> None:
        """The client sends the protocol header, start-ok, tune-ok and open, in this order."""
        link = self.linked(open_it=False)
        self.assertEqual(link.transport.value(), PROTOCOL_HEADER)
        self.assertEqual(link.transport.options, {"no delay": True, "keep alive": True})
        self.done(self.protocol.handshake())
        self.assertEqual(link.names(), ["connection.start-ok", "connection.tune-ok", "connection.open"])
        self.assertEqual(link.last("connection.open").args["virtual_host"], "cell")
        self.assert_idle()

    def test_capabilities(self) -> None:
        """The client capabilities are booleans, and the connection has its name."""
        link = self.linked()
        properties = link.last("connection.start-ok").args["client_properties"]
        self.assertEqual(properties["connection_name"], "test")
        self.assertIs(properties["capabilities"]["connection.blocked"], True)
        self.assertEqual(set(map(type, properties["capabilities"].values())), {bool})
        self.assertLessEqual(
            {"consumer_cancel_notify", "authentication_failure_close"}, set(properties["capabilities"])
        )

    def test_limits(self) -> None:
        """The smaller limit of both sides applies; 0 is no limit, and frame_max is never below frame-min-size."""
        for theirs, agreed in (
            ((0, 0, 0), (2047, 131_072, 10)),
            ((5000, 2**32 - 1, 60), (2047, 131_072, 10)),
            ((10, 8192, 4), (10, 8192, 4)),
            ((10, 100, 4), (10, 4096, 4)),
        ):
            self.broker.tune = theirs
            link = self.linked(heartbeat=10)
            told = link.last("connection.tune-ok").args
            self.assertEqual((told["channel_max"], told["frame_max"], told["heartbeat"]), agreed)
            self.assertEqual((self.protocol.channel_max, self.protocol.frame_max, self.protocol.heartbeat), agreed)
            self.done(self.protocol.close())

    def test_frame_max_of_0(self) -> None:
        """With a broker that sets no frame limit a long message is sent and received."""
        self.broker.tune = (0, 0, 0)
        link = self.linked()
        self.channel()
        link.deliver(1, b"x" * 1_000_000)
        self.assertFalse(self.protocol.closed)

    def test_frames_of_the_agreed_size(self) -> None:
        """A frame over the negotiated size ends the connection."""
        self.broker.tune = (0, 4096, 0)
        link = self.linked()
        self.channel()
        link.deliver(1, b"x" * 5000)
        self.assertIn("frame-max of 4096", str(self.protocol.reason))

    def test_mechanisms(self) -> None:
        """PLAIN is chosen if offered, else AMQPLAIN; the password is in no repr."""
        self.assertEqual(LOGIN.answer("AMQPLAIN PLAIN"), ("PLAIN", "\0nova\0secret"))
        self.assertEqual(LOGIN.answer("AMQPLAIN"), ("AMQPLAIN", {"LOGIN": "nova", "PASSWORD": "secret"}))
        self.assertNotIn("secret", repr(LOGIN))

    def test_amqplain(self) -> None:
        """A broker that offers AMQPLAIN alone gets a field table as a long string."""
        self.broker.unanswered.add("protocol header")
        link = self.linked(open_it=False)
        shaken = self.started(self.protocol.handshake())
        link.say(0, "connection.start", version_minor=9, mechanisms="AMQPLAIN", locales="en_US")
        self.successResultOf(self.started(shaken))
        self.assertEqual(link.last("connection.start-ok").args["mechanism"], "AMQPLAIN")

    def test_refused(self) -> None:
        """The handshake fails with the broker's reason for refusing the login."""
        self.broker.closing["connection.start-ok"] = (403, "ACCESS_REFUSED - Login was refused\nusing PLAIN")
        self.linked(open_it=False)
        error = self.failed(self.protocol.handshake(), AMQPClosedError)
        self.assertEqual((error.code, error.problem), (403, "ACCESS_REFUSED - Login was refused using PLAIN"))
        self.assertEqual(self.owner.heard, [error])

    def test_second_start(self) -> None:
        """A second connection.start ends the connection."""
        for name in ("connection.start", "connection.tune"):
            link = self.linked(heartbeat=10)
            link.say(0, name)
            self.assertIn(f"unexpected {name}", str(self.protocol.reason))
            self.settle()
            self.assertEqual(len(link.all("connection.start-ok")), 1)

    def test_secure(self) -> None:
        """connection.secure, a second step of authentication, ends the connection."""
        link = self.linked(open_it=False)
        shaken = self.protocol.handshake()
        link.say(0, "connection.secure", challenge="?")
        self.assertIn("must not receive connection.secure", str(self.failed(shaken, AMQPClosedError)))

    def test_what_it_speaks(self) -> None:
        """Other protocols on the port are recognised by their first bytes."""
        for said, problem in (
            (b"\x15\x03\x01\x00\x02\x02\x16", "the port speaks TLS; use amqps://"),
            (b"AMQP\x00\x01\x00\x00", "it speaks another version of AMQP: 00 01 00 00"),
            (b"HTTP/1.1 400 Bad Request\r\n", "it sent invalid AMQP"),
        ):
            self.broker.unanswered.add("protocol header")
            link = self.linked(open_it=False)
            shaken = self.protocol.handshake()
            link.feed(said)
            self.assertIn(problem, str(self.failed(shaken, AMQPClosedError)))

    def test_no_transport(self) -> None:
        """The handshake fails if the protocol is ended before it is connected."""
        owner = Owner()
        protocol = AMQPProtocol(LOGIN, clock=self.reactor, heartbeat=0, operation_timeout=1, observer=owner)
        reason = AMQPClosedError("it was not needed", clean=True)
        protocol.end(reason)
        self.assertIs(self.failed(protocol.handshake(), AMQPClosedError), reason)
        self.assertEqual(owner.heard, [reason])


class EndTests(AMQPCase):
    """Tests for the end of a connection."""

    def setUp(self) -> None:
        super().setUp()
        self.link: Link = self.linked()

    def test_close(self) -> None:
        """Closing sends connection.close, waits for close-ok, and leaves no timer."""
        self.done(self.protocol.close())
        self.assertEqual(self.link.last("connection.close").args["reply_code"], 200)
        self.assertTrue(self.link.gone)
        self.assertTrue(self.owner.heard[0].clean)
        self.assertEqual(len(self.owner.heard), 1)
        self.assert_idle()

    def test_closed_again(self) -> None:
        """Closing a closed connection fires at once."""
        self.done(self.protocol.close())
        self.successResultOf(self.protocol.close())

    def test_close_without_close_ok(self) -> None:
        """A broker without close-ok is disconnected after 3 s."""
        self.broker.unanswered.add("connection.close")
        closing = self.started(self.protocol.close())
        self.wait(2.5)
        self.assertNoResult(closing)
        self.wait(0.5)
        self.successResultOf(closing)
        self.assert_idle()

    def test_socket_that_stays(self) -> None:
        """A socket that does not close after close-ok is aborted."""
        self.protocol.end(AMQPClosedError("enough", clean=True))
        self.assertEqual((self.link.transport.disconnecting, self.link.transport.disconnected), (True, False))
        self.reactor.advance(3)
        self.assertTrue(self.link.transport.disconnected)
        self.settle()
        self.assert_idle()

    def test_closed_by_the_broker(self) -> None:
        """connection.close is confirmed, and the channels and the owner get its reason."""
        one = self.channel()
        asked = self.started(one.queue_declare(queue="a", no_wait=True))
        self.successResultOf(asked)
        self.link.say(0, "connection.close", reply_code=320, reply_text="CONNECTION_FORCED - bye")
        self.settle()
        self.assertEqual(self.link.names()[-1], "connection.close-ok")
        self.assertEqual(str(one.reason), "320 CONNECTION_FORCED - bye")
        self.assertEqual(self.owner.heard, [one.reason])
        self.assertTrue(self.link.gone)

    def test_lost(self) -> None:
        """A cut connection ends everything, once."""
        one = self.channel()
        self.link.lose(ConnectionDone())
        self.assertTrue(one.closed)
        self.protocol.end(AMQPClosedError("again"))
        self.assertEqual(len(self.owner.heard), 1)
        self.assertEqual(self.owner.heard[0].cause.type, ConnectionDone)
        self.assertTrue(self.successResultOf(self.protocol.disconnected.wait()))
        self.assert_idle()

    def test_after_the_end(self) -> None:
        """Bytes that arrive or are written after the end are ignored."""
        self.channel()
        self.protocol.end(AMQPClosedError("enough"))
        self.settle()
        self.protocol.write(b"x")
        self.assertEqual(self.link.transport.value(), b"")
        self.protocol.dataReceived(self.link.delivery(1, b"x"))
        self.protocol.dataReceived(b"no AMQP at all")
        self.assertEqual(len(self.owner.heard), 1)

    def test_rest_of_a_read(self) -> None:
        """The rest of the read that ended the connection is ignored."""
        keeper = self.channel().receiver = Keeper()
        end = pack(0, "connection.close", reply_code=320)
        self.link.feed(self.link.delivery(1, b"a") + end + self.link.delivery(1, b"b") + pack(1, "basic.ack"))
        self.assertEqual(keeper.got, [b"a"])

    def test_txamqp_closes_nothing(self) -> None:
        """txamqp's own close does nothing."""
        self.protocol.delegate.close("reason")
        self.assertFalse(self.protocol.closed)


class ChannelsTests(AMQPCase):
    """Tests for opening channels, and for frames on channels that are not open."""

    def test_on_a_dead_connection(self) -> None:
        """Opening a channel on a connection that has ended fails with the reason."""
        link = self.linked()
        link.lose()
        error = self.failed(self.protocol.open_channel(), AMQPClosedError)
        self.assertIs(error, self.protocol.reason)

    def test_bound(self) -> None:
        """Channels are bounded by channel_max, and a number is free again after close-ok."""
        self.broker.tune = (2, 0, 0)
        link = self.linked()
        self.channel()
        self.channel()
        self.assertIn("all 2 channels", str(self.failed(self.protocol.open_channel(), AMQPClosedError)))
        link.say(1, "channel.close", reply_code=404)
        self.assertEqual(self.channel().id, 1)

    def test_on_new_channel(self) -> None:
        """The channel of a step is closed when the step has ended, failed or was cancelled."""
        link = self.linked()
        steps: list[Deferred[int]] = []

        def step(_: Channel) -> Deferred[int]:
            steps.append(Deferred())
            return steps[-1]

        running = [self.started(self.protocol.on_new_channel(step)) for _ in range(3)]
        self.assertEqual(link.all("channel.close"), [])
        steps[0].callback(1)
        steps[1].errback(ValueError("x"))
        running[2].cancel()
        self.assertEqual(self.done(running[0]), 1)
        self.failed(running[1], ValueError)
        self.failed(running[2], CancelledError)
        self.assertEqual([said.channel for said in link.all("channel.close")], [1, 2, 3])
        self.assertEqual(list(self.protocol.channels), [0])

    def test_half_a_message(self) -> None:
        """A reused channel number starts without the earlier channel's partial message."""
        link = self.linked()
        self.channel()
        link.feed(pack(1, "basic.deliver"))
        self.protocol.release_channel(self.protocol.channels[1])
        self.channel()
        link.deliver(1, b"x")
        self.assertFalse(self.protocol.closed)

    def test_not_open(self) -> None:
        """A frame on a channel that is not open ends the connection."""
        for what in ("method", "message"):
            link = self.linked()
            link.feed(pack(7, "basic.ack") if what == "method" else link.delivery(7, b"x"))
            self.assertIn(f"a {what} on channel 7, which is not open", str(self.protocol.reason))
            self.assertTrue(link.transport.disconnected)

    def test_pieces(self) -> None:
        """A stream that arrives byte by byte is parsed."""
        link = self.linked()
        keeper = self.channel().receiver = Keeper()
        for octet in link.delivery(1, "é".encode()) + HEARTBEAT_FRAME:
            link.feed(bytes((octet,)))
        self.assertEqual(keeper.got, ["é".encode()])

    def test_body_over_the_limit(self) -> None:
        """A body over the limit is reported as None, and takes no memory."""
        link = self.linked()
        keeper = self.channel().receiver = Keeper()
        link.deliver(1, bytes(BODY_LIMIT + 1))
        link.deliver(1, b"x")
        self.assertEqual(keeper.got, [None, b"x"])

    def test_malformed(self) -> None:
        """A malformed method ends the connection at once."""
        link = self.linked()
        link.feed(pack_frame(METHOD, 0, b"\x00\x0a\x00\x3c\xff"))
        self.assertIn("invalid AMQP", str(self.protocol.reason))


class BrokersWordTests(AMQPCase):
    """Tests for what the owner is told besides the end."""

    def test_blocked(self) -> None:
        """The owner is told of connection.blocked and connection.unblocked."""
        link = self.linked()
        link.say(0, "connection.blocked", reason="low on\nmemory")
        link.say(0, "connection.unblocked")
        self.assertEqual(self.owner.heard, [("blocked", "low on memory"), "unblocked"])

    def test_text_that_is_none(self) -> None:
        """A reason that is not UTF-8 is passed on with replacement characters."""
        link = self.linked()
        link.feed(pack_frame(METHOD, 0, b"\x00\x0a\x00\x3c\x03a\xffb"))
        self.assertEqual(self.owner.heard, [("blocked", "a\N{REPLACEMENT CHARACTER}b")])

    def test_congested(self) -> None:
        """The owner is told when the socket's buffer is full, and when it has room again."""
        link = self.linked()
        self.assertIs(link.transport.streaming, True)
        link.transport.producer.pauseProducing()
        link.transport.producer.resumeProducing()
        link.transport.producer.stopProducing()
        self.assertEqual(self.owner.heard, [("congested", True), ("congested", False)])


class HeartbeatTests(AMQPCase):
    """Tests for heartbeats."""

    def setUp(self) -> None:
        super().setUp()
        self.link: Link = self.linked(heartbeat=10)

    def test_sent(self) -> None:
        """A heartbeat is sent in each half interval in which nothing else was sent."""
        for _ in range(20):
            self.wait(1, step=1)
            self.link.feed(HEARTBEAT_FRAME)
        self.assertEqual(self.link.heartbeats, 3)  # the first half interval had the handshake

    def test_not_needed(self) -> None:
        """No heartbeat is sent where other frames are."""
        one = self.channel()
        for _ in range(20):
            self.done(one.basic_qos(prefetch_count=1))
            self.wait(1, step=1)
        self.assertEqual(self.link.heartbeats, 0)

    def test_missed(self) -> None:
        """A silent broker is detected within two intervals, and the socket aborted."""
        self.wait(14.5)
        self.assertEqual(self.owner.heard, [])
        self.wait(5.5)
        self.assertIn("no data received for 15 s", str(self.owner.heard[0]))
        self.assertTrue(self.link.transport.disconnected)
        self.assert_idle()

    def test_any_byte_counts(self) -> None:
        """A partial frame counts as a heartbeat."""
        slow = HEARTBEAT_FRAME * 10
        for octet in slow:
            self.link.feed(bytes((octet,)))
            self.wait(4, step=1)
        self.assertEqual(self.owner.heard, [])

    def test_stopped_at_the_end(self) -> None:
        """No timer is left after the end."""
        self.link.lose()
        self.assert_idle()

    def test_shorter_than_a_second(self) -> None:
        """An interval below one second is announced as one second, and kept by the client."""
        link = self.linked(heartbeat=0.4)
        self.assertEqual(link.last("connection.tune-ok").args["heartbeat"], 1)
        self.wait(0.9, step=0.1)
        self.assertIn("no data received for 0.6 s", str(self.owner.heard[-1]))


class NoHeartbeatTests(AMQPCase):
    """Tests for connections without heartbeats."""

    def test_none(self) -> None:
        """With an interval of 0 no heartbeat is sent, and silence does not end the connection."""
        link = self.linked(heartbeat=0)
        self.assertEqual(link.last("connection.tune-ok").args["heartbeat"], 0)
        self.assert_idle()

    def test_the_broker_wants_none(self) -> None:
        """If the broker names no interval, ours applies."""
        self.broker.tune = (0, 0, 0)
        self.linked(heartbeat=10)
        self.assertEqual(self.protocol.heartbeat, 10)


class TurnEndTests(AMQPCase):
    """Tests for at_turn_end."""

    def test_outside_of_a_read(self) -> None:
        """Outside a read the call is made in the reactor's next turn, once."""
        self.linked()
        done: list[str] = []
        self.protocol.at_turn_end(lambda: done.append("a"))
        self.protocol.at_turn_end(lambda: done.append("b"))
        self.assertEqual(done, [])
        self.reactor.advance(0)
        self.assertEqual(done, ["a", "b"])
        self.assert_idle()

    def test_within_a_read(self) -> None:
        """Within a read the call is made after all of its bytes are handled."""
        link = self.linked()
        one = self.channel()
        done: list[str] = []
        protocol = self.protocol

        class Receiver(ChannelReceiver):
            def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
                if not done:
                    protocol.at_turn_end(lambda: done.append("end"))
                done.append("message")

        one.receiver = Receiver()
        link.feed(link.delivery(1, b"a") + link.delivery(1, b"b"))
        self.assertEqual(done, ["message", "message", "end"])
