"""How long a transport keeps a message that it cannot send yet."""

WITHOUT_TTL = 15.0
"""Seconds for a message that has no TTL, unless the transport has a setting for it."""

REPLY = 60.0
"""Seconds for a reply if nobody knows how long its caller waits: a finished method must not be run again."""

TTL_FRACTION = 0.95
"""Fraction of a message's TTL, so that the sender gets the reason before its own timeout."""


def longest_wait(ttl: float | None, without_ttl: float = WITHOUT_TTL) -> float:
    """Return for how many seconds a message is kept.

    :param ttl: the seconds after which it is void; None is never.
    :param without_ttl: seconds for a message that has none.
    """
    return max(0.0, without_ttl if ttl is None else ttl * TTL_FRACTION)
