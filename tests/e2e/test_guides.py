"""Tests that follow the guides: they save each file, run each command, and compare the output."""

import tempfile
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import ROOT
from tests.support.walkthrough import Walkthrough

GUIDES = ROOT / "docs" / "guides"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


class GuideTests(TestCase):
    """The guides, each in an empty folder."""

    def reader(self, **settings: str) -> Walkthrough:
        """Make a reader in an empty folder."""
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        reader = Walkthrough(self, Path(holder.name), settings)
        self.addCleanup(reader.stop)
        return reader

    def test_write_a_service(self) -> None:
        """The guide's shop works as the guide says, and the guide's tests pass."""
        together, alone = (GUIDES / "write-a-service.md").read_text().split("\n## Settings\n")
        reader = self.reader()
        reader.follow(together)
        reader.stop()
        reader.follow(alone)
        self.assertGreater(reader.ran, 10)
