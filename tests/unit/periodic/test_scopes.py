"""Tests for TaskRunner with elections: who runs a task, and what becomes of its run when the lead is lost."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, LeadLostError, StateError
from novasvc.interfaces import IElection
from novasvc.periodic import TaskRunner, periodic_task
from novasvc.periodic.term import Scope, Term
from novasvc.telemetry import metrics

DAY = 86400.0
START = 10 * DAY
"""When a successor takes over: at midnight."""


@implementer(IElection)
class Election:
    """An election that the test decides."""

    def __init__(self) -> None:
        self.tasks: Sequence[str] = ()
        self.over = False
        self.begun: list[tuple[str, float | None]] = []
        self.resigned: list[str] = []
        self.releasing: Deferred[None] = succeed(None)

    def start(
        self, tasks: Sequence[str], gained: Callable[[str, Term], object], lost: Callable[[str, str], object]
    ) -> None:
        self.tasks, self.gained, self.lost = tasks, gained, lost

    def begin(self, task: str, due: float | None) -> bool:
        if not self.over:
            self.begun.append((task, due))
        return not self.over

    def resign(self, task: str) -> Deferred[None]:
        self.resigned.append(task)
        return self.releasing

    def leader(self, task: str) -> str | None:
        return "h2 worker 1"


class Owner:
    """Tasks of each scope."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int | None]] = []
        self.result: Any = None

    @periodic_task(spacing=10)
    def plain(self, context: RequestContext) -> Any:
        self.runs.append(("plain", context.fencing))
        return self.result

    @periodic_task(spacing=10, scope="worker")
    def each(self, context: RequestContext) -> None:
        self.runs.append(("each", context.fencing))

    @periodic_task(spacing=10, scope="fleet")
    def fleet(self, context: RequestContext) -> Any:
        self.runs.append(("fleet", context.fencing))
        return self.result

    @periodic_task(cron="0 3 * * *", scope="fleet")
    def nightly(self, context: RequestContext) -> None:
        self.runs.append(("nightly", context.fencing))


class ScopeCase(SynchronousTestCase):
    def setUp(self) -> None:
        metrics.reset()
        self.clock = Clock()
        self.owner = Owner()
        self.elections: dict[str, Election] = {}
        self.runner = self.make()

    def make(self, **options: Any) -> TaskRunner:
        return TaskRunner(
            self.owner, clock=self.clock, random_source=random.Random(0), wall_clock=self.clock.seconds, **options
        )

    def start(self) -> None:
        self.runner.start(self.elect)

    def elect(self, scope: Scope) -> Election | None:
        return None if scope == "worker" else self.elections.setdefault(scope, Election())

    @property
    def fleet(self) -> Election:
        return self.elections["fleet"]

    def names(self) -> set[str]:
        return {name for name, _ in self.owner.runs}

    def stats(self, name: str) -> Any:
        return next(stats for stats in self.runner.stats() if stats.name == name)


