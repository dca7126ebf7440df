"""Message ids: unique and unpredictable, so that a reply cannot be forged."""

import os
from collections.abc import Callable
from itertools import chain

from novasvc import identifiers

_POOL_SIZE = 64

# Random bytes are read for many ids at a time: the system call costs more than encoding a small message.
_pool: list[str] = []
discard_pool: Callable[[], None] = _pool.clear
"""Draw new random bytes for the next id, because those that were drawn must not be used, or are not the seed's."""
os.register_at_fork(after_in_child=discard_pool)  # Invariant: a child must not reuse its parent's ids.


def _refill() -> list[str]:
    _pool[:] = identifiers.random_bytes(16 * _POOL_SIZE).hex(" ", 16).split()
    return _pool


new_id: Callable[[], str] = chain.from_iterable(iter(_refill, None)).__next__
"""Return a new id: 32 random hexadecimal digits. Call it on the reactor's thread only.

The iterator yields the ids of the pool, and refills it when it is empty. In the child of a fork the pool is empty,
so the child fills its own.
"""
