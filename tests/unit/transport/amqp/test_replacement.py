"""Tests for orders to replace queues; tests/faults/test_amqp_migration.py has the rest, with a real broker."""

import json
from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.interfaces import Reachability
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.content import PROBE
from novasvc.transport.amqp.replacement import FINISH, REPORT, Order, Replacements, Stage
from tests.unit.transport.amqp.test_loopback import LoopbackCase


class OrderTests(SynchronousTestCase):
    """Tests for Order."""

    def test_round_trip(self) -> None:
        """An order is read as it was written."""
        order = Order(do=Stage.RELEASED, queues=("a", "b"), kind="quorum", number=3)
        self.assertEqual(Order.decode(order.encode()), order)

    def test_malformed(self) -> None:
        """What is no order is a ValueError: anybody may publish to the queue."""
        for body in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"do": "report", "queues": "a", "number": 1}',
            b'{"do": "report", "queues": [], "number": "1"}',
            b'{"do": "dance", "queues": [], "number": 1}',
        ):
            self.assertRaises(ValueError, Order.decode, body)


class ReplacementsTests(SynchronousTestCase):
    """Tests for Replacements without listeners."""

    def setUp(self) -> None:
        self.replacements = Replacements({})

    def test_ignored(self) -> None:
        """A malformed order, and one about none of our queues, get no answer."""
        for body in (b"?", Order(do=REPORT).encode(), Order(do=FINISH, queues=("a",)).encode()):
            self.assertEqual(self.successResultOf(self.replacements.receive(body)), None)
        self.assertFalse(self.replacements)

    def test_nothing_replaced(self) -> None:
        """Queues that nobody replaces are consumed, and copies go to them."""
        self.assertFalse(self.replacements.is_released("a"))
        self.assertEqual((self.replacements.stage("a"), self.replacements.destination("a")), (None, "a"))
        self.replacements.adapt(AMQPClosedError("NOT_FOUND - no queue 'a' in vhost '/'", code=404))
        self.assertFalse(self.replacements)


class OrderedCase(LoopbackCase):
    """A listener of compute.h1 that gets orders by its fanout queue."""

    def order(self, do: str, *queues: str) -> Any:
        """Send an order; return the last answer: what it says by queue."""
        body = Order(do=do, queues=queues, kind="quorum", number=1).encode()
        (said,) = [one for one in self.link.all("basic.consume") if one.args["queue"] == self.own][-1:]
        properties = {"headers": {PROBE: "reply_of_the_command"}}
        self.link.deliver(said.channel, body, consumer=said.args["consumer_tag"], properties=properties)
        self.settle()
        return json.loads(self.published()[-1].body or b"")["queues"]

    def consumed(self) -> list[str]:
        return [said.args["queue"] for said in self.link.all("basic.consume")]


class MissedEndTests(OrderedCase):
    """Tests for a process that is cut off from the broker at the end of a replacement."""

    def subscribe(self) -> Any:
        return self.done(self.amqp.subscribe("compute_events", ["notifications.info"], self.got.append, 10))

    def assert_over(self) -> None:
        """See that a verification ends the replacement, and that the next one sends a probe again."""
        self.broker.closing["queue.declare"] = (404, "NOT_FOUND - no queue 'compute_interim' in vhost '/'")
        verifying = self.verify()
        self.wait(1)
        self.assertEqual(self.successResultOf(verifying), Reachability())
        self.broker.closing.clear()
        self.assertEqual(self.probes(), [])
        self.verify()
        self.assertEqual(len(self.probes()), 1)

    def test_all_listeners(self) -> None:
        """One listener's verification ends the replacements of all: they consume again."""
        events = self.subscribe()
        queues = "compute", "compute.h1", "compute_events"
        self.order(Stage.FOLLOWING, *queues)
        self.order(Stage.RELEASED, *queues)
        self.assertFalse(events.consumes_from("compute_events"))
        self.assert_over()
        self.assertTrue(events.consumes_from("compute_events"))
        self.assertTrue(self.listener.consumes_from("compute"))

    def test_log(self) -> None:
        """The log says at each stage what is consumed, and when the replacement has ended."""
        with capturedLogs() as logs:
            for do in (*Stage, FINISH):
                self.order(do, "compute")
        replaced = "an operator replaces compute by a quorum queue; now "
        self.assertEqual(
            [formatEvent(event) for event in logs if event["log_namespace"].endswith(".replacement")],
            [
                f"{replaced}the queue and its interim queue are consumed",
                f"{replaced}only its interim queue is consumed",
                f"{replaced}its interim queue and the new queue are consumed",
                f"{replaced}only the new queue is consumed",
                "the replacement of compute has ended",
            ],
        )

    def test_listener_closed(self) -> None:
        """A queue whose listener was closed does not keep the others from being verified."""
        events = self.subscribe()
        self.order(Stage.FOLLOWING, "compute_events")
        self.done(events.close())
        self.assert_over()


