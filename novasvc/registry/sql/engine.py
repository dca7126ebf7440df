"""Transactions in worker threads: alchimia's engine, made fit for SQLAlchemy 2 and for failure.

The only module that imports alchimia, which is of 2018: its own verbs take a thread for each
connection and never give it back, wait without a bound, and some call what SQLAlchemy 2 removed.
What we take is how it hands work to a thread and brings the result home.
"""

from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.engine import strategies
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import DatabaseError, DatabaseUnavailableError
from novasvc.reactor.threads import WorkerThread
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.diagnosis import diagnose
from novasvc.telemetry import metrics

# Before the import: alchimia derives from a class that SQLAlchemy 2 no longer has, and never uses it.
strategies.DefaultEngineStrategy = type("DefaultEngineStrategy", (), {})  # type: ignore[attr-defined]
from alchimia.engine import TwistedEngine, _defer_to_worker  # noqa: E402

_log = Logger()

T = TypeVar("T")

SERVER_WORKERS = 4
"""Threads, and connections, to a server. One for a file: see Note [One thread for SQLite]."""

# Note [One thread for SQLite]
#   A file has one writer at a time, and our reads are short. A second thread adds nothing but
#   waiting for the lock in sleeps of SQLite's choosing, and for the interpreter's lock: of 64
#   heartbeats at a time, 1, 2 and 4 threads do some 3,100, 2,700 and 2,600 a second.

QUEUE = 256
"""Transactions that may wait for a thread; more is a database that does not keep up."""

TIMEOUT = 15.0
"""Seconds for a transaction, from being asked for to its result; more than PATIENCE for each of its waits."""

PATIENCE = 5.0
"""Seconds that the database may let a thread wait for a connection, a lock, a statement."""

CLOSING = 5.0
"""Seconds that close waits for transactions under way."""


