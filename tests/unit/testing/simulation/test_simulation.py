"""Tests for simulations: the same seed is the same run, and what a broken promise looks like."""

import gc
import os
import subprocess
import sys
from functools import partial
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import fail
from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, identifiers, rpc
from novasvc.errors import StateError
from novasvc.testing.simulation import (
    KINDS,
    BrokenPromiseError,
    Caller,
    Fault,
    Simulation,
    check_seeds,
    run_seed,
    shrink,
)
from novasvc.testing.simulation.plan import draw_plan
from tests.simulation.fleet import build

_DIGESTS = """
from novasvc.testing.simulation import run_seed
from tests.simulation.fleet import build
print(*[run_seed(build, seed, duration=5.0).digest for seed in (3, 5)])
"""


class RepeatTests(SynchronousTestCase):
    """The same seed is the same run."""

    def test_same_process(self) -> None:
        """A seed gives the same trace each time, and another one gives another."""
        first, again, other = (run_seed(build, seed, keep_trace=True) for seed in (3, 3, 4))
        self.flushLoggedErrors(LookupError)  # of handlers of events
        self.assertEqual(first.trace, again.trace)
        self.assertEqual(first.digest, again.digest)
        self.assertNotEqual(first.digest, other.digest)
        self.assertGreater(len(first.trace), 500)

    @pytest.mark.timeout(150)
    def test_other_process(self) -> None:
        """A seed gives the same trace in another process, whose sets have another order."""
        here = [run_seed(build, seed, duration=5.0).digest for seed in (3, 5)]
        there = subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.flushLoggedErrors(LookupError)  # of handlers of events
        self.assertEqual(there.stdout.split(), here)

    def test_ids(self) -> None:
        """After a simulation ids are drawn from the operating system again."""
        run_seed(build, 1, duration=1.0, faults=0)
        self.assertIs(identifiers.random_bytes, os.urandom)

    def test_plan(self) -> None:
        """A plan has the faults that were asked for, in the order of their times, within the time."""
        plan = draw_plan(Random(1), ["a", "b"], 10.0, 70.0, 50)
        self.assertEqual([fault.number for fault in plan], list(range(50)))
        self.assertEqual(plan, sorted(plan, key=lambda fault: fault.at))
        self.assertTrue(all(10.0 <= fault.at <= 70.0 and set(fault.places) <= {"a", "b"} for fault in plan))
        self.assertEqual({fault.kind for fault in draw_plan(Random(1), ["a"], 0, 1, 500)}, set(KINDS))

    def test_once(self) -> None:
        """A simulation runs once."""
        simulation = Simulation(1, duration=1.0, faults=0)
        simulation.run()
        with self.assertRaisesRegex(StateError, "same seed"):
            simulation.run()


class Leaky(Manager):
    """Leaves an error in a reference cycle, which only the garbage collector finds."""

    @rpc.expose
    def leak(self, context: RequestContext) -> None:
        cycle: list[Any] = [fail(ValueError("nobody sees this"))]
        cycle.append(cycle)


class GarbageTests(SynchronousTestCase):
    """What a run leaves to the garbage collector."""

    def build(self, simulation: Simulation) -> None:
        async def work(caller: Caller) -> None:
            await caller.call("leaky", "leak")

        simulation.node(Leaky, host="a", topic="leaky")
        simulation.caller("c", work)

    def test_own(self) -> None:
        """An error that nobody handles is a problem of the seed that has it, at the same time in each run."""
        outcomes = [run_seed(self.build, 1, faults=0, duration=5.0) for _ in range(2)]
        self.flushLoggedErrors(ValueError)
        self.assertRegex(outcomes[0].broken[0], "(?s)logged: .*ValueError: nobody sees this")
        self.assertEqual(*(outcome.broken for outcome in outcomes))
        self.assertEqual(*(outcome.digest for outcome in outcomes))

    def test_of_others(self) -> None:
        """An error that was there before the run is no problem of its seed."""

        def leak_and_build(simulation: Simulation) -> None:
            build(simulation)
            Leaky.leak(Leaky("a"), RequestContext())

        outcome = run_seed(leak_and_build, 1, faults=0, duration=5.0)
        gc.collect()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.flushLoggedErrors(LookupError)  # of handlers of events
        self.assertEqual(outcome.broken, [])
        self.assertTrue(gc.isenabled())


