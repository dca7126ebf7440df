"""Texts for people, as every registry can store them."""

from typing import overload


@overload
def storable(text: str, longest: int) -> str: ...


@overload
def storable(text: str | None, longest: int) -> str | None: ...


def storable(text: str | None, longest: int) -> str | None:
    """Return a text without what a database refuses: NULs, which PostgreSQL does not store, and lone surrogates.

    An error's text may have them: a file name that is not UTF-8 has a surrogate for each octet (PEP 383).

    :param text: None stays None.
    :param longest: characters that are kept.
    """
    return None if text is None else text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:longest]
