"""Heartbeats in batches: those that wait at the same time are written by one transaction."""

from collections.abc import Callable, Collection, Mapping

import attrs
from sqlalchemy import Connection, bindparam, select
from twisted.internet.defer import Deferred, DeferredSemaphore, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.registry.errors import (
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    DatabaseUnavailableError,
    ServiceNotFoundError,
)
from novasvc.registry.sql import silences
from novasvc.registry.sql.engine import TIMEOUT
from novasvc.registry.sql.incarnations import NUMBER
from novasvc.registry.sql.rows import BEAT
from novasvc.registry.sql.schema import GREATEST_ID, services
from novasvc.registry.sql.silences import BEGAN
from novasvc.registry.sql.waiting import answer, limit_wait
from novasvc.telemetry import metrics

LARGEST_BATCH = 500
"""Rows of a transaction. More make it longer, but hardly any cheaper."""

QUEUE_LIMIT = 10_000
"""Heartbeats that may wait. A longer queue would only hide that the database is too slow."""

AT_A_TIME = 2
"""Heartbeats that are written alone at a time. Each may wait for a lock in a thread, and others need threads, too."""

_OF_ALL = (DatabaseUnavailableError, DatabaseReadOnlyError, DatabaseFullError)
"""Errors of a batch that each of its heartbeats would have had alone."""

_OF_IDS = services.c.id.in_(bindparam("ids", expanding=True)) & (services.c.deleted == 0)
# Rows that another transaction has locked are left out, not waited for: the heartbeats of all others would wait, too,
# and two transactions that lock the same rows in another order would end in a deadlock. SQLite locks the whole file.
_LOCK = select(services.c.id, BEGAN).where(_OF_IDS).with_for_update(skip_locked=True)
_LOCK_AND_READ = _LOCK.add_columns(services.c.forced_down, NUMBER)
_BEAT = BEAT.where(_OF_IDS)
# InnoDB reads a small table from end to end, and locks each row that it reads, wanted or not.
for _name in ("mysql", "mariadb"):
    _LOCK = _LOCK.with_hint(services, "FORCE INDEX (PRIMARY)", _name)
    _LOCK_AND_READ = _LOCK_AND_READ.with_hint(services, "FORCE INDEX (PRIMARY)", _name)
    _BEAT = _BEAT.with_hint("FORCE INDEX (PRIMARY)", dialect_name=_name)


def beat_all(
    connection: Connection, beats: Mapping[int, int | None], silent_after: float | None = None
) -> frozenset[int]:
    """Write a heartbeat to each of these rows, and record the long silences that it ends.

    :param beats: ids of rows -> the incarnation that lives, or None.
    :param silent_after: seconds of a silence that is recorded; None records none.
    :return: the ids of the rows that were written. The others are deleted, locked by another transaction, forced down,
        or have another incarnation.
    """
    values = {"ids": list(beats), "silent_after": silent_after}
    if any(number is not None for number in beats.values()):
        rows = [
            (service_id, began)
            for service_id, began, forced_down, number in connection.execute(_LOCK_AND_READ, values)
            if beats[service_id] is None or (beats[service_id] == number and not forced_down)
        ]
    else:
        rows = [(service_id, began) for service_id, began in connection.execute(_LOCK, values)]
    found = frozenset(service_id for service_id, _ in rows)
    if found:
        silences.record(connection, [(service_id, began) for service_id, began in rows if began is not None])
        connection.execute(_BEAT, {"ids": list(found)})
    return found


@attrs.frozen(eq=False)
class _Waiting:
    """A heartbeat that waits, and its incarnation."""

    answer: Deferred[None]
    incarnation: int | None


