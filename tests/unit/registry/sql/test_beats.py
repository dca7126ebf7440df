"""Tests for heartbeats in batches."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.errors import (
    DatabaseConflictError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseUnavailableError,
    ServiceNotFoundError,
)
from novasvc.registry.sql import beats
from novasvc.registry.sql.beats import BeatBatches
from novasvc.telemetry import metrics

URL = "postgresql://host/nova"


class BeatBatchesTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.beats.BeatBatches, with transactions that end when the test says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.written: list[tuple[int, ...]] = []
        self.transactions: list[Deferred[frozenset[int]]] = []
        self.alone: list[int] = []
        self.outcome_alone: Deferred[None] | None = None
        self.patch(beats, "beat_all", lambda _, beats, __: self.written.append(tuple(beats)))
        self.batches = BeatBatches(self.clock, self.write, self.beat_alone, URL)

    def write(self, change: Callable[[Connection], Any]) -> Deferred[frozenset[int]]:
        change(None)  # type: ignore[arg-type]
        self.transactions.append(Deferred())
        return self.transactions[-1]

    def beat_alone(self, service_id: int, incarnation: int | None) -> Deferred[None]:
        self.alone.append(service_id)
        return self.outcome_alone or fail(ServiceNotFoundError(str(service_id)))

    def commit(self, *ids: int) -> None:
        """End the oldest transaction."""
        self.transactions.pop(0).callback(frozenset(ids))

    def test_together(self) -> None:
        """What comes while a batch is written is the next batch."""
        first = self.batches.beat(1)
        self.clock.advance(0)
        others = [self.batches.beat(number) for number in (2, 3, 4)]
        self.clock.advance(1)
        self.assertEqual(self.written, [(1,)])
        self.commit(1)
        self.successResultOf(first)
        self.clock.advance(0)
        self.assertEqual(self.written, [(1,), (2, 3, 4)])
        self.commit(2, 3, 4)
        for beat in others:
            self.successResultOf(beat)

    def test_same_row(self) -> None:
        """Two heartbeats of one row are two transactions."""
        one, two = self.batches.beat(1), self.batches.beat(1)
        self.clock.advance(0)
        self.commit(1)
        self.successResultOf(one)
        self.assertNoResult(two)
        self.clock.advance(0)
        self.commit(1)
        self.successResultOf(two)
        self.assertEqual(self.written, [(1,), (1,)])

    def test_largest_batch(self) -> None:
        """A transaction has a bound."""
        for number in range(beats.LARGEST_BATCH + 1):
            self.batches.beat(number)
        self.clock.advance(0)
        self.commit(*range(beats.LARGEST_BATCH))
        self.clock.advance(0)
        self.assertEqual([len(rows) for rows in self.written], [beats.LARGEST_BATCH, 1])

    def test_left_out(self) -> None:
        """What a batch leaves out is written alone, and keeps nobody waiting."""
        self.outcome_alone = Deferred()
        good, locked = self.batches.beat(1), self.batches.beat(2)
        self.clock.advance(0)
        self.commit(1)
        self.successResultOf(good)
        self.assertEqual(self.alone, [2])
        third = self.batches.beat(3)
        self.clock.advance(0)
        self.commit(3)
        self.successResultOf(third)
        self.assertNoResult(locked)
        self.outcome_alone.callback(None)
        self.successResultOf(locked)

    def test_counted(self) -> None:
        """The metrics say how many heartbeats a transaction writes: those that were written alone, too."""

        def counts() -> tuple[float, float]:
            return metrics.database_beats.at().value, metrics.database_beat_commits.at().value

        before = counts()
        self.outcome_alone = succeed(None)
        for number in (1, 2, 3):
            self.batches.beat(number)
        self.clock.advance(0)
        self.commit(1, 2)
        self.assertEqual([now - then for now, then in zip(counts(), before, strict=True)], [3, 2])

    def test_no_row(self) -> None:
        """A heartbeat of a deleted row fails, and no other."""
        good, gone = self.batches.beat(1), self.batches.beat(2)
        self.clock.advance(0)
        self.commit(1)
        self.successResultOf(good)
        self.failureResultOf(gone, ServiceNotFoundError)

    def test_failed(self) -> None:
        """If a batch fails, each heartbeat is tried alone: one bad row spoils no other."""
        found = [self.batches.beat(1), self.batches.beat(2)]
        self.clock.advance(0)
        self.transactions.pop().errback(DatabaseConflictError(URL, "deadlock"))
        self.assertEqual(self.alone, [1, 2])
        for beat in found:
            self.failureResultOf(beat, ServiceNotFoundError)

    def test_deadlock(self) -> None:
        """A deadlock is the matter of some rows: each heartbeat of the batch is tried alone, but not twice alone."""
        self.outcome_alone = succeed(None)
        deadlock = DatabaseLockedError(URL, "deadlock")
        deadlock.is_deadlock = True
        found = [self.batches.beat(1), self.batches.beat(2)]
        self.clock.advance(0)
        self.transactions.pop().errback(deadlock)
        for beat in found:
            self.successResultOf(beat)
        self.assertEqual(self.alone, [1, 2])
        beat = self.batches.beat(3)
        self.clock.advance(0)
        self.transactions.pop().errback(deadlock)
        self.failureResultOf(beat, DatabaseLockedError)
        self.assertEqual(self.alone, [1, 2])

    def test_alone_in_turns(self) -> None:
        """Of the heartbeats that are tried alone, few are under way: the others of the engine's threads stay free."""
        self.outcome_alone = Deferred()
        found = [self.batches.beat(number) for number in range(5)]
        self.clock.advance(0)
        found[3].addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        self.commit()
        self.assertEqual(self.alone, [0, 1])
        outcome, self.outcome_alone = self.outcome_alone, succeed(None)
        outcome.callback(None)
        self.assertEqual(self.alone, [0, 1, 2, 4])
        for beat in found:
            self.successResultOf(beat)

    def test_no_number_of_a_row(self) -> None:
        """A number that no row can have, which a database would refuse, is not in a batch."""
        good = self.batches.beat(1)
        for number in (-1, 2**31, 2**70):
            self.failureResultOf(self.batches.beat(number), ServiceNotFoundError)
        self.clock.advance(0)
        self.assertEqual(self.written, [(1,)])
        self.commit(1)
        self.successResultOf(good)

    def test_unavailable(self) -> None:
        """What concerns all is everybody's error at once: no heartbeat asks the database again.

        A lock that ends a batch is one of the whole table or server, because locked rows are left out.
        """
        for kind in (DatabaseUnavailableError, DatabaseFullError, DatabaseLockedError):
            error = kind(URL, "away")
            found = [self.batches.beat(1), self.batches.beat(2)]
            self.clock.advance(0)
            self.transactions.pop().errback(error)
            for beat in found:
                self.assertIs(self.failureResultOf(beat, kind).value, error)
        self.assertEqual(self.alone, [])

    def test_cancelled(self) -> None:
        """A heartbeat that is cancelled before its batch begins is not written; later it is only not waited for."""
        first = self.batches.beat(1)
        self.clock.advance(0)
        second, third = self.batches.beat(2), self.batches.beat(3)
        second.cancel()
        first.cancel()
        self.commit()
        self.clock.advance(0)
        self.assertEqual(self.written, [(1,), (3,)])
        self.commit(3)
        self.successResultOf(third)
        for beat in (first, second):
            self.failureResultOf(beat, CancelledError)
        self.assertEqual(self.alone, [])
