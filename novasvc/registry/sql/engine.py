"""Runs transactions in worker threads: alchimia's engine, adapted to SQLAlchemy 2 and to failures.

We use how alchimia hands work to a thread and returns the result to the reactor. Its own methods are
not used, see :func:`novasvc._compat.import_alchimia`.
"""

from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar, cast

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc._compat import import_alchimia
from novasvc.reactor.threads import WorkerThread
from novasvc.registry.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseServerReadOnlyError,
    DatabaseUnavailableError,
)
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.diagnosis import diagnose
from novasvc.registry.sql.waiting import limit_wait
from novasvc.telemetry import metrics

_TwistedEngine, _defer_to_worker = import_alchimia()

_log = Logger()

T = TypeVar("T")

SERVER_WORKERS = 4
"""Threads and connections per database server. One for a file: see Note [One thread for SQLite]."""

# Note [One thread for SQLite]
#   A file has one writer at a time, and our reads are short. A second thread only adds waits for
#   the file lock, in sleeps of SQLite's choosing, and for the GIL: of 64 concurrent
#   heartbeats at a time, 1, 2 and 4 threads do some 3,100, 2,700 and 2,600 a second.

QUEUE_LIMIT = 256
"""Transactions that may wait for a thread. A longer queue would only hide that the database is too slow."""

TIMEOUT = 15.0
"""Seconds for a transaction, from the call to the result; longer than WAIT_TIMEOUT, which bounds each wait in it."""

WAIT_TIMEOUT = 5.0
"""Seconds that a thread may wait in the database for a connection, a lock or a statement."""

CLOSE_TIMEOUT = 5.0
"""Seconds that :meth:`Engine.close` waits for transactions under way."""


