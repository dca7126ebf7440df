"""Tests for the engine, with real threads and a real file."""

import threading
from typing import Any

from sqlalchemy import Connection, text
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock, cooperate
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from novasvc.errors import DatabaseError, DatabaseUnavailableError, MigrationNeededError
from novasvc.registry.sql import migrate
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.engine import CLOSE_TIMEOUT, Engine
from novasvc.telemetry import metrics
from novasvc.telemetry.logs import node_fields
from tests.support.waiting import until


class ClockReactor(Clock):
    """A Clock that takes results from threads as the reactor does."""

    def callFromThread(self, function: Any, *args: Any) -> None:
        reactor.callFromThread(function, *args)  # type: ignore[attr-defined]


class Gate:
    """A transaction that blocks its thread until the test opens it."""

    def __init__(self, result: object = "done") -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.result = result

    def __call__(self, connection: Connection) -> object:
        self.entered.set()
        assert self.leave.wait(30)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def one(connection: Connection) -> Any:
    return connection.execute(text("SELECT 1")).scalar()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("database-")}


class EngineTests(TestCase):
    """Tests for novasvc.registry.sql.engine.Engine."""

    def setUp(self) -> None:
        self.address = DatabaseAddress.parse(f"sqlite:///{self.mktemp()}.sqlite")
        migrate.upgrade(self.address.render())
        self.gates: list[Gate] = []
        self.clock = ClockReactor()

    def make(self, **options: Any) -> Engine:
        engine = Engine(self.address, **{"reactor": reactor, **options})
        self.addCleanup(self._end, engine)
        return engine

    def _end(self, engine: Engine) -> Deferred[None]:
        for gate in self.gates:
            gate.leave.set()
        return engine.close()

    def gate(self, result: object = "done") -> Gate:
        self.gates.append(Gate(result))
        return self.gates[-1]

    async def test_figures(self) -> None:
        """Metrics have the wait for a thread, the duration and the error of each transaction."""
        metrics.reset()
        self.addCleanup(metrics.reset)
        engine = self.make(workers=1)
        gate = self.gate()
        first, second = engine.run(gate), engine.run(one)
        self.assertEqual(metrics.database_waiting.at().value, 1)
        gate.leave.set()
        await first
        await second
        self.assertEqual(metrics.database_waiting.at().value, 0)
        self.assertEqual([metrics.database_wait.at().count, metrics.database_seconds.at().count], [2, 2])
        await self.assertFailure(
            engine.run(lambda connection: connection.execute(text("SELECT nothing"))), DatabaseError
        )
        await self.assertFailure(engine.run(lambda _: {}["x"]), KeyError)
        told = {values: child.value for values, child in metrics.database_errors}
        self.assertEqual(sum(told.values()), 1, told)

    async def test_lazy(self) -> None:
        """Threads are started on demand."""
        before = threads()
        engine = self.make(workers=3)
        self.assertEqual(threads(), before)
        self.assertEqual(await engine.run(one), 1)
        self.assertEqual(await engine.run(one), 1)
        self.assertEqual(len(threads() - before), 1)

    async def test_unused(self) -> None:
        """An engine that never ran anything closes at once."""
        self.assertIsNone(self.successResultOf(self.make().close()))

    async def test_commit_and_roll_back(self) -> None:
        """A transaction is committed if its function returns, and rolled back if it raises; the exception arrives."""
        engine = self.make()

        def insert(connection: Connection) -> None:
            connection.execute(text("INSERT INTO services (report_count, host) VALUES (0, 'h1')"))

        def insert_and_raise(connection: Connection) -> None:
            insert(connection)
            message = "after all"
            raise LookupError(message)

        await engine.run(insert)
        await self.assertFailure(engine.run(insert_and_raise), LookupError)
        self.assertEqual(await engine.run(lambda c: c.execute(text("SELECT count(*) FROM services")).scalar()), 1)

    async def test_context(self) -> None:
        """A transaction runs in the caller's context, so its log events have the caller's fields."""
        engine = self.make(workers=1)
        for host in ("h1", "h2"):
            node_fields.set({"host": host})
            self.assertEqual(await engine.run(lambda _: node_fields.get()), {"host": host})

    async def test_driver_error(self) -> None:
        """A driver's exception arrives as a DatabaseError."""
        await self.assertFailure(self.make().run(lambda c: c.execute(text("SELECT x FROM y"))), MigrationNeededError)

    async def test_deadline(self) -> None:
        """A transaction that takes too long fails; its thread gets no other work until it returns."""
        engine = self.make(workers=1, reactor=self.clock)
        gate = self.gate()
        slow = engine.run(gate, timeout=3)
        await until(gate.entered.is_set)
        waiting = engine.run(one, timeout=60)
        self.clock.advance(3)
        error = self.failureResultOf(slow, DatabaseUnavailableError).value
        self.assertIn("no answer within 3 s", str(error))
        self.assertNoResult(waiting)
        gate.leave.set()
        self.assertEqual(await waiting, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_deadline_in_the_queue(self) -> None:
        """A transaction that times out in the queue never runs."""
        engine = self.make(workers=1, reactor=self.clock)
        gate, never = self.gate(), self.gate()
        running = engine.run(gate, timeout=60)
        waiting = engine.run(never, timeout=3)
        self.clock.advance(3)
        self.failureResultOf(waiting, DatabaseUnavailableError)
        gate.leave.set()
        self.assertEqual(await running, "done")
        self.assertEqual(await engine.run(one), 1)
        self.assertFalse(never.entered.is_set())

    async def test_cancel_while_it_runs(self) -> None:
        """A cancelled Deferred fails at once; its thread stays busy until the transaction ends."""
        engine = self.make(workers=1)
        for outcome in ("done", ValueError("nobody hears this")):
            gate = self.gate(outcome)
            running = engine.run(gate)
            await until(gate.entered.is_set)
            running.cancel()
            self.failureResultOf(running, CancelledError)
            behind = self.gate("behind")
            next_one = engine.run(behind)
            self.assertFalse(behind.entered.wait(0.02))
            gate.leave.set()
            behind.leave.set()
            self.assertEqual(await next_one, "behind")

    async def test_cancel_in_the_queue(self) -> None:
        """A transaction cancelled in the queue never runs; those behind it do."""
        engine = self.make(workers=1)
        gate, never = self.gate(), self.gate()
        running, waiting, last = engine.run(gate), engine.run(never), engine.run(one)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        gate.leave.set()
        self.assertEqual((await running, await last), ("done", 1))
        self.assertFalse(never.entered.is_set())

    async def test_queue_is_bounded(self) -> None:
        """A transaction beyond the queue's limit fails at once, and the error names the limit."""
        engine = self.make(workers=1, queue=2)
        gate = self.gate()
        taken = [engine.run(gate), engine.run(one), engine.run(one)]
        error = self.failureResultOf(engine.run(one), DatabaseUnavailableError).value
        self.assertIn("2 transactions, the bound of the queue, wait for it already", str(error))
        gate.leave.set()
        self.assertEqual([await each for each in taken], ["done", 1, 1])
        self.assertEqual(await engine.run(one), 1)

    async def test_threads_are_bounded(self) -> None:
        """At most as many transactions run concurrently as there are workers."""
        before = threads()
        engine = self.make(workers=2)
        gates = [self.gate(n) for n in range(4)]
        running = [engine.run(gate) for gate in gates]
        await until(lambda: gates[0].entered.is_set() and gates[1].entered.is_set())
        self.assertEqual(len(threads() - before), 2)
        self.assertFalse(gates[2].entered.wait(0.02))
        for gate in gates:
            gate.leave.set()
        self.assertEqual([await each for each in running], [0, 1, 2, 3])
        self.assertEqual(len(threads() - before), 2)

    async def test_no_thread_to_be_had(self) -> None:
        """If no thread can be started, the transaction fails; the engine recovers."""

        def refuse(thread: threading.Thread) -> None:
            message = "can't start new thread"
            raise RuntimeError(message)

        engine = self.make(workers=1)
        patch = self.patch(threading.Thread, "start", refuse)
        for _ in range(3):
            self.assertIn("thread", str(self.failureResultOf(engine.run(one), DatabaseUnavailableError).value))
        patch.restore()
        self.assertEqual(await engine.run(one), 1)

    async def test_close(self) -> None:
        """close() leaves no thread, and no file beside the database; later transactions fail."""
        before = threads()
        engine = self.make(workers=3)
        gates = [self.gate() for _ in range(3)]
        running = [engine.run(gate) for gate in gates]
        await until(lambda: all(gate.entered.is_set() for gate in gates))
        for gate in gates:
            gate.leave.set()
        for each in running:
            await each
        await engine.close()
        await engine.close()
        self.assertEqual(threads(), before)
        assert self.address.path is not None
        self.assertEqual([file.name for file in self.address.path.parent.glob("*.sqlite*")], [self.address.path.name])
        self.assertIn("closed", str(self.failureResultOf(engine.run(one), DatabaseError).value))

    async def test_close_under_way(self) -> None:
        """close() waits for running transactions, and fails queued ones."""
        engine = self.make(workers=1)
        gate = self.gate()
        running, waiting = engine.run(gate), engine.run(one)
        await until(gate.entered.is_set)
        closing = engine.close()
        self.assertIn("closed", str(self.failureResultOf(waiting, DatabaseUnavailableError).value))
        self.assertNoResult(closing)
        gate.leave.set()
        self.assertEqual(await running, "done")
        await closing

    async def test_close_is_bounded(self) -> None:
        """close() leaves a stuck transaction behind with a warning; its thread ends with the transaction."""
        before = threads()
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        engine = self.make(workers=2, reactor=self.clock)
        self.assertEqual(await engine.run(one), 1)
        gate = self.gate()
        running = engine.run(gate, timeout=3600)
        await until(gate.entered.is_set)
        closing = engine.close()
        self.assertNoResult(closing)
        self.clock.advance(CLOSE_TIMEOUT)
        await closing
        self.assertEqual([event["busy"] for event in events if "busy" in event], [1])
        gate.leave.set()
        self.assertEqual(await running, "done")
        await until(lambda: threads() == before)

    async def test_many(self) -> None:
        """Of a thousand concurrent transactions each gets its own result."""
        engine = self.make(workers=4, queue=1000)
        results: list[int] = []

        def ask(n: int) -> Deferred[None]:
            return engine.run(lambda c: c.execute(text(f"SELECT {n}")).scalar()).addCallback(results.append)

        work = (ask(n) for n in range(1000))
        await succeed(None)
        for task in [cooperate(work) for _ in range(50)]:
            await task.whenDone()
        self.assertEqual(sorted(results), list(range(1000)))
