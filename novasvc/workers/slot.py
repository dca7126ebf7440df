"""The place of one worker, as an Automat machine: its process is born, watched, drained, replaced."""

import time
from collections.abc import Callable
from signal import SIGABRT, SIGKILL, SIGTERM
from typing import Any, Protocol

import attrs
from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from novasvc.telemetry import metrics
from novasvc.telemetry.flight import format_events
from novasvc.telemetry.logs import pluralize
from novasvc.workers.exit_status import ABANDONED, FORCED
from novasvc.workers.pipe import Message
from novasvc.workers.process import Exit, Launch, WorkerProcess
from novasvc.workers.restart_policy import History, RestartPolicy, Throttle

_log = Logger()

ABORT_PATIENCE = 2.0
"""Seconds between SIGABRT, at which a process writes down its stacks, and SIGKILL."""

HURRY_PATIENCE = 2.0
"""Seconds that a worker has, when it is to end at once, to cut short what it does; then comes SIGKILL."""

SLOWLY = 30.0
"""Seconds between two attempts when the budget is used up."""

_LAST_EVENTS = 30
"""Events of the flight recorder that are logged for a worker that crashed."""


@attrs.frozen
class Limits:
    """Seconds that a worker is given; 0 is without limit.

    :param start: to be ready.
    :param drain: to finish what it has begun.
    :param silence: between two turns of its reactor.
    """

    start: float = 60.0
    drain: float = 60.0
    silence: float = 30.0


class SlotInput(Protocol):
    """What happens to a worker's place."""

    def start(self) -> None:
        """Have a process forked."""

    def ready(self) -> None:
        """Note that the process does its work."""

    def ended(self, how: str) -> None:
        """Note that there is no process, because it ended or could not be forked."""

    def silent(self, seconds: float) -> None:
        """Note that the process's reactor does not turn."""

    def elapsed(self) -> None:
        """Note that the time of this state is over."""

    def plan(self) -> None:
        """Decide what follows the end of the process."""

    def give_up(self) -> None:
        """Start no more."""

    def drain(self) -> None:
        """Let the process finish what it has begun, and start no other."""

    def leave(self) -> None:
        """Note that the process drains, whoever has told it to."""

    def hurry(self) -> None:
        """Let the process end at once."""


