"""The task runner: runs an object's periodic tasks."""

import random
import time
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, StateError
from novasvc.interfaces import IElection
from novasvc.middleware import Chain, load_middleware
from novasvc.middleware.invocation import TASK
from novasvc.periodic.cron_schedule import CronSchedule
from novasvc.periodic.declare import Declaration, declared_tasks, overridden_tasks
from novasvc.periodic.errors import UnknownTaskError
from novasvc.periodic.schedule import Schedule
from novasvc.periodic.task import Run, Task, TaskStats
from novasvc.periodic.term import Scope, Term
from novasvc.reactor.abandon import completion

_log = Logger()

PASS_INTERVAL = 60.0
"""Seconds between passes; also the interval of tasks without a spacing."""


@attrs.define(eq=False)
class TaskRunner:
    """Run the tasks of one object, each when it is due.

    Tasks run concurrently, but a task never overlaps itself in a process: a due time that passes while its task
    runs is missed, and counted. :meth:`run_due` and :meth:`run_now` also work without :meth:`start`, except for
    tasks of the fleet, whose lease nobody has asked for; due times then count from the creation of the runner.

    :param owner: an object with methods decorated with :func:`~novasvc.periodic.periodic_task`.
    :param clock: its seconds must be monotonic.
    :param random_source: draws the delay of the first pass.
    :param fuzzy_delay: seconds, >= 0: the longest delay of the first pass, which spreads the load of
        nodes that start together.
    :param interval_max: seconds between passes if less than 60; None or 0 for 60.
    :param run_external: whether to run tasks that start other programs.
    :param default_scope: the scope of tasks that are declared without one.
    :param wall_clock: returns Unix seconds, for cron lines.
    :param middleware: what :func:`novasvc.middleware.load_middleware` takes, outermost first, around runs.
    :raises MiddlewareError: a middleware cannot be used.
    :raises DeclarationError: two tasks have the same name.
    Source: nova.service.Service.start, nova.manager.Manager.run_periodic_tasks.
    """

    _owner: object
    _clock: IReactorTime = attrs.field(kw_only=True)
    _random_source: random.Random = attrs.field(kw_only=True)
    _fuzzy_delay: float = attrs.field(default=0, kw_only=True, validator=attrs.validators.ge(0))
    _interval_max: float | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    _run_external: bool = attrs.field(default=True, kw_only=True)
    _default_scope: Scope = attrs.field(default="node", kw_only=True)
    _wall_clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)
    _middleware: Sequence[Any] = attrs.field(default=(), kw_only=True)
    _tasks: dict[str, Task] = attrs.field(factory=dict, init=False)
    _chain: Chain | None = attrs.field(default=None, init=False)
    _variables: Context = attrs.field(factory=copy_context, init=False)
    _state: str = attrs.field(default="idle", init=False)
    _first_pass: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._chain = Chain.of(load_middleware(self._middleware), TASK)
        for declaration in overridden_tasks(self._owner):
            self._log_not_run(declaration, f"{self._name} overrides it without @periodic_task")
        for declaration, method in declared_tasks(self._owner):
            if not declaration.enabled:
                self._log_not_run(declaration, "it is disabled")
            elif declaration.spacing < 0:
                self._log_not_run(declaration, f"its spacing is {declaration.spacing:g}")
            elif declaration.external_process_ok and not self._run_external:
                self._log_not_run(declaration, "it may start other programs, and run_external_periodic_tasks is false")
            else:
                self._add(declaration, method)

    @property
    def is_started(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._state == "started"

    def start(self, elections: Callable[[Scope], IElection | None] = lambda _: None) -> None:
        """Start the tasks: each in the first pass, after a random delay, or one spacing from now.

        Runs see the context variables that are set here.

        :param elections: called with each scope of the tasks; returns what decides which process runs the tasks of this
            scope, or None if this process does. By default it runs all tasks.
        :raises StateError: it was started already.
        """
        if self._state == "started":
            raise self._state_error("start")
        self._state = "started"
        self._variables = copy_context()
        self._first_pass = self._clock.seconds() + self._random_source.uniform(0, self._fuzzy_delay)
        scopes: dict[Scope, list[Task]] = {}
        for task in self._tasks.values():
            scopes.setdefault(task.scope, []).append(task)
        for scope, tasks in scopes.items():
            election = elections(scope)
            for task in tasks:
                task.election, task.term = election, None
                if election is None:
                    self._start_schedule(task, Term())
            if election is not None:
                names = [task.name for task in tasks]
                election.start(names, partial(self._gained, election), partial(self._lost, election))

    def _gained(self, election: IElection, name: str, term: Term) -> None:
        task = self._tasks[name]
        if task.election is not election:  # an earlier one, whose run has not ended
            return
        task.gain(term)
        if self._state == "started":
            self._start_schedule(task, term)

    def _lost(self, election: IElection, name: str, reason: str) -> None:
        task = self._tasks[name]
        if task.election is election:
            task.lose(reason)

    def _start_schedule(self, task: Task, term: Term) -> None:
        """Start the due times of a task: from those of an earlier leader, if they are known."""
        first_pass = max(0.0, self._first_pass - self._clock.seconds())
        declaration, schedule = task.declaration, task.schedule
        at_once = declaration.run_immediately and term.ran_ago is None
        # A task that never ran is due one spacing after it was led first: its leaders may all live for less.
        since = term.known_for if term.ran_ago is None else term.ran_ago
        if isinstance(schedule, CronSchedule):
            last_due = term.last_due
            if last_due is None and since is not None:
                last_due = self._wall_clock() - since
            schedule.start(first_pass if at_once else None, last_due)
        elif at_once or since is None:
            spacing = 0 if at_once else declaration.spacing
            schedule.start(max(first_pass, spacing), not_before=first_pass)
        else:
            spacing = declaration.spacing if term.ran_ago is None else schedule.interval
            schedule.start(max(first_pass, spacing - since), not_before=first_pass)

    def stop(self) -> Deferred[None]:
        """Begin no more runs. The lead of a task passes on when its run under way has ended.

        :return: Deferred[None], fired when the runs under way have ended; see :meth:`cancel_running`. Cancelling it
            only ends the waiting: a run of a task of the fleet that goes on keeps its lease.
        """
        self._state = "stopped"
        for task in self._tasks.values():
            task.schedule.stop()
        waits = DeferredList([_ended(task) for task in self._tasks.values()], consumeErrors=True)
        return waits.addCallback(lambda _: None)

    def cancel_running(self) -> None:
        """Cancel the runs under way. Called when a drain's deadline has passed."""
        for task in self._tasks.values():
            run = task.run
            if run is not None:
                run.run_in_context(_log.warn, "cancelling periodic task {task}: it did not end in time", task=task.name)
                run.cancel()

    def run_due(self, context: RequestContext | None, raise_on_error: bool = False) -> Deferred[float]:  # noqa: FBT001, FBT002 - Nova's signature
        """Make one pass: start all tasks that are due, and all without a spacing.

        A task that starts here is next due one spacing from now. Failures are logged in any case.

        :param context: passed to the tasks; None makes an admin context for each.
        :param raise_on_error: fail with the first exception of these runs.
        :return: Deferred of the seconds until the next task is due, at most the interval of passes; fired
            when the runs started here have ended. After :meth:`stop`, none is started.
        """
        runs = [self._begin_now(task, context) for task in self._tasks.values() if self._is_due(task)]
        return Deferred.fromCoroutine(self._finish_pass(runs, raise_on_error=raise_on_error))

    def run_now(self, name: str, context: RequestContext | None = None) -> Deferred[Any]:
        """Run one task now, or wait for the run that is under way.

        :param name: the task's name.
        :param context: passed to the task; an admin context by default.
        :return: Deferred of the task's result. Fails with its exception, which is logged too, or with
            TaskTimeoutError; with UnknownTaskError if there is no such task; with StateError after
            :meth:`stop`, or if this process does not have the lease of the task. Cancelling it does not cancel the run.
        """
        task = self._tasks.get(name)
        if task is None:
            return fail(UnknownTaskError(name, sorted(self._tasks)))
        if task.run is not None:
            return task.run.when_ended()
        refused = self._why_not(task)
        if refused is not None:
            return fail(refused)
        return self._begin_now(task, context).when_ended()

    def begin(self, name: str, context: RequestContext | None = None) -> None:
        """Start a run of one task now; its outcome is logged and counted.

        :param name: the task's name.
        :param context: passed to the task; an admin context by default.
        :raises UnknownTaskError: there is no such task.
        :raises StateError: the task is running, this process does not have its lease, or :meth:`stop` was called.
        """
        task = self._tasks.get(name)
        if task is None:
            raise UnknownTaskError(name, sorted(self._tasks))
        if task.run is not None:
            raise StateError(f"the periodic task {name!r}", "running", "be started again")
        refused = self._why_not(task)
        if refused is not None:
            raise refused
        self._begin_now(task, context)

    def _why_not(self, task: Task) -> StateError | None:
        """Return why a task cannot be run by hand; None if it can."""
        if self._state == "stopped":
            return self._state_error(f"run {task.name!r}")
        # Within a node any process runs it by hand: whoever asks cannot choose among its workers.
        if task.scope == "fleet" and not self._leads(task):
            led = "not led by this process"
            if task.election is not None:
                leader = task.election.leader(task.name)
                led = "led by no process yet" if leader is None else f"led by {leader}"
            return StateError(f"the periodic task {task.name!r}", led, "be run here")
        return None

    def _leads(self, task: Task) -> bool:
        """Return whether this process may run a task when it is due. Before the start it has no lease of the fleet."""
        return task.leads and not (task.scope == "fleet" and self._state == "idle")

    def operations(self) -> set[str]:
        """Return the request ids of the runs under way, without cancelled ones."""
        runs = [task.run for task in self._tasks.values() if task.run is not None and not task.run.cancelled]
        return {run.request_id for run in runs}

    def stats(self) -> list[TaskStats]:
        """Return the statistics of each task, in the order in which the tasks are declared."""
        return [task.stats() for task in self._tasks.values()]

    figures = stats
    """The name of :meth:`stats` before 0.2."""

    @property
    def _name(self) -> str:
        return type(self._owner).__qualname__

    @property
    def _pass_interval(self) -> float:
        return min(PASS_INTERVAL, self._interval_max or PASS_INTERVAL)

    def _add(self, declaration: Declaration, method: Any) -> None:
        name = declaration.name
        if name in self._tasks:
            raise DeclarationError(
                declaration.where,
                f"{self._tasks[name].declaration.where} is a periodic task named {name!r} too",
                'give one of them another name, as in @periodic_task(name="...")',
            )
        # LoopingCall needs an interval; a task without a spacing gets that of the passes.
        interval = declaration.spacing or self._pass_interval
        first = self._clock.seconds() + (0 if declaration.run_immediately else declaration.spacing)
        schedule = (
            Schedule(self._clock, interval, first, lambda: self._on_due(task))
            if declaration.cron is None
            else CronSchedule(self._clock, declaration.cron, self._wall_clock, lambda: self._on_due(task))
        )
        scope = declaration.scope or self._default_scope
        task = self._tasks[name] = Task(declaration, method, self._clock, schedule, self._name, scope, self._chain)

    def _on_due(self, task: Task) -> None:
        if task.take_due() and (task.election is None or task.may_begin(task.election)):
            task.begin(RequestContext.admin(), self._variables)

    def _is_due(self, task: Task) -> bool:
        if self._state == "stopped" or not self._leads(task):
            return False
        fell_due = task.take_due() or (task.declaration.in_every_pass and task.run is None)
        return fell_due and (task.election is None or task.may_begin(task.election))

    def _begin_now(self, task: Task, context: RequestContext | None) -> Run:
        task.schedule.restart()
        return task.begin(RequestContext.admin() if context is None else context, self._variables)

    async def _finish_pass(self, runs: list[Run], *, raise_on_error: bool) -> float:
        failures: list[Failure] = []
        await DeferredList([run.when_ended().addErrback(failures.append) for run in runs])
        if raise_on_error and failures:
            failures[0].raiseException()
        next_due = min((task.schedule.due for task in self._tasks.values()), default=float("inf"))
        return min(self._pass_interval, max(0.0, next_due - self._clock.seconds()))

    def _state_error(self, wanted: str) -> StateError:
        return StateError(f"the task runner of {self._name}", self._state, wanted)

    def _log_not_run(self, declaration: Declaration, why: str) -> None:
        _log.info("periodic task {task} is not run: {why}", task=declaration.where, why=why)


def _ended(task: Task) -> Deferred[None]:
    """Wait for the end of the run under way, then pass the lead of the task on.

    A cancelled wait leaves the lease of a task of the fleet to its run. The lead within a node passes on then, because
    one run that hangs would keep it from all tasks of the node.
    """
    ending: Deferred[Any] = succeed(None)
    if task.run is not None:
        ending = task.run.when_ended().addErrback(lambda _: None)  # the run logs its own error
    if task.election is not None:
        ending.addCallback(_resign, task, task.election)
        ending.addErrback(lambda failure: _log.failure("the lead of {task} was not passed on", failure, task=task.name))
    return completion(ending) if task.scope == "fleet" else ending


def _resign(_outcome: object, task: Task, election: IElection) -> Deferred[None]:
    if task.election is election:  # otherwise the tasks have been started again, with another one
        task.give_up()
    resigned: Deferred[None] = election.resign(task.name)
    return resigned
