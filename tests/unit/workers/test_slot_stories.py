"""Tests for novasvc.workers.slot: its whole table, and whatever happens in whatever parameters."""

from collections.abc import Callable
from signal import SIGABRT, SIGKILL, SIGSEGV, SIGTERM
from typing import Any

from automat import NoTransition
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.support.examples import examples
from tests.support.slot_rig import SlotRig

ENDED = "exited with status 1"


def be_ready(rig: SlotRig) -> None:
    rig.ready()


def hang(rig: SlotRig) -> None:
    rig.ready().heartbeat_age = 11.0
    rig.slot.check()


def back_off(rig: SlotRig) -> None:
    rig.slot.start()
    rig.process.exit(1)
    rig.process.exit(1)


def fail(rig: SlotRig) -> None:
    rig.gives_up = True
    rig.slot.start()
    rig.process.fail("no such manager", final=True)


def drain(rig: SlotRig) -> None:
    rig.ready()
    rig.slot.drain()


def leave(rig: SlotRig) -> None:
    rig.ready().listener.received({"is": "draining", "calls": 1})


WAYS: dict[str, Callable[[SlotRig], object]] = {
    "idle": lambda _: None,
    "starting": lambda rig: rig.slot.start(),
    "ready": be_ready,
    "draining": drain,
    "leaving": leave,
    "hung": hang,
    "backing off": back_off,
    "failed": fail,
    "ended": lambda rig: rig.slot.drain(),
}
INPUTS: dict[str, tuple[Any, ...]] = {
    "start": (),
    "ready": (),
    "ended": (ENDED,),
    "stalled": (31.0,),
    "elapsed": (),
    "plan_restart": (),
    "give_up": (),
    "drain": (),
    "leave": (),
    "interrupt": (),
}
TABLE = {
    "idle": {"start": "starting", "drain": "ended", "leave": "idle", "interrupt": "idle"},
    "starting": {
        "start": "starting",
        "ready": "ready",
        "ended": "starting",  # again, at once
        "stalled": "hung",
        "elapsed": "hung",
        "drain": "draining",
        "leave": "starting",
        "interrupt": "starting",
    },
    "ready": {
        "start": "ready",
        "ready": "ready",
        "ended": "starting",
        "stalled": "hung",
        "elapsed": "ready",
        "drain": "draining",
        "leave": "leaving",
        "interrupt": "ready",
    },
    "draining": {
        "start": "draining",
        "ready": "draining",
        "ended": "ended",
        "stalled": "draining",
        "elapsed": "draining",
        "drain": "draining",
        "leave": "draining",
        "interrupt": "draining",
    },
    "leaving": {
        "start": "leaving",
        "ready": "leaving",
        "ended": "starting",
        "stalled": "leaving",
        "elapsed": "leaving",
        "drain": "draining",
        "leave": "leaving",
        "interrupt": "leaving",
    },
    "hung": {
        "start": "hung",
        "ready": "hung",
        "ended": "starting",
        "stalled": "hung",
        "elapsed": "hung",
        "drain": "draining",
        "leave": "hung",
        "interrupt": "hung",
    },
    "backing off": {
        "start": "starting",
        "elapsed": "backing off",
        "plan_restart": "backing off",
        "give_up": "failed",
        "drain": "ended",
        "leave": "backing off",
        "interrupt": "backing off",
    },
    "failed": {"start": "starting", "elapsed": "failed", "drain": "ended", "leave": "failed", "interrupt": "failed"},
    "ended": {"elapsed": "ended", "plan_restart": "ended", "drain": "ended", "leave": "ended", "interrupt": "ended"},
}
"""What is not here cannot happen: the end or a word of no process, the start of what was given up."""


