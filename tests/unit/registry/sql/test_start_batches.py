"""Tests for starts in batches."""

from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import (
    DatabaseConflictError,
    DatabaseError,
    DatabaseLockedError,
    DatabaseReadOnlyError,
    ServiceNotFoundError,
)
from novasvc.registry.incarnation import ServiceStart
from novasvc.registry.record import ServiceRecord
from novasvc.registry.sql.start_batches import StartBatches
from novasvc.registry.sql.starts import Outcome
from tests.support.records import record

URL = "postgresql://host/nova"
START = ServiceStart(host="h", binary="b", topic="t", version=1, owner="o", machine="m")


class StartBatchesTests(SynchronousTestCase):
    """Tests for novasvc.registry.sql.start_batches.StartBatches, with transactions that end when the test says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.written: list[list[str]] = []
        self.awaited: Callable[[int], bool]
        self.transactions: list[Deferred[list[Outcome]]] = []
        self.alone: list[str] = []
        self.awaited_alone = True
        self.gives_up: Deferred[ServiceRecord] | None = None
        """Cancelled while it is begun alone."""
        self.batches = StartBatches(self.clock, self.write, self.begin_alone, URL)

    def write(self, starts: Sequence[ServiceStart], is_awaited: Callable[[int], bool]) -> Deferred[list[Outcome]]:
        self.awaited = is_awaited
        self.written.append([start.host for start in starts])
        self.transactions.append(Deferred())
        return self.transactions[-1]

    def begin_alone(self, start: ServiceStart, is_awaited: Callable[[], bool]) -> Deferred[ServiceRecord]:
        self.alone.append(start.host)
        if self.gives_up is not None:
            self.gives_up.cancel()
        self.awaited_alone = is_awaited()
        return succeed(record(host=start.host))

    def begin(self, host: str) -> Deferred[ServiceRecord]:
        return self.batches.begin(attrs.evolve(START, host=host))

    def end(self, *outcomes: Outcome) -> None:
        """End the oldest transaction."""
        self.transactions.pop(0).callback(list(outcomes))

    def test_together(self) -> None:
        """Starts that come while a batch is written wait for the next one; each is answered with its own outcome."""
        first = self.begin("h1")
        self.clock.advance(0)
        others = [self.begin("h2"), self.begin("h3")]
        self.clock.advance(0)
        self.assertEqual(self.written, [["h1"]])
        self.end(record(host="h1"))
        self.assertEqual(self.successResultOf(first).host, "h1")
        self.clock.advance(0)
        self.assertEqual(self.written, [["h1"], ["h2", "h3"]])
        self.end(ServiceNotFoundError("h2"), record(host="h3"))
        self.failureResultOf(others[0], ServiceNotFoundError)
        self.assertEqual(self.successResultOf(others[1]).host, "h3")
        self.assertEqual((self.alone, self.clock.getDelayedCalls()), ([], []))

    def test_conflict(self) -> None:
        """A start in conflict is tried alone; so is each of a batch that fails with a conflict."""
        starts = [self.begin("h1"), self.begin("h2")]
        self.clock.advance(0)
        self.end(None, record(host="h2"))
        self.assertEqual([self.successResultOf(each).host for each in starts], ["h1", "h2"])
        self.assertEqual(self.alone, ["h1"])
        starts = [self.begin("h3"), self.begin("h4")]
        self.clock.advance(0)
        self.transactions.pop(0).errback(Failure(DatabaseConflictError(URL, "twice")))
        self.assertEqual([self.successResultOf(each).host for each in starts], ["h3", "h4"])
        self.assertEqual(self.alone, ["h1", "h3", "h4"])

    def test_refused_value(self) -> None:
        """If the database refuses a value of one start, the others of its batch begin; alone it fails at once."""
        starts = [self.begin("h1"), self.begin("h2")]
        self.clock.advance(0)
        self.transactions.pop(0).errback(Failure(DatabaseError(URL, "integer out of range")))
        self.assertEqual([self.successResultOf(each).host for each in starts], ["h1", "h2"])
        self.assertEqual(self.alone, ["h1", "h2"])
        start = self.begin("h3")
        self.clock.advance(0)
        self.transactions.pop(0).errback(Failure(DatabaseError(URL, "integer out of range")))
        self.failureResultOf(start, DatabaseError)

    def test_given_up(self) -> None:
        """A transaction can tell which callers have given up while it waits for the database."""
        starts = [self.begin("h1"), self.begin("h2")]
        self.clock.advance(0)
        self.assertEqual([self.awaited(0), self.awaited(1)], [True, True])
        starts[0].cancel()
        self.failureResultOf(starts[0], CancelledError)
        self.assertEqual([self.awaited(0), self.awaited(1)], [False, True])
        self.gives_up = starts[1]
        self.end(None, None)
        self.failureResultOf(starts[1], CancelledError)
        self.assertEqual((self.alone, self.awaited_alone), (["h2"], False))

    def test_failure(self) -> None:
        """An error that concerns all fails each start with it."""
        starts = [self.begin("h1"), self.begin("h2")]
        self.clock.advance(0)
        self.transactions.pop(0).errback(Failure(DatabaseReadOnlyError(URL, "replica")))
        for each in starts:
            self.failureResultOf(each, DatabaseReadOnlyError)
        self.assertEqual(self.alone, [])

    def test_locked(self) -> None:
        """Each start of a batch that ends in a deadlock is tried alone; if a lock is kept, all fail and name it."""
        for is_deadlock, alone in ((True, ["h1", "h2"]), (False, [])):
            self.alone.clear()
            starts = [self.begin("h1"), self.begin("h2")]
            self.clock.advance(0)
            error = DatabaseLockedError(URL, "database is locked")
            error.is_deadlock = is_deadlock
            self.clock.advance(10)  # however long the batch took
            self.transactions.pop(0).errback(Failure(error))
            self.assertEqual(self.alone, alone)
            for each in starts:
                if alone:
                    self.successResultOf(each)
                else:
                    self.assertIn("holds the lock", str(self.failureResultOf(each, DatabaseLockedError).value))
