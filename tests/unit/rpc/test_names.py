"""Tests for the names of novasvc.rpc, which are imported when they are used."""

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc

_CHECK = """
import sys
from novasvc import rpc
assert not any(name.startswith("novasvc.rpc.") for name in sys.modules), sorted(sys.modules)
assert rpc.errors.RPCError.__name__ == "RPCError"
"""


class NamesTests(SynchronousTestCase):
    """Tests for attributes of the package."""

    def test_all(self) -> None:
        """Each public name can be had, and is listed."""
        for name in rpc.__all__:
            self.assertIsNotNone(getattr(rpc, name))
            self.assertIn(name, dir(rpc))

    def test_module(self) -> None:
        """A module of the package is an attribute, too, without an import of its own; the package imports none."""
        subprocess.run([sys.executable, "-c", _CHECK], check=True, timeout=30)

    def test_unknown(self) -> None:
        """Another name is an AttributeError, as everywhere."""
        with self.assertRaisesRegex(AttributeError, "module 'novasvc.rpc' has no attribute 'Cleint'"):
            rpc.Cleint  # type: ignore[attr-defined] # noqa: B018
        self.assertFalse(hasattr(rpc, "__wrapped__"))
