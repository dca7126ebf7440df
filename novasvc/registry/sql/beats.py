"""Heartbeats in batches: those that wait at the same time are written by one transaction."""

from collections.abc import Callable, Mapping
from operator import itemgetter

import attrs
from sqlalchemy import Connection, bindparam, select
from twisted.internet.defer import Deferred, DeferredSemaphore, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.registry.errors import DatabaseLockedError, ServiceNotFoundError
from novasvc.registry.query import GREATEST_ID
from novasvc.registry.sql import silences
from novasvc.registry.sql.batches import OF_ALL, Batches
from novasvc.registry.sql.incarnations import NUMBER
from novasvc.registry.sql.rows import BEAT
from novasvc.registry.sql.schema import services
from novasvc.registry.sql.silences import BEGAN
from novasvc.registry.sql.waiting import answer
from novasvc.telemetry import metrics

LARGEST_BATCH = 500
"""Rows of a transaction. More make it longer, but hardly any cheaper."""

AT_A_TIME = 2
"""Heartbeats that are written alone at a time. Each may wait for a lock in a thread, and others need threads, too."""

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


_Batch = dict[Deferred[None], tuple[int, int | None]]
"""Callers -> the ids of their rows, and their incarnations."""


@attrs.define(eq=False)
class BeatBatches:
    """Write heartbeats: each caller is answered when its own is committed.

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
    # all: the database is unavailable, or locked as a whole, since a batch waits for no locked row. A
    # deadlock is the matter of some rows only. Those tried alone take their turn, AT_A_TIME, so that
    # a batch of them does not fill the engine's queue, nor all of its threads.

    _clock: IReactorTime
    _write: Callable[[Callable[[Connection], frozenset[int]]], Deferred[frozenset[int]]]
    _beat: Callable[[int, int | None], Deferred[None]]
    _masked_url: str
    _silent_after: Callable[[], float | None] = lambda: None
    _turns: DeferredSemaphore = attrs.field(factory=lambda: DeferredSemaphore(AT_A_TIME), init=False)
    _batches: Batches[tuple[int, int | None], None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        row = itemgetter(0)
        self._batches = Batches(self._clock, self._write_batch, self._masked_url, "heartbeats", LARGEST_BATCH, row)

    def beat(self, service_id: int, incarnation: int | None = None) -> Deferred[None]:
        """See :meth:`novasvc.interfaces.IServiceRegistry.beat`.

        :return: Deferred[None]. Cancelling it before its batch begins takes the heartbeat back.
        :raises ServiceNotFoundError: there is no such row.
        :raises DatabaseUnavailableError: see :meth:`Batches.add`.
        """
        if not 0 <= service_id <= GREATEST_ID:  # a database would refuse the whole batch
            return fail(ServiceNotFoundError(str(service_id)))
        return self._batches.add((service_id, incarnation))

    def _write_batch(self, batch: _Batch) -> Deferred[None]:
        beats, silent_after = dict(batch.values()), self._silent_after()
        return self._write(lambda connection: beat_all(connection, beats, silent_after)).addBoth(self._written, batch)

    def _written(self, outcome: frozenset[int] | Failure, batch: _Batch) -> None:
        written = frozenset() if isinstance(outcome, Failure) else outcome
        metrics.database_beats.at().value += len(written)
        metrics.database_beat_commits.at().value += bool(written)
        # What is tried again alone does not keep the next batch waiting.
        for waiting, beat in batch.items():
            if isinstance(outcome, Failure) and _is_of_all(outcome, batch):
                answer(Failure(outcome.value), waiting)
            elif beat[0] in written:
                answer(None, waiting)
            elif not waiting.called:
                self._turns.run(self._write_alone, waiting, *beat).addBoth(answer, waiting)

    def _write_alone(self, waiting: Deferred[None], service_id: int, incarnation: int | None) -> Deferred[None]:
        if waiting.called:  # Its caller may have stopped waiting before its turn.
            return succeed(None)
        return self._beat(service_id, incarnation).addCallback(_count_one)


def _is_of_all(failure: Failure, batch: _Batch) -> bool:
    error = failure.value
    if isinstance(error, DatabaseLockedError) and error.is_deadlock:
        return len(batch) == 1
    return isinstance(error, OF_ALL)


def _count_one(_: None) -> None:
    metrics.database_beats.at().value += 1
    metrics.database_beat_commits.at().value += 1
