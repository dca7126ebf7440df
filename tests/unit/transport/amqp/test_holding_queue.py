"""Tests for holding queues."""

from typing import Any

from novasvc.rpc.target import Target
from tests.unit.transport.amqp.test_listener import ListenerCase


class RunningCase(ListenerCase):
    """A listener that can hold requests in a holding queue."""

    def running(self) -> list[Any]:
        """Return the basic.consume methods of the newest holding queues."""
        return [said for said in self.link.all("basic.consume") if "_running_" in said.args["queue"]]

    def hold(self, body: bytes) -> None:
        """Deliver a request and hold it; its copy arrives by the holding queue."""
        self.deliver(body)
        self.got[-1].hold()
        self.settle()
        said = self.running()[0]
        self.link.feed(self.link.delivery(said.channel, body, consumer=said.args["consumer_tag"]))
        self.settle()

    def deliver(self, *bodies: bytes, **more: Any) -> None:
        """Deliver on the listener's own channel."""
        channel = next(said.channel for said in self.link.all("basic.consume") if said.args["queue"] == "compute")
        self.link.feed(b"".join(self.link.delivery(channel, body, **more) for body in bodies))
        self.settle()

    def consumed(self, queue: str) -> int:
        """Return how often a queue was consumed from."""
        return len([said for said in self.link.all("basic.consume") if said.args["queue"] == queue])


class ResizeTests(RunningCase):
    """Tests for the topic's prefetch, which held requests reduce."""

    def test_less(self) -> None:
        """A held request reduces the topic's prefetch by one."""
        listener = self.listen(prefetch=10)
        self.hold(b"a")
        self.wait(0.3)
        self.assertEqual(self.link.last("basic.qos").args["prefetch_count"], 9)
        self.assertTrue(listener._consuming.consumers.consumes_from("compute"))

    def test_auto_delete(self) -> None:
        """The consumer of an auto-delete queue is not replaced."""
        self.done(self.amqp.close())
        self.amqp = self.transport(heartbeat=0.0, auto_delete=True)
        self.listen(prefetch=10)
        self.hold(b"a")
        self.wait(0.5)
        self.assertEqual((self.consumed("compute"), self.link.all("basic.cancel")), (1, []))

    def test_narrowed_before(self) -> None:
        """A draining server does not consume its topic again for a pending resize."""
        listener = self.listen(prefetch=10)
        self.hold(b"a")
        self.done(listener.cancel_topic(100))
        self.wait(0.5)
        self.assertEqual(self.consumed("compute"), 1)
        self.assertFalse(listener._consuming.consumers.consumes_from("compute"))

    def test_narrowed_meanwhile(self) -> None:
        """Nor if it begins to drain while the resize cancels the topic's consumer."""
        self.narrow_without("basic.cancel")

    def test_narrowed_while_it_consumes(self) -> None:
        """Nor while the resize starts the topic's next consumer, which is cancelled."""
        self.narrow_without("basic.consume")

    def narrow_without(self, unanswered: str) -> None:
        """Narrow while a resize waits for an answer, and send the answer then."""
        listener = self.listen(prefetch=10)
        channel = self.link.last("basic.consume").channel
        self.hold(b"a")
        before = len(self.link.all(unanswered))
        self.broker.unanswered.add(unanswered)
        self.wait(0.3)
        self.assertFalse(listener._consuming.consumers.consumes_from("compute"))
        consumed = self.consumed("compute")
        narrowing = self.started(listener.cancel_topic(100))
        self.broker.unanswered.clear()
        for said in self.link.all(unanswered)[before:]:
            self.link.say(channel, f"{unanswered}-ok", consumer_tag=said.args["consumer_tag"])
        self.wait(0.5)
        self.successResultOf(narrowing)
        self.assertEqual(self.consumed("compute"), consumed)
        cancelled = [said.args["consumer_tag"] for said in self.link.all("basic.cancel")]
        left = [said.args["queue"] for said in self.link.all("basic.consume") if said.channel == channel]
        tags = [said.args["consumer_tag"] for said in self.link.all("basic.consume") if said.channel == channel]
        kept = [queue for queue, tag in zip(left, tags, strict=True) if tag not in cancelled]
        self.assertEqual([queue for queue in kept if "fanout" not in queue], ["compute.h1"])
        self.assertFalse(listener._consuming.consumers.consumes_from("compute"))


class RefusedTests(RunningCase):
    """Tests for brokers that refuse the holding queue."""

    def test_sent_otherwise(self) -> None:
        """A request to redeliver returns to its own queue with its count, whatever the broker's reason."""
        self.listen()
        for number, code in enumerate((403, 404, 405, 406)):
            self.broker.closing["queue.declare"] = (code, f"no {number}")
            self.deliver(b"%d" % number, redelivered=True)
            self.got[-1].requeue_here(1)
            self.settle()
            self.broker.closing.clear()
            self.assertEqual(self.published()[-1].args["routing_key"], "compute", code)
            self.assertEqual(self.headers(), {"x-novasvc-deliveries": 1, "x-novasvc-deaths": 1})
        self.assertEqual(self.settled(), [("ack", tag, True) for tag in range(1, 5)])
        self.assertEqual(len([line for line in self.log if "no holding queue for" in line]), 4)

    def test_away(self) -> None:
        """If the holding queue's broker node is down, the request is requeued after a pause; the log names it."""
        self.listen()
        self.broker.closing["queue.declare"] = (404, "NOT_FOUND - its node is down or inaccessible")
        self.deliver(b"x", redelivered=True)
        self.got[-1].requeue_here(1)
        self.settle()
        self.assertEqual(self.published(), [])
        (line,) = [line for line in self.log if "cannot move messages to" in line]
        self.assertIn("cannot move messages to compute_running_", line)
        self.broker.closing.clear()
        self.wait(31)
        self.assertEqual(self.settled(), [("reject", 1, True)])

    def test_worn(self) -> None:
        """A message of the holding queue is not published anew, however often the broker has returned it."""
        self.target = Target("compute", "h2")
        self.listen()
        self.hold(b"a")
        said = self.running()[0]
        consumer, headers = said.args["consumer_tag"], {"x-delivery-count": 10}
        published, got = len(self.published()), len(self.got)
        self.link.feed(
            self.link.delivery(said.channel, b"b", consumer=consumer, redelivered=True, properties={"headers": headers})
        )
        self.settle()
        self.assertEqual((len(self.published()), len(self.got)), (published, got + 1))


class CloseTests(RunningCase):
    """Tests for the end of the holding queue."""

    def test_closed(self) -> None:
        """An empty queue is deleted."""
        listener = self.listen()
        self.hold(b"a")
        self.got[-1].ack()
        self.done(listener.cancel())
        self.done(listener.close())
        self.assertEqual(len([said for said in self.link.all("queue.delete") if "_running_" in said.args["queue"]]), 2)

    def test_silent(self) -> None:
        """A silent broker is waited for once, for 2 s, by cancel or by close."""
        for cancelled in (True, False):
            self.broker.unanswered.clear()
            listener = self.listen()
            self.hold(b"a")
            self.broker.unanswered |= {"basic.cancel", "basic.qos", "queue.delete"}
            if cancelled:
                cancelling = self.started(listener.cancel())
                self.wait(2.1)
                self.successResultOf(cancelling)
            closing = self.started(listener.close())
            self.wait(0.1 if cancelled else 2.1)
            self.successResultOf(closing)
            self.link.lose()
            self.wait(3)
        self.broker.unanswered.clear()
