"""The slot of one worker: an Automat machine that starts, watches, drains and replaces its process.

The table of its states is at the end of the module.
"""

import time
from collections.abc import Callable
from signal import SIGABRT, SIGKILL, SIGTERM
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from novasvc._compat import machine_state
from novasvc.reactor.machine import build_machine
from novasvc.telemetry import metrics
from novasvc.telemetry.flight import format_events
from novasvc.telemetry.logs import pluralize
from novasvc.workers.exit_status import ABANDON_DELAY, KILL_DELAY, Exit
from novasvc.workers.pipe import PipeMessage
from novasvc.workers.process import ProcessFactory, WorkerProcess
from novasvc.workers.restart_policy import History, RestartPolicy, Throttle

_log = Logger()

ABORT_TIMEOUT = 2.0
"""Seconds between SIGABRT, at which a process writes its stacks, and SIGKILL."""

INTERRUPT_TIMEOUT = 2.0
"""Seconds that a worker has to cancel its work when it must stop now; then comes SIGKILL."""

KILL_INTERVAL = 1.0
"""Seconds between two SIGKILL to a process whose exit is not seen. If nobody reports it, the second finds it gone."""

EXHAUSTED_PAUSE = 30.0
"""Seconds between two restarts once the restart budget is exhausted."""

_LOST = "its running work is lost, or is redelivered to another worker"

_LAST_EVENTS = 30
"""Flight recorder events that are logged when a worker crashes."""


@attrs.frozen
class WorkerTimeouts:
    """Time limits for a worker, in seconds; 0 is no limit.

    :param start: from fork to ready.
    :param drain: to finish running work.
    :param watchdog: for which its reactor may be blocked.
    """

    start: float = 60.0
    drain: float = 60.0
    watchdog: float = 30.0


class SlotInput(Protocol):
    """The inputs of the slot's state machine."""

    def start(self) -> None:
        """Fork a process."""

    def ready(self) -> None:
        """Note that the process is ready."""

    def ended(self, outcome: str) -> None:
        """Note that the process exited, or could not be forked."""

    def stalled(self, seconds: float) -> None:
        """Note that the process's reactor is blocked."""

    def elapsed(self) -> None:
        """Note that the timer of this state has expired."""

    def plan_restart(self) -> None:
        """Decide when to start the next process."""

    def give_up(self) -> None:
        """Start no further process."""

    def drain(self) -> None:
        """Drain the process, and start no other."""

    def leave(self) -> None:
        """Note that the process has begun to drain, though this slot did not ask for it."""

    def interrupt(self) -> None:
        """Stop the draining process now."""


