"""One periodic task and its runs, which never overlap in a process."""

from collections.abc import Callable
from contextvars import Context
from types import CoroutineType
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from novasvc.context import RequestContext, current_context, earlier
from novasvc.errors import add_remedy
from novasvc.interfaces import IElection
from novasvc.middleware import Chain, Invocation
from novasvc.middleware.invocation import TASK
from novasvc.periodic.cron_schedule import CronSchedule
from novasvc.periodic.declare import Declaration
from novasvc.periodic.errors import LeadLostError, TaskTimeoutError
from novasvc.periodic.schedule import Schedule
from novasvc.periodic.term import Scope, Term
from novasvc.reactor.coalesce import Waiters
from novasvc.telemetry import metrics
from novasvc.telemetry.flight import note

_log = Logger()


@attrs.frozen(kw_only=True)
class TaskStats:
    """The statistics of one task at one moment. Times are seconds on the runner's clock.

    Each due time is either run or missed, so ``runs + missed`` is the number of due times and of
    runs started by hand.

    :param name: the task's name.
    :param spacing: seconds as declared; 0 is every pass.
    :param runs: runs started.
    :param failures: runs that raised.
    :param timeouts: runs cancelled at the task's timeout.
    :param missed: due times that passed while a run was under way or the reactor was blocked.
    :param running: whether a run is under way, including one that was cancelled and has not ended.
    :param last_start: when the last run started; None before the first.
    :param last_duration: seconds that the last run took; None before the end of the first.
    :param last_lateness: seconds from the last due time to the start of its run; None before the first.
    :param max_lateness: the largest lateness so far.
    :param next_due: the next due time; of a task that another process leads, the one it would have here.
    :param scope: how many processes run it.
    :param cron: its cron line; None if it has none.
    :param timezone: the time zone of the cron line.
    :param leads: whether this process runs it when it is due.
    :param fencing: the fencing number, while this process has the lease of a task with the scope "fleet".
    """

    name: str
    spacing: float
    runs: int
    failures: int
    timeouts: int
    missed: int
    running: bool
    last_start: float | None
    last_duration: float | None
    last_lateness: float | None
    max_lateness: float
    next_due: float
    scope: Scope = "node"
    cron: str | None = None
    timezone: str | None = None
    leads: bool = True
    fencing: int | None = None


@attrs.define(eq=False)
class Run:
    """One run of a task.

    :param task: the task's name.
    :param started: when, on the clock.
    :param variables: the context variables it runs in.
    :ivar outcome: the method's result, or a Failure; valid after the end.
    :ivar cancelled: whether :meth:`cancel` was called; the run may not have ended yet.
    :ivar overdue: whether :meth:`report_overdue` has logged a warning.
    :ivar error: the error to report, if the run was cancelled at the task's timeout, or because the lead was lost.
    """

    task: str
    started: float
    variables: Context
    outcome: Any = attrs.field(default=None, init=False)
    ended: bool = attrs.field(default=False, init=False)
    cancelled: bool = attrs.field(default=False, init=False)
    overdue: bool = attrs.field(default=False, init=False)
    error: TaskTimeoutError | LeadLostError | None = attrs.field(default=None, init=False)
    timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _result: Deferred[Any] | None = attrs.field(default=None, init=False)
    _waiters: Waiters[Any] = attrs.field(factory=Waiters, init=False)

    @property
    def request_id(self) -> str:
        """The request id of the run's context, which the run's outgoing calls carry too; "" before the run begins."""
        context = self.variables.get(current_context)
        return "" if context is None else context.request_id

    def follow(self, result: Deferred[Any], end: Callable[["Run", Any], None]) -> None:
        """Call ``end`` with this run and its outcome when the Deferred fires."""
        self._result = result
        result.addBoth(lambda outcome: end(self, outcome))
        if self.cancelled:  # The method cancelled its own run before it returned its Deferred.
            self.cancel()

    def when_ended(self) -> Deferred[Any]:
        """Wait for the end of the run.

        :return: a new Deferred of the task's result. Fails with its exception, with TaskTimeoutError or LeadLostError,
            or with CancelledError if the runner cancelled the run. Cancelling it does not cancel the run.
        """
        waiter = self._waiters.wait()
        if self.ended:
            self._waiters.fire(self.outcome)
        return waiter

    def cancel(self) -> None:
        """Cancel the run. It may take time to end, or ignore the cancellation."""
        self.cancelled = True
        if self._result is not None:
            try:
                self._result.cancel()
            except Exception:  # noqa: BLE001 - a user's canceller raised; the other runs must still be cancelled
                self.run_in_context(
                    _log.failure, "the canceller of periodic task {task} failed", task=self.task, level=LogLevel.error
                )

    def report_overdue(self, now: float) -> None:
        """Log, once per run, that it is still under way when the next run is due."""
        if not self.overdue:
            self.overdue = True
            self.run_in_context(
                _log.warn,
                "periodic task {task} is still running after {seconds:.1f} s: skipping a run; set a timeout",
                task=self.task,
                seconds=now - self.started,
            )

    def end(self, outcome: Any) -> None:
        """Record the outcome, and fire the waiters."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.ended, self.outcome = True, outcome if self.error is None else Failure(self.error)
        if self._waiters.waiting:
            self._waiters.fire(self.outcome)

    def run_in_context(self, function: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Call a function in the run's context variables, so that log events carry the run's fields."""
        # A copy, because a Context cannot be entered twice, and this may be called inside the run.
        self.variables.copy().run(function, *args, **kwargs)