class Engine(TwistedEngine):  # type: ignore[misc]
    """A fixed pool of threads that run whole transactions, one thread hop each.

    No thread and no socket exists before the first transaction, so that it can be made before a fork.

    :param address: the database.
    :param reactor: provides IReactorTime and IReactorFromThreads.
    :param workers: threads and connections at the most; by default 1 for SQLite, else SERVER_WORKERS.
    :param queue: transactions that may wait for a thread.
    :param timeout: seconds for a transaction that does not bring its own.
    :param patience: seconds that the database may let a thread wait.
    :raises DatabaseRefusedError: no driver for this address.
    """

    # What alchimia offers and we do not: see the module's docstring.
    connect = execute = has_table = table_names = None

    def __init__(
        self,
        address: DatabaseAddress,
        *,
        reactor: Any,
        workers: int | None = None,
        queue: int = QUEUE,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        self.address = address
        self._count = workers or (1 if address.path is not None else SERVER_WORKERS)
        self._engine = address.make_engine(connections=self._count, patience=patience)
        self._reactor = reactor
        self._queue = queue
        self._timeout = timeout
        self._turns = DeferredSemaphore(self._count)
        self._idle: list[WorkerThread] = []
        self._workers: list[WorkerThread] = []
        self._closed = False

    def seconds(self) -> float:
        """Read the reactor's clock."""
        seconds: float = self._reactor.seconds()
        return seconds

    def run(self, function: Callable[[Connection], T], *, timeout: float | None = None) -> Deferred[T]:
        """Run a function as one transaction, in one of the threads.

        It is committed when the function returns, and rolled back when it raises.

        :param function: takes SQLAlchemy's connection. It must not keep it, nor touch the reactor.
        :param timeout: seconds, > 0; by default the engine's.
        :return: Deferred firing with what the function returned. Cancelling it, like the timeout, only
            ends the waiting: a transaction that has begun may still be committed.
        :raises DatabaseError: the database refused, or gave no answer in time; QUEUE wait already; closed.
        """

        def transact(engine: sqlalchemy.Engine) -> T:
            with engine.begin() as connection:
                return function(connection)

        return self.block(transact, timeout=timeout)

    def block(self, function: Callable[[sqlalchemy.Engine], T], *, timeout: float | None = None) -> Deferred[T]:
        """Run a function that blocks in one of the threads, within the same bounds as :meth:`run`.

        :param function: takes SQLAlchemy's engine.
        """
        if self._closed:
            return fail(self._unavailable("it was closed"))
        if not self._turns.tokens and len(self._turns.waiting) >= self._queue:
            return fail(self._unavailable(f"{self._queue} transactions wait for it already, which is the bound"))
        seconds = self._timeout if timeout is None else timeout

        def late(outcome: Any, _seconds: float) -> Any:
            if isinstance(outcome, Failure) and outcome.check(CancelledError):
                raise self._unavailable(f"no answer within {seconds:g} s")
            return outcome

        turn = Deferred.fromCoroutine(self._in_turn(function)).addTimeout(seconds, self._reactor, onTimeoutCancel=late)
        return turn.addErrback(_count_failure)

    async def _in_turn(self, function: Callable[[sqlalchemy.Engine], T]) -> T:
        asked = self._reactor.seconds()
        metrics.database_waiting.at().value += 1
        try:
            await self._turns.acquire()
        except CancelledError:
            if self._closed:
                raise self._unavailable("it was closed") from None
            raise
        finally:
            metrics.database_waiting.at().value -= 1
        began = self._reactor.seconds()
        metrics.database_wait.at().observe(began - asked)
        worker = self._idle.pop() if self._idle else self._hire()
        # Two Deferreds: whoever waits may give up, the worker is free when it really is.
        awaited: Deferred[T] = Deferred()
        # In a thread, too, what is logged belongs to the node and the request that asked.
        attempt = copy_context().run
        working = _defer_to_worker(self._reactor.callFromThread, worker, attempt, self._attempt, function)
        working.addBoth(self._done, worker, began).chainDeferred(awaited)
        return await awaited

    def _attempt(self, function: Callable[[sqlalchemy.Engine], T]) -> T:
        try:
            return function(self._engine)
        except SQLAlchemyError as error:
            raise diagnose(self.address, error) from error

    def _hire(self) -> WorkerThread:
        try:
            worker = WorkerThread(f"database-{len(self._workers)}")
        except RuntimeError as error:
            self._turns.release()
            raise self._unavailable(f"no thread for it: {error}") from error
        self._workers.append(worker)
        return worker

    def _done(self, outcome: Any, worker: WorkerThread, began: float) -> Any:
        metrics.database_seconds.at().observe(self._reactor.seconds() - began)
        self._idle.append(worker)
        self._turns.release()
        return outcome

    def _unavailable(self, problem: str) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(self.address.masked, problem)

    def close(self) -> Deferred[None]:
        """End the threads and the connections; what waits for a thread fails, what runs may finish.

        :return: Deferred[None]; never fails. It waits CLOSING seconds for what runs: a thread that is
            stuck longer is left behind, and keeps nobody from exiting.
        """
        if self._closed:
            return succeed(None)
        self._closed = True
        for waiting in list(self._turns.waiting):
            waiting.cancel()
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        try:
            await Deferred.fromCoroutine(self._quiet()).addTimeout(CLOSING, self._reactor)
            if self._idle:
                disposing = _defer_to_worker(self._reactor.callFromThread, self._idle[0], self._engine.dispose)
                await disposing.addTimeout(CLOSING, self._reactor)
        except DeferredTimeoutError:
            _log.warn(
                "database {url}: {busy} transactions are still under way after {seconds:g} s and are left behind",
                url=self.address.masked,
                busy=len(self._workers) - len(self._idle),
                seconds=CLOSING,
            )
        except Exception:  # noqa: BLE001 - closing goes on, whatever a driver raises
            _log.failure("database {url}: not closed properly", url=self.address.masked)
        for worker in self._workers:
            if worker not in self._idle:
                worker.do(self._engine.dispose)  # its connection too is closed, when it is free at last
            worker.quit(join=CLOSING if worker in self._idle else 0)

    async def _quiet(self) -> None:
        """Wait until nobody works: then all the turns are ours."""
        for _ in range(self._count):
            await self._turns.acquire()


def _count_failure(failure: Failure) -> Failure:
    if failure.check(DatabaseError):
        metrics.database_errors.at(type(failure.value).__name__).value += 1
    return failure
