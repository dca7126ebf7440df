"""Retry policies: pure functions from the number of failed attempts to seconds."""

import random
from collections.abc import Callable

RetryPolicy = Callable[[int], float]
"""Take the number of failed attempts so far (from 1); return the seconds to wait."""


def jittered_backoff(
    *,
    first: float = 0.5,
    longest: float = 30.0,
    factor: float = 2.0,
    random_source: random.Random | None = None,
) -> RetryPolicy:
    """Make a policy of exponential backoff with jitter: each wait is drawn from the upper half of its bound.

    The jitter keeps hosts that lost one server together from reconnecting together; the upper half
    keeps a single host from retrying immediately.

    :param first: seconds: the bound of the wait after the first failure, > 0.
    :param longest: seconds: the bound of all waits, >= first.
    :param factor: growth of the bound from one attempt to the next, >= 1.
    :param random_source: source of the jitter; tests pass a seeded one. The default is the module's, which Python seeds
        anew after a fork: a policy that was made before it does not make all workers retry in step.
    :return: a policy.
    """
    draw = random.uniform if random_source is None else random_source.uniform

    def seconds(attempt: int) -> float:
        # The exponent is bounded: an outage of days must not overflow a float.
        bound = min(longest, first * factor ** min(attempt - 1, 64))
        return draw(bound / 2, bound)

    return seconds
