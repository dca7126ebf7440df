"""Tests for novasvc.config.masking."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import masked, masked_url


class MaskedURLTests(SynchronousTestCase):
    """Tests for masked_url."""

    def test_password(self) -> None:
        """The password is masked, the rest stays."""
        for url, expected in {
            "mysql://u:p@h/d": "mysql://u:***@h/d",
            "mysql+pymysql://u:p%40@h:3306/d?x=1": "mysql+pymysql://u:***@h:3306/d?x=1",
            "redis://:p@h": "redis://:***@h",
            "mysql://u:a@b:c/d@h/d": "mysql://u:***@h/d",
            "postgresql://h/d?user=u&password=p&x=1": "postgresql://h/d?user=u&password=***&x=1",
            "rabbit://u:p@h1:5672,u:q@h2/v": "rabbit://u:***@h2/v",
            "postgresql://nova@srv:p@srv.example.com/nova": "postgresql://nova@srv:***@srv.example.com/nova",
            "amqp://nova@example.com:p@rabbit/": "amqp://nova@example.com:***@rabbit/",
            "amqp://u@h1,u:p@h2/": "amqp://u@h1,u:***@h2/",
            "amqp://u@h1:5672,u:p@h2/": "amqp://u@h1:***@h2/",
        }.items():
            self.assertEqual(masked_url(url), expected)

    def test_nothing_to_hide(self) -> None:
        """A URL without a password is not changed."""
        for url in (
            "memory:",
            "sqlite:////a:b/c@d",
            "mysql://u@h:1/d",
            "amqp://h:5672",
            "http://[::1]:80/",
            "http://[::1]/",
        ):
            self.assertEqual(masked_url(url), url)

    def test_no_url(self) -> None:
        """Passwords in malformed URLs are masked, too."""
        for text in ("u:p@h", "mysql://u:p", "mysql:/u:p@h"):
            self.assertNotRegex(masked_url(text), "p(@|$)")


class MaskedTests(SynchronousTestCase):
    """Tests for masked."""

    def test_nested(self) -> None:
        """Values are masked by their name, and URLs by their form, at any depth."""
        value = {"a": [{"admin_password": "x", "url": "http://u:x@h"}], "n": 1, "api_key": "x"}
        self.assertEqual(
            masked(value), {"a": [{"admin_password": "***", "url": "http://u:***@h"}], "n": 1, "api_key": "***"}
        )

    def test_names(self) -> None:
        """The names of passwords, tokens and keys mask their values; names that resemble them do not."""
        for name in (
            *("pass", "db_pass", "pass_2", "passphrase", "Password", "auth", "http-auth", "token", "client_secret"),
            *("signing_key", "access_key", "private-key", "api-key", "apikey", "encryption_key_2", "credentials"),
        ):
            self.assertEqual(masked({name: "x"}), {name: "***"})
        for name in ("passive", "passages", "pass_through", "passthrough", "auth_url", "author", "key", "keyboard"):
            self.assertEqual(masked({name: "x"}), {name: "x"})
