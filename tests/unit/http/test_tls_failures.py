"""Tests for novasvc.http.tls_failures."""

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http.tls_failures import TLSFailureLog

PEER = IPv4Address("TCP", "192.0.2.7", 40000)


class TLSFailureLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.failures = TLSFailureLog("api", self.clock)

    def logged(self, error: Exception) -> list[str | None]:
        with capturedLogs() as events:
            self.failures.add(PEER, Failure(error))
        return [formatEvent(event) for event in events]

    def test_openssl(self) -> None:
        """OpenSSL's reasons are logged with the client's address."""
        error = SSL.Error([("SSL routines", "", "wrong version number"), ("SSL routines", "", "unknown ca")])
        expected = ["api: TLS with 192.0.2.7 failed: wrong version number; unknown ca"]
        self.assertEqual(self.logged(error), expected)

    def test_other(self) -> None:
        """An error that is not OpenSSL's is logged with its message."""
        (line,) = self.logged(ConnectionLost("reset"))
        self.assertIn("reset", line or "")

    def test_rate(self) -> None:
        """Failures within a second of a line are counted, and the next line has their number."""
        self.assertEqual(len(self.logged(SSL.Error())), 1)
        for _ in range(3):
            self.assertEqual(self.logged(SSL.Error()), [])
        self.clock.advance(1.0)
        (line,) = self.logged(SSL.Error())
        self.assertIn("(3 more failed before)", line or "")
        self.clock.advance(1.0)
        (line,) = self.logged(SSL.Error())
        self.assertNotIn("more failed", line or "")
