"""Ids of messages: unique, and not to be guessed by who would forge a reply."""

import os

_DRAWN_AT_ONCE = 64

# The system is asked for many at a time: asking costs more than encoding a small message.
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)  # or a child would send its parent's ids again


def new_id() -> str:
    """Make an id: 32 hexadecimal digits, random. Called on the reactor's thread."""
    if not _drawn:
        _drawn.extend(os.urandom(16 * _DRAWN_AT_ONCE).hex(" ", 16).split())
    return _drawn.pop()
