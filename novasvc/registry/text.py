"""Texts for people, as every registry can store them."""


def storable(text: str, longest: int) -> str:
    """Return a text without what a database refuses: NULs, which PostgreSQL does not store, and lone surrogates.

    An error's text may have them: a file name that is not UTF-8 has a surrogate for each octet (PEP 383).

    :param longest: characters that are kept.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:longest]
