"""Tests for novasvc.listing."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.listing import list_some


class ListSomeTests(SynchronousTestCase):
    """Names in a text."""

    def test_all(self) -> None:
        """Up to the bound, all names are listed."""
        self.assertEqual(list_some([], 2), "")
        self.assertEqual(list_some(["a"], 2), "a")
        self.assertEqual(list_some(["a", "b"], 2), "a, b")

    def test_some(self) -> None:
        """Above the bound, the first ones are listed and the others counted."""
        self.assertEqual(list_some(["a", "b", "c"], 2), "a, b and 1 more")
        self.assertEqual(list_some("abcde", 2), "a, b and 3 more")
