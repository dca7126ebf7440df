"""Tests for novasvc.transport.amqp.time_in_queue."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.transport.amqp.content import stamp
from novasvc.transport.amqp.time_in_queue import MAX_SENDERS, TimesInQueue

SENDER = b"abcdef01"


class TimesInQueueTests(SynchronousTestCase):
    """Tests for the estimate of how long a message has waited. The sender's clock is 100 s ahead, unless it is set."""

    def setUp(self) -> None:
        self.times = TimesInQueue()
        self.now = 10_000.0
        self.ahead = 100.0

    def waited(self, waited: float, ttl: float = 60.0, *, at_once: bool = False, sender: bytes = SENDER) -> float:
        """Receive a message that has waited, and return the estimate."""
        sent = stamp(sender, self.now - waited + self.ahead)
        return self.times.waited(sent, self.now, ttl, at_once=at_once)

    def test_learnt(self) -> None:
        """What came at once tells the difference between the clocks."""
        self.assertEqual(self.waited(0.0, at_once=True), 0.0)
        self.assertAlmostEqual(self.waited(4.0), 4.0, places=2)
        self.assertAlmostEqual(self.waited(59.0), 59.0, places=2)

    def test_unknown(self) -> None:
        """Without that the clocks count as equal; a time below 0 or beyond the TTL shows that they are not."""
        self.assertEqual(self.waited(4.0), 0.0)
        self.ahead = -100.0
        self.assertEqual(self.waited(4.0), 0.0)
        self.ahead = 0.0
        self.assertAlmostEqual(self.waited(4.0), 4.0, places=2)

    def test_kept_without_room(self) -> None:
        """However long the consumer has no room, the difference stays what it was."""
        self.waited(0.0, at_once=True)
        for _ in range(100):
            self.now += 60.0
            self.assertAlmostEqual(self.waited(30.0), 30.0, places=2)

    def test_on_the_way(self) -> None:
        """A message that the network or the broker delayed is seen as such, if it is the only one."""
        self.waited(0.0, at_once=True)
        self.now += 100.0
        self.assertAlmostEqual(self.waited(20.0, at_once=True), 20.0, places=2)
        self.assertEqual(self.waited(0.0, at_once=True), 0.0)
        self.assertAlmostEqual(self.waited(5.0), 5.0, places=2)

    def test_smaller(self) -> None:
        """The smallest difference counts, whether its message came at once or not."""
        self.waited(3.0, at_once=True)
        self.assertEqual(self.waited(0.0), 0.0)
        self.assertAlmostEqual(self.waited(3.0, at_once=True), 3.0, places=2)

    def test_clock_that_is_set(self) -> None:
        """Clocks that were set are found out: at once if the message would have expired, else in two minutes."""
        self.waited(0.0, at_once=True)
        self.ahead = -1000.0
        self.assertEqual(self.waited(0.0, at_once=True), 0.0)
        self.assertAlmostEqual(self.waited(5.0), 5.0, places=2)
        self.ahead -= 20.0
        seen = []
        for _ in range(13):
            seen.append(round(self.waited(0.0, at_once=True)))
            self.now += 10.0
        self.assertEqual(seen[0], 20)
        self.assertEqual(seen[-1], 0)

    def test_malformed(self) -> None:
        """A stamp that is none tells nothing."""
        self.assertEqual(self.times.waited(b"soon", self.now, 60.0, at_once=True), 0.0)

    def test_bounded(self) -> None:
        """Only so many senders are remembered; the first ones are forgotten."""
        for number in range(MAX_SENDERS + 1):
            self.waited(0.0, at_once=True, sender=b"%08d" % number)
        self.assertAlmostEqual(self.waited(9.0, sender=b"%08d" % 1), 9.0, places=2)
        self.assertEqual(self.waited(9.0, sender=b"%08d" % 0), 0.0)
