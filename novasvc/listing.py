"""Texts of bounded length: names of which the first are listed, "a, b and 3 more", and lines that are shortened."""

from collections.abc import Sequence


def list_some(names: Sequence[str], most: int) -> str:
    """Return names separated by commas; of more than ``most`` the first ones, and how many are left out."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def shorten(text: str, longest: int) -> str:
    """Return a text on one line; of one with more than ``longest`` characters the beginning, and three dots."""
    line = " ".join(text[: longest + 1].split())
    return f"{line[: longest - 3]}..." if len(text) > longest else line
