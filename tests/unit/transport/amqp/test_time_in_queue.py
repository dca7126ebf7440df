"""Tests for novasvc.transport.amqp.time_in_queue."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.time_in_queue import MAX_SENDERS, TimesInQueue

SENDER = b"abcdef01"


class TimesInQueueTests(SynchronousTestCase):
    """Tests for the estimate of how long a message has waited. The sender's clock is 100 s ahead, unless it is set."""

    def setUp(self) -> None:
        self.times = TimesInQueue(lambda: 0.0)
        self.ahead = 100.0

    def waited(
        self, waited: float, ttl: float = 60.0, *, at_once: bool = False, again: bool = False, sender: bytes = SENDER
    ) -> float:
        """Receive a message that has waited, and return the estimate."""
        return self.times.waited(sender, waited - self.ahead, ttl, at_once=at_once, again=again)

    def test_at_once(self) -> None:
        """What came at once tells the difference between the clocks, however long nothing else does."""
        self.assertEqual(self.waited(0.0, at_once=True), 0.0)
        for waited in (4.0, 59.0, 30.0):
            self.assertAlmostEqual(self.waited(waited), waited)

    def test_equal(self) -> None:
        """Without that the clocks count as equal; a message from the future, or an expired one, shows another."""
        self.ahead = 0.0
        self.assertEqual(self.waited(4.0), 4.0)
        self.ahead = 100.0
        self.assertEqual(self.waited(4.0), 0.0)
        self.assertAlmostEqual(self.waited(9.0), 5.0)
        self.ahead = -100.0
        self.assertEqual(self.waited(4.0), 0.0)
        self.assertAlmostEqual(self.waited(9.0), 5.0)

    def test_smaller(self) -> None:
        """A smaller difference replaces a larger one, as that of a message that was delayed on its way."""
        self.ahead = 0.0
        self.assertEqual(self.waited(20.0, at_once=True), 0.0)
        self.assertEqual(self.waited(0.1), 0.0)
        self.assertEqual(self.waited(5.0), 5.0)
        self.assertEqual(self.times.differences, {})

    def test_again(self) -> None:
        """What a process has held may be older than its TTL, and tells nothing about the clocks."""
        self.ahead = 0.0
        self.assertEqual(self.waited(546.0, 120.0, at_once=True, again=True), 120.0)
        self.assertEqual(self.waited(20.0, again=True), 20.0)
        self.assertEqual(self.times.differences, {})

    def test_bounded(self) -> None:
        """Only so many senders are remembered; the first ones are forgotten."""
        for number in range(MAX_SENDERS + 1):
            self.waited(0.0, at_once=True, sender=b"%08d" % number)
        self.assertEqual(len(self.times.differences), MAX_SENDERS)
        self.assertAlmostEqual(self.waited(9.0, sender=b"%08d" % 1), 9.0)
