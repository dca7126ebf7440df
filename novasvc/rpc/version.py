"""Interface versions, and which version serves a caller of which other."""

import re
from functools import lru_cache

Version = tuple[int, int, int]
"""major, minor, revision; an omitted revision is 0."""

_FORM = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})(?:\.([0-9]{1,9}))?")


@lru_cache(maxsize=512)
def parse_version(text: str) -> Version:
    """Parse "major.minor" or "major.minor.revision".

    :raises ValueError: the text has neither form.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        problem = f"{text!r} is not a version; write major.minor, such as 1.0"
        raise ValueError(problem)
    major, minor, revision = match.groups(default="0")
    return int(major), int(minor), int(revision)


def serves(have: Version, want: Version) -> bool:
    """Return whether an interface of version ``have`` serves a caller that requires ``want``."""
    return have[0] == want[0] and have[1:] >= want[1:]


def compatible(have: str | None, want: str | None) -> bool:
    """Return whether version ``have`` serves a caller that requires ``want``.

    :param have: an endpoint's version, or a client's cap; None serves every version.
    :param want: a message's version; None is served only if ``have`` is None.
    :raises ValueError: a version is malformed.
    Source: oslo.messaging's rule: the major is equal, and the wanted minor and revision are not higher.
    """
    if have is None:
        return True
    return want is not None and serves(parse_version(have), parse_version(want))
