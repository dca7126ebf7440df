"""Tests for orders to replace queues; tests/faults/test_amqp_migration.py has the rest, with a real broker."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.replacement import FINISH, REPORT, Order, Replacements, Stage


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
