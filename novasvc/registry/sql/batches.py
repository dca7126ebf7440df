"""Items in batches: while one batch is written, those that come wait for the next one."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.registry.errors import (
    DatabaseBusyError,
    DatabaseFullError,
    DatabaseReadOnlyError,
    DatabaseUnavailableError,
)
from novasvc.registry.sql.engine import TIMEOUT
from novasvc.registry.sql.waiting import limit_wait

QUEUE_LIMIT = 10_000
"""Items that may wait. A longer queue would only hide that the database is too slow."""

OF_ALL = (DatabaseUnavailableError, DatabaseReadOnlyError, DatabaseFullError)
"""Errors of a batch that each of its items would have had alone, unless it is a deadlock: see DatabaseLockedError."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Outcome = TypeVar("_Outcome")


@attrs.define(eq=False)
class Batches(Generic[_Item, _Result]):
    """Write items, one batch at a time: a lone item waits for nothing, and the batches grow with the load.

    :param clock: provides the turns of the reactor.
    :param write: writes a batch, the Deferreds of its callers -> their items, and answers each; returns a Deferred,
        fired when the next batch may begin.
    :param masked_url: URL of the database, for errors.
    :param what: the items, for errors: "heartbeats".
    :param largest: items of a batch.
    :param key: takes an item. Of several items with the same key, each is in another batch.
    """

    _clock: IReactorTime
    _write: Callable[[dict[Deferred[_Result], _Item]], Deferred[None]]
    _masked_url: str
    _what: str
    _largest: int
    _key: Callable[[_Item], Hashable] = id
    _waiting: dict[Deferred[_Result], _Item] = attrs.field(factory=dict, init=False)
    _writing: bool = attrs.field(default=False, init=False)

    def add(self, item: _Item) -> Deferred[_Result]:
        """Write an item.

        :return: Deferred of the answer. Cancelling it before its batch begins takes the item back.
        :raises DatabaseBusyError: QUEUE_LIMIT items wait already.
        :raises DatabaseUnavailableError: there is no answer within TIMEOUT.
        """
        if len(self._waiting) >= QUEUE_LIMIT:
            problem = f"{QUEUE_LIMIT} {self._what}, the bound of the queue, wait for it already"
            return fail(DatabaseBusyError(self._masked_url, problem))
        waiting: Deferred[_Result] = Deferred(self._take_back)
        self._waiting[waiting] = item
        if not self._writing:
            self._writing = True
            # In the next turn, so that all that one read of a socket brought come along.
            self._clock.callLater(0, self._begin)
        return limit_wait(waiting, TIMEOUT, self._clock, self._masked_url)

    def _take_back(self, waiting: Deferred[_Result]) -> None:
        self._waiting.pop(waiting, None)  # unless its batch has begun

    def _begin(self) -> None:
        first: dict[Hashable, Deferred[_Result]] = {}
        for waiting, item in self._waiting.items():
            first.setdefault(self._key(item), waiting)
            if len(first) >= self._largest:
                break
        batch = {waiting: self._waiting.pop(waiting) for waiting in first.values()}
        self._writing = bool(batch)  # all may have been taken back
        if batch:
            self._write(batch).addBoth(self._end)

    def _end(self, outcome: _Outcome) -> _Outcome:
        self._writing = bool(self._waiting)
        if self._writing:
            self._clock.callLater(0, self._begin)
        return outcome
