"""Blocking functions in a pool of daemon threads, which a stopping process leaves behind."""

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

from novasvc.errors import ProblemError, describe
from novasvc.telemetry import metrics

_log = Logger()

THREADS = 16
"""Default number of threads."""

QUEUE = 256
"""Default length of the queue. A longer one would only hide that the node does not keep up."""

# Note [Threads that hang]
#
# A thread cannot be ended from outside, and a disk or a driver may hang for ever. The reactor's own
# thread pool joins its threads when the process ends, so one hanging thread keeps a stopped node
# alive until its supervisor kills it. And deferToThread's Deferred fires as soon as it is cancelled,
# although the thread works on: a periodic task or a concurrency slot that waits for it would then
# start again beside itself, until no thread is left.
#
# So our threads are daemons. A stopping node waits for them up to graceful_shutdown_timeout; then
# they are left behind, with a warning that names their functions. And our Deferreds fire only when
# the function has ended, cancelled or not.


class NoThreadError(ProblemError):
    """A blocking function was not started: there is no thread for it, and no room in the queue.

    The subject is the dotted name of the function.
    """

    about = "{} was not started"


class WorkerThread:
    """A daemon thread that runs functions one after the other.

    :raises RuntimeError: the system cannot start another thread.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for work in iter(self._work.get, None):
            work()

    def do(self, work: Callable[[], None]) -> None:
        """Run a function after all earlier ones. The name is part of alchimia's worker interface."""
        self._work.put(work)

    def quit(self, *, join: float = 0) -> None:
        """End the thread when all functions have run.

        :param join: seconds to wait for the end; only for an idle thread.
        """
        self._work.put(None)
        if join:
            self._thread.join(join)


@attrs.define(eq=False)
class _Job:
    """A function that was submitted and has not ended.

    :param name: the function's name, for logs.
    :param run: calls the function in the context variables of its caller.
    :param waiter: fired when the function has ended.
    :param began: seconds of time.monotonic; None while it waits for a thread.
    """

    name: str
    run: Callable[[], Any]
    waiter: Deferred[Any] = attrs.field(factory=Deferred, init=False)
    began: float | None = attrs.field(default=None, init=False)
    cancelled: bool = attrs.field(default=False, init=False)
    ended: bool = attrs.field(default=False, init=False)


class BlockingPool:
    """A bounded pool of threads for blocking functions. See Note [Threads that hang].

    No thread is started before the first function, so a pool can be made before a fork. Started
    threads stay. There is nothing to close: the threads end with the process.

    :param reactor: provides IReactorCore and IReactorFromThreads.
    :param threads: functions that run at a time.
    :param queue: functions that may wait for a thread.
    """

    def __init__(self, reactor: Any, *, threads: int = THREADS, queue: int = QUEUE) -> None:
        self._reactor = reactor
        self._threads = threads
        self._queue = queue
        self._started = 0
        self._idle: list[WorkerThread] = []
        self._waiting: OrderedDict[_Job, None] = OrderedDict()
        self._running: dict[_Job, None] = {}
        metrics.threads_busy.at()
        metrics.threads_waiting.at()

    def run_blocking(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Run a function in a thread, with a copy of the current context variables.

        :param function: called with these arguments. It must not touch the reactor.
        :return: Deferred of its result. Fails with its exception; with TypeError if it returns a Deferred
            or a coroutine; with NoThreadError if the queue is full. If cancelled while it is queued, it
            fails at once and the function never runs; later, it fails with CancelledError when the
            function has ended, whatever its outcome.
        """
        job = _Job(_name(function), partial(copy_context().run, function, *args, **kwargs))
        if not self._idle and self._started == self._threads:
            if len(self._waiting) >= self._queue:
                problem = f"all {self._threads} threads are busy, and {self._queue} functions are queued"
                return fail(NoThreadError(job.name, problem, "find what blocks them, or submit fewer at a time"))
            self._waiting[job] = None
            metrics.threads_waiting.at().value += 1
            return self._wait(job)
        try:
            worker = self._idle.pop() if self._idle else self._start_thread()
        except RuntimeError as error:
            return fail(NoThreadError(job.name, f"the system cannot start a thread: {error}", "see this user's limits"))
        self._begin(job, worker)
        return self._wait(job)

    def _start_thread(self) -> WorkerThread:
        worker = WorkerThread(f"blocking-{self._started}")
        if not self._started:
            self._reactor.addSystemEventTrigger("after", "shutdown", self._log_running)
        self._started += 1
        return worker

    def _wait(self, job: _Job) -> Deferred[Any]:
        return job.waiter.addErrback(self._cancelled, job)

    def _cancelled(self, failure: Failure, job: _Job) -> Any:
        """Fail a cancelled Deferred now if its function has not begun; otherwise wait for the function's end."""
        if job.ended:
            return failure
        job.cancelled = True
        if job.began is None:
            del self._waiting[job]
            metrics.threads_waiting.at().value -= 1
            return failure
        job.waiter = Deferred()  # a second cancel() reaches this one, and must not fail either
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

    def _log_running(self) -> None:
        """Log at the end of the process which functions are still running."""
        if self._running:
            now = time.monotonic()
            jobs = ", ".join(f"{job.name} ({now - (job.began or now):.0f} s)" for job in self._running)
            _log.warn("functions still running in threads end with this process: {jobs}", jobs=jobs)


def _outcome(job: _Job) -> Any:
    """Call a job's function in this thread; return its result or a Failure."""
    try:
        result = job.run()
        if isinstance(result, CoroutineType):
            result.close()
        if isinstance(result, Deferred | CoroutineType):
            kind = type(result).__name__
            return Failure(TypeError(f"{job.name} returned a {kind}, which cannot be awaited in a thread"))
    except BaseException:  # noqa: BLE001 - not even SystemExit may end a thread of the pool
        return Failure()
    return result


def _name(function: Any) -> str:
    """Return the qualified name of a function, unwrapped from partials and Context.run."""
    while isinstance(function, partial):
        in_context = isinstance(getattr(function.func, "__self__", None), Context)
        function = function.args[0] if in_context else function.func
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