class Forgetful(Manager):
    """Says that its method may run twice; what it returns depends on how often it ran."""

    @rpc.expose(idempotent=True)
    def add(self, context: RequestContext) -> int:
        self.total = getattr(self, "total", 0) + 1
        return self.total


async def ask(caller: Caller) -> None:
    while not caller.over:
        await caller.pause(1.0)
        caller.call("forgetful", "add", timeout=30.0).addErrback(lambda _: None)


class BrokenTests(SynchronousTestCase):
    """What a test learns of a promise that was not kept."""

    def build(self, simulation: Simulation) -> None:
        for host in ("a", "b"):
            simulation.node(Forgetful, host=host, topic="forgetful")
        simulation.caller("c", ask)
        simulation.promises.append(self.no_run_is_cut_off)

    def no_run_is_cut_off(self, simulation: Simulation) -> list[str]:
        """A promise of the test's own, which a pause breaks."""
        return [
            f"{run.process} answered after {run.ended - run.began:.1f} s"
            for run in simulation.ledger.runs
            if run.ended is not None and run.ended - run.began > 1.0
        ] or [str(fault) for _, _, fault in simulation.disturbances if fault.kind == "pause"]

    def test_own_promise(self) -> None:
        """A promise of the test's own is checked; the error has seed, faults and trace, and how to repeat it."""
        options: dict[str, Any] = {"kinds": ("pause", "slow", "cut"), "faults": 6, "duration": 30.0}
        with self.assertRaises(BrokenPromiseError) as raised:
            check_seeds(self.build, range(20), **options)
        text = str(raised.exception)
        self.assertIn("no_run_is_cut_off", text)
        self.assertIn("pause of", text)
        self.assertIn("run_seed(build,", text)

    def test_options(self) -> None:
        """The trace and the faults that a test has chosen do not hide what is broken."""
        pause = Fault(number=0, kind="pause", at=18.0, seconds=3.0, places=("b",))
        for options in ({"keep_trace": True}, {"plan": [pause]}):
            given: dict[str, Any] = {"kinds": ("pause",), "duration": 10.0, **options}
            with self.subTest(options=options), self.assertRaisesRegex(BrokenPromiseError, "no_run_is_cut_off"):
                check_seeds(self.build, range(20), **given)

    def test_promise_raises(self) -> None:
        """A promise that asserts, or that has no name, is reported with its seed."""

        def nobody_answers(simulation: Simulation) -> list[str]:
            assert not simulation.nodes, "there are nodes"
            return []

        for promise, text in (
            (nobody_answers, "nobody_answers: it raised AssertionError.*there are nodes"),
            (partial(lambda answer, simulation: [answer], "none"), "functools.partial.*: none"),
        ):

            def build_and_promise(simulation: Simulation, promise: Any = promise) -> None:
                simulation.node(Forgetful, host="a", topic="forgetful")
                simulation.promises.append(promise)

            with self.subTest(text=text), self.assertRaisesRegex(BrokenPromiseError, f"(?s)seed 5: {text}"):
                check_seeds(build_and_promise, [5], faults=0, duration=1.0)

    def test_shrink(self) -> None:
        """Faults that a failing seed does not need are left out; the others stay as they are."""
        plan = [
            Fault(number=0, kind="slow", at=16.0, seconds=3.0, places=("a",)),
            Fault(number=1, kind="pause", at=18.0, seconds=3.0, places=("b",)),
            Fault(number=2, kind="cut", at=20.0, seconds=3.0, places=("c",)),
        ]
        failed = run_seed(self.build, 1, plan=plan, duration=10.0)
        self.assertEqual(shrink(self.build, failed, duration=10.0).plan, plan[1:2])

    def test_good(self) -> None:
        """Seeds that keep all promises are returned with what they did."""
        outcomes = check_seeds(build, range(2), duration=5.0, faults=0)
        self.flushLoggedErrors(LookupError)  # of handlers of events
        self.assertEqual([outcome.seed for outcome in outcomes], [0, 1])
        self.assertTrue(all(outcome.requests and not outcome.plan for outcome in outcomes))


class Desk(Manager):
    """Does something in a thread, or waits there for a call."""

    ran = 0

    @rpc.expose(blocking=True)
    def work(self, context: RequestContext) -> None:
        Desk.ran += 1

    @rpc.expose(blocking=True)
    def ask(self, context: RequestContext) -> Any:
        return self.attachments.blocking.prepare(topic="forgetful").call(context, "add")


