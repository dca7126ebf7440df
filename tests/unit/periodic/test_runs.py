"""Tests for novasvc.periodic.task: the context of a run, and its outcome."""

import random
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogLevel, capturedLogs, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, current_context
from novasvc.errors import TaskTimeoutError
from novasvc.periodic import TaskRunner, TaskStats, periodic_task
from tests.support.flight_rig import record_flight, said

colour: ContextVar[str] = ContextVar("colour", default="none")


class BoomError(Exception):
    """An error that the tasks of these tests raise."""


class Owner:
    """One task with a spacing of 10 s and a timeout of 5 s; the test sets what it does."""

    def __init__(self, work: Callable[[RequestContext], Any]) -> None:
        self.work = work

    @periodic_task(spacing=10, timeout=5)
    def task(self, context: RequestContext) -> Any:
        return self.work(context)


class RunTestCase(SynchronousTestCase):
    """A clock, and runners on it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.context = RequestContext.admin()

    def make(self, work: Callable[[RequestContext], Any]) -> TaskRunner:
        runner = TaskRunner(Owner(work), clock=self.clock, random_source=random.Random(0))
        runner.start()
        return runner

    def stats(self, runner: TaskRunner) -> TaskStats:
        (stats,) = runner.stats()
        return stats


class OutcomeTests(RunTestCase):
    """Tests for what tasks return and raise."""

    def test_value_deferred_coroutine(self) -> None:
        """A task returns a value, a Deferred or a coroutine; run_now fires with its result."""

        async def coroutine() -> str:
            await deferLater(self.clock, 0)
            return "result"

        for make in (lambda: "result", lambda: succeed("result"), coroutine):
            runner = self.make(lambda _, make=make: make())
            result = runner.run_now("task")
            self.clock.advance(0)
            self.assertEqual(self.successResultOf(result), "result")
            self.assertFalse(self.stats(runner).running)

    def test_exception(self) -> None:
        """An exception is logged with the task's name and a traceback, and counted; the loop continues."""

        def raises(_context: RequestContext) -> None:
            raise BoomError

        async def raises_late(_context: RequestContext) -> None:
            await deferLater(self.clock, 1)
            raise BoomError

        for work in (raises, raises_late):
            runner = self.make(work)
            with capturedLogs() as events:
                self.clock.pump([1] * 21)
            self.assertEqual(len(self.flushLoggedErrors(BoomError)), 2)
            self.assertEqual(
                [event["log_format"].format(**event) for event in events], ["periodic task task failed"] * 2
            )
            self.assertEqual([event["log_level"] for event in events], [LogLevel.error] * 2)
            self.assertIn("raise BoomError", events[0]["log_failure"].getTraceback())
            self.assertEqual((self.stats(runner).runs, self.stats(runner).failures), (2, 2))
            self.successResultOf(runner.stop())

    def test_system_exit(self) -> None:
        """SystemExit does not end the loop either."""

        def exits(_context: RequestContext) -> None:
            raise SystemExit(3)

        runner = self.make(exits)
        self.clock.pump([10, 10])
        self.assertEqual(len(self.flushLoggedErrors(SystemExit)), 2)
        self.assertEqual(self.stats(runner).runs, 2)

    def test_raise_on_error(self) -> None:
        """With raise_on_error the first exception reaches the caller when all tasks have ended."""
        clock = self.clock

        class Failing:
            @periodic_task
            async def slow(self, _context: RequestContext) -> None:
                await deferLater(clock, 2)
                raise KeyError

            @periodic_task
            async def quick(self, _context: RequestContext) -> None:
                await deferLater(clock, 1)
                raise BoomError

        runner = TaskRunner(Failing(), clock=clock, random_source=random.Random(0))
        passed = runner.run_due(self.context, raise_on_error=True)
        clock.advance(1)
        self.assertNoResult(passed)
        clock.advance(1)
        self.failureResultOf(passed, BoomError)
        self.assertEqual(len(self.flushLoggedErrors(BoomError, KeyError)), 2)

    def test_errors_stay_inside(self) -> None:
        """Without raise_on_error a pass succeeds whatever its tasks raise."""

        def raises(_context: RequestContext) -> None:
            raise BoomError

        runner = self.make(raises)
        self.clock.rightNow = 10  # due, and the loop has not been told of it yet
        self.assertEqual(self.successResultOf(runner.run_due(self.context)), 10)
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)
        self.assertEqual((self.stats(runner).runs, self.stats(runner).missed), (1, 0))

    def test_error_reaches_who_ran_it(self) -> None:
        """Each waiter for a run gets its exception, in a Failure of its own."""
        failing: Deferred[None] = Deferred()
        runner = self.make(lambda _: failing)
        one, two = runner.run_now("task"), runner.run_now("task")
        one.addErrback(lambda failure: failure.trap(BoomError) and None)
        failing.errback(BoomError())
        self.successResultOf(one)
        self.failureResultOf(two, BoomError)
        self.flushLoggedErrors(BoomError)

    def test_figures(self) -> None:
        """The statistics count runs and failures, and have the times of the last run."""
        runner = self.make(lambda _: deferLater(self.clock, 2))
        before = self.stats(runner)
        self.assertEqual((before.runs, before.last_start, before.last_duration, before.next_due), (0, None, None, 10))
        self.assertEqual((before.last_lateness, before.max_lateness), (None, 0))
        self.clock.advance(13)
        during = self.stats(runner)
        self.assertEqual((during.runs, during.running, during.last_start, during.last_lateness), (1, True, 13, 3))
        self.clock.pump([2, 5])
        after = self.stats(runner)
        self.assertEqual((after.runs, after.last_start, after.last_duration, after.next_due), (2, 20, 2, 30))
        self.assertEqual((after.last_lateness, after.max_lateness), (0, 3))
        self.assertEqual((after.name, after.spacing, after.failures, after.timeouts), ("task", 10, 0, 0))


