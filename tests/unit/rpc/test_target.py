"""Tests for novasvc.rpc.target."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import InvalidTargetError
from novasvc.rpc.target import Target


class TargetTests(SynchronousTestCase):
    """Tests for novasvc.rpc.target.Target."""

    def test_text(self) -> None:
        """The text of a target is its queue's name, or names the whole topic."""
        self.assertEqual(str(Target("compute")), "compute")
        self.assertEqual(str(Target("compute", "h1")), "compute.h1")
        self.assertEqual(str(Target("compute", fanout=True)), "all of compute")

    def test_wildcards(self) -> None:
        """A topic or server with a wildcard or white space is refused."""
        for topic, server in (("", None), ("a*", None), ("a", "#"), ("a b", None), ("a", "")):
            self.assertRaises(InvalidTargetError, Target, topic, server)

    def test_long(self) -> None:
        """A name too long for a queue with its suffixes, or that UTF-8 cannot encode, is refused."""
        Target("a" * 215)
        Target("a" * 10, "b" * 244)
        for topic, server in (("a" * 216, None), ("a" * 10, "b" * 245), ("ä" * 108, None), ("a", "\ud800")):
            self.assertRaises(InvalidTargetError, Target, topic, server)
