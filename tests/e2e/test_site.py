"""Tests that build the documentation site."""

import os
import subprocess
import sys
import tempfile
import unittest
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.process import ROOT

LIMIT = 240.0
"""Seconds for a build; it takes 12."""

_CONF = """
import sys
sys.path.insert(0, {docs!r})
extensions = ["sphinx.ext.autodoc", "myst_parser", "extension"]
nitpicky = True
root_doc = "page"
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT + 60)]


@pytest.mark.long
class SiteTests(unittest.TestCase):
    """Builds by Sphinx, where every warning is an error."""

    def setUp(self) -> None:
        if find_spec("sphinx") is None and "CI" not in os.environ:
            self.skipTest("Sphinx is not installed; pip install -e '.[docs]'")
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)

    def build(self, source: Path) -> "subprocess.CompletedProcess[str]":
        """Build a site in the test's folder."""
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(source), str(self.folder / "site")]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)

    def test_site(self) -> None:
        """The site is built without a warning, and has README, the guides, and the interfaces of zope."""
        built = self.build(ROOT / "docs")
        self.assertEqual((built.returncode, built.stderr), (0, ""))
        for page, text in {
            "index.html": "What sets it apart",
            "guides/write-a-service.html": "A first method",
            "reference/rpc.html": "novasvc.rpc.Client.prepare",
            "reference/interfaces.html": "novasvc.interfaces.ITransport.listen",
            "reference/errors.html": "novasvc.rpc.errors.RPCTimeoutError",
            "project/security.html": "Trust boundaries",
        }.items():
            with self.subTest(page):
                self.assertIn(text, (self.folder / "site" / page).read_text())
        self.assertEqual(list((self.folder / "site").glob("reference/*InterfaceClass*")), [])

    def test_wrong_reference(self) -> None:
        """A reference to an internal name is accepted; one to a name that does not exist fails the build."""
        source = self.folder / "source"
        source.mkdir()
        (source / "conf.py").write_text(_CONF.format(docs=str(ROOT / "docs")))
        lines = ("# T", "", "```{eval-rst}", ":class:`novasvc.rpc.server.ledger.{name}`", "```", "")
        page = "\n".join(lines)
        (source / "page.md").write_text(page.replace("{name}", "Ledger"))
        self.assertEqual(self.build(source).stderr, "")
        (source / "page.md").write_text(page.replace("{name}", "Lodger"))
        failed = self.build(source)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("novasvc.rpc.server.ledger.Lodger", failed.stderr)
