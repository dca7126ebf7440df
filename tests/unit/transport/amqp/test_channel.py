"""Tests for novasvc.transport.amqp.channel."""

from typing import Any

from twisted.internet.defer import CancelledError

from novasvc.transport.amqp.channel import AMQPClosedError, ChannelReceiver, Invocation
from novasvc.transport.amqp.codec import CodecError
from novasvc.transport.amqp.frames import METHOD, Deliver, pack_content, pack_frame
from tests.support.amqp_rig import AMQPCase, Link, method, pack


class Keeper(ChannelReceiver):
    """A receiver that records its calls."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def delivered(self, deliver: Deliver, properties: bytes, body: bytes | None) -> None:
        self.got.append(body)

    def confirmed(self, delivery_tag: int, multiple: bool, acked: bool) -> None:
        self.got.append((delivery_tag, multiple, acked))

    def returned(self, args: tuple[Any, ...], body: bytes | None) -> None:
        self.got.append((*args, body))

    def consumer_cancelled(self, consumer_tag: str) -> None:
        self.got.append(consumer_tag)

    def channel_closed(self, reason: AMQPClosedError) -> None:
        self.got.append(reason)


class InvokeTests(AMQPCase):
    """Tests for methods and their answers."""

    def setUp(self) -> None:
        super().setUp()
        self.link: Link = self.linked()
        self.one = self.channel()

    def declared(self) -> list[str]:
        return [said.args["queue"] for said in self.link.all("queue.declare")]

    def test_one_at_a_time(self) -> None:
        """A method is sent after the answer to the one before, and each gets its own answer."""
        self.broker.unanswered.add("queue.declare")
        waiting = [self.one.queue_declare(queue=name) for name in "abc"]
        for number, name in enumerate("abc", 1):
            self.settle()
            self.assertEqual(self.declared(), list("abc"[:number]))
            self.link.say(self.one.id, "queue.declare-ok", queue=name, message_count=number)
            self.assertEqual(self.successResultOf(waiting[number - 1]), (name, number, 0))

    def test_cancelled(self) -> None:
        """Cancelling a method that was sent does not shift later answers."""
        self.broker.unanswered.add("queue.declare")
        first, second = (self.started(self.one.queue_declare(queue=name)) for name in "ab")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.link.say(self.one.id, "queue.declare-ok", queue="a")
        self.assertNoResult(second)
        self.settle()
        self.link.say(self.one.id, "queue.declare-ok", queue="b")
        self.assertEqual(self.successResultOf(second)[0], "b")

    def test_cancelled_before(self) -> None:
        """A method that is cancelled before it was sent is not sent."""
        self.broker.unanswered.add("queue.declare")
        first, second, third = (self.started(self.one.queue_declare(queue=name)) for name in "abc")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.link.say(self.one.id, "queue.declare-ok", queue="a")
        self.settle()
        self.assertEqual(self.declared(), ["a", "c"])
        self.link.say(self.one.id, "queue.declare-ok", queue="c")
        self.assertEqual([self.successResultOf(asked)[0] for asked in (first, third)], ["a", "c"])
        self.assert_idle()

    def test_asked_in_an_answer(self) -> None:
        """A method that is invoked from an answer's callback is sent once."""
        asked = self.one.queue_declare(queue="a")
        asked.addCallback(lambda _: self.one.queue_declare(queue="b"))
        self.assertEqual(self.done(asked)[0], "b")
        self.assertEqual(self.declared(), ["a", "b"])

    def test_timeout(self) -> None:
        """A method without an answer closes its channel only; the number is free after close-ok."""
        other = self.channel()
        self.broker.unanswered |= {"queue.declare", "channel.close"}
        keeper = self.one.receiver = Keeper()
        first, second = (self.started(self.one.queue_declare(queue=name)) for name in "ab")
        self.reactor.advance(15)
        for asked in (first, second):
            error = self.failureResultOf(asked, AMQPClosedError).value
            self.assertEqual(str(error), "no reply to queue.declare for queue 'a' within 15 s")
        self.assertEqual(keeper.got, [self.one.reason])
        self.assertFalse(self.protocol.closed)
        self.done(other.basic_qos(prefetch_count=1))
        self.assertEqual(self.channel().id, 3)
        self.settle()
        self.link.say(1, "queue.declare-ok", queue="a")  # a late answer
        self.link.say(1, "channel.close-ok")
        self.assertEqual(self.channel().id, 1)
        self.assertEqual(self.owner.heard, [])
        self.assert_idle()

    def test_closed_from_both_sides(self) -> None:
        """The broker's channel.close that crosses ours is confirmed, and affects nothing else."""
        self.broker.unanswered.add("channel.close")
        self.one.close(AMQPClosedError("enough"))
        self.settle()
        self.link.say(1, "channel.close", reply_code=404, reply_text="NOT_FOUND")
        self.settle()
        self.assertEqual(self.link.names()[-1], "channel.close-ok")
        self.link.say(1, "channel.close-ok")
        self.assertFalse(self.protocol.closed)
        self.assertEqual(self.channel().id, 1)

    def test_closed_twice(self) -> None:
        """Closing a closed channel does nothing."""
        self.one.close(AMQPClosedError("enough"))
        self.one.close(AMQPClosedError("more than that"))
        self.one.do_close(AMQPClosedError("once more"))
        self.settle()
        self.assertEqual(len(self.link.all("channel.close")), 1)
        self.assertEqual(str(self.one.reason), "enough")

    def test_reason_too_long(self) -> None:
        """A reason over 255 bytes is truncated on the wire only."""
        self.one.close(AMQPClosedError("é" * 300))
        self.settle()
        self.assertEqual(self.link.last("channel.close").args["reply_text"], "é" * 127)
        self.assertEqual(str(self.one.reason), "é" * 300)

    def test_no_wait(self) -> None:
        """A method with no-wait fires at once, and waits for no other one."""
        self.broker.unanswered.add("queue.declare")
        self.started(self.one.queue_declare(queue="a")).addErrback(lambda _: None)
        self.assertEqual(self.successResultOf(self.one.queue_declare(queue="b", no_wait=True)), ())
        self.settle()
        self.assertEqual(self.declared(), ["a", "b"])

    def test_cannot_be_encoded(self) -> None:
        """A method that cannot be encoded fails; the next one works."""
        for arguments in ({"queue": "x" * 256}, {"queue": "a", "arguments": {"x-max": 2**64}}):
            error = self.failureResultOf(self.one.queue_declare(**arguments), CodecError).value
            self.assertIn("queue.declare", str(error))
        self.assertEqual(self.done(self.one.queue_declare(queue="é"))[0], "é")
        self.assertEqual(self.declared(), ["é"])

    def test_closed(self) -> None:
        """A method on a closed channel fails with the reason for its end."""
        self.link.say(1, "channel.close", reply_code=406, reply_text="PRECONDITION_FAILED")
        error = self.failureResultOf(self.one.queue_declare(queue="a"), AMQPClosedError).value
        self.assertEqual((error.code, str(error)), (406, "406 PRECONDITION_FAILED"))

    def test_many_waiters(self) -> None:
        """Thousands of queued methods fail without recursion when the channel closes."""
        self.broker.unanswered.add("queue.declare")
        asked = [self.one.queue_declare(queue="a") for _ in range(5000)]
        self.link.say(1, "channel.close", reply_code=404, reply_text="NOT_FOUND")
        for one in asked:
            self.failureResultOf(one, AMQPClosedError)
        self.assert_idle()

    def test_many_answers(self) -> None:
        """Thousands of answers in one read are handled without recursion."""
        asked = [self.one.basic_qos(prefetch_count=1) for _ in range(2000)]
        self.link.feed(pack(1, "basic.qos-ok"))
        self.settle()
        for one in asked:
            self.successResultOf(one)

    def test_unasked_answer(self) -> None:
        """An answer without a method ends the connection."""
        self.link.say(1, "queue.declare-ok", queue="a")
        self.assertIn("unexpected queue.declare-ok", str(self.protocol.reason))

    def test_wrong_answer(self) -> None:
        """An answer to another method ends the connection, and fails the outstanding method."""
        self.broker.unanswered.add("queue.declare")
        asked = self.started(self.one.queue_declare(queue="a"))
        self.link.say(1, "queue.bind-ok")
        self.failureResultOf(asked, AMQPClosedError)
        self.assertTrue(self.protocol.closed)

    def test_lost_with_a_cancelled_question(self) -> None:
        """A cancelled method that is outstanding when the channel closes does not fire twice."""
        self.broker.unanswered.add("queue.declare")
        asked = self.started(self.one.queue_declare(queue="a"))
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.link.say(1, "channel.close", reply_code=404, reply_text="NOT_FOUND")
        self.assertTrue(self.one.closed)


