"""Functions that block, in threads of our own that can be left behind."""

import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import CoroutineType
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import NoThreadError, describe
from novasvc.telemetry import metrics

_log = Logger()

THREADS = 16
"""Functions that run at a time."""

QUEUE = 256
"""Functions that may wait for a thread; more is work that the node does not keep up with."""

# Note [Threads that hang]
#
# A thread cannot be ended from outside, and a disk or a driver that hangs may hang for ever. The
# reactor's own pool waits for its threads when the process ends, so one that hangs keeps a stopped
# node alive until its supervisor kills it. And a Deferred of that pool fires as soon as it is
# cancelled, although its thread works on: what takes turns by waiting for it (a periodic task, a
# concurrency slot) would then begin again beside itself, until no thread is left.
#
# So our threads are daemons: who stops has waited for them up to graceful_shutdown_timeout, and
# then they are left behind, with a warning that names what they run. And a Deferred of ours fires
# when the function has really ended, cancelled or not.


class WorkerThread:
    """A daemon thread that runs what it is given, one after the other.

    :raises RuntimeError: the system has no thread left.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for work in iter(self._work.get, None):
            work()

    def do(self, work: Callable[[], None]) -> None:
        """Run this when all before it has run. alchimia's word for it."""
        self._work.put(work)

    def quit(self, *, join: float = 0) -> None:
        """End when all has run.

        :param join: seconds to wait for it; only for a thread with nothing to do.
        """
        self._work.put(None)
        if join:
            self._thread.join(join)


@attrs.define(eq=False)
class _Job:
    """A function on its way.

    :param name: of the function, for people.
    :param run: calls it, in the context variables of who asked for it.
    :param waiter: what is fired when it has ended.
    :param began: seconds of time.monotonic; None while it waits for a thread.
    """

    name: str
    run: Callable[[], Any]
    waiter: Deferred[Any] = attrs.field(factory=Deferred, init=False)
    began: float | None = attrs.field(default=None, init=False)
    cancelled: bool = attrs.field(default=False, init=False)
    ended: bool = attrs.field(default=False, init=False)


class BlockingPool:
    """A bounded number of threads for functions that block. See Note [Threads that hang].

    No thread exists before the first function, so that it can be made before a fork. Those that
    were needed stay. There is nothing to close: they end with the process.

    :param reactor: provides IReactorCore and IReactorFromThreads.
    :param threads: functions that run at a time.
    :param queue: functions that may wait for a thread.
    """

    def __init__(self, reactor: Any, *, threads: int = THREADS, queue: int = QUEUE) -> None:
        self._reactor = reactor
        self._threads = threads
        self._queue = queue
        self._hired = 0
        self._idle: list[WorkerThread] = []
        self._waiting: OrderedDict[_Job, None] = OrderedDict()
        self._running: dict[_Job, None] = {}
        metrics.threads_busy.at()
        metrics.threads_waiting.at()

    def run_blocking(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Run a function in a thread, with the context variables that are set here.

        :param function: takes these arguments. It must not touch the reactor.
        :return: Deferred of what it returns; fails with what it raises, with TypeError if it
            returns a Deferred or a coroutine, and with NoThreadError if too much is under way.
            Cancelled before the function has begun, it drops it and fails at once; later, it fails
            with CancelledError when the function has ended, whatever its outcome.
        """
        job = _Job(_name(function), partial(copy_context().run, function, *args, **kwargs))
        if not self._idle and self._hired == self._threads:
            if len(self._waiting) >= self._queue:
                taken = f"all {self._threads} threads are taken, and {self._queue} functions wait for one already"
                return fail(NoThreadError(job.name, f"{taken}; see what holds them, or ask for less at a time"))
            self._waiting[job] = None
            metrics.threads_waiting.at().value += 1
            return self._wait(job)
        try:
            worker = self._idle.pop() if self._idle else self._hire()
        except RuntimeError as error:
            return fail(NoThreadError(job.name, f"the system gives no thread: {error}; see the limits of its user"))
        self._begin(job, worker)
        return self._wait(job)

    def _hire(self) -> WorkerThread:
        worker = WorkerThread(f"blocking-{self._hired}")
        if not self._hired:
            self._reactor.addSystemEventTrigger("after", "shutdown", self._leave_behind)
        self._hired += 1
        return worker

    def _wait(self, job: _Job) -> Deferred[Any]:
        return job.waiter.addErrback(self._given_up, job)

    def _given_up(self, failure: Failure, job: _Job) -> Any:
        """Let a cancelled Deferred fail now if its function has not begun, else wait on."""
        if job.ended:
            return failure
        job.cancelled = True
        if job.began is None:
            del self._waiting[job]
            metrics.threads_waiting.at().value -= 1
            return failure
        job.waiter = Deferred()  # whoever cancels again, cancels this one
        return self._wait(job)

    def _begin(self, job: _Job, worker: WorkerThread) -> None:
        job.began = time.monotonic()
        self._running[job] = None
        metrics.threads_busy.at().value += 1

        def work() -> None:
            outcome = _outcome(job)
            self._reactor.callFromThread(self._done, job, worker, outcome)

        worker.do(work)

    def _done(self, job: _Job, worker: WorkerThread, outcome: Any) -> None:
        del self._running[job]
        metrics.threads_busy.at().value -= 1
        if self._waiting:
            metrics.threads_waiting.at().value -= 1
            self._begin(self._waiting.popitem(last=False)[0], worker)
        else:
            self._idle.append(worker)
        job.ended = True
        if not job.cancelled:
            job.waiter.callback(outcome)  # a Failure goes to the errbacks
            return
        job.waiter.errback(CancelledError())
        if isinstance(outcome, Failure) and outcome.value is not None:
            error = describe(outcome.value)
            _log.warn("{function} failed after it was cancelled: {error}", function=job.name, error=error)

    def _leave_behind(self) -> None:
        """Say at the end of the process what ends with it although it has not finished."""
        if self._running:
            now = time.monotonic()
            jobs = ", ".join(f"{job.name} ({now - (job.began or now):.0f} s)" for job in self._running)
            _log.warn("left behind in threads, and ended with this process: {jobs}", jobs=jobs)


def _outcome(job: _Job) -> Any:
    """Call a job's function in this thread; return its result, or a Failure."""
    try:
        result = job.run()
        if isinstance(result, CoroutineType):
            result.close()
        if isinstance(result, Deferred | CoroutineType):
            kind = type(result).__name__
            return Failure(
                TypeError(f"{job.name} returned a {kind}: it runs in a thread, where none can be waited for")
            )
    except BaseException:  # noqa: BLE001 - not even SystemExit ends a thread of the pool
        return Failure()
    return result


def _name(function: Any) -> str:
    """Name what is called in the end: partials and contexts only bring it there."""
    while isinstance(function, partial):
        in_context = isinstance(getattr(function.func, "__self__", None), Context)
        function = function.args[0] if in_context else function.func
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