class LeadTests(ScopeCase):
    def test_scopes(self) -> None:
        """Only the tasks of each worker run without a lead; the others stand for theirs, by scope."""
        self.start()
        self.clock.pump([10] * 3)
        self.assertEqual(self.names(), {"each"})
        self.assertEqual((self.elections["node"].tasks, self.fleet.tasks), (["plain"], ["fleet", "nightly"]))
        self.elections["node"].gained("plain", Term())
        self.clock.pump([10] * 2)
        self.assertEqual(self.names(), {"each", "plain"})

    def test_default_scope(self) -> None:
        """With the default scope "worker" tasks without a scope run in each worker, as in Nova."""
        self.runner = self.make(default_scope="worker")
        self.start()
        self.clock.pump([10] * 2)
        self.assertEqual(self.names(), {"each", "plain"})
        self.assertNotIn("node", self.elections)

    def test_without_elections(self) -> None:
        """A runner that is started by itself runs all tasks, without a fencing number."""
        self.runner.start()
        self.clock.pump([10])
        self.assertEqual(sorted(self.owner.runs), [("each", None), ("fleet", None), ("plain", None)])

    def test_fencing(self) -> None:
        """A run has the fencing number of the term in its context, also one with a context that was given."""
        self.start()
        self.fleet.gained("fleet", Term(fencing=7))
        self.clock.pump([10])
        context = RequestContext.admin()
        self.successResultOf(self.runner.run_now("fleet", context))
        self.assertEqual([run for run in self.owner.runs if run[0] == "fleet"], [("fleet", 7), ("fleet", 7)])
        self.assertIsNone(context.fencing)
        self.assertNotIn("fencing", context.to_wire())

    def test_stats(self) -> None:
        """The statistics say scope, cron line, and who leads."""
        self.start()
        before = self.stats("nightly")
        self.assertEqual((before.scope, before.cron, before.timezone), ("fleet", "0 3 * * *", "UTC"))
        self.assertEqual((before.leads, before.fencing), (False, None))
        self.fleet.gained("nightly", Term(fencing=3))
        self.assertEqual((self.stats("nightly").leads, self.stats("nightly").fencing), (True, 3))
        self.assertEqual((self.stats("plain").scope, self.stats("each").scope), ("node", "worker"))
        self.assertEqual(metrics.tasks_led.at("Owner", "nightly").value, 1)

    def test_refused_begin(self) -> None:
        """No run begins when the election says that the time to lead is over."""
        self.start()
        self.fleet.gained("fleet", Term(fencing=7))
        self.fleet.over = True
        self.clock.pump([10] * 3)
        self.assertNotIn("fleet", self.names())


class LossTests(ScopeCase):
    def lead(self) -> Deferred[Any]:
        """Begin a run of "fleet" that waits, and return who waits for it."""
        self.start()
        self.fleet.gained("fleet", Term(fencing=7))
        return self.runner.run_now("fleet")

    def test_run_is_cancelled(self) -> None:
        """A run is cancelled when the lead is lost; its waiters get LeadLostError, and no further run begins."""
        cancelled: list[object] = []
        self.owner.result = Deferred(cancelled.append)
        waiting = self.lead()
        with capturedLogs() as events:
            self.fleet.lost("fleet", "its lease ends in 6 s")
        self.assertEqual(len(cancelled), 1)
        error = self.failureResultOf(waiting, LeadLostError).value
        self.assertEqual(str(error), "periodic task 'fleet' was cancelled: its lease ends in 6 s")
        self.assertEqual([formatEvent(event) for event in events], [str(error)])
        self.clock.pump([10] * 3)
        self.assertEqual(len([run for run in self.owner.runs if run[0] == "fleet"]), 1)
        self.assertEqual((self.stats("fleet").failures, self.stats("fleet").leads), (0, False))
        self.assertEqual(metrics.tasks.at("Owner", "fleet", "cancelled").value, 1)
        self.assertEqual(metrics.task_leads.at("Owner", "fleet", "lost").value, 1)
        self.assertEqual(metrics.tasks_led.at("Owner", "fleet").value, 0)

    def test_run_that_ignores_it(self) -> None:
        """A run that goes on is logged with its fencing number, and the next term begins no other beside it."""
        end: Deferred[None] = Deferred()

        async def stubborn() -> None:
            try:
                await Deferred()
            except CancelledError:
                await end

        self.owner.result = stubborn()
        self.lead().addErrback(lambda failure: failure.trap(LeadLostError))
        with capturedLogs() as events:
            self.fleet.lost("fleet", "h2 has its lease now")
        text = "periodic task fleet has not ended yet: its fencing number 7 is no longer the greatest"
        self.assertIn(text, [formatEvent(event) for event in events])
        self.fleet.gained("fleet", Term(fencing=9))
        self.owner.result = None
        self.clock.pump([10] * 3)
        self.assertEqual(self.owner.runs.count(("fleet", 9)), 0)
        end.callback(None)
        self.clock.pump([10] * 2)
        self.assertEqual(self.owner.runs.count(("fleet", 9)), 2)

    def test_by_hand(self) -> None:
        """A fleet's task that another leads cannot be run by hand here; the error says who leads."""
        self.start()
        error = self.failureResultOf(self.runner.run_now("fleet"), StateError).value
        self.assertEqual(str(error), "the periodic task 'fleet' is led by h2 worker 1 and cannot be run here")
        self.assertRaises(StateError, self.runner.begin, "nightly")
        self.successResultOf(self.runner.run_now("plain"))  # any worker may do it for its node
        self.assertEqual(self.owner.runs, [("plain", None)])

    def test_by_hand_before_the_start(self) -> None:
        """Before the start, or without one, no lease is asked for, so a fleet's task cannot be run; the others can."""
        error = self.failureResultOf(self.runner.run_now("fleet"), StateError).value
        self.assertEqual(str(error), "the periodic task 'fleet' is not led by this process and cannot be run here")
        self.assertRaises(StateError, self.runner.begin, "nightly")
        self.successResultOf(self.runner.run_now("plain"))
        self.clock.rightNow = 100.0
        self.runner.run_due(None)
        self.assertEqual(self.names(), {"plain", "each"})

    def test_pass(self) -> None:
        """A pass runs no task that another leads."""
        self.start()
        self.clock.rightNow = 100.0
        self.runner.run_due(None)
        self.assertEqual(self.names(), {"each"})


