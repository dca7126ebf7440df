"""Tests that follow the guides: they save each file, run each command, and compare the output."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import ROOT
from tests.servers import vhost_url
from tests.servers.process import free_ports
from tests.support.walkthrough import Walkthrough

GUIDES = ROOT / "docs" / "guides"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


class GuideTests(TestCase):
    """The guides, each in an empty folder."""

    def reader(self, instead: Mapping[str, str] | None = None, **settings: str) -> Walkthrough:
        """Make a reader in an empty folder; see :class:`Walkthrough`."""
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        reader = Walkthrough(self, Path(holder.name), settings, instead)
        self.addCleanup(reader.stop)
        return reader

    @pytest.mark.long
    @pytest.mark.timeout(600)  # some fifty commands, and a restart for each file
    def test_write_a_service(self) -> None:
        """The guide's shop works as the guide says, and the guide's tests pass."""
        together, alone = (GUIDES / "write-a-service.md").read_text().split("\n## Settings\n")
        reader = self.reader()
        reader.follow(together)
        for manager, logged in (
            ("watch:Watch", r"novasvc-stock@\S+: last heartbeat \d+ s ago"),
            ("parcels:Parcels", "packing was cancelled"),
            ("returns:Mail", "goods.returned: thank you for 1 cup"),
            ("totals:Totals --topic timed", r"serve timed\.tea took \d\.\d+ s"),
        ):
            (process,) = (each for line, each in reader.running.items() if line.endswith(f"novasvc run {manager}"))
            process.wait_for(logged)
        reader.stop()
        reader.follow(alone)
        self.assertGreater(reader.ran, 15)

    @pytest.mark.long
    def test_operate_a_fleet(self) -> None:
        """The guide's commands work in the guide's order, on one host with a broker."""
        (port,) = free_ports(1)
        fleet, script = (GUIDES / "operate-a-fleet.md").read_text().split("\n## Other ways to run it\n")
        instead = {"127.0.0.1:8774": f"127.0.0.1:{port}"}
        reader = self.reader(instead, NOVASVC_TRANSPORT_URL=vhost_url(self), NOVASVC_API_LISTEN_PORT=str(port))
        reader.follow(fleet)
        reader.stop()
        reader.follow(script)
        self.assertGreater(reader.ran, 20)

    @pytest.mark.long
    def test_upgrade_a_fleet(self) -> None:
        """The guide's fleet is upgraded, halts at a release that does not start, and is upgraded in the end."""
        reader = self.reader()
        reader.follow((GUIDES / "upgrade-a-fleet.md").read_text())
        self.assertEqual(reader.ran, 17)

    def test_http(self) -> None:
        """The application of docs/http.md is served as the page says, on a free port."""
        (port,) = free_ports(1)
        reader = self.reader({"8080": str(port)})
        reader.follow((ROOT / "docs" / "http.md").read_text())
        self.assertEqual(reader.ran, 2)

    def test_from_nova_service(self) -> None:
        """The manager that was moved from Nova runs with Nova's settings, and is called."""
        reader = self.reader()
        reader.follow((GUIDES / "from-nova-service.md").read_text())
        self.assertEqual(reader.ran, 5)

    def test_from_nameko_and_celery(self) -> None:
        """The translated examples run, and are called."""
        reader = self.reader()
        reader.follow((GUIDES / "from-nameko-and-celery.md").read_text())
        self.assertEqual(reader.ran, 5)
