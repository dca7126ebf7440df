"""Wait for a condition in a test, with a deadline."""

from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.task import deferLater

PATIENCE = 30.0
"""Seconds until a condition that has not come true fails its test; most of it for a busy machine."""


async def until(condition: Callable[[], object], patience: float = PATIENCE) -> float:
    """Wait on the reactor until a condition is true.

    :return: the seconds that it took.
    :raises AssertionError: it is not true within ``patience``; names the line of the condition.
    """
    begun = reactor.seconds()  # type: ignore[attr-defined]
    while not condition():
        waited = reactor.seconds() - begun  # type: ignore[attr-defined]
        if waited > patience:
            raise AssertionError(f"line {condition.__code__.co_firstlineno}: not true within {patience:g} s")
        await deferLater(reactor, 0.002)  # type: ignore[arg-type]
    return float(reactor.seconds() - begun)  # type: ignore[attr-defined]
