"""Tests for novasvc.transport.amqp.time_in_queue."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.time_in_queue import MAX_SENDERS, TimesInQueue

SENDER = b"abcdef01"


class TimesInQueueTests(SynchronousTestCase):
    """Tests for the estimate of how long a message has waited. The sender's clock is 100 s ahead, unless it is set."""

    def setUp(self) -> None:
        self.times = TimesInQueue()
        self.ahead = 100.0

    def waited(
        self, waited: float, ttl: float = 60.0, *, at_once: bool = False, again: bool = False, sender: bytes = SENDER
    ) -> float:
        """Receive a message that has waited, and return the estimate."""
        return self.times.waited(sender, waited - self.ahead, ttl, at_once=at_once, again=again)

    def test_at_once(self) -> None:
        """Two that came at once tell the difference between the clocks, however long nothing else does."""
        self.ahead = -20.0
        self.assertEqual([self.waited(0.0, at_once=True) for _ in range(3)], [20.0, 0.0, 0.0])
        for waited in (4.0, 59.0, 30.0):
            self.assertAlmostEqual(self.waited(waited), waited)

    def test_blocked(self) -> None:
        """What waited in the socket of a process that was blocked does not pass for a difference."""
        self.ahead = 0.0
        for waited in (3.4, 2.3, 1.2, 3.4):
            self.assertEqual(self.waited(waited, at_once=True), waited)
            self.assertEqual(self.waited(0.0, at_once=True), 0.0)
        self.assertEqual(self.times.differences, {})

    def test_equal(self) -> None:
        """Without that the clocks count as equal; a message from the future shows another, or two expired ones."""
        self.ahead = 0.0
        self.assertEqual(self.waited(4.0), 4.0)
        self.ahead = 100.0
        self.assertEqual(self.waited(4.0), 0.0)
        self.assertAlmostEqual(self.waited(9.0), 5.0)
        self.ahead = -100.0
        self.assertEqual([self.waited(4.0), self.waited(4.0)], [0.0, 0.0])
        self.assertAlmostEqual(self.waited(9.0), 5.0)

    def test_smaller(self) -> None:
        """A smaller difference replaces a larger one, as that of messages that were delayed on their way."""
        self.ahead = 0.0
        self.assertEqual([self.waited(20.0, at_once=True) for _ in range(2)], [20.0, 0.0])
        self.assertEqual(self.waited(0.1), 0.0)
        self.assertEqual(self.waited(5.0), 5.0)
        self.assertEqual(self.times.differences, {})

    def test_again(self) -> None:
        """What a process has held may be older than its TTL, and tells nothing about the clocks."""
        self.ahead = 0.0
        for _ in range(2):
            self.assertEqual(self.waited(546.0, 120.0, at_once=True, again=True), 120.0)
            self.assertEqual(self.waited(20.0, again=True), 20.0)
        self.assertEqual(self.times.differences, {})

    def test_bounded(self) -> None:
        """Only so many senders are remembered; the first ones are forgotten."""
        for number in range(MAX_SENDERS + 1):
            self.waited(0.0, sender=b"%08d" % number)
        self.assertEqual(len(self.times.differences), MAX_SENDERS)
        self.assertAlmostEqual(self.waited(9.0, sender=b"%08d" % 1), 9.0)
