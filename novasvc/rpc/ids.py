"""Message ids: unique and unpredictable, so that a reply cannot be forged."""

import os
from collections.abc import Callable
from itertools import chain

_DRAWN_AT_ONCE = 64

# Random bytes are read for many ids at a time: the system call costs more than encoding a small message.
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)  # Invariant: a child must not reuse its parent's ids.


def _draw() -> list[str]:
    _drawn[:] = os.urandom(16 * _DRAWN_AT_ONCE).hex(" ", 16).split()
    return _drawn


new_id: Callable[[], str] = chain.from_iterable(iter(_draw, None)).__next__
"""Return a new id: 32 random hexadecimal digits. Call it on the reactor's thread only.

The iterator yields the ids drawn before, and draws more at their end. In the child of a fork the list is empty,
so the child draws its own.
"""
