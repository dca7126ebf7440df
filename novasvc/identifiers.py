"""The random bytes of unique ids: those of the operating system, or of a seed while a simulation runs."""

import os
from collections.abc import Callable
from uuid import UUID

random_bytes: Callable[[int], bytes] = os.urandom
"""Take a number, and return as many bytes that nobody can predict. Look it up here each time:
:mod:`novasvc.testing.simulation` replaces it, so that the same seed makes the same ids."""


def new_uuid() -> str:
    """Make a random UUID (version 4), lower-case and with dashes."""
    return str(UUID(bytes=random_bytes(16), version=4))
