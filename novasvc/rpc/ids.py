"""Ids of messages: unique, and not to be guessed by who would forge a reply."""

import os
from collections.abc import Callable
from itertools import chain

_DRAWN_AT_ONCE = 64

# The system is asked for many at a time: asking costs more than encoding a small message.
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)  # or a child would send its parent's ids again


def _draw() -> list[str]:
    _drawn[:] = os.urandom(16 * _DRAWN_AT_ONCE).hex(" ", 16).split()
    return _drawn


new_id: Callable[[], str] = chain.from_iterable(iter(_draw, None)).__next__
"""Make an id: 32 hexadecimal digits, random. Called on the reactor's thread.

The iterator walks through the list of those that were drawn. At its end, which the child of a fork has reached at
once, more are drawn.
"""