@attrs.define(eq=False)
class Slot:
    """One worker slot: a stable number, the current process, and the history of earlier ones.

    Provides :class:`novasvc.workers.process.ProcessListener` for its process.

    :param number: stable: a replacement worker has the same number.
    :param name: the server's name.
    :param make_process: forks a process; called for each start.
    :param should_give_up: called with a problem that no worker can survive, or with "" when the restart budget is
        exhausted; returns whether to stop restarting.
    :param answer_sibling_query: answers a worker's query about the other workers of its server.
    :ivar interrupted: the last process did not finish its drain: it was interrupted or killed.
    """

    number: int
    name: str
    _clock: Any
    _make_process: ProcessFactory
    _policy: RestartPolicy
    timeouts: WorkerTimeouts
    _throttle: Throttle
    _should_give_up: Callable[["Slot", str], bool]
    _answer_sibling_query: Callable[["Slot", PipeMessage], object] = lambda _slot, _message: None
    since: float = attrs.field(factory=time.time, init=False)
    restarts: int = attrs.field(default=0, init=False)
    trouble: str | None = attrs.field(default=None, init=False)
    interrupted: bool = attrs.field(default=False, init=False)
    process: WorkerProcess | None = attrs.field(default=None, init=False)
    _fatal_problem: str = attrs.field(default="", init=False)
    _exit_summary: str = attrs.field(default="", init=False)
    _entered_at: float = attrs.field(default=0.0, init=False)
    _ready_at: float | None = attrs.field(default=None, init=False)
    _aborted: bool = attrs.field(default=False, init=False)
    _interrupt_sent: bool = attrs.field(default=False, init=False)
    _killed: bool = attrs.field(default=False, init=False)
    _kill_count: int = attrs.field(default=0, init=False)
    _failed: bool = attrs.field(default=False, init=False)
    _exit_signal: int | None = attrs.field(default=None, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _waiters: list[tuple[frozenset[str], Deferred[str]]] = attrs.field(factory=list, init=False)
    _history: History = attrs.field(init=False)
    _machine: SlotInput = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Export the counters at zero, so that alerts see the first increase.
        metrics.worker_restarts.at(self.name)
        metrics.worker_hangs.at(self.name)
        self._history = History(self._policy)
        self._machine = _make_slot(self)

    def __str__(self) -> str:
        pid = "" if self.process is None or self.process.pid is None else f" (pid {self.process.pid})"
        return f"worker {self.number}{pid} of {self.name}"

    @property
    def state(self) -> str:
        """The state's name: idle, starting, ready, draining, hung, backing off, failed or ended."""
        state = machine_state(self._machine)
        return "draining" if state == "leaving" else state

    @property
    def seconds_in_state(self) -> float:
        """Seconds since the slot reached its state."""
        seconds: float = self._clock.seconds() - self._entered_at
        return seconds

    # -- for the outside -----------------------------------------------------------------------

    def start(self) -> None:
        """Fork a process."""
        self._machine.start()

    def drain(self) -> Deferred[str]:
        """Drain the worker, and close the slot.

        :return: Deferred, fired when the process has exited.
        """
        self._machine.drain()
        return self.reaches("ended")

    def interrupt(self) -> None:
        """Drain, and cancel running work now."""
        self._machine.drain()
        self._machine.interrupt()

    def check(self) -> None:
        """Check that the worker's reactor is not blocked. Called about once a second."""
        if self.process is None or not self.timeouts.watchdog:
            return
        age = self.process.heartbeat_age
        if age > self.timeouts.watchdog:
            self._machine.stalled(age)

    def reaches(self, *states: str) -> Deferred[str]:
        """Wait for any of these states; fires with its name, immediately if the slot is in it."""
        waiter: Deferred[str] = Deferred(lambda waiter: self._waiters.remove((frozenset(states), waiter)))
        if self.state in states:
            waiter.callback(self.state)
        else:
            self._waiters.append((frozenset(states), waiter))
        return waiter

    # -- for the process -----------------------------------------------------------------------

    def forked(self) -> None:
        """Handle a successful fork."""
        _log.debug("forked {worker}", worker=self)

    def fork_failed(self, problem: str) -> None:
        """Handle a failed fork."""
        self._machine.ended(f"could not be forked: {problem}")

    def received(self, message: PipeMessage) -> None:
        """Handle a status message from the process."""
        match message:
            case {"is": "ready"}:
                self._machine.ready()
            case {"is": "failed", "problem": problem, "final": final}:
                self.trouble, self._failed = problem, True
                self._fatal_problem = problem if final else ""
            case {"is": "waiting", "for": dependency} if self.state == "starting":
                self.trouble = None if dependency is None else f"waiting for the {dependency}"
                # An outage is not the worker's fault: restart the start timeout when it is over.
                self.arm(self.timeouts.start if dependency is None else 0)
            case {"is": "query", "key": _, "request_id": _} | {"is": "query", "key": _, "end": _, "service": _}:
                self._answer_sibling_query(self, message)
            case {"is": "draining", "calls": calls}:
                self._machine.leave()
                under_way = f"{pluralize(calls, 'call')} under way" if calls else None
                if under_way is not None:
                    _log.info("{worker} is draining: {under_way}", worker=self, under_way=under_way)
                if not self._failed:
                    self.trouble = under_way

    def ended(self, exit_: Exit) -> None:
        """Handle the exit of the process."""
        self._exit_signal = exit_.signal
        crashed = exit_.signal not in {None, SIGTERM, SIGKILL} or self.state == "hung"
        killed_externally = exit_.signal == SIGKILL and self.state in {
            "starting",
            "ready",
        }  # by the kernel for want of memory, say
        assert self.process is not None
        if crashed or killed_externally:
            self._log_post_mortem(exit_, self.process.stacks or "none were written" if crashed else "")
        self._machine.ended(str(exit_))

    def _log_post_mortem(self, exit_: Exit, stacks: str) -> None:
        """Log the stacks and last events of a dead process.

        :param stacks: "" if it was killed before it could write them.
        """
        assert self.process is not None
        _log.error(
            "{worker} {exit}; {stacks}last events:\n{events}",
            worker=self,
            exit=exit_,
            stacks=f"stacks:\n{stacks}\n" if stacks else "",
            events=format_events(self.process.last_events(_LAST_EVENTS)) or "none",
        )

    # -- actions of the machine, see the table -------------------------------------------------

    def start_process(self) -> None:
        """Fork a process."""
        self.enter()
        self._throttle.forked(self._clock.seconds(), is_restart=self.restarts > 0)
        self._ready_at, self._fatal_problem, self.trouble = None, "", None
        self._aborted = self._interrupt_sent = self._killed = self._failed = False
        self._kill_count = 0
        self.arm(self.timeouts.start)
        try:
            self.process = self._make_process(self)
        except OSError as error:  # out of descriptors, most likely
            self.fork_failed(str(error.strerror))

    def become_ready(self) -> None:
        """Record that the process is ready."""
        now = self._clock.seconds()
        _log.info("{worker} is ready after {seconds:.3f} s", worker=self, seconds=now - self._entered_at)
        self._ready_at, self.trouble = now, None
        self.enter()

    def abort_late_start(self) -> None:
        """Abort a process that did not become ready in time, or cancel its fork if that is still pending."""
        self.enter()
        if self.process is not None and self.process.pid is None:  # no forkserver: no process hangs
            self.trouble = f"not forked within worker_start_timeout ({self.timeouts.start:g} s)"
            self._kill()
            return
        self._abort(f"not ready within worker_start_timeout ({self.timeouts.start:g} s)")

    def abort_blocked(self, seconds: float) -> None:
        """Abort a process whose reactor is blocked."""
        self.enter()
        self._abort(f"its reactor was blocked for {seconds:.0f} s")

    def abort_blocked_drain(self, seconds: float) -> None:
        """Abort a draining process whose reactor is blocked: it finishes nothing, and may have no deadline."""
        if not self._aborted:
            self._abort(f"its reactor was blocked for {seconds:.0f} s while draining")

    def kill_hung(self) -> None:
        """Kill a process that was aborted and has not exited."""
        self._kill()

    def begin_drain(self) -> None:
        """Send SIGTERM: finish running work, then exit."""
        self.enter()
        self.signal(SIGTERM)
        self.arm(self.timeouts.drain)

    def drain_unready(self) -> None:
        """Drain a process that is not ready, and so serves nobody yet: nothing to finish."""
        self.begin_drain()
        self.interrupt_drain()

    def drain_hung(self) -> None:
        """Kill a hung process instead of draining it."""
        self.enter()
        self._kill()

    def note_drain(self) -> None:
        """Give a process that somebody else has signalled the same drain timeout; it is replaced afterwards."""
        self.enter()
        self.arm(self.timeouts.drain)

    def interrupt_drain(self) -> None:
        """Tell the process to cancel its work and exit; SIGKILL follows."""
        self._interrupt_process(INTERRUPT_TIMEOUT / 2)
        if self._timer is None or self._timer.getTime() > self._clock.seconds() + INTERRUPT_TIMEOUT:
            self.arm(INTERRUPT_TIMEOUT)

    def drain_timed_out(self) -> None:
        """Handle the drain timeout: cancel running work first, kill on the second expiry, and on each one after it."""
        if self._kill_count:
            self._kill()
        elif self._interrupt_sent:
            self._killed = True
            _log.error("{worker} did not exit in time; killing it: {lost}", worker=self, lost=_LOST)
            self._kill()
        else:
            self._interrupt_process(ABANDON_DELAY)
            self.arm(KILL_DELAY)

    def note_exit(self, outcome: str) -> None:
        """Record how the process exited; that is the trouble, unless it reported one itself."""
        self._exit_summary = f"{self} {outcome}" if self.trouble is None else f"{self} {outcome}: {self.trouble}"
        self.trouble = self.trouble or f"it {outcome}"
        self.restarts += 1
        metrics.worker_restarts.at(self.name).value += 1
        self.process = None
        self.enter()
        # Queued behind inputs of callbacks on this state: one that drains the slot must win over a restart.
        self._machine.plan_restart()

    def plan_restart(self) -> None:
        """Decide when to start the next process, or give up."""
        now = self._clock.seconds()
        lived = None if self._ready_at is None else now - self._ready_at
        pause = self._history.record_exit(now, lived, killed=self._exit_signal == SIGKILL)
        if self._fatal_problem or self._history.exhausted:
            if self._should_give_up(self, self._fatal_problem):
                self.log_last_exit()
                self._machine.give_up()
                return
            pause = EXHAUSTED_PAUSE
        pause = max(pause, self._throttle.wait(now))
        when = f"in {pause:.1f} s" if pause else "now"
        _log.error("{what}; restarting it {when}", what=self._exit_summary, when=when)
        if pause:
            self.arm(pause)
        else:
            self._machine.start()

    def log_last_exit(self) -> None:
        """Log the exit of a process that is not replaced."""
        _log.critical("{what}; giving up", what=self._exit_summary)

    def note_drained(self, outcome: str) -> None:
        """Record how a drained process exited, and close the slot."""
        finished = self.process is None or self.process.server_stopped or self._ready_at is None
        self.interrupted = self._interrupt_sent and not finished
        if self.interrupted and not self._killed:  # a kill has been logged already
            _log.warn("{worker} was interrupted: it {outcome}; {lost}", worker=self, outcome=outcome, lost=_LOST)
        else:
            _log.info("{worker} drained: it {outcome}", worker=self, outcome=outcome)
        self.process = None
        self.enter()

    def enter(self) -> None:
        """Begin a state: clear the timer, and fire the Deferreds that wait for the state."""
        self.arm(0)
        self.since, self._entered_at = time.time(), self._clock.seconds()
        state = self.state
        waiters = [waiter for waiter in self._waiters if state in waiter[0]]
        for waiter in waiters:
            if waiter in self._waiters:  # an earlier callback may have cancelled it
                self._waiters.remove(waiter)
                # A callback may feed the machine: Automat queues that input behind the current one.
                waiter[1].callback(state)

    def arm(self, seconds: float) -> None:
        """Set the timer of this state; 0 clears it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds:
            self._timer = self._clock.callLater(seconds, self._due)

    def _due(self) -> None:
        # If this process was suspended, a message may be here: the reactor calls what is due before it reads.
        self._timer = self._clock.callLater(0, self._elapsed)

    def _elapsed(self) -> None:
        self._timer = None
        if self.state == "backing off":
            self._start_again()
        else:
            self._machine.elapsed()

    def _start_again(self) -> None:
        """Start the next process as soon as the throttle allows."""
        if wait := self._throttle.wait(self._clock.seconds()):
            self.arm(wait)
        else:
            self._machine.start()

    def signal(self, number: int) -> None:
        """Send the process a signal, if there is one."""
        if self.process is not None:
            self.process.signal(number)

    def _abort(self, problem: str) -> None:
        """Send SIGABRT, at which faulthandler writes the stacks; SIGKILL follows."""
        _log.error("{worker} hangs: {problem}; aborting it", worker=self, problem=problem)
        self.trouble = problem
        self._aborted = self._interrupt_sent = True
        metrics.worker_hangs.at(self.name).value += 1
        self.signal(SIGABRT)
        self.arm(ABORT_TIMEOUT)

    def _interrupt_process(self, seconds: float) -> None:
        self._interrupt_sent = True
        if self.process is not None:
            self.process.interrupt(seconds)

    def _kill(self) -> None:
        """Send SIGKILL, and again until the exit is seen."""
        self._kill_count += 1
        if self._kill_count == 2:  # noqa: PLR2004 - logged once
            _log.error("{worker} was sent SIGKILL, but its exit is not seen; repeating SIGKILL", worker=self)
        self.arm(KILL_INTERVAL)
        self.signal(SIGKILL)


_ALL = "idle | starting | ready | draining | leaving | hung | backing off | failed | ended"


def _all_but(*states: str) -> str:
    return " | ".join(state for state in _ALL.split(" | ") if state not in states)


_INPUT = SlotInput

# "leaving" is shown as draining: somebody else has signalled the process, so it will be replaced.
_make_slot = build_machine(
    SlotInput,
    Slot,
    "idle",
    (
        ("idle | backing off | failed", _INPUT.start, "starting", Slot.start_process),
        ("starting", _INPUT.ready, "ready", Slot.become_ready),
        # -- processes that hang
        ("starting", _INPUT.elapsed, "hung", Slot.abort_late_start),
        ("starting | ready", _INPUT.stalled, "hung", Slot.abort_blocked),
        ("hung", _INPUT.elapsed, "", Slot.kill_hung),
        # -- drain
        ("idle | backing off | failed", _INPUT.drain, "ended", Slot.enter),
        ("ready", _INPUT.drain, "draining", Slot.begin_drain),
        ("starting", _INPUT.drain, "draining", Slot.drain_unready),
        ("hung", _INPUT.drain, "draining", Slot.drain_hung),
        ("ready", _INPUT.leave, "leaving", Slot.note_drain),
        ("leaving", _INPUT.drain, "draining", None),  # only the replacement is cancelled
        ("draining", _INPUT.interrupt, "", Slot.interrupt_drain),
        ("draining | leaving", _INPUT.elapsed, "", Slot.drain_timed_out),
        ("draining | leaving", _INPUT.stalled, "", Slot.abort_blocked_drain),
        ("draining", _INPUT.ended, "ended", Slot.note_drained),
        # -- exits that were not asked for
        ("starting | ready | hung | leaving", _INPUT.ended, "backing off", Slot.note_exit),
        ("backing off", _INPUT.plan_restart, "", Slot.plan_restart),
        ("backing off", _INPUT.give_up, "failed", Slot.enter),
        ("ended", _INPUT.plan_restart, "", Slot.log_last_exit),
        # -- inputs that repeat what is known, or come too late
        ("starting | ready | hung | draining | leaving", _INPUT.start, "", None),
        ("ready | hung | draining | leaving", _INPUT.ready, "", None),
        ("hung", _INPUT.stalled, "", None),
        ("ready | backing off | failed | ended", _INPUT.elapsed, "", None),
        ("draining | ended", _INPUT.drain, "", None),
        (_all_but("ready"), _INPUT.leave, "", None),
        (_all_but("draining"), _INPUT.interrupt, "", None),
    ),
)