class ReceiverTests(AMQPCase):
    """Tests for what a channel's receiver is called with."""

    def setUp(self) -> None:
        super().setUp()
        self.link: Link = self.linked()
        self.one = self.channel()
        self.keeper = self.one.receiver = Keeper()

    def test_bodies(self) -> None:
        """A body is delivered unchanged: not ASCII, not UTF-8, empty, in one frame or in many."""
        for body in ("é".encode(), b"\xff\xfe\x00\xce", b"", "é".encode() * 200_000):
            self.link.deliver(1, body)
            self.assertEqual(self.keeper.got.pop(), body)

    def test_backlog(self) -> None:
        """Ten thousand messages in one read are delivered in order."""
        bodies = [b"%d" % number for number in range(10_000)]
        self.link.feed(b"".join(self.link.delivery(1, body) for body in bodies))
        self.assertEqual(self.keeper.got, bodies)

    def test_incomplete_body(self) -> None:
        """A partial message delays no other channel."""
        other = self.channel()
        other.receiver = kept = Keeper()
        slow = self.link.delivery(1, b"x" * 200_000)
        first_frames = len(slow) - 8 - (200_000 - (131_072 - 8))
        self.link.feed(slow[:first_frames])
        self.link.deliver(2, b"quick")
        self.assertEqual((self.keeper.got, kept.got), ([], [b"quick"]))
        self.link.feed(slow[first_frames:])
        self.assertEqual(self.keeper.got, [b"x" * 200_000])

    def test_confirmations(self) -> None:
        """The receiver gets basic.ack and basic.nack."""
        self.link.say(1, "basic.ack", delivery_tag=7, multiple=True)
        self.link.say(1, "basic.nack", delivery_tag=8)
        self.assertEqual(self.keeper.got, [(7, True, True), (8, False, False)])

    def test_returned(self) -> None:
        """The receiver gets basic.return with its reason."""
        head = pack(1, "basic.return", reply_code=312, reply_text="NO_ROUTE", exchange="nova", routing_key="é")
        self.link.feed(head + pack_content(1, b"\0\0", b"\xff", 4096))
        self.assertEqual(self.keeper.got, [(312, "NO_ROUTE", "nova", "é", b"\xff")])

    def test_consumer_cancelled(self) -> None:
        """The receiver gets basic.cancel."""
        self.link.say(1, "basic.cancel", consumer_tag="2", no_wait=True)
        self.assertEqual(self.keeper.got, ["2"])

    def test_closed_with_a_delivery_in_flight(self) -> None:
        """A delivery that arrives after channel.close was sent is ignored, and the connection stays."""
        self.broker.unanswered.add("channel.close")
        self.one.close(AMQPClosedError("enough", clean=True))
        self.link.deliver(1, b"late")
        self.link.say(1, "basic.ack", delivery_tag=1)
        self.link.say(1, "basic.cancel", consumer_tag="1")
        self.link.say(1, "channel.close-ok")
        self.assertEqual(self.keeper.got, [self.one.reason])
        self.assertEqual(self.owner.heard, [])
        self.assertFalse(self.protocol.closed)

    def test_nobody_is_there(self) -> None:
        """A delivery on a channel without a receiver is ignored."""
        self.one.receiver = None
        self.link.deliver(1, b"x")
        self.link.say(1, "basic.ack", delivery_tag=1)
        self.link.say(1, "basic.cancel", consumer_tag="1")
        self.link.say(1, "channel.close", reply_code=404)
        self.assertTrue(self.one.closed)
        self.assertFalse(self.protocol.closed)

    def test_by_default(self) -> None:
        """A receiver ignores everything by default."""
        self.one.receiver = ChannelReceiver()
        self.link.deliver(1, b"x")
        self.link.say(1, "basic.ack", delivery_tag=1)
        head = pack(1, "basic.return", reply_code=312)
        self.link.feed(head + pack_content(1, b"\0\0", b"", 4096))
        self.link.say(1, "basic.cancel", consumer_tag="1")
        self.link.say(1, "channel.close", reply_code=404)
        self.assertFalse(self.protocol.closed)

    def test_unrequested_message(self) -> None:
        """Content by a method that we do not use ends the connection."""
        self.link.feed(pack(1, "basic.get-ok") + pack_content(1, b"\0\0", b"x", 4096))
        self.assertIn("not requested", str(self.protocol.reason))

    def test_flow(self) -> None:
        """channel.flow is answered."""
        self.link.say(1, "channel.flow", active=True)
        self.settle()
        self.assertEqual(self.link.last("channel.flow-ok").args, {"active": True})

    def test_argument_that_is_none(self) -> None:
        """An invocation has the method's arguments as attributes, and no others."""
        sent = Invocation(method("basic.cancel"), ("1", True))
        self.assertEqual((sent.consumer_tag, sent.no_wait), ("1", True))
        self.assertRaises(AttributeError, getattr, sent, "queue")

    def test_malformed(self) -> None:
        """A truncated or unknown method, or one that is not for a client, ends the connection with the reason."""
        for payload, reason in (
            (b"\x00\x32\x00\x0b\x01", "invalid AMQP"),
            (b"\x00\x63\x00\x01", "unknown"),
            (b"\x00", "invalid AMQP"),
            (pack(1, "queue.purge", queue="a")[7:-1], "must not receive queue.purge"),
        ):
            link = self.linked()
            self.channel()
            link.feed(pack_frame(METHOD, 1, payload))
            self.assertIn(reason, str(self.protocol.reason))
            self.assertEqual(self.owner.heard, [self.protocol.reason])

    def test_misplaced(self) -> None:
        """A connection method on a channel, or a channel method on channel 0, ends the connection."""
        for number, name in ((1, "connection.close"), (1, "connection.blocked"), (0, "channel.close")):
            link = self.linked()
            self.channel()
            link.say(number, name)
            self.assertIn(f"{name} on channel {number}", str(self.protocol.reason))
