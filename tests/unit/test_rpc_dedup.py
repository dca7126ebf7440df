"""Tests for novasvc.rpc.dedup."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.dedup import SeenWindow


class SeenWindowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.window = SeenWindow(self.clock, count=3, seconds=10)

    def test_repeated(self) -> None:
        """An id is new once."""
        self.assertEqual([self.window.add(i) for i in ("a", "b", "a", "b", "a")], [False, False, True, True, True])

    def test_count(self) -> None:
        """An id is forgotten when as many others came after it as the window holds."""
        for unique_id in ("a", "b", "c"):
            self.window.add(unique_id)
        self.assertTrue(self.window.add("a"))
        self.window.add("d")
        self.assertEqual([self.window.add(i) for i in ("b", "a")], [True, False])
        self.assertEqual(len(self.window), 3)

    def test_seconds(self) -> None:
        """An id is forgotten when its time is over, however often it came meanwhile."""
        self.window.add("a")
        self.clock.advance(9)
        self.assertTrue(self.window.add("a"))
        self.clock.advance(1)
        self.assertFalse(self.window.add("a"))
        self.clock.advance(9)
        self.assertTrue(self.window.add("a"))

    def test_again_is_newest(self) -> None:
        """An id that comes again after its time is the newest, not the oldest."""
        self.window.add("a")
        self.window.add("b")
        self.clock.advance(10)
        for unique_id in ("a", "c", "d"):
            self.window.add(unique_id)
        self.assertTrue(self.window.add("a"))
