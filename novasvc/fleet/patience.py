"""Wait for a condition by asking again and again, within a deadline that outages of the database do not use up."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from novasvc.fleet.errors import NodeFailedError
from novasvc.registry.errors import DatabaseUnavailableError

_T = TypeVar("_T")

FIRST_DELAY, DELAY_GROWTH, LONGEST_DELAY = 0.5, 1.3, 3.0
"""Seconds before the second question, by how much each further wait is longer, and the longest one."""

OUTAGE_LIMIT = 600.0
"""Seconds without the database after which an operation ends; it can be resumed."""


@attrs.define(eq=False)
class Patience:
    """The time that one node has for one operation.

    :param timeout: seconds, in which times without the database do not count.
    """

    _clock: IReactorTime
    _timeout: float
    _began: float = attrs.field(init=False)
    _lost: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self._clock.seconds()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._began + self._timeout + self._lost - self._clock.seconds()

    async def until(self, ask: Callable[[], Awaitable[_T | None]], late: Callable[[], str]) -> _T:
        """Ask until the answer is not None.

        :param ask: returns None as long as it has to be asked again.
        :param late: returns what is missing, for the error.
        :raises NodeFailedError: the time is over.
        :raises DatabaseUnavailableError: the database was away for OUTAGE_LIMIT.
        """
        delay, away = FIRST_DELAY, 0.0
        while True:
            asked = self._clock.seconds()
            try:
                answer = await ask()
            except DatabaseUnavailableError:
                if away > OUTAGE_LIMIT:
                    raise
                await deferLater(self._clock, delay)
                spent = self._clock.seconds() - asked
                away, self._lost = away + spent, self._lost + spent
                continue
            if answer is not None:
                return answer
            away = 0.0
            if self.left <= 0:
                raise NodeFailedError(f"{late()} after {self._timeout:g} s")
            await deferLater(self._clock, min(delay, max(self.left, 0.01)))
            delay = min(delay * DELAY_GROWTH, LONGEST_DELAY)
