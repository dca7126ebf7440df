"""Tests for novasvc.reactor.threads, with real threads and the test's reactor."""

import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from novasvc.errors import NoThreadError
from novasvc.reactor.threads import BlockingPool
from tests.support.waiting import until

VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")
VARIABLE_CONTEXT = copy_context()


class EndingReactor:
    """The test's reactor, except that the test fires the triggers of the shutdown."""

    def __init__(self) -> None:
        self.triggers: list[Callable[[], None]] = []

    def callFromThread(self, function: Any, *args: Any) -> None:
        reactor.callFromThread(function, *args)  # type: ignore[attr-defined]

    def addSystemEventTrigger(self, phase: str, event: str, function: Callable[[], None]) -> None:
        assert (phase, event) == ("after", "shutdown")
        self.triggers.append(function)


class Gate:
    """A function that blocks its thread until the test releases it."""

    def __init__(self, outcome: object = "done") -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.outcome = outcome

    def __call__(self) -> object:
        self.entered.set()
        assert self.leave.wait(30)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class BlockingPoolTests(TestCase):
    """Tests for novasvc.reactor.threads.BlockingPool."""

    def setUp(self) -> None:
        self.reactor = EndingReactor()
        self.gates: list[Gate] = []
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def tearDown(self) -> None:
        for gate in self.gates:
            gate.leave.set()

    def make(self, **options: int) -> BlockingPool:
        return BlockingPool(self.reactor, **options)

    def gate(self, outcome: object = "done") -> Gate:
        self.gates.append(Gate(outcome))
        return self.gates[-1]

    def warnings(self) -> list[str]:
        return [
            event["log_format"].format(**event)
            for event in self.events
            if event.get("log_namespace") == "novasvc.reactor.threads"
        ]

    async def test_result(self) -> None:
        """The function gets its arguments, and the Deferred its result or exception."""
        pool = self.make()
        self.assertEqual(await pool.run_blocking(divmod, 7, 2), (3, 1))
        self.assertEqual(await pool.run_blocking(dict, function=1, self=2), {"function": 1, "self": 2})
        await self.assertFailure(pool.run_blocking(int, "x"), ValueError)

    async def test_any_exception(self) -> None:
        """Even SystemExit and the like fail the Deferred, and the thread goes on."""
        pool = self.make(threads=1)
        for error in (SystemExit(3), StopIteration(), CancelledError()):
            await self.assertFailure(pool.run_blocking(partial(_raise, error)), type(error))
        self.assertEqual(await pool.run_blocking(int), 0)

    async def test_lazy_daemons(self) -> None:
        """Threads are started only when needed, and are daemons."""
        before = set(threading.enumerate())
        pool = self.make()
        self.assertEqual(set(threading.enumerate()), before)
        self.assertEqual(self.reactor.triggers, [])
        await pool.run_blocking(int)
        thread = await pool.run_blocking(threading.current_thread)
        self.assertEqual(set(threading.enumerate()) - before, {thread})
        self.assertTrue(thread.daemon)
        self.assertEqual(len(self.reactor.triggers), 1)

    async def test_context(self) -> None:
        """The function has a copy of its caller's context variables; its changes stay in the copy."""

        def see_and_set() -> str:
            seen = VARIABLE.get()
            VARIABLE.set("the thread's")
            return seen

        pool = self.make(threads=1)
        VARIABLE.set("the caller's")
        self.assertEqual(await pool.run_blocking(see_and_set), "the caller's")
        self.assertEqual(await pool.run_blocking(see_and_set), "the caller's")
        self.assertEqual(VARIABLE.get(), "the caller's")

    async def test_cancel_while_it_runs(self) -> None:
        """A cancelled Deferred fires only when its function has ended, however often it is cancelled."""
        pool = self.make(threads=1)
        gate = self.gate()
        running = pool.run_blocking(gate)
        await until(gate.entered.is_set)
        for _ in range(3):
            running.cancel()
            self.assertNoResult(running)
        behind = pool.run_blocking(str, "behind")
        gate.leave.set()
        self.assertEqual(await behind, "behind")
        self.failureResultOf(running, CancelledError)
        self.assertEqual(self.warnings(), [])

    async def test_cancel_while_it_fails(self) -> None:
        """A function that fails after it was cancelled is a CancelledError, and its own error is logged."""
        gate = self.gate(LookupError("the disk came back"))
        running = self.make().run_blocking(gate)
        await until(gate.entered.is_set)
        running.cancel()
        gate.leave.set()
        await self.assertFailure(running, CancelledError)
        await until(lambda: bool(self.warnings()))
        self.assertRegex(self.warnings()[0], "failed after it was cancelled: LookupError: the disk came back")

    async def test_cancel_a_coroutine(self) -> None:
        """A cancelled coroutine that awaits the function ends when the function has ended."""
        gate = self.gate()
        pool = self.make()

        async def wait() -> object:
            return await pool.run_blocking(gate)

        waiting = Deferred.fromCoroutine(wait())
        await until(gate.entered.is_set)
        waiting.cancel()
        waiting.cancel()
        self.assertNoResult(waiting)
        gate.leave.set()
        await self.assertFailure(waiting, CancelledError)

    async def test_cancel_in_the_queue(self) -> None:
        """A function that is cancelled in the queue never runs, and the others keep their places."""
        pool = self.make(threads=1)
        gate, never = self.gate(), self.gate()
        running, waiting, last = pool.run_blocking(gate), pool.run_blocking(never), pool.run_blocking(int)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        gate.leave.set()
        self.assertEqual((await running, await last), ("done", 0))
        self.assertFalse(never.entered.is_set())

    async def test_bounds(self) -> None:
        """A function over the bounds fails at once with both of them; no more functions run at a time than threads."""
        pool = self.make(threads=2, queue=1)
        gates = [self.gate(number) for number in range(3)]
        running = [pool.run_blocking(gate) for gate in gates]
        error = self.failureResultOf(pool.run_blocking(self.gate), NoThreadError).value
        self.assertRegex(str(error), r"BlockingPoolTests.gate was not started: all 2 threads .* 1 functions are queued")
        await until(lambda: gates[0].entered.is_set() and gates[1].entered.is_set())
        self.assertFalse(gates[2].entered.wait(0.02))
        for gate in gates:
            gate.leave.set()
        self.assertEqual([await each for each in running], [0, 1, 2])

    async def test_no_thread_to_be_had(self) -> None:
        """If the system starts no thread, NoThreadError is raised, and the pool works again when it does."""

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        pool = self.make(threads=1)
        patch = self.patch(threading.Thread, "start", refuse)
        for _ in range(2):
            error = self.failureResultOf(pool.run_blocking(int), NoThreadError).value
            self.assertIn("can't start new thread", str(error))
        patch.restore()
        self.assertEqual(await pool.run_blocking(int), 0)

    async def test_nothing_to_wait_for(self) -> None:
        """A function that returns a Deferred or a coroutine fails with TypeError."""

        async def coroutine() -> None:
            """Do nothing."""

        pool = self.make()
        for function in (Deferred, coroutine):
            await self.assertFailure(pool.run_blocking(function), TypeError)

    async def test_left_behind(self) -> None:
        """At the end of the process one warning names the functions that still run, and for how long."""
        pool = self.make()
        await pool.run_blocking(int)
        self.reactor.triggers[0]()
        self.assertEqual(self.warnings(), [])
        gate = self.gate()
        running = pool.run_blocking(partial(VARIABLE_CONTEXT.run, _call, gate))
        await until(gate.entered.is_set)
        self.reactor.triggers[0]()
        (warning,) = self.warnings()
        self.assertRegex(warning, r"functions still running in threads.*: \S*test_threads\._call \(0 s\)$")
        gate.leave.set()
        await running


def _raise(error: BaseException) -> None:
    raise error


def _call(function: Callable[[], object]) -> object:
    return function()