class Engine(_TwistedEngine):  # type: ignore[misc, valid-type]
    """A fixed pool of threads that run whole transactions: one thread switch each way per transaction.

    No thread and no socket exists before the first transaction, so an engine can be made before a fork.

    :param address: the database.
    :param reactor: provides IReactorTime and IReactorFromThreads.
    :param workers: the largest number of threads and connections; by default 1 for SQLite, else SERVER_WORKERS.
    :param queue: transactions that may wait for a thread.
    :param timeout: seconds for a transaction without a timeout of its own.
    :param wait_timeout: seconds that a thread may wait in the database.
    :raises DatabaseRefusedError: there is no driver for this address.
    """

    # alchimia's methods that must not be used, see import_alchimia().
    connect = execute = has_table = table_names = None

    def __init__(
        self,
        address: DatabaseAddress,
        *,
        reactor: Any,
        workers: int | None = None,
        queue: int = QUEUE_LIMIT,
        timeout: float = TIMEOUT,
        wait_timeout: float = WAIT_TIMEOUT,
    ) -> None:
        self.address = address
        self._size = workers or (1 if address.path is not None else SERVER_WORKERS)
        self._engine = address.make_engine(connections=self._size, wait_timeout=wait_timeout)
        # Connections of their own: to change the mode of one and back again takes round trips, which may fail.
        self._statements = address.make_engine(connections=self._size, wait_timeout=wait_timeout, autocommit=True)
        if address.path is None:
            for engine in (self._engine, self._statements):
                event.listen(engine, "handle_error", self._leave_read_only)
        self._reactor = reactor
        self._queue = queue
        self._timeout = timeout
        self._free_workers = DeferredSemaphore(self._size)
        self._idle: list[WorkerThread] = []
        self._workers: list[WorkerThread] = []
        self._closed = False

    def _leave_read_only(self, context: ExceptionContext) -> None:
        # After a failover the old primary may run on as a replica: its connections work, but for reading only. So the
        # whole pool connects again, as after a lost connection, to the server that the URL leads to now.
        if isinstance(diagnose(self.address, context.original_exception), DatabaseServerReadOnlyError):
            context.is_disconnect = True

    @property
    def clock(self) -> IReactorTime:
        """The reactor's clock."""
        return cast(IReactorTime, self._reactor)

    def run(
        self, function: Callable[[Connection], T], *, timeout: float | None = None, only_awaited: bool = False
    ) -> Deferred[T]:
        """Run a function as one transaction, in one of the threads.

        The transaction is committed when the function returns, and rolled back when it raises.

        :param function: takes SQLAlchemy's connection. It must neither keep it nor touch the reactor.
        :param timeout: seconds, > 0; by default the engine's.
        :param only_awaited: roll back also if the caller has given up when the function returns. For what must not be
            written after something that its caller does later.
        :return: Deferred of the function's result. Cancelling it, like the timeout, ends the waiting: a transaction
            that has begun may still be committed, with only_awaited only if its commit has begun.
        :raises DatabaseError: the database refused, or did not answer in time; the engine is closed.
        :raises DatabaseBusyError: the queue is full.
        """
        has_ended = False

        def transact(engine: sqlalchemy.Engine) -> T:
            with engine.begin() as connection:
                result = function(connection)
                if only_awaited and has_ended:
                    raise CancelledError  # nobody sees it
                return result

        def end(outcome: T | Failure) -> T | Failure:
            nonlocal has_ended
            has_ended = True
            return outcome

        return self.block(transact, timeout=timeout).addBoth(end)

    def run_statements(self, function: Callable[[Connection], T]) -> Deferred[T]:
        """Run a function as :meth:`run` does, but each of its statements is a transaction of its own."""

        def execute(_: sqlalchemy.Engine) -> T:
            with self._statements.connect() as connection:
                return function(connection)

        return self.block(execute)

    def block(self, function: Callable[[sqlalchemy.Engine], T], *, timeout: float | None = None) -> Deferred[T]:
        """Run a blocking function in one of the threads, within the same bounds as :meth:`run`.

        :param function: takes SQLAlchemy's engine.
        """
        if self._closed:
            return fail(self._unavailable("the engine was closed"))
        if not self._free_workers.tokens and len(self._free_workers.waiting) >= self._queue:
            problem = f"{self._queue} transactions, the bound of the queue, wait for it already"
            return fail(DatabaseBusyError(self.address.masked, problem))
        seconds = self._timeout if timeout is None else timeout
        turn = Deferred.fromCoroutine(self._run_in_thread(function))
        return limit_wait(turn, seconds, self._reactor, self.address.masked).addErrback(_count_failure)

    async def _run_in_thread(self, function: Callable[[sqlalchemy.Engine], T]) -> T:
        asked = self._reactor.seconds()
        metrics.database_waiting.at().value += 1
        try:
            await self._free_workers.acquire()
        except CancelledError:
            if self._closed:
                raise self._unavailable("the engine was closed") from None
            raise
        finally:
            metrics.database_waiting.at().value -= 1
        began = self._reactor.seconds()
        metrics.database_wait.at().observe(began - asked)
        worker = self._idle.pop() if self._idle else self._start_thread()
        # Two Deferreds: a caller may give up, but the thread is idle only when its function has returned.
        awaited: Deferred[T] = Deferred()
        # With the context variables, log events in the thread carry the caller's node and request.
        attempt = copy_context().run
        working = _defer_to_worker(self._reactor.callFromThread, worker, attempt, self._attempt, function)
        working.addBoth(self._done, worker, began).chainDeferred(awaited)
        return await awaited

    def _attempt(self, function: Callable[[sqlalchemy.Engine], T]) -> T:
        try:
            return function(self._engine)
        except SQLAlchemyError as error:
            raise diagnose(self.address, error) from error

    def _start_thread(self) -> WorkerThread:
        try:
            worker = WorkerThread(f"database-{len(self._workers)}")
        except RuntimeError as error:
            self._free_workers.release()
            raise self._unavailable(f"cannot start a thread for it: {error}") from error
        self._workers.append(worker)
        return worker

    def _done(self, outcome: Any, worker: WorkerThread, began: float) -> Any:
        metrics.database_seconds.at().observe(self._reactor.seconds() - began)
        self._idle.append(worker)
        self._free_workers.release()
        return outcome

    def _unavailable(self, problem: str) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(self.address.masked, problem)

    def close(self) -> Deferred[None]:
        """End the threads and the connections. Queued transactions fail; running ones may finish.

        :return: Deferred[None]; never fails. It waits CLOSE_TIMEOUT seconds for running transactions: a thread that is
            stuck longer is left behind, and does not keep the process from exiting.
        """
        if self._closed:
            return succeed(None)
        self._closed = True
        for waiting in list(self._free_workers.waiting):
            waiting.cancel()
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        try:
            await Deferred.fromCoroutine(self._all_idle()).addTimeout(CLOSE_TIMEOUT, self._reactor)
            if self._idle:
                disposing = _defer_to_worker(self._reactor.callFromThread, self._idle[0], self._dispose)
                await disposing.addTimeout(CLOSE_TIMEOUT, self._reactor)
        except DeferredTimeoutError:
            _log.warn(
                "database {url}: abandoning {busy} transactions that are still running after {seconds:g} s",
                url=self.address.masked,
                busy=len(self._workers) - len(self._idle),
                seconds=CLOSE_TIMEOUT,
            )
        except Exception:  # noqa: BLE001 - whatever a driver raises, close the rest
            _log.failure("database {url}: closing its connections failed", url=self.address.masked)
        for worker in self._workers:
            if worker not in self._idle:
                worker.do(self._dispose)  # closes its connection too, once its transaction ends
            worker.quit(join=CLOSE_TIMEOUT if worker in self._idle else 0)

    def _dispose(self) -> None:
        self._engine.dispose()
        self._statements.dispose()

    async def _all_idle(self) -> None:
        """Wait until no transaction runs, by acquiring every token of the semaphore."""
        for _ in range(self._size):
            await self._free_workers.acquire()


def _count_failure(failure: Failure) -> Failure:
    if failure.check(DatabaseError):
        metrics.database_errors.at(type(failure.value).__name__).value += 1
    return failure