class StopTests(ScopeCase):
    def test_resigns(self) -> None:
        """A stop resigns from each task, and waits until the leases are released."""
        self.start()
        self.fleet.releasing = Deferred()
        stopped = self.runner.stop()
        self.assertEqual(self.fleet.resigned, ["fleet", "nightly"])
        self.assertEqual(self.elections["node"].resigned, ["plain"])
        self.assertNoResult(stopped)
        self.fleet.releasing.callback(None)
        self.successResultOf(stopped)

    def test_resigns_after_the_run(self) -> None:
        """The lead of a task passes on when its run has ended, not before."""
        self.owner.result = Deferred()
        self.start()
        self.fleet.gained("fleet", Term(fencing=7))
        self.runner.run_now("fleet")
        stopped = self.runner.stop()
        self.assertEqual(self.fleet.resigned, ["nightly"])
        self.assertTrue(self.stats("fleet").leads)
        self.owner.result.callback(None)
        self.assertEqual(self.fleet.resigned, ["nightly", "fleet"])
        self.successResultOf(stopped)

    def test_waited_for_in_vain(self) -> None:
        """A stop that is no longer waited for keeps the lead of a task until its run has ended."""
        self.owner.result = Deferred()
        self.start()
        self.fleet.gained("fleet", Term(fencing=7))
        self.runner.run_now("fleet")
        stopped = self.runner.stop()
        stopped.cancel()
        self.assertTrue(stopped.called)
        self.assertEqual(self.fleet.resigned, ["nightly"])
        self.owner.result.callback(None)
        self.assertEqual(self.fleet.resigned, ["nightly", "fleet"])

    def test_started_again(self) -> None:
        """The end of a run of before a stop takes nothing from the election that the tasks were started with since."""
        self.owner.result = Deferred()
        self.start()
        before = self.fleet
        before.gained("fleet", Term(fencing=7))
        self.runner.run_now("fleet")
        self.runner.stop().cancel()
        self.elections.clear()
        self.start()
        self.fleet.gained("fleet", Term(fencing=8))
        before.lost("fleet", "it ended")
        self.owner.result.callback(None)
        self.assertEqual(before.resigned, ["nightly", "fleet"])
        self.assertTrue(self.stats("fleet").leads)
        self.assertEqual((self.stats("fleet").fencing, self.fleet.resigned), (8, []))

    def test_node_waited_for_in_vain(self) -> None:
        """The lead within a node passes on when nobody waits any more: a run that hangs keeps no other task from it."""
        self.owner.result = Deferred()
        self.start()
        self.elections["node"].gained("plain", Term())
        self.runner.run_now("plain")
        stopped = self.runner.stop()
        self.assertEqual(self.elections["node"].resigned, [])
        stopped.cancel()
        self.assertEqual(self.elections["node"].resigned, ["plain"])

    def test_failed_to_resign(self) -> None:
        """A lead that cannot be passed on is logged, and ends the waiting."""
        self.start()
        self.fleet.releasing = fail(ZeroDivisionError())
        self.successResultOf(self.runner.stop())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_lost_while_draining(self) -> None:
        """A lead that is lost and won again during a drain cancels the run, and begins none."""
        self.owner.result = Deferred()
        self.start()
        self.fleet.gained("fleet", Term(fencing=7))
        self.runner.run_now("fleet").addErrback(lambda failure: failure.trap(LeadLostError))
        stopped = self.runner.stop()
        self.fleet.lost("fleet", "its lease ends")
        self.successResultOf(stopped)
        self.fleet.gained("fleet", Term(fencing=8))
        self.clock.pump([10] * 3)
        self.assertEqual(self.owner.runs, [("fleet", 7)])