class BlockingTests(SynchronousTestCase):
    """Blocking methods of a simulation."""

    def run_desk(self, method: str, plan: list[Fault]) -> list[str]:
        """Return what is broken when a caller calls a method of a node of two each second."""

        async def call(caller: Caller) -> None:
            while not caller.over:
                await caller.pause(1.0)
                caller.call("desk", method, timeout=30.0).addErrback(lambda _: None)

        def build(simulation: Simulation) -> None:
            simulation.node(Forgetful, host="a", topic="forgetful")
            simulation.node(Desk, host="b", topic="desk")
            simulation.caller("c", call)

        return run_seed(build, 1, plan=plan, duration=10.0).broken

    def test_no_wait(self) -> None:
        """A blocking method that waits for nothing can be simulated, also in a process that is killed."""
        Desk.ran = 0
        plan = [Fault(number=0, kind="kill", at=17.0, seconds=3.0, places=("b",))]
        self.assertEqual(self.run_desk("work", plan), [])
        self.assertGreater(Desk.ran, 10)

    def test_wait(self) -> None:
        """A blocking method that waits for a call is a problem that says what to do, in each process that runs it."""
        plan = [Fault(number=0, kind="kill", at=17.0, seconds=3.0, places=("b",))]
        broken = self.run_desk("ask", plan)
        self.flushLoggedErrors(StateError)
        for process in ("b#1", "b#2"):
            self.assertRegex(
                "\n".join(broken),
                f"(?m)^blocking: {process}: a simulation is in one thread and cannot have a blocking function wait for "
                "'add' of forgetful; make the function a coroutine",
            )


class MistakeTests(SynchronousTestCase):
    """What a test's author gets wrong first."""

    def setUp(self) -> None:
        self.simulation = Simulation(1, duration=5.0, faults=0)

    def test_kind(self) -> None:
        """A misspelt kind of faults is an error that names those that there are."""
        with self.assertRaisesRegex(ValueError, "no fault 'crash'; there are: kill, pause"):
            Simulation(1, kinds=("crash",))

    def test_same_place(self) -> None:
        """A second node of the topic on a host, or a second caller, is an error."""
        self.simulation.node(Forgetful, host="a", topic="forgetful")
        with self.assertRaisesRegex(ValueError, "a node of 'forgetful' on 'a'"):
            self.simulation.node(Forgetful, host="a", topic="forgetful")
        self.simulation.caller("c", ask)
        with self.assertRaisesRegex(ValueError, "a caller on 'c'"):
            self.simulation.caller("c", ask)

    def test_work(self) -> None:
        """The work of a caller must be a coroutine function."""
        with self.assertRaisesRegex(TypeError, "`async def` that takes the caller"):
            self.simulation.caller("c", lambda caller: None)

    def test_late(self) -> None:
        """Nothing is added when it has run."""
        self.simulation.run()
        with self.assertRaisesRegex(StateError, "add it before it runs"):
            self.simulation.caller("c", ask)

    def test_endless(self) -> None:
        """Work that goes on for ever is a problem that says how to write it."""

        async def ask_for_ever(caller: Caller) -> None:
            while True:
                await caller.pause(1.0)

        outcome = run_seed(lambda simulation: simulation.caller("c", ask_for_ever), 1, duration=5.0, faults=0)
        self.assertRegex(outcome.broken[0], "work_ends: .* `while not caller.over`")

    def test_work_fails(self) -> None:
        """An error of the work is a problem, with its traceback."""

        async def fail(caller: Caller) -> None:
            raise LookupError(caller.host)

        outcome = run_seed(lambda simulation: simulation.caller("c", fail), 1, duration=5.0, faults=0)
        self.assertRegex(outcome.broken[0], "(?s)work: .*LookupError: c")

    def test_start_fails(self) -> None:
        """A manager that cannot be started is a problem that names the node and the reason."""

        class Broken(Manager):
            def init_host(self) -> None:
                raise OSError("no disk")

        outcome = run_seed(lambda simulation: simulation.node(Broken, host="a", topic="b"), 1, duration=5.0, faults=0)
        self.flushLoggedErrors(OSError)
        self.assertRegex(outcome.broken[0], r"started: b\.a was not started: .*no disk")
