"""All randomness of a simulation, from one seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import attrs

from novasvc import identifiers
from novasvc.rpc.ids import discard_pool


def happens(source: Random, share: float) -> bool:
    """Draw whether something happens that happens in this share of the cases, 0 to 1."""
    return source.random() < share


@attrs.frozen
class Seed:
    """The seed of a simulation, from which each of its parts has a random source of its own.

    So a part that draws once more, or a fault that is left out, does not change what the others draw.

    :param number: the seed.
    """

    number: int

    def source(self, name: str) -> Random:
        """Return the random source of a part; the same name starts from the same state each time."""
        return Random(f"{self.number}/{name}")  # noqa: S311 - reproducible numbers are the point

    @contextmanager
    def ids(self) -> Iterator[None]:
        """Draw all ids of this process from the seed, as long as the block runs."""
        before = identifiers.random_bytes
        identifiers.random_bytes = self.source("ids").randbytes
        discard_pool()
        try:
            yield
        finally:
            identifiers.random_bytes = before
            discard_pool()
