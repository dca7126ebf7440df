"""Lists of names in a text, bounded: "a, b and 3 more"."""

from collections.abc import Sequence


def list_some(names: Sequence[str], most: int) -> str:
    """Return names separated by commas; of more than ``most`` the first ones, and how many are left out."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
