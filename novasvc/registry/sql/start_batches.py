"""Starts in batches: those that wait at the same time begin in one transaction."""

from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.registry.errors import DatabaseConflictError, DatabaseLockedError, DatabaseUnavailableError
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.record import ServiceRecord
from novasvc.registry.sql.engine import TIMEOUT, WAIT_TIMEOUT
from novasvc.registry.sql.starts import Outcome
from novasvc.registry.sql.waiting import answer, limit_wait

LARGEST_BATCH = 200
"""Starts of a transaction."""

QUEUE_LIMIT = 10_000
"""Starts that may wait. A longer queue would only hide that the database is too slow."""

LONG_WAIT = WAIT_TIMEOUT / 2
"""Seconds after which a transaction that ends with a lock error has waited for a lock that another process keeps.

Deadlocks end sooner, and another attempt helps; here it would only wait again.
"""


@attrs.frozen(eq=False)
class _Waiting:
    """A start that waits."""

    start: ServiceStart
    answer: Deferred[ServiceRecord]


@attrs.define(eq=False)
class StartBatches:
    """Begin incarnations: each caller is answered when its own is committed.

    While one batch is written, the starts that come wait for the next. A start in conflict with another process, and
    each start of a batch that fails as a whole because of a conflict, is tried alone. If another process keeps a lock,
    all fail.

    :param clock: provides the turns of the reactor.
    :param write: begins starts in one transaction; returns a Deferred of their outcomes.
    :param begin: begins one start, and repeats it while it is in conflict with others.
    :param masked_url: URL of the database, for errors.
    """

    _clock: IReactorTime
    _write: Callable[[Sequence[ServiceStart]], Deferred[list[Outcome]]]
    _begin_alone: Callable[[ServiceStart], Deferred[ServiceRecord]]
    _masked_url: str
    _waiting: dict[_Waiting, None] = attrs.field(factory=dict, init=False)
    _writing: bool = attrs.field(default=False, init=False)

    def begin(self, start: ServiceStart) -> Deferred[ServiceRecord]:
        """See :meth:`novasvc.interfaces.IServiceRegistry.begin`.

        :return: Deferred[ServiceRecord]. Cancelling it before its batch begins takes the start back.
        :raises DatabaseUnavailableError: QUEUE_LIMIT starts wait already, or it was not written within TIMEOUT.
        """
        if len(self._waiting) >= QUEUE_LIMIT:
            problem = f"{QUEUE_LIMIT} starts, the bound of the queue, wait for it already"
            return fail(DatabaseUnavailableError(self._masked_url, problem))
        waiter = _Waiting(start, Deferred(lambda _: self._waiting.pop(waiter, None)))
        self._waiting[waiter] = None
        if not self._writing:
            self._writing = True
            # In the next turn, so that all that one read of a socket brought come along.
            self._clock.callLater(0, self._begin_batch)
        return limit_wait(waiter.answer, TIMEOUT, self._clock, self._masked_url)

    def _begin_batch(self) -> None:
        batch = [*self._waiting][:LARGEST_BATCH]
        for waiter in batch:
            del self._waiting[waiter]
        if not batch:  # all were taken back
            self._writing = False
            return
        self._write([waiter.start for waiter in batch]).addBoth(self._written, batch, self._clock.seconds())

    def _written(self, outcomes: list[Outcome] | Failure, batch: Sequence[_Waiting], began: float) -> None:
        if self._waiting:
            self._clock.callLater(0, self._begin_batch)
        else:
            self._writing = False
        if isinstance(outcomes, Failure):
            kept = outcomes.check(DatabaseLockedError) and self._clock.seconds() - began >= LONG_WAIT
            in_conflict = not kept and outcomes.check(DatabaseConflictError, DatabaseLockedError)
            outcomes = [None if in_conflict else outcomes.value] * len(batch)  # type: ignore[list-item]
        for waiter, outcome in zip(batch, outcomes, strict=True):
            if waiter.answer.called:
                continue
            if outcome is None:
                self._begin_alone(waiter.start).addBoth(answer, waiter.answer)
            else:
                answer(Failure(outcome) if isinstance(outcome, Exception) else outcome, waiter.answer)
