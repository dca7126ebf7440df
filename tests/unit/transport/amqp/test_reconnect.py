"""Tests for novasvc.transport.amqp.reconnect."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.config.transport_url import BrokerAddress
from novasvc.transport.amqp.reconnect import ReconnectSchedule
from novasvc.transport.errors import BrokerFailedError, BrokerRefusedError, BrokerUnavailableError

HOSTS = BrokerAddress.parse("amqp://one,two/").hosts
AWAY = BrokerUnavailableError("amqp://one", "connection refused")
REFUSED = BrokerRefusedError("amqp://one", "login refused for user 'nova'")
FAILED = BrokerFailedError("amqp://one", "it reported an error")


class ScheduleTests(SynchronousTestCase):
    """Tests for ReconnectSchedule: 1 s a round of two hosts, 100 s if refused."""

    def setUp(self) -> None:
        self.schedule = ReconnectSchedule(HOSTS, float, lambda rounds: 100.0 * rounds)

    def delays(self, error: Exception, attempts: int) -> list[float]:
        found = []
        for _ in range(attempts):
            self.schedule.next_host()
            found.append(self.schedule.delay(error))
        return found

    def test_hosts_in_turn(self) -> None:
        """The hosts are tried in turn; each was tried after the first round."""
        self.assertEqual([self.schedule.next_host().host for _ in range(3)], ["one", "two", "one"])
        self.assertTrue(self.schedule.has_tried_all())

    def test_unavailable(self) -> None:
        """The next host follows at once, the next round after the backoff."""
        self.assertEqual(self.delays(AWAY, 6), [0, 1, 0, 2, 0, 3])

    def test_refused(self) -> None:
        """Refusals have the slow backoff, and a count of their own."""
        self.assertEqual(self.delays(AWAY, 4), [0, 1, 0, 2])
        self.assertEqual(self.delays(REFUSED, 4), [0, 100, 0, 200])

    def test_failed(self) -> None:
        """Internal errors of the broker have the quick backoff for five rounds."""
        self.assertEqual(self.delays(FAILED, 12)[1::2], [1, 2, 3, 4, 5, 100])

    def test_reset(self) -> None:
        """A connection that is ready starts the schedule anew."""
        self.delays(REFUSED, 4)
        self.schedule.reset()
        self.assertEqual((self.schedule.attempts, self.schedule.has_tried_all()), (0, False))
        self.assertEqual(self.delays(AWAY, 2), [0, 1])