class CancellationTests(RunTestCase):
    """Tests for timeouts, and for the deadline of a drain."""

    def test_timeout(self) -> None:
        """A run is cancelled at its timeout, counted and logged once without a traceback; it is not a failure."""
        cancelled: list[object] = []
        runner = self.make(lambda _: Deferred(cancelled.append))
        with capturedLogs() as events:
            self.clock.pump([10, 4.9])
            self.assertEqual(cancelled, [])
            self.clock.pump([0.1])
        self.assertEqual(len(cancelled), 1)
        (event,) = events
        self.assertEqual((event["log_level"], event["task"]), (LogLevel.warn, "task"))
        self.assertEqual(str(event["error"]), "periodic task 'task' was cancelled after 5 s")
        self.assertNotIn("log_failure", event)
        stats = self.stats(runner)
        self.assertEqual((stats.timeouts, stats.failures, stats.running), (1, 0, False))

    def test_timeout_reaches_who_ran_it(self) -> None:
        """A waiter for a run that times out gets TaskTimeoutError."""
        runner = self.make(lambda _: Deferred())
        result = runner.run_now("task")
        self.clock.advance(5)
        self.assertEqual(self.failureResultOf(result, TaskTimeoutError).value.timeout, 5)

    def test_in_time(self) -> None:
        """A run that ends in time leaves no timer behind."""
        runner = self.make(lambda _: deferLater(self.clock, 4))
        runner.run_now("task")
        self.clock.advance(4)
        self.successResultOf(runner.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ignored(self) -> None:
        """No run starts while one that ignores its cancellation is under way."""
        end: Deferred[None] = Deferred()

        async def stubborn(_context: RequestContext) -> None:
            try:
                await Deferred()
            except CancelledError:
                await end

        runner = self.make(stubborn)
        self.clock.pump([10] + [1] * 35)
        stats = self.stats(runner)
        self.assertEqual((stats.runs, stats.timeouts, stats.missed, stats.running), (1, 1, 3, True))
        end.callback(None)
        self.assertFalse(self.stats(runner).running)
        self.clock.advance(5)
        self.assertEqual(self.stats(runner).runs, 2)

    def test_failure_after_timeout(self) -> None:
        """An error that a run raises while it is cancelled is logged like any failure."""

        async def breaks(_context: RequestContext) -> None:
            try:
                await Deferred()
            finally:
                raise BoomError

        runner = self.make(breaks)
        self.clock.pump([10, 5])
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)
        self.assertEqual((self.stats(runner).timeouts, self.stats(runner).failures), (1, 1))

    def test_canceller_that_raises(self) -> None:
        """A canceller that raises is logged with the task's name; the loop continues."""

        def canceller(_deferred: object) -> None:
            raise BoomError

        runner = self.make(lambda _: Deferred(canceller))
        with capturedLogs() as events:
            self.clock.pump([10, 5])
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)
        self.assertEqual(events[-1]["task"], "task")
        self.assertTrue(self.stats(runner).running)

    def test_foreign_cancellation(self) -> None:
        """A CancelledError that the runner did not cause is a failure."""
        inner: Deferred[None] = Deferred()
        runner = self.make(lambda _: inner)
        self.clock.advance(10)
        inner.cancel()
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
        self.assertEqual(self.stats(runner).failures, 1)

    def test_cancel_running(self) -> None:
        """At the deadline of a drain the runs are cancelled and logged by name, and stop fires."""
        runner = self.make(lambda _: Deferred())
        result = runner.run_now("task")
        stopped = runner.stop()
        self.assertNoResult(stopped)
        with capturedLogs() as events:
            runner.cancel_running()
        self.successResultOf(stopped)
        self.failureResultOf(result, CancelledError)
        self.assertEqual([(event["log_level"], event["task"]) for event in events], [(LogLevel.warn, "task")])
        self.assertEqual((self.stats(runner).failures, self.stats(runner).timeouts), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel_running_from_a_run(self) -> None:
        """A run may cancel all runs under way, including itself."""

        async def cancels(_context: RequestContext) -> None:
            runner.cancel_running()
            await Deferred()

        runner = self.make(cancels)
        self.failureResultOf(runner.run_now("task"), CancelledError)
        self.assertEqual((self.stats(runner).failures, self.stats(runner).running), (0, False))

    def test_cancel_running_with_nothing_running(self) -> None:
        """Without a run under way, cancel_running has no effect."""
        self.make(lambda _: None).cancel_running()


class ContextTests(RunTestCase):
    """Tests for the request context and the context variables of a run."""

    def test_own_admin_context(self) -> None:
        """Each run gets its own admin context, which is the current context while it runs."""
        seen: list[tuple[RequestContext, RequestContext | None]] = []

        async def work(context: RequestContext) -> None:
            await deferLater(self.clock, 1)
            seen.append((context, current_context.get()))

        self.make(work)
        self.clock.pump([10, 1, 9, 1])
        self.assertEqual([given for given, _ in seen], [current for _, current in seen])
        self.assertTrue(all(given.is_admin for given, _ in seen))
        self.assertEqual(len({given.request_id for given, _ in seen}), 2)
        self.assertIsNone(current_context.get())

    def test_given_context(self) -> None:
        """A run by hand gets the context that was passed, with the task's timeout as its deadline."""
        seen: list[RequestContext] = []
        runner = self.make(seen.append)
        runner.run_now("task", self.context)
        self.clock.rightNow = 10
        runner.run_due(self.context)
        given = attrs.evolve(self.context, deadline=None)
        self.assertEqual([attrs.evolve(context, deadline=None) for context in seen], [given, given])
        self.assertEqual([context.deadline for context in seen], [5.0, 15.0])

    def test_variables_of_start(self) -> None:
        """Runs see the context variables that were set at the start, not those of the caller of run_now."""
        seen: list[str] = []

        async def work(_context: RequestContext) -> None:
            seen.append(colour.get())
            await deferLater(self.clock, 1)
            seen.append(colour.get())

        runner = TaskRunner(Owner(work), clock=self.clock, random_source=random.Random(0))
        token = colour.set("start")
        runner.start()
        colour.reset(token)
        self.clock.pump([10, 1])
        token = colour.set("caller")
        runner.run_now("task")
        colour.reset(token)
        self.clock.advance(1)
        self.assertEqual(seen, ["start"] * 4)

    def test_nothing_leaks(self) -> None:
        """Context variables that a run sets are not visible in other runs, or outside."""
        seen: list[str] = []

        def work(_context: RequestContext) -> None:
            seen.append(colour.get())
            colour.set("run")

        self.make(work)
        self.clock.pump([10, 10])
        self.assertEqual((seen, colour.get()), (["none", "none"], "none"))

    def test_log_events_carry_the_fields(self) -> None:
        """Failures and timeouts are logged with the context variables of the run."""
        seen: list[tuple[str, str]] = []

        def observe(event: Any) -> None:
            context = current_context.get()
            seen.append((colour.get(), "" if context is None else context.request_id))

        def breaks(_deferred: object) -> None:
            raise BoomError

        token = colour.set("start")
        runner = self.make(lambda _: Deferred(breaks))
        colour.reset(token)
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        runner.run_now("task", self.context)
        self.clock.advance(5)
        self.flushLoggedErrors(BoomError)
        self.assertEqual(seen, [("start", self.context.request_id)] * 2)


class OverdueTests(SynchronousTestCase):
    def test_reported_once(self) -> None:
        """A run that is still under way when the next one is due is logged once, however long it takes."""

        class Slow:
            @periodic_task(spacing=10)
            def slow(self, context: RequestContext) -> Deferred[None]:
                return hanging

        hanging: Deferred[None] = Deferred()
        clock = Clock()
        runner = TaskRunner(Slow(), clock=clock, random_source=random.Random(0))
        runner.start()
        with capturedLogs() as events:
            clock.pump([10] * 5)
        warnings = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertEqual([(event["task"], event["seconds"]) for event in warnings], [("slow", 10.0)])
        hanging.callback(None)


class FlightTests(RunTestCase):
    """Tests for the events of runs in the flight recorder."""

    def test_runs(self) -> None:
        """The start of a run is recorded, and its end: done or failed; a timeout is recorded before the end."""
        recorder = record_flight(self)
        works: list[Callable[[], Any]] = [lambda: None, lambda: 1 / 0, Deferred]
        runner = self.make(lambda _context: works.pop(0)())
        self.clock.pump([10, 10, 10, 5])
        self.flushLoggedErrors(ZeroDivisionError)
        self.successResultOf(runner.stop())
        self.assertEqual(
            said(recorder, "task"),
            [
                *("task began", "task done"),
                *("task began", "task failed ZeroDivisionError"),
                *("task began", "task timed out", "task failed CancelledError"),
            ],
        )