@attrs.define(eq=False)
class Slot:
    """A worker's place: its number, its process, what became of those before.

    It listens to its process; see :class:`novasvc.workers.process.ProcessListener`.

    :param number: stable: whoever takes the place of a worker has its number.
    :param name: of the server.
    :param launch: begins a process.
    :param give_up: told of a problem with which no worker can run ("" is none, but the budget is used up);
        returns whether to start no more.
    :param tell_of_siblings: answers a worker that asks about the other workers of its server.
    :ivar cut: its process, which was to end, has not ended by itself, but was cut short or killed.
    """

    number: int
    name: str
    _clock: Any
    _launch: Launch
    _policy: RestartPolicy
    limits: Limits
    _throttle: Throttle
    _give_up: Callable[["Slot", str], bool]
    _tell_of_siblings: Callable[["Slot", Message], object] = lambda _slot, _message: None
    state: str = attrs.field(default="idle", init=False)
    since: float = attrs.field(factory=time.time, init=False)
    restarts: int = attrs.field(default=0, init=False)
    trouble: str | None = attrs.field(default=None, init=False)
    cut: bool = attrs.field(default=False, init=False)
    process: WorkerProcess | None = attrs.field(default=None, init=False)
    _final: str = attrs.field(default="", init=False)
    _epitaph: str = attrs.field(default="", init=False)
    _entered_at: float = attrs.field(default=0.0, init=False)
    _ready_at: float | None = attrs.field(default=None, init=False)
    _aborted: bool = attrs.field(default=False, init=False)
    _pressed: bool = attrs.field(default=False, init=False)
    _killed: bool = attrs.field(default=False, init=False)
    _failed: bool = attrs.field(default=False, init=False)
    _ended_by: int | None = attrs.field(default=None, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _waiters: list[tuple[frozenset[str], Deferred[str]]] = attrs.field(factory=list, init=False)
    _history: History = attrs.field(init=False)
    _machine: SlotInput = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # There before they count: an increase is reckoned from the first value that is seen.
        metrics.worker_restarts.at(self.name)
        metrics.worker_hangs.at(self.name)
        self._history = History(self._policy)
        self._machine = _make_slot(self)

    def __str__(self) -> str:
        pid = "" if self.process is None or self.process.pid is None else f" (pid {self.process.pid})"
        return f"worker {self.number}{pid} of {self.name}"

    # -- for the outside -----------------------------------------------------------------------

    def start(self) -> None:
        """Have a process forked."""
        self._machine.start()

    def drain(self) -> Deferred[str]:
        """Let the worker finish what it has begun; its place is given up.

        :return: fires when there is no process any more.
        """
        self._machine.drain()
        return self.reaches("ended")

    def hurry(self) -> None:
        """Drain in no time."""
        self._machine.drain()
        self._machine.hurry()

    def check(self) -> None:
        """See whether the worker's reactor turns. Called about once a second."""
        if self.process is None or not self.limits.silence:
            return
        silent = self.process.silent
        if silent > self.limits.silence:
            self._machine.silent(silent)

    def reaches(self, *states: str) -> Deferred[str]:
        """Wait for one of some states; fires with its name, at once if it is that already."""
        waiter: Deferred[str] = Deferred(lambda waiter: self._waiters.remove((frozenset(states), waiter)))
        if self.state in states:
            waiter.callback(self.state)
        else:
            self._waiters.append((frozenset(states), waiter))
        return waiter

    # -- for the process -----------------------------------------------------------------------

    def born(self) -> None:
        """See it born."""
        _log.debug("forked {worker}", worker=self)

    def refused(self, problem: str) -> None:
        """See that it could not be forked."""
        self._machine.ended(f"could not be forked: {problem}")

    def said(self, message: Message) -> None:
        """Take what it says of itself."""
        match message:
            case {"is": "ready"}:
                self._machine.ready()
            case {"is": "failed", "problem": problem, "final": final}:
                self.trouble, self._failed = problem, True
                self._final = problem if final else ""
            case {"is": "waiting", "for": leg} if self.state == "starting":
                self.trouble = None if leg is None else f"waits for the {leg}"
                # An outage is not the worker's fault: its time to start begins when it is over.
                self.arm(self.limits.start if leg is None else 0)
            case {"is": "asking", "key": _, "request_id": _}:
                self._tell_of_siblings(self, message)
            case {"is": "draining", "calls": calls}:
                self._machine.leave()
                under_way = f"{pluralize(calls, 'call')} under way" if calls else None
                if under_way is not None:
                    _log.info("{worker} is draining: {under_way}", worker=self, under_way=under_way)
                if not self._failed:
                    self.trouble = under_way

    def ended(self, how: Exit) -> None:
        """See it end."""
        self._ended_by = how.signal
        crashed = how.signal not in {None, SIGTERM, SIGKILL} or self.state == "hung"
        murdered = how.signal == SIGKILL and self.state in {
            "starting",
            "ready",
        }  # by the kernel for want of memory, say
        assert self.process is not None
        if crashed or murdered:
            self._log_remains(how, self.process.stacks or "none were written" if crashed else "")
        self._machine.ended(str(how))

    def _log_remains(self, how: Exit, stacks: str) -> None:
        """Log what a process has left.

        :param stacks: "" for one that had no time to write any.
        """
        assert self.process is not None
        _log.error(
            "{worker} {how}; {stacks}its last events:\n{events}",
            worker=self,
            how=how,
            stacks=f"its stacks:\n{stacks}\n" if stacks else "",
            events=format_events(self.process.last_events(_LAST_EVENTS)) or "none",
        )

    # -- for the machine -----------------------------------------------------------------------

    def enter(self, state: str) -> None:
        """Be in a state from now on, and let those know who wait for it."""
        self.arm(0)
        self.state, self.since, self._entered_at = state, time.time(), self._clock.seconds()
        waiters = [waiter for waiter in self._waiters if state in waiter[0]]
        for waiter in waiters:
            if waiter in self._waiters:  # who was told before it, may have cancelled it
                self._waiters.remove(waiter)
                # Who waited may give the machine another input; it is taken when this one has been.
                waiter[1].callback(state)

    def arm(self, seconds: float) -> None:
        """Have the time of this state be over in some seconds; 0 is never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds:
            self._timer = self._clock.callLater(seconds, self._elapsed)

    def _elapsed(self) -> None:
        self._timer = None
        if self.state == "backing off":
            self._start_again()
        else:
            self._machine.elapsed()

    def _start_again(self) -> None:
        """Have a process forked that follows one, as soon as the throttle allows it."""
        if wait := self._throttle.wait(self._clock.seconds()):
            self.arm(wait)
        else:
            self._machine.start()

    def launch(self) -> None:
        """Have a process forked."""
        self._throttle.forked(self._clock.seconds(), after_death=self.restarts > 0)
        self._ready_at, self._final, self.trouble = None, "", None
        self._aborted = self._pressed = self._killed = self._failed = False
        self.arm(self.limits.start)
        try:
            self.process = self._launch(self)
        except OSError as error:  # out of descriptors, most likely
            self.refused(str(error.strerror))

    def note_ready(self) -> None:
        """Remember that it lives."""
        now = self._clock.seconds()
        _log.info("{worker} is ready after {seconds:.3f} s", worker=self, seconds=now - self._entered_at)
        self._ready_at, self.trouble = now, None

    def abort(self, problem: str) -> None:
        """Have the process write down its stacks and end; it is killed if it does not."""
        _log.error("{worker} hangs: {problem}; it is aborted", worker=self, problem=problem)
        self.trouble = problem
        self._aborted = self._pressed = True
        metrics.worker_hangs.at(self.name).value += 1
        self.signal(SIGABRT)
        self.arm(ABORT_PATIENCE)

    def abort_once(self, problem: str) -> None:
        """Abort it, unless that was done."""
        if not self._aborted:
            self.abort(problem)

    def begin_drain(self) -> None:
        """Ask the process to finish."""
        self.signal(SIGTERM)
        self.limit_drain()

    def limit_drain(self) -> None:
        """Give the process its time to finish."""
        self.arm(self.limits.drain)

    def press(self) -> None:
        """Tell the process to end at once."""
        self._tell_to_hurry(HURRY_PATIENCE / 2)
        if self._timer is None or self._timer.getTime() > self._clock.seconds() + HURRY_PATIENCE:
            self.arm(HURRY_PATIENCE)

    def _tell_to_hurry(self, seconds: float) -> None:
        self._pressed = True
        if self.process is not None:
            self.process.hurry(seconds)

    def be_late(self) -> None:
        """Have the process cut short what it does, and kill it if that did not help."""
        if self._pressed:
            self.kill()
        else:
            self._tell_to_hurry(ABANDONED)
            self.arm(FORCED)

    def kill(self) -> None:
        """End the process by force."""
        self._killed = True
        lost = "what it had begun is lost, or runs again elsewhere"
        _log.error("{worker} has not ended in time, and is killed; {lost}", worker=self, lost=lost)
        self.signal(SIGKILL)

    def signal(self, number: int) -> None:
        """Send the process a signal, if there is one."""
        if self.process is not None:
            self.process.signal(number)

    def note_end(self, how: str) -> None:
        """Remember how the process ended, which is the trouble unless it said one itself."""
        self._epitaph = f"{self} {how}" if self.trouble is None else f"{self} {how}: {self.trouble}"
        self.trouble = self.trouble or f"it {how}"
        self.restarts += 1
        metrics.worker_restarts.at(self.name).value += 1
        self.process = None

    def plan(self) -> None:
        """Decide what follows the end of the process."""
        now = self._clock.seconds()
        lived = None if self._ready_at is None else now - self._ready_at
        pause = self._history.died(now, lived, killed=self._ended_by == SIGKILL)
        if self._final or self._history.exhausted:
            if self._give_up(self, self._final):
                self.log_last_end()
                self._machine.give_up()
                return
            pause = SLOWLY
        pause = max(pause, self._throttle.wait(now))
        when = f"again in {pause:.1f} s" if pause else "again at once"
        _log.error("{what}; it is started {when}", what=self._epitaph, when=when)
        if pause:
            self.arm(pause)
        else:
            self._machine.start()

    def log_last_end(self) -> None:
        """Log the end of a process that no other follows."""
        _log.critical("{what}; it is not started again", what=self._epitaph)

    def log_drained(self, how: str) -> None:
        """Log how a process ended that was told to."""
        finished = self.process is None or self.process.finished or self._ready_at is None
        self.cut = self._pressed and not finished
        if self.cut and not self._killed:  # what is killed was told already
            lost = "what it had begun is lost, or runs again elsewhere"
            _log.warn("{worker} was cut short: it {how}; {lost}", worker=self, how=how, lost=lost)
        else:
            _log.info("{worker} is drained: it {how}", worker=self, how=how)

    def finish(self) -> None:
        """Be without a process for good."""
        self.process = None


def _build() -> Callable[[Slot], SlotInput]:
    builder = TypeMachineBuilder(SlotInput, Slot)
    idle = builder.state("idle")
    starting = builder.state("starting")
    ready = builder.state("ready")
    draining = builder.state("draining")
    hung = builder.state("hung")
    backing_off = builder.state("backing off")
    failed = builder.state("failed")
    ended = builder.state("ended")

    for without in (idle, backing_off, failed):

        @without.upon(SlotInput.start).to(starting)
        def start(machine: SlotInput, slot: Slot) -> None:
            slot.enter("starting")
            slot.launch()

        @without.upon(SlotInput.drain).to(ended)
        def give_back(machine: SlotInput, slot: Slot) -> None:
            slot.enter("ended")

    @starting.upon(SlotInput.ready).to(ready)
    def live(machine: SlotInput, slot: Slot) -> None:
        slot.note_ready()
        slot.enter("ready")

    @starting.upon(SlotInput.elapsed).to(hung)
    def too_late(machine: SlotInput, slot: Slot) -> None:
        slot.enter("hung")
        slot.abort(f"it was not ready within worker_start_timeout ({slot.limits.start:g} s)")

    for alive in (starting, ready):

        @alive.upon(SlotInput.silent).to(hung)
        def stuck(machine: SlotInput, slot: Slot, seconds: float) -> None:
            slot.enter("hung")
            slot.abort(f"its reactor did not turn for {seconds:.0f} s")

    @ready.upon(SlotInput.drain).to(draining)
    def drain(machine: SlotInput, slot: Slot) -> None:
        slot.enter("draining")
        slot.begin_drain()

    @starting.upon(SlotInput.drain).to(draining)
    def drain_unready(machine: SlotInput, slot: Slot) -> None:
        # It has begun nothing for others that would have to be finished.
        slot.enter("draining")
        slot.begin_drain()
        slot.press()

    # One that was told to end by somebody else: it has as long as any other, and is replaced.
    leaving = builder.state("leaving")

    @ready.upon(SlotInput.leave).to(leaving)
    def leave(machine: SlotInput, slot: Slot) -> None:
        slot.enter("draining")
        slot.limit_drain()

    @leaving.upon(SlotInput.drain).to(draining)
    def drain_leaving(machine: SlotInput, slot: Slot) -> None:
        pass  # it drains already; its place is not filled again

    @leaving.upon(SlotInput.silent).loop()
    def stuck_in_leave(machine: SlotInput, slot: Slot, seconds: float) -> None:
        slot.abort_once(f"its reactor did not turn for {seconds:.0f} s while it drained")

    @leaving.upon(SlotInput.elapsed).loop()
    def late_in_leave(machine: SlotInput, slot: Slot) -> None:
        slot.be_late()

    for dying in (starting, ready, hung, leaving):

        @dying.upon(SlotInput.ended).to(backing_off)
        def died(machine: SlotInput, slot: Slot, how: str) -> None:
            slot.note_end(how)
            slot.enter("backing off")
            # Behind what those want who waited for this: who gives the place up, wants no other process.
            machine.plan()

    @backing_off.upon(SlotInput.plan).loop()
    def plan(machine: SlotInput, slot: Slot) -> None:
        slot.plan()

    @ended.upon(SlotInput.plan).loop()
    def plan_nothing(machine: SlotInput, slot: Slot) -> None:
        slot.log_last_end()

    @backing_off.upon(SlotInput.give_up).to(failed)
    def give_up(machine: SlotInput, slot: Slot) -> None:
        slot.enter("failed")

    @hung.upon(SlotInput.elapsed).loop()
    def kill_hung(machine: SlotInput, slot: Slot) -> None:
        slot.signal(SIGKILL)

    @hung.upon(SlotInput.drain).to(draining)
    def end_hung(machine: SlotInput, slot: Slot) -> None:
        slot.enter("draining")
        slot.signal(SIGKILL)

    @draining.upon(SlotInput.silent).loop()
    def stuck_in_drain(machine: SlotInput, slot: Slot, seconds: float) -> None:
        # It finishes nothing; and it may have been given no deadline.
        slot.abort_once(f"its reactor did not turn for {seconds:.0f} s while it drained")

    @draining.upon(SlotInput.elapsed).loop()
    def late(machine: SlotInput, slot: Slot) -> None:
        slot.be_late()

    @draining.upon(SlotInput.hurry).loop()
    def hurry(machine: SlotInput, slot: Slot) -> None:
        slot.press()

    @draining.upon(SlotInput.ended).to(ended)
    def end(machine: SlotInput, slot: Slot, how: str) -> None:
        slot.log_drained(how)
        slot.finish()
        slot.enter("ended")

    # What comes too late, or is known.
    for state in (idle, starting, hung, draining, leaving, backing_off, failed, ended):
        state.upon(SlotInput.leave).loop().returns(None)
    for state in (ready, hung, draining, leaving):
        state.upon(SlotInput.ready).loop().returns(None)
    hung.upon(SlotInput.silent).loop().returns(None)
    for state in (draining, ended):
        state.upon(SlotInput.drain).loop().returns(None)
    for state in (idle, starting, ready, hung, leaving, backing_off, failed, ended):
        state.upon(SlotInput.hurry).loop().returns(None)
    for state in (ready, backing_off, failed, ended):
        state.upon(SlotInput.elapsed).loop().returns(None)
    for state in (starting, ready, hung, draining, leaving):
        state.upon(SlotInput.start).loop().returns(None)
    return builder.build()


_make_slot = _build()