class TableTests(SynchronousTestCase):
    """Every state and every input."""

    def state(self, rig: SlotRig) -> str:
        """Return the machine's state; people see "leaving" as "draining"."""
        name: str = rig.slot._machine.__automat_transitioner__._state.name
        self.assertEqual(rig.state, "draining" if name == "leaving" else name)
        return name

    def test_table(self) -> None:
        """Each input leads where the table says, and what the table does not have, does not exist."""
        for state, reach in WAYS.items():
            for name, arguments in INPUTS.items():
                rig = SlotRig()
                reach(rig)
                self.assertEqual(self.state(rig), state)
                give = getattr(rig.slot._machine, name)
                if name in TABLE[state]:
                    give(*arguments)
                    self.assertEqual(self.state(rig), TABLE[state][name], (state, name))
                else:
                    self.assertRaises(NoTransition, give, *arguments)


class SlotStories(RuleBasedStateMachine):
    """A worker's place, to which anything happens that can."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = SlotRig(workers=2)
        self.slot = self.rig.slot
        self.drained: Deferred[str] | None = None

    def has_process(self) -> bool:
        return self.slot.process is not None

    @precondition(lambda self: self.slot.state == "idle" and not self.rig.clock.calls)
    @rule()
    def start(self) -> None:
        self.slot.start()

    @rule(seconds=st.floats(0.01, 100))
    def pass_time(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)

    @precondition(has_process)
    @rule()
    def be_forked(self) -> None:
        self.rig.process.be_forked()

    @precondition(has_process)
    @rule()
    def fail_fork(self) -> None:
        self.rig.process.listener.fork_failed("fork failed")

    @rule()
    def run_short(self) -> None:
        self.rig.scarce = 1

    @precondition(has_process)
    @rule()
    def ready(self) -> None:
        self.rig.process.be_ready()

    @precondition(has_process)
    @rule(leg=st.sampled_from(["broker", "database", None]))
    def wait(self, leg: str | None) -> None:
        self.rig.process.listener.received({"is": "waiting", "for": leg})

    @precondition(has_process)
    @rule(calls=st.integers(0, 2))
    def leave(self, calls: int) -> None:
        self.rig.process.listener.received({"is": "draining", "calls": calls})

    @precondition(has_process)
    @rule(final=st.booleans(), gives_up=st.booleans())
    def fail(self, *, final: bool, gives_up: bool) -> None:
        self.rig.gives_up = gives_up
        self.rig.process.fail("broken", final=final)

    @precondition(has_process)
    @rule(number=st.sampled_from([SIGTERM, SIGKILL, SIGSEGV, SIGABRT]))
    def die(self, number: int) -> None:
        self.rig.process.die_of(number)

    @precondition(has_process)
    @rule(seconds=st.sampled_from([0.0, 31.0]))
    def check(self, seconds: float) -> None:
        self.rig.process.heartbeat_age = seconds
        self.slot.check()

    @rule(drains=st.booleans(), state=st.sampled_from(["ready", "backing off", "hung", "starting", "failed"]))
    def wait_for(self, *, drains: bool, state: str) -> None:
        waiting = self.slot.reaches(state)
        if drains:
            waiting.addCallback(lambda _: self.slot.drain())

    @rule()
    def drain(self) -> None:
        self.drained = self.slot.drain()

    @rule()
    def interrupt(self) -> None:
        self.slot.interrupt()

    @invariant()
    def states_with_a_process_have_one(self) -> None:
        with_process = {"starting", "ready", "draining", "hung"}
        assert (self.slot.state in with_process) == (self.slot.process is not None), self.slot.state

    @invariant()
    def time_ends_what_is_to_end(self) -> None:
        state, timers = self.slot.state, self.rig.clock.calls
        assert len(timers) <= 1
        if state in {"backing off", "draining", "hung"}:
            assert timers
        if state in {"ready", "failed", "ended"}:
            assert not timers

    @invariant()
    def who_drains_is_told_of_the_end(self) -> None:
        if self.drained is not None:
            assert self.drained.called == (self.slot.state == "ended")


SlotStories.TestCase.settings = settings(max_examples=examples(100), stateful_step_count=40)
SlotStoriesTests = SlotStories.TestCase
