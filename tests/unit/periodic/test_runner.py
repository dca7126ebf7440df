"""Tests for novasvc.periodic.runner: when tasks run."""

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, StateError, UnknownTaskError
from novasvc.periodic import TaskRunner, TaskStats, periodic_task


class Worker:
    """An owner of tasks that records the start of each run; the test sets how long each run takes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.begun: list[tuple[str, float]] = []
        self.duration: float | None = None

    def work(self, task: str) -> Deferred[None] | None:
        self.begun.append((task, self.clock.seconds()))
        return None if self.duration is None else deferLater(self.clock, self.duration)

    def times(self, task: str) -> list[float]:
        return [when for name, when in self.begun if name == task]


class Mixed(Worker):
    """One task of each kind."""

    @periodic_task
    def every_pass(self, _context: RequestContext) -> Any:
        return self.work("every_pass")

    @periodic_task(spacing=10)
    def spaced(self, _context: RequestContext) -> Any:
        return self.work("spaced")

    @periodic_task(spacing=25, run_immediately=True)
    def at_once(self, _context: RequestContext) -> Any:
        return self.work("at_once")


class Spaced(Worker):
    """One task, every 10 s."""

    @periodic_task(spacing=10)
    def spaced(self, _context: RequestContext) -> Any:
        return self.work("spaced")


def make_runner(owner: Worker, **options: Any) -> TaskRunner:
    return TaskRunner(owner, clock=owner.clock, random_source=random.Random(7), **options)


def only(runner: TaskRunner) -> TaskStats:
    (stats,) = runner.stats()
    return stats


class StartTests(SynchronousTestCase):
    """The first pass, and the ones after it."""

    def test_due_times(self) -> None:
        """Tasks run in the first pass or one spacing after the start, then at their own spacing."""
        worker = Mixed(Clock())
        make_runner(worker).start()
        worker.clock.pump([0] + [1] * 130)
        self.assertEqual(worker.times("every_pass"), [0, 60, 120])
        self.assertEqual(worker.times("spaced"), list(range(10, 131, 10)))
        self.assertEqual(worker.times("at_once"), [0, 25, 50, 75, 100, 125])

    def test_counts_from_start(self) -> None:
        """A spacing counts from the start of the runner, not from its creation."""
        worker = Spaced(Clock())
        runner = make_runner(worker)
        worker.clock.advance(1000)
        runner.start()
        worker.clock.pump([1] * 10)
        self.assertEqual(worker.begun, [("spaced", 1010)])

    def test_fuzzy_delay(self) -> None:
        """The first pass follows a random delay, at most fuzzy_delay, drawn from the given source."""
        expected = random.Random(7).uniform(0, 60)
        worker = Mixed(Clock())
        make_runner(worker, fuzzy_delay=60).start()
        worker.clock.pump([0, expected - 0.001])
        self.assertEqual(worker.begun, [])
        worker.clock.pump([0.001])
        self.assertEqual(worker.times("every_pass"), worker.times("at_once"))
        self.assertApproximates(worker.times("at_once")[0], expected, 1e-6)

    def test_spaced_task_waits_for_the_first_pass(self) -> None:
        """A task whose spacing is shorter than the delay of the first pass does not run before that pass."""
        first_pass = random.Random(7).uniform(0, 60)
        worker = Spaced(Clock())
        make_runner(worker, fuzzy_delay=60).start()
        self.assertGreater(first_pass, 10)
        worker.clock.pump([first_pass - 0.5, 1, 10])
        self.assertEqual(worker.times("spaced"), [first_pass + 0.5, first_pass + 10.5])

    def test_run_by_hand_before_the_first_pass(self) -> None:
        """A run by hand does not move a due time before the first pass."""
        first_pass = random.Random(7).uniform(0, 60)
        worker = Spaced(Clock())
        runner = make_runner(worker, fuzzy_delay=60)
        runner.start()
        worker.clock.advance(1)
        runner.run_now("spaced")
        self.assertEqual(only(runner).next_due, first_pass)

    def test_interval_max(self) -> None:
        """Passes are interval_max apart if that is less than 60 s; 0 and None mean 60 s."""
        for interval_max, expected in ((20, [0, 20, 40, 60]), (600, [0, 60]), (0, [0, 60]), (None, [0, 60])):
            worker = Mixed(Clock())
            make_runner(worker, interval_max=interval_max).start()
            worker.clock.pump([0] + [1] * 61)
            self.assertEqual(worker.times("every_pass"), expected)

    def test_negative_delays(self) -> None:
        """Negative delays and intervals are refused."""
        self.assertRaises(ValueError, make_runner, Spaced(Clock()), fuzzy_delay=-1)
        self.assertRaises(ValueError, make_runner, Spaced(Clock()), interval_max=-1)

    def test_start_twice(self) -> None:
        """A started runner cannot be started."""
        runner = make_runner(Spaced(Clock()))
        runner.start()
        error = self.assertRaises(StateError, runner.start)
        self.assertEqual(str(error), "the task runner of Spaced is started and cannot start")

    def test_start_again(self) -> None:
        """A stopped runner can be started again, and its due times count from that start."""
        worker = Spaced(Clock())
        runner = make_runner(worker)
        runner.start()
        worker.clock.advance(7)
        self.successResultOf(runner.stop())
        runner.start()
        worker.clock.pump([9, 1])
        self.assertEqual(worker.times("spaced"), [17])


class RegistrationTests(SynchronousTestCase):
    """Tests for which declared tasks a runner runs."""

    def test_left_out(self) -> None:
        """Disabled tasks, tasks with a negative spacing and forbidden external tasks are logged once, and never run."""

        class Owner(Worker):
            @periodic_task(enabled=False)
            def disabled(self, _context: RequestContext) -> None:
                self.work("disabled")

            @periodic_task(spacing=-1)
            def negative(self, _context: RequestContext) -> None:
                self.work("negative")

            @periodic_task(external_process_ok=True)
            def external(self, _context: RequestContext) -> None:
                self.work("external")

        worker = Owner(Clock())
        with capturedLogs() as events:
            runner = make_runner(worker, run_external=False)
            runner.start()
            worker.clock.pump([0] + [30] * 10)
        self.assertEqual(
            [(event["task"].rpartition(".")[2], event["why"]) for event in events],
            [
                ("disabled", "it is disabled"),
                ("negative", "its spacing is -1"),
                ("external", "it may start other programs, and run_external_periodic_tasks is false"),
            ],
        )
        self.assertEqual((worker.begun, runner.stats()), ([], []))
        allowed = make_runner(worker, run_external=True)
        self.assertEqual([task.name for task in allowed.stats()], ["external"])

    def test_undecorated_override(self) -> None:
        """A task that a subclass overrides without the decorator is logged, and not run."""

        class Owner(Spaced):
            def spaced(self, _context: RequestContext) -> None:
                """Do nothing."""

        with capturedLogs() as events:
            runner = make_runner(Owner(Clock()))
        self.assertIn("Owner overrides it without @periodic_task", events[0]["why"])
        self.assertEqual(runner.stats(), [])

    def test_one_name_twice(self) -> None:
        """Two tasks with the same name are refused; the error names both methods."""

        class Owner(Spaced):
            @periodic_task(name="spaced")
            def other(self, _context: RequestContext) -> None:
                """Never run."""

        error = self.assertRaises(DeclarationError, make_runner, Owner(Clock()))
        self.assertIn("Owner.other: ", str(error))
        self.assertIn("Spaced.spaced is a periodic task named 'spaced' too", str(error))

    def test_two_owners(self) -> None:
        """Two objects of one class have separate runs."""
        clock = Clock()
        one, two = Spaced(clock), Spaced(clock)
        make_runner(one).start()
        make_runner(two)
        clock.pump([10])
        self.assertEqual((len(one.begun), len(two.begun)), (1, 0))


class OverlapTests(SynchronousTestCase):
    """Runs that take longer than the spacing, and clocks that jump."""

    def test_schedule_does_not_drift(self) -> None:
        """The duration of runs does not move the due times."""
        worker = Spaced(Clock())
        worker.duration = 7
        make_runner(worker).start()
        worker.clock.pump([0.5] * 100)
        self.assertEqual(worker.times("spaced"), [10, 20, 30, 40, 50])

    def test_slow_run(self) -> None:
        """Due times during a run are missed and counted; the task runs at the next one after it."""
        worker = Spaced(Clock())
        worker.duration = 25
        runner = make_runner(worker)
        runner.start()
        worker.clock.pump([1] * 31)
        self.assertEqual((worker.times("spaced"), only(runner).missed), ([10], 2))
        worker.clock.pump([1] * 9)
        self.assertEqual((worker.times("spaced"), only(runner).missed), ([10, 40], 2))

    def test_endless_task_harms_only_itself(self) -> None:
        """A task that never ends does not delay the others."""
        worker = Mixed(Clock())
        runner = make_runner(worker)
        endless: Deferred[None] = Deferred()
        worker.work = lambda task: (Worker.work(worker, task), endless if task == "spaced" else None)[1]  # type: ignore[method-assign]
        runner.start()
        worker.clock.pump([0] + [1] * 120)
        self.assertEqual(worker.times("spaced"), [10])
        self.assertEqual(worker.times("every_pass"), [0, 60, 120])
        stats = {task.name: task for task in runner.stats()}
        self.assertEqual((stats["spaced"].running, stats["spaced"].missed), (True, 11))
        endless.callback(None)
        worker.clock.pump([10])
        self.assertEqual(worker.times("spaced"), [10, 130])

    def test_clock_jumps(self) -> None:
        """After a jump of the clock, as on a suspended host, one run stands for all missed due times."""
        worker = Spaced(Clock())
        runner = make_runner(worker)
        runner.start()
        worker.clock.pump([3603, 6, 1])
        self.assertEqual(worker.times("spaced"), [3603, 3610])
        self.assertEqual((only(runner).missed, only(runner).max_lateness), (359, 3))

    def test_synchronous_run_that_blocks(self) -> None:
        """A run that blocks the reactor over several due times is followed by one run at the next due time."""
        worker = Spaced(Clock())
        worker.work = lambda task: (Worker.work(worker, task), setattr(worker.clock, "rightNow", 34))[1]  # type: ignore[method-assign]
        runner = make_runner(worker)
        runner.start()
        worker.clock.advance(10)
        worker.work = lambda task: Worker.work(worker, task)  # type: ignore[method-assign]
        worker.clock.pump([1] * 16)
        self.assertEqual(worker.times("spaced"), [10, 40, 50])
        self.assertEqual((only(runner).missed, only(runner).runs), (2, 3))

    @given(
        spacing=st.integers(1, 20),
        durations=st.lists(st.none() | st.integers(0, 60), min_size=1),
        steps=st.lists(st.integers(0, 45), min_size=1, max_size=60),
        by_hand=st.sets(st.integers(0, 60)),
    )
    def test_never_two_at_a_time_and_everything_is_counted(
        self, spacing: int, durations: list[int | None], steps: list[int], by_hand: set[int]
    ) -> None:
        """Whatever the durations and the clock, no run overlaps another, and each due time is a run or is missed."""
        clock = Clock()
        under_way = most = begun = 0

        class Owner:
            @periodic_task(spacing=spacing)
            async def task(self, _context: RequestContext) -> None:
                nonlocal under_way, most, begun
                duration = durations[begun % len(durations)]
                begun += 1
                under_way += 1
                most = max(most, under_way)
                if duration is not None:
                    await deferLater(clock, duration)
                under_way -= 1

        runner = TaskRunner(Owner(), clock=clock, random_source=random.Random(0))
        runner.start()
        for number, seconds in enumerate(steps):
            clock.advance(seconds)
            if number in by_hand:
                runner.run_now("task")
            self.assertEqual(only(runner).running, under_way == 1)
        stats = only(runner)
        self.assertLessEqual(most, 1)
        self.assertEqual(stats.runs, begun)
        self.assertGreater(stats.next_due, clock.seconds())
        if not by_hand.intersection(range(len(steps))):
            self.assertEqual(stats.runs + stats.missed, clock.seconds() // spacing)


class PassTests(SynchronousTestCase):
    """Tests for run_due: one pass by hand."""

    def setUp(self) -> None:
        self.worker = Mixed(Clock())
        self.context = RequestContext.admin()

    def test_without_start(self) -> None:
        """In a runner that was never started, due times count from its creation."""
        runner = make_runner(self.worker)
        self.assertEqual(self.successResultOf(runner.run_due(self.context)), 10)
        self.worker.clock.advance(10)
        self.assertEqual(self.successResultOf(runner.run_due(self.context)), 10)
        self.worker.clock.advance(3)
        self.assertEqual(self.successResultOf(runner.run_due(self.context)), 7)
        self.assertEqual(self.worker.times("every_pass"), [0, 10, 13])
        self.assertEqual(self.worker.times("at_once"), [0])
        self.assertEqual(self.worker.times("spaced"), [10])

    def test_capped(self) -> None:
        """The seconds until the next due time are at most the interval of passes."""

        class Owner(Worker):
            @periodic_task(spacing=1000)
            def rare(self, _context: RequestContext) -> None:
                """Do nothing."""

        for options, expected in (({}, 60), ({"interval_max": 5}, 5)):
            runner = make_runner(Owner(Clock()), **options)
            self.assertEqual(self.successResultOf(runner.run_due(self.context)), expected)

    def test_no_tasks(self) -> None:
        """An object without tasks can make a pass."""
        self.assertEqual(self.successResultOf(make_runner(Worker(Clock())).run_due(self.context)), 60)

    def test_moves_the_next_due_time(self) -> None:
        """A task that a pass by hand ran is next due one spacing later, in the running loops too."""
        runner = make_runner(self.worker)
        runner.start()
        self.worker.clock.pump([0, 5])
        self.successResultOf(runner.run_due(self.context))
        self.assertEqual(self.worker.times("every_pass"), [0, 5])
        self.worker.clock.pump([1] * 120)
        self.assertEqual(self.worker.times("every_pass"), [0, 5, 65, 125])
        self.assertEqual(self.worker.times("at_once"), [0, 25, 50, 75, 100, 125])

    def test_concurrent(self) -> None:
        """The tasks of a pass run concurrently; the pass ends with the last of them."""
        self.worker.duration = 4
        done = make_runner(self.worker).run_due(self.context)
        self.assertEqual(self.worker.begun, [("every_pass", 0), ("at_once", 0)])
        self.assertNoResult(done)
        self.worker.clock.advance(4)
        self.assertEqual(self.successResultOf(done), 6)

    def test_running_tasks_are_not_waited_for(self) -> None:
        """A pass neither starts nor waits for a task that is running already."""
        runner = make_runner(self.worker)
        self.worker.duration = 100
        first = runner.run_due(self.context)
        self.worker.duration = None
        self.worker.clock.advance(10)
        self.successResultOf(runner.run_due(self.context))
        self.assertEqual(self.worker.begun[2:], [("spaced", 10)])
        self.assertNoResult(first)

    def test_after_stop(self) -> None:
        """A pass of a stopped runner starts nothing."""
        runner = make_runner(self.worker)
        runner.stop()
        self.successResultOf(runner.run_due(self.context))
        self.assertEqual(self.worker.begun, [])


class RunNowTests(SynchronousTestCase):
    """Tests for run_now: one task by hand."""

    def setUp(self) -> None:
        self.worker = Spaced(Clock())
        self.runner = make_runner(self.worker)
        self.runner.start()

    def test_moves_the_next_due_time(self) -> None:
        """A task that was run by hand is next due one spacing later, and nothing counts as missed."""
        self.worker.clock.advance(4)
        self.successResultOf(self.runner.run_now("spaced"))
        self.worker.clock.pump([1] * 22)
        self.assertEqual(self.worker.times("spaced"), [4, 14, 24])
        self.assertEqual(only(self.runner).missed, 0)

    def test_joins(self) -> None:
        """run_now waits for a run that is under way, beside other waiters."""
        self.worker.duration = 3
        self.worker.clock.advance(10)
        one, two = self.runner.run_now("spaced"), self.runner.run_now("spaced")
        self.assertNoResult(one)
        self.worker.clock.advance(3)
        self.successResultOf(one)
        self.successResultOf(two)
        self.assertEqual(only(self.runner).runs, 1)

    def test_cancelling_a_waiter(self) -> None:
        """Cancelling a waiter disturbs neither the run nor the other waiters."""
        self.worker.duration = 3
        one, two = self.runner.run_now("spaced"), self.runner.run_now("spaced")
        one.cancel()
        self.failureResultOf(one)
        self.assertTrue(only(self.runner).running)
        self.worker.clock.advance(3)
        self.successResultOf(two)

    def test_waiter_that_cancels_the_next(self) -> None:
        """The callback of a waiter may cancel another waiter."""
        self.worker.duration = 3
        one, two, three = (self.runner.run_now("spaced") for _ in range(3))
        one.addCallback(lambda _: two.cancel())
        self.worker.clock.advance(3)
        self.failureResultOf(two)
        self.successResultOf(three)

    def test_unknown(self) -> None:
        """An unknown name is an error that lists the existing tasks."""
        error = self.failureResultOf(self.runner.run_now("spacd"), UnknownTaskError).value
        self.assertEqual(str(error), "no periodic task is named 'spacd'; existing tasks: spaced")

    def test_after_stop(self) -> None:
        """A stopped runner starts no run by hand."""
        self.runner.stop()
        error = self.failureResultOf(self.runner.run_now("spaced"), StateError).value
        self.assertEqual(str(error), "the task runner of Spaced is stopped and cannot run 'spaced'")
        self.assertEqual(self.worker.begun, [])


class StopTests(SynchronousTestCase):
    """Tests for stop, and for runs that are still under way then."""

    def setUp(self) -> None:
        self.worker = Mixed(Clock())
        self.runner = make_runner(self.worker)

    def test_idle(self) -> None:
        """Without a run under way, stop fires at once, whether the runner was started or not, and leaves no timer."""
        self.successResultOf(self.runner.stop())
        self.runner.start()
        self.successResultOf(self.runner.stop())
        self.assertEqual(self.worker.clock.getDelayedCalls(), [])

    def test_during_runs(self) -> None:
        """stop waits for the runs under way, and no other run starts."""
        self.worker.duration = 15
        self.runner.start()
        self.worker.clock.pump([0, 1])
        one, two = self.runner.stop(), self.runner.stop()
        self.worker.clock.pump([1] * 13)
        self.assertNoResult(one)
        self.worker.clock.advance(1)
        self.successResultOf(one)
        self.successResultOf(two)
        self.worker.clock.pump([30] * 10)
        self.assertEqual(len(self.worker.begun), 2)

    def test_failing_run(self) -> None:
        """A run that fails ends the wait of stop like any other."""
        self.worker.duration = 5
        self.runner.start()
        self.worker.clock.advance(0)
        stopped = self.runner.stop()
        self.runner.cancel_running()
        self.successResultOf(stopped)

    def test_from_a_task(self) -> None:
        """A task may stop its own runner; the other tasks of the same pass do not start."""
        self.worker.work = lambda task: (Worker.work(self.worker, task), self.runner.stop())[0]  # type: ignore[method-assign]
        self.runner.start()
        self.worker.clock.pump([0] + [1] * 100)
        self.assertEqual(self.worker.begun, [("every_pass", 0)])
        self.assertEqual(self.worker.clock.getDelayedCalls(), [])
