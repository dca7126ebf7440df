"""Versions of interfaces: which one may stand in for which."""

import re
from functools import lru_cache

Version = tuple[int, int, int]
"""major, minor, revision; a revision that is not written is 0."""

_FORM = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})(?:\.([0-9]{1,9}))?")


@lru_cache(maxsize=512)
def parse_version(text: str) -> Version:
    """Read "major.minor" or "major.minor.revision".

    :raises ValueError: it is neither.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        problem = f"{text!r} is no version; write it as major.minor, like 1.0"
        raise ValueError(problem)
    major, minor, revision = match.groups(default="0")
    return int(major), int(minor), int(revision)


def serves(have: Version, want: Version) -> bool:
    """Tell whether an interface of one version serves a caller who wants another."""
    return have[0] == want[0] and have[1:] >= want[1:]


def compatible(have: str | None, want: str | None) -> bool:
    """Tell whether a caller who wants one version is served by another.

    :param have: an endpoint's version, or a client's cap; None serves everything.
    :param want: a message's version; None is served by nothing else.
    :raises ValueError: one of them is no version.
    Source: oslo.messaging's rule: same major, and the wanted minor and revision are not newer.
    """
    if have is None:
        return True
    return want is not None and serves(parse_version(have), parse_version(want))
