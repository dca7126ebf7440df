"""How long to wait before the next attempt: a pure function, attempt -> seconds."""

import random
from collections.abc import Callable

RetryPolicy = Callable[[int], float]
"""Takes the number of failed attempts so far (from 1), returns seconds to wait."""


def jittered_backoff(
    *,
    first: float = 0.5,
    longest: float = 30.0,
    factor: float = 2.0,
    random_source: random.Random | None = None,
) -> RetryPolicy:
    """Make a policy of exponential backoff, each wait drawn from its upper half.

    The draw keeps a fleet that lost its server together from coming back together; the upper
    half keeps a single host from asking again at once.

    :param first: seconds, the longest wait after the first failure, > 0.
    :param longest: seconds, the bound of all waits, >= first.
    :param factor: growth from one attempt to the next, >= 1.
    :param random_source: where the draws come from; tests pass a seeded one.
    :return: a policy.
    """
    draw = (random_source or random.Random()).uniform  # noqa: S311 - no secret depends on it

    def seconds(attempt: int) -> float:
        # The exponent is bounded: an outage of days must not overflow a float.
        bound = min(longest, first * factor ** min(attempt - 1, 64))
        return draw(bound / 2, bound)

    return seconds
