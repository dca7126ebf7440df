"""Starts in batches: those that wait at the same time begin in one transaction."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.errors import NovasvcError
from novasvc.registry.errors import DatabaseConflictError, DatabaseLockedError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.record import ServiceRecord
from novasvc.registry.sql.batches import OF_ALL, Batches
from novasvc.registry.sql.starts import Outcome
from novasvc.registry.sql.waiting import answer

LARGEST_BATCH = 200
"""Starts of a transaction."""

_Batch = dict[Deferred[ServiceRecord], ServiceStart]


@attrs.define(eq=False)
class StartBatches:
    """Begin incarnations: each caller is answered when its own is committed.

    A start in conflict with another process is tried alone. If a batch fails as a whole, so is each of its starts,
    unless the error concerns all of them, or another process keeps a lock: then all fail.

    :param clock: provides the turns of the reactor.
    :param write: begins starts in one transaction; takes also what tells whether the caller of a start, by its place,
        still waits. Returns a Deferred of the outcomes.
    :param begin_alone: begins one start, and repeats it while it is in conflict with others; takes also what tells
        whether its caller still waits.
    :param masked_url: URL of the database, for errors.
    """

    _clock: IReactorTime
    _write: Callable[[Sequence[ServiceStart], Callable[[int], bool]], Deferred[list[Outcome]]]
    _begin_alone: Callable[[ServiceStart, Callable[[], bool]], Deferred[ServiceRecord]]
    _masked_url: str
    _batches: Batches[ServiceStart, ServiceRecord] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._batches = Batches(self._clock, self._write_batch, self._masked_url, "starts", LARGEST_BATCH)

    def begin(self, start: ServiceStart) -> Deferred[ServiceRecord]:
        """See :meth:`novasvc.interfaces.IServiceRegistry.begin`.

        :return: Deferred[ServiceRecord]. Cancelling it before its batch begins takes the start back.
        :raises DatabaseUnavailableError: see :meth:`Batches.add`.
        """
        return self._batches.add(start)

    def _write_batch(self, batch: _Batch) -> Deferred[None]:
        callers = [*batch]
        writing = self._write([*batch.values()], lambda place: _is_unanswered(callers[place]))
        return writing.addBoth(self._written, batch)

    def _written(self, outcomes: list[Outcome] | Failure, batch: _Batch) -> None:
        if isinstance(outcomes, Failure):
            error = cast("NovasvcError", outcomes.value)
            outcomes = [None if _may_begin_alone(error, len(batch)) else error] * len(batch)
        for (waiting, start), outcome in zip(batch.items(), outcomes, strict=True):
            if waiting.called:
                continue
            if outcome is None:
                self._begin_alone(start, partial(_is_unanswered, waiting)).addBoth(answer, waiting)
            else:
                answer(Failure(outcome) if isinstance(outcome, Exception) else outcome, waiting)


def is_conflict(error: BaseException) -> bool:
    """Return whether a transaction has failed because another one has won, so that another attempt may succeed."""
    return isinstance(error, DatabaseConflictError) or (isinstance(error, DatabaseLockedError) and error.is_deadlock)


def _may_begin_alone(error: BaseException, starts: int) -> bool:
    """Return whether starts of a batch that has failed may begin if each is tried alone."""
    # The database may refuse a value of one of them, such as one that is too long.
    return is_conflict(error) or (starts > 1 and not isinstance(error, OF_ALL))


def _is_unanswered(waiting: Deferred[ServiceRecord]) -> bool:
    """Return whether a caller still waits: one that has given up has cancelled its Deferred, which has fired then."""
    return not waiting.called
