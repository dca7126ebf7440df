"""Tests for novasvc.api.service."""

import tempfile
from pathlib import Path

from twisted.application.service import IService
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc.api.service import APIService
from novasvc.interfaces import IHealthy, IReplaceable, IStartable, IWebPage
from novasvc.testing import memory_runtime


class APIServiceTests(SynchronousTestCase):
    """Tests for APIService, without a socket."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        self.tokens = self.folder / "tokens"
        self.tokens.touch(0o600)
        self.tokens.write_text("ada admin 0123456789abcdef\n")

    def service(self, **settings: object) -> APIService:
        """Make a service with settings."""
        return APIService(memory_runtime(Clock(), state_dir=self.folder, **settings))

    def test_interfaces(self) -> None:
        """It provides its interfaces."""
        service = self.service()
        for interface in (IService, IHealthy, IReplaceable, IStartable, IWebPage):
            verifyObject(interface, service)

    def test_login_url(self) -> None:
        """The URL is that of the page without tokens, and a new login link with tokens."""
        self.assertEqual(self.service(api_listen_port=8774).login_url, "http://127.0.0.1:8774/")
        guarded = self.service(api_listen_port=8774, api_token_file=self.tokens)
        self.assertRegex(guarded.login_url, r"^http://127\.0\.0\.1:8774/login\?code=[\w-]{43}$")
        self.assertNotEqual(guarded.login_url, guarded.login_url)