@attrs.define(eq=False)
class BeatBatches:
    """Write heartbeats: each caller is answered when its own is committed.

    While one batch is written, the heartbeats that come wait for the next. So a lone heartbeat waits for
    nothing, and the batches grow with the load.

    :param clock: provides the turns of the reactor.
    :param write: runs a function as one transaction; returns a Deferred of its result.
    :param beat: writes one heartbeat in a transaction of its own; fails with ServiceNotFoundError.
    :param masked_url: URL of the database, for errors.
    :param silent_after: returns the seconds of a silence that is recorded, or None to record none.
    """

    # Note [One bad row]
    #
    # A heartbeat must not fail because of another one that happened to come at the same time. A row
    # that the batch leaves out (deleted, locked, forced down or of another incarnation) is tried again
    # in a transaction of its own, which waits for the lock, or says why the heartbeat is refused. If
    # the whole batch fails, each of its heartbeats is tried in that way, unless the error concerns
    # all: the database is unavailable. A deadlock, or a wait for a lock that took too long, is the
    # matter of some rows only. Those tried alone take their turn, AT_A_TIME, so that a batch of them
    # does not fill the engine's queue, nor all of its threads.

    _clock: IReactorTime
    _write: Callable[[Callable[[Connection], frozenset[int]]], Deferred[frozenset[int]]]
    _beat: Callable[[int, int | None], Deferred[None]]
    _masked_url: str
    _silent_after: Callable[[], float | None] = lambda: None
    _waiting: dict[int, list[_Waiting]] = attrs.field(factory=dict, init=False)
    _number: int = attrs.field(default=0, init=False)
    _writing: bool = attrs.field(default=False, init=False)
    _turns: DeferredSemaphore = attrs.field(factory=lambda: DeferredSemaphore(AT_A_TIME), init=False)

    def beat(self, service_id: int, incarnation: int | None = None) -> Deferred[None]:
        """See :meth:`novasvc.interfaces.IServiceRegistry.beat`.

        :return: Deferred[None]. Cancelling it before its batch begins takes the heartbeat back.
        :raises ServiceNotFoundError: there is no such row.
        :raises DatabaseUnavailableError: QUEUE_LIMIT heartbeats wait already, or it was not written within TIMEOUT.
        """
        if not 0 <= service_id <= GREATEST_ID:  # a database would refuse the whole batch
            return fail(ServiceNotFoundError(str(service_id)))
        if self._number >= QUEUE_LIMIT:
            problem = f"{QUEUE_LIMIT} heartbeats, the bound of the queue, wait for it already"
            return fail(DatabaseUnavailableError(self._masked_url, problem))

        def leave(_: Deferred[None]) -> None:
            waiters = self._waiting.get(service_id, [])
            if waiter in waiters:  # its batch has not begun
                self._number -= 1
                waiters.remove(waiter)
                if not waiters:
                    del self._waiting[service_id]

        waiter = _Waiting(Deferred(leave), incarnation)
        self._waiting.setdefault(service_id, []).append(waiter)
        self._number += 1
        if not self._writing:
            self._writing = True
            # In the next turn, so that all that one read of a socket brought come along.
            self._clock.callLater(0, self._begin)
        return limit_wait(waiter.answer, TIMEOUT, self._clock, self._masked_url)

    def _begin(self) -> None:
        batch: dict[int, _Waiting] = {}
        for service_id in list(self._waiting)[:LARGEST_BATCH]:
            waiters = self._waiting[service_id]
            batch[service_id] = waiters.pop(0)  # A second one of the same row waits for the next batch.
            if not waiters:
                del self._waiting[service_id]
        self._number -= len(batch)
        if not batch:  # all were taken back
            self._writing = False
            return
        beats = {service_id: waiter.incarnation for service_id, waiter in batch.items()}
        silent_after = self._silent_after()
        writing = self._write(lambda connection: beat_all(connection, beats, silent_after))
        writing.addBoth(self._written, batch)

    def _written(self, outcome: frozenset[int] | Failure, batch: dict[int, _Waiting]) -> None:
        # Before anything else: what is left out and tried again does not keep the next batch waiting.
        if self._waiting:
            self._clock.callLater(0, self._begin)
        else:
            self._writing = False
        written = frozenset() if isinstance(outcome, Failure) else outcome
        metrics.database_beats.at().value += len(written)
        metrics.database_beat_commits.at().value += bool(written)
        for service_id, waiter in batch.items():
            if isinstance(outcome, Failure) and _is_of_all(outcome, batch):
                answer(Failure(outcome.value), waiter.answer)
            elif service_id in written:
                answer(None, waiter.answer)
            elif not waiter.answer.called:
                self._turns.run(self._write_alone, service_id, waiter).addBoth(answer, waiter.answer)

    def _write_alone(self, service_id: int, waiter: _Waiting) -> Deferred[None]:
        if waiter.answer.called:  # Its caller may have stopped waiting before its turn.
            return succeed(None)
        return self._beat(service_id, waiter.incarnation).addCallback(_count_one)


def _is_of_all(failure: Failure, batch: Collection[int]) -> bool:
    if failure.check(DatabaseLockedError):
        return len(batch) == 1
    return failure.check(*_OF_ALL) is not None


def _count_one(_: None) -> None:
    metrics.database_beats.at().value += 1
    metrics.database_beat_commits.at().value += 1
