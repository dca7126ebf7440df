"""Tests for novasvc.listing."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.listing import list_some, shorten


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


class ShortenTests(SynchronousTestCase):
    """Long texts."""

    def test_short(self) -> None:
        """A text that fits stays as it is, on one line."""
        self.assertEqual(shorten("", 6), "")
        self.assertEqual(shorten("a\n  b c", 7), "a b c")

    def test_long(self) -> None:
        """A longer one ends in three dots, within the bound."""
        self.assertEqual(shorten("abc defg", 7), "abc ...")
        self.assertEqual(shorten("a" * 1000, 8), "aaaaa...")