class DrainTests(OrderedCase):
    """Tests for a process that drains while queues are replaced."""

    def test_unsettled(self) -> None:
        """A draining server says what it has not settled of a queue that it does not consume any more."""
        self.deliver(b"1")
        self.done(self.listener.cancel_topic(10))
        self.assertEqual(self.order(REPORT)["compute"]["consumes"], 0)
        answer = self.order(Stage.RELEASED, "compute")["compute"]
        self.assertEqual((answer["stage"], answer["left"]), ("released", 1))
        self.got[0].ack()
        self.settle()
        self.assertEqual(self.order(Stage.RELEASED, "compute")["compute"]["left"], 0)

    def test_lost(self) -> None:
        """A draining server still carries out orders after it has lost the connection."""
        self.done(self.listener.cancel_topic(10))
        self.link.lose()
        self.wait(5)
        self.deliver(b"1", consumer=self.link.consumer("compute.h1"))
        self.order(Stage.FOLLOWING, "compute.h1")
        answer = self.order(Stage.RELEASED, "compute.h1")["compute.h1"]
        self.assertEqual((answer["stage"], answer["left"]), ("released", 1))

    def test_events(self) -> None:
        """So it does of events, which it has stopped to consume first."""
        events = self.done(self.amqp.subscribe("compute_events", ["notifications.info"], self.got.append, 10))
        said = self.link.last("basic.consume")
        self.link.deliver(said.channel, b"1", consumer=said.args["consumer_tag"])
        self.done(events.cancel())
        self.done(self.listener.cancel_topic(10))
        self.assertEqual(self.order(Stage.RELEASED, "compute_events")["compute_events"]["left"], 1)

    def test_consumers(self) -> None:
        """No order makes a draining server consume from its topic; its own queue is replaced as ever."""
        self.done(self.listener.cancel_topic(10))
        before = len(self.consumed())
        for stage in (Stage.FOLLOWING, Stage.RELEASED, Stage.RETURNED, Stage.FINISHING, FINISH):
            self.order(stage, "compute", "compute.h1")
        self.assertEqual(self.consumed()[before:], ["compute.h1_interim", "compute.h1"])
        self.done(self.listener.cancel())
        self.assertFalse(self.listener.consumes_from("compute.h1"))

    def test_kept_consumer(self) -> None:
        """A drain ends the wait for the deletion of an old quorum queue, whose consumer was kept until then."""
        body = Order(do=Stage.RELEASED, queues=("compute",), kind="classic", number=1).encode()
        replacements = self.listener.subscriptions.replacements
        self.done(replacements.receive(body))
        self.assertTrue(json.loads(self.done(replacements.receive(body)))["queues"]["compute"]["waits"])
        self.done(self.listener.cancel_topic(10))
        self.assertFalse(json.loads(self.done(replacements.receive(body)))["queues"]["compute"]["waits"])