class SuccessionTests(ScopeCase):
    """When a new leader runs a task for the first time."""

    def runs_at(self, name: str, term: Term, seconds: float) -> list[float]:
        """Return the times of the runs after a term began at START."""
        self.start()
        self.clock.advance(START)
        self.owner.runs.clear()
        self.fleet.gained(name, term)
        found: list[float] = []
        for _ in range(round(seconds)):
            self.clock.advance(1)
            found += [self.clock.seconds() - START for run in self.owner.runs if run[0] == name]
            self.owner.runs.clear()
        return found

    def test_first_leader(self) -> None:
        """The first leader of a task begins one spacing after it got the lead."""
        self.assertEqual(self.runs_at("fleet", Term(fencing=1), 25), [10, 20])

    def test_leaders_that_never_ran_it(self) -> None:
        """A task that no leader lived long enough to run is due one spacing after it was led first."""
        self.assertEqual(self.runs_at("fleet", Term(fencing=2, known_for=8), 15), [2, 12])
        self.setUp()
        self.assertEqual(self.runs_at("nightly", Term(fencing=2, known_for=DAY), 5), [1])

    def test_successor(self) -> None:
        """A successor goes on where the last run of the earlier leader was."""
        self.assertEqual(self.runs_at("fleet", Term(fencing=2, ran_ago=7), 25), [3, 13, 23])

    def test_late_successor(self) -> None:
        """A run that is overdue when a successor takes over begins at once."""
        self.assertEqual(self.runs_at("fleet", Term(fencing=2, ran_ago=700), 15), [1, 11])

    def test_cron(self) -> None:
        """Due times of a cron line that nobody ran for become one run of the successor, which is reported."""
        self.assertEqual(self.runs_at("nightly", Term(fencing=2, ran_ago=5, last_due=START - 3 * DAY), 5), [1])
        self.assertEqual(len(self.fleet.begun), 1)

    def test_cron_has_run(self) -> None:
        """A due time that the earlier leader ran for is not run again."""
        self.assertEqual(self.runs_at("nightly", Term(fencing=2, ran_ago=5, last_due=START - 21 * 3600), 5), [])
        self.clock.pump([60] * 180)
        self.assertEqual(self.fleet.begun, [("nightly", START + 3 * 3600)])


class DeclarationTests(SynchronousTestCase):
    def refused(self, **options: Any) -> str:
        def method(self: object, context: object) -> None: ...

        return str(self.assertRaises(DeclarationError, periodic_task(**options), method))

    def test_unknown_scope(self) -> None:
        """A scope that does not exist is refused, with those that do."""
        for scope in ("cluster", "", 1, ["node"]):
            text = f'scope={scope!r} is not a scope; give "worker" or "node" or "fleet"'
            self.assertIn(text, self.refused(scope=scope))

    def test_name_of_a_lease(self) -> None:
        """A name that the table of leases cannot hold is refused for a fleet's task only."""
        for name in ("x" * 256, " nightly", "nightly "):
            self.assertIn("cannot be the name of a lease", self.refused(name=name, scope="fleet"))

        @periodic_task(name="x" * 256)
        def method(self: object, context: object) -> None: ...
