"""A long loop in the reactor's thread, in slices with pauses between them, so that others go on meanwhile."""

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

_PAUSE = 0.001
"""Seconds between two slices. With 0, only the reactor would go on: it hands the GIL over for so short a moment that
a thread, such as that of a query, would hardly ever get it before the last slice."""

_T = TypeVar("_T")


def pause(clock: IReactorTime) -> Deferred[None]:
    """Let the reactor and the threads go on for a moment.

    :return: fires after it. Cancelling it leaves nothing behind.
    """
    return deferLater(clock, _PAUSE)


async def in_slices(items: Sequence[_T], size: int, clock: IReactorTime) -> AsyncIterator[Sequence[_T]]:
    """Return the items in slices, with a pause before each but the first.

    :param size: items in a slice.
    :param clock: measures the pauses.
    """
    for begin in range(0, len(items), size):
        if begin:
            await pause(clock)
        yield items[begin : begin + size]
