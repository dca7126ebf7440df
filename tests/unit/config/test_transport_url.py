"""Tests for novasvc.config.transport_url."""

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.config.transport_url import BrokerAddress, Host

words = st.text(min_size=1, max_size=20)
passwords = st.text(min_size=4, max_size=20).filter(lambda word: word not in "amqps://guest@host:5672,other5671/***")


class BrokerAddressTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """A URL with only a host has the user guest, the default port and the virtual host "/"."""
        expected = BrokerAddress((Host("h", 5672, "guest", "guest"),), "/", tls=False)
        for url in ("amqp://h", "amqp://h/", "rabbit://h//", "amqp://h/%2F"):
            self.assertEqual(BrokerAddress.parse(url), expected)

    def test_tls(self) -> None:
        """amqps: uses TLS and its own port, as any scheme does if the setting says so."""
        for address in (BrokerAddress.parse("amqps://h"), BrokerAddress.parse("rabbit://h", tls=True)):
            self.assertEqual((address.tls, address.hosts[0].port), (True, 5671))
        self.assertEqual(BrokerAddress.parse("amqps://h:1").hosts[0].port, 1)

    def test_query(self) -> None:
        """The query overrides the TLS setting, as in oslo.messaging."""
        for word in ("1", "true", "YES", "on"):
            address = BrokerAddress.parse(f"rabbit://h/v?ssl={word}")
            self.assertEqual((address.tls, address.vhost, address.hosts[0].port), (True, "v", 5671))
        for word in ("0", "False", "no", "off"):
            address = BrokerAddress.parse(f"rabbit://h?ssl={word}", tls=True)
            self.assertEqual((address.tls, address.vhost, address.hosts[0].port), (False, "/", 5672))
        self.assertTrue(BrokerAddress.parse("amqps://h/?ssl=1").tls)

    def test_several(self) -> None:
        """Hosts are kept in order, each with its own credentials or those of the first."""
        address = BrokerAddress.parse("rabbit://u:p@one:1,two,v:@[::1]:3/name")
        self.assertEqual(
            address.hosts, (Host("one", 1, "u", "p"), Host("two", 5672, "u", "p"), Host("::1", 3, "v", ""))
        )
        self.assertEqual(address.vhost, "name")
        self.assertEqual(address.shown(), "amqp://u:***@one:1,u:***@two:5672,v:***@[::1]:3/name")

    @given(words, passwords, words)
    def test_encoded(self, username: str, password: str, vhost: str) -> None:
        """Names and passwords are percent-decoded, and the password is never shown."""
        url = f"amqp://{quote(username, '')}:{quote(password, '')}@host/{quote(vhost, '')}"
        address = BrokerAddress.parse(url)
        self.assertEqual((address.hosts[0].username, address.hosts[0].password), (username, password))
        self.assertEqual(address.vhost, vhost)
        if password not in username and password not in vhost:
            self.assertNotIn(f":{password}@", address.shown())
            self.assertNotIn(f"password={password!r}", repr(address))

    def test_refused(self) -> None:
        """An invalid URL is an error with the reason and without the password."""
        for url, reason in (
            ("redis://u:s3cret@h", "the scheme is not one of amqp://"),
            ("amqp://u:s3cret@h?heartbeat=3", "a query"),
            ("amqp://u:s3cret@h?ssl=3", "neither 1 nor 0"),
            ("amqp://u:s3cret@h?ssl=1&ssl=0", "neither 1 nor 0"),
            ("amqp://u:pw?ssl=s3cret@h", "neither 1 nor 0"),
            ("amqps://u:s3cret@h?ssl=0", "contradicts"),
            ("amqp://u:s3cret@h/v#x", "a fragment"),
            ("amqp://u:s3cret@", "the host is missing"),
            ("amqp://u:s3cret@h,", "the host is missing"),
            ("amqp:///v", "the host is missing"),
            ("amqp://u:s3/cret@h/", "percent-encoded"),
            ("amqp://u:s3cret@h:port", "percent-encoded"),
            ("amqp://u:s3cret@h:99999", "percent-encoded"),
            ("amqp://u:s3cret@[::1", "percent-encoded"),
            ("amqp://u:s3cret@[zz]/", "percent-encoded"),
            ("amqp://u:s3cret\u2100@h/", "percent-encoded"),
            ("amqp://u:12/s3cret@h:5672/v", "percent-encoded"),
            ("amqp://u:s3cret@h:0/v", "port 0"),
        ):
            error = self.assertRaises(ValueError, BrokerAddress.parse, url)
            self.assertIn(reason, str(error), url)
            self.assertNotIn("cret", str(error))