@attrs.define(eq=False)
class Task:
    """A declared method, its due times, and the statistics of its runs.

    :param declaration: its options.
    :param method: the bound method; takes a RequestContext, and may return a Deferred or a coroutine.
    :param clock: measures durations and timeouts.
    :param schedule: its due times.
    :param manager: the name of its owner's class, a label of the metrics.
    :param scope: how many processes run it.
    :param chain: the middleware around runs; None without any.
    :ivar run: the run under way, or None.
    :ivar election: decides whether this process leads the task; None if it does anyway.
    :ivar term: the term in which this process leads the task; None if another does.
    """

    declaration: Declaration
    _method: Callable[[RequestContext], Any]
    _clock: IReactorTime
    schedule: Schedule | CronSchedule
    _manager: str
    scope: Scope = "node"
    _chain: Chain | None = None
    run: Run | None = attrs.field(default=None, init=False)
    election: IElection | None = attrs.field(default=None, init=False)
    term: Term | None = attrs.field(default=None, init=False)
    _labels: tuple[str, str] = attrs.field(init=False)
    _runs: int = attrs.field(default=0, init=False)
    _failures: int = attrs.field(default=0, init=False)
    _timeouts: int = attrs.field(default=0, init=False)
    _missed: int = attrs.field(default=0, init=False)
    _last_start: float | None = attrs.field(default=None, init=False)
    _last_duration: float | None = attrs.field(default=None, init=False)
    _last_lateness: float | None = attrs.field(default=None, init=False)
    _max_lateness: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._labels = self._manager, self.name
        # Export counters at zero so that alerts see the first increase.
        metrics.tasks_missed.at(*self._labels)
        for outcome in ("done", "failed", "timed_out", "cancelled"):
            metrics.tasks.at(*self._labels, outcome)

    @property
    def name(self) -> str:
        """The task's name in logs and metrics."""
        return self.declaration.name

    @property
    def leads(self) -> bool:
        """Whether this process runs the task when it is due."""
        return self.election is None or self.term is not None

    def may_begin(self, election: IElection) -> bool:
        """Return whether a run may begin now, because this process still leads the task; if so, the run is noted."""
        return bool(election.begin(self.name, self.schedule.last_due))

    def gain(self, term: Term) -> None:
        """Note that this process leads the task now."""
        self.term = term
        metrics.tasks_led.at(*self._labels).value = 1
        metrics.task_leads.at(*self._labels, "gained").value += 1
        note("task", f"{self.name} is led here" + ("" if term.fencing is None else f", fencing {term.fencing}"))

    def lose(self, reason: str) -> None:
        """Cancel the run under way, because this process has lost the lead of the task.

        :param reason: the rest of a sentence.
        """
        fencing = None if self.term is None else self.term.fencing
        self.give_up()
        metrics.task_leads.at(*self._labels, "lost").value += 1
        note("task", f"{self.name} is not led here: {reason}")
        run = self.run
        if run is not None and run.error is None:
            run.error = LeadLostError(self.name, reason)
            run.run_in_context(_log.warn, "{error}", error=run.error, task=self.name)
            run.cancel()
        if self.run is not None:
            run_on = "periodic task {task} has not ended yet: its fencing number {fencing} is no longer the greatest"
            self.run.run_in_context(_log.error, run_on, task=self.name, fencing=fencing)

    def give_up(self) -> None:
        """Note that this process does not lead the task any more."""
        self.schedule.stop()
        self.term = None
        metrics.tasks_led.at(*self._labels).value = 0

    def take_due(self) -> bool:
        """Take the due times that have passed, and count the missed ones.

        Every due time but the last was missed; if a run is under way, the last one was missed too.

        :return: whether a run has to start now.
        """
        count, lateness = self.schedule.take()
        if count == 0:
            return False
        missed = count - 1 if self.run is None else count
        if missed:
            self._missed += missed
            metrics.tasks_missed.at(*self._labels).value += missed
        if self.run is not None:
            self.run.report_overdue(self._clock.seconds())
            return False
        self._last_lateness = lateness
        metrics.task_lateness.at(*self._labels).observe(lateness)
        self._max_lateness = max(self._max_lateness, lateness)
        return True

    def begin(self, context: RequestContext, variables: Context) -> Run:
        """Start a run. Call it only when no run of the task is under way.

        :param context: passed to the method.
        :param variables: the context variables that the method sees; its changes stay in a copy.
        :return: the run, which has ended already if the method is synchronous.
        """
        run = self.run = Run(self.name, self._clock.seconds(), variables.copy())
        if self.term is not None and self.term.fencing is not None:
            context = attrs.evolve(context, fencing=self.term.fencing)
        self._runs += 1
        metrics.tasks_now.at(*self._labels).value = 1
        self._last_start = run.started
        note("task", f"{self.name} began")
        try:
            result = run.variables.run(self._call, context)
        except BaseException:  # noqa: BLE001 - as in a Deferred's callback: the loop goes on
            self._end(run, Failure())
            return run
        if not isinstance(result, Deferred):
            self._end(run, result)
            return run
        run.follow(result, self._end)
        if self.declaration.timeout is not None and not run.ended:
            run.timer = self._clock.callLater(self.declaration.timeout, self._time_out, run)
        return run

    def stats(self) -> TaskStats:
        """Return the task's statistics."""
        return TaskStats(
            name=self.name,
            spacing=self.declaration.spacing,
            runs=self._runs,
            failures=self._failures,
            timeouts=self._timeouts,
            missed=self._missed,
            running=self.run is not None,
            last_start=self._last_start,
            last_duration=self._last_duration,
            last_lateness=self._last_lateness,
            max_lateness=self._max_lateness,
            next_due=self.schedule.due,
            scope=self.scope,
            cron=None if self.declaration.cron is None else self.declaration.cron.text,
            timezone=None if self.declaration.cron is None else self.declaration.cron.zone_name,
            leads=self.leads,
            fencing=None if self.term is None else self.term.fencing,
        )

    def _call(self, context: RequestContext) -> Any:
        if self.declaration.timeout is not None:
            # The calls of a run have no more time than the run.
            until = self._clock.seconds() + self.declaration.timeout
            context = attrs.evolve(context, deadline=earlier(context.deadline, until))
        current_context.set(context)
        if self._chain is not None:
            return self._chain.run(Invocation(kind=TASK, name=self.name, context=context), self._run_method)
        result = self._method(context)
        # Started here, inside the run's context: a coroutine keeps the context variables in which it starts.
        return Deferred.fromCoroutine(result) if isinstance(result, CoroutineType) else result

    def _run_method(self, invocation: Invocation) -> Any:
        assert invocation.context is not None  # of a task
        current_context.set(invocation.context)
        result = self._method(invocation.context)
        return Deferred.fromCoroutine(result) if isinstance(result, CoroutineType) else result

    def _time_out(self, run: Run) -> None:
        assert self.declaration.timeout is not None  # begin() sets the timer only with a timeout.
        if run.error is not None:
            return  # it was cancelled already
        run.error = TaskTimeoutError(self.name, self.declaration.timeout)
        self._timeouts += 1
        note("task", f"{self.name} timed out")
        run.run_in_context(_log.warn, "{error}", error=run.error, task=self.name)
        run.cancel()

    def _end(self, run: Run, outcome: Any) -> None:
        self.run = None
        note("task", f"{self.name} {_describe_outcome(outcome)}")
        self._last_duration = self._clock.seconds() - run.started
        metrics.tasks_now.at(*self._labels).value = 0
        metrics.task_seconds.at(*self._labels).observe(self._last_duration)
        metrics.tasks.at(*self._labels, _outcome_label(run, outcome)).value += 1
        if isinstance(outcome, Failure) and not (run.cancelled and outcome.check(CancelledError)):
            self._failures += 1
            add_remedy(outcome.value)
            run.run_in_context(
                _log.failure, "periodic task {task} failed", failure=outcome, level=LogLevel.error, task=self.name
            )
        run.end(outcome)


def _describe_outcome(outcome: Any) -> str:
    return f"failed {type(outcome.value).__name__}" if isinstance(outcome, Failure) else "done"


def _outcome_label(run: Run, outcome: Any) -> str:
    """Return the outcome label under which a run is counted."""
    if run.error is not None:
        return "timed_out" if isinstance(run.error, TaskTimeoutError) else "cancelled"
    if not isinstance(outcome, Failure):
        return "done"
    return "cancelled" if run.cancelled and outcome.check(CancelledError) else "failed"
