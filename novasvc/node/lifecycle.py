"""The lifecycle of a service: an Automat machine that every service in the tree uses.

initial -> starting -> running -> draining -> stopped, and failed if a start failed.
A restart goes from running or starting through draining to starting.
A :class:`Lifecycle` is given two coroutine functions, which start and stop its service.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import attrs
from automat import TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import StateError
from novasvc.reactor.coalesce import Waiters

_log = Logger()


class LifecycleMachine(Protocol):
    """The inputs of the machine. None of them waits; :class:`Lifecycle` returns Deferreds."""

    def start(self) -> None:
        """Begin to start. Ignored while starting or running; refused with a warning while stopping."""

    def stop(self) -> None:
        """Begin to stop. A start under way is cancelled first."""

    def restart(self) -> None:
        """Stop, then start again. Valid only while starting or running; a stop meanwhile wins."""

    def begun(self) -> None:
        """Note that the start succeeded."""

    def broken(self, failure: Failure) -> None:
        """Note that the start has failed."""

    def ended(self) -> None:
        """Note that the stop has ended."""


@attrs.define(eq=False)
class Lifecycle:
    """A service's state machine, and the Deferreds of its callers.

    :param name: the service's name, for errors: "node novasvc-agent@host1".
    :param begin: coroutine function that starts the service; cancelled if a stop comes first.
    :param end: coroutine function that stops whatever ``begin`` has started.
    :param entered: called with the name of each state that is entered.
    :ivar restarting: a restart is on its way down; its state is shown as draining.
    """

    # Note [When the waiters are fired]
    #
    # Automat queues an input that arrives while another is being handled. A waiter's callback may give
    # an input, as in stop().addCallback(lambda _: start()), and must see its effect at once. So a
    # transition only queues the results, and the waiters are fired when the input has returned.

    name: str
    begin: Callable[[], Coroutine[Deferred[Any], Any, None]]
    end: Callable[[], Coroutine[Deferred[Any], Any, None]]
    entered: Callable[[str], None]
    state: str = attrs.field(default="initial", init=False)
    reason: BaseException | None = attrs.field(default=None, init=False)
    restarting: bool = attrs.field(default=False, init=False)
    _machine: LifecycleMachine = attrs.field(init=False)
    _starting: Deferred[None] | None = attrs.field(default=None, init=False)
    _start_waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _end_waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _answers: deque[tuple[Waiters[None], Failure | None]] = attrs.field(factory=deque, init=False)
    _inputs: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._machine = _make_lifecycle(self)

    # -- for callers ---------------------------------------------------------------------------

    def start(self) -> Deferred[None]:
        """Begin to start; see :meth:`when_started`, and :meth:`LifecycleMachine.start`."""
        self._give(self._machine.start)
        return self.when_started()

    def stop(self) -> Deferred[None]:
        """Begin to stop; see :meth:`when_ended`, and :meth:`LifecycleMachine.stop`."""
        self._give(self._machine.stop)
        return self.when_ended()

    def restart(self) -> Deferred[None]:
        """Stop and start again. Deferreds of the start and of the end that have not fired keep waiting.

        :return: Deferred[None], fired when running again. Fails with the reason of a failed start, or with
            StateError if the service is not starting or running.
        """
        if self.state not in {"starting", "running"} and not self.restarting:
            return fail(StateError(self.name, self.state, "restart"))
        started = self._start_waiters.wait()
        self._give(self._machine.restart)
        return started

    def when_started(self) -> Deferred[None]:
        """Wait for the start; see :class:`novasvc.interfaces.IStartable`."""
        if self.state == "running":
            return succeed(None)
        if self.state in {"draining", "stopped", "failed"}:
            return fail(self._why_not_started())
        return self._start_waiters.wait()

    def when_ended(self) -> Deferred[None]:
        """Wait for the end, in "stopped" or "failed"."""
        if self.state in {"stopped", "failed"}:
            return succeed(None)
        return self._end_waiters.wait()

    # -- for the machine -----------------------------------------------------------------------

    def enter(self, state: str) -> None:
        """Set the state, and call ``entered``."""
        self.state = state
        self.entered(state)

    def run_begin(self) -> None:
        """Call ``begin``, and give its outcome to the machine."""
        self.reason = None
        self._starting = Deferred.fromCoroutine(self.begin())
        self._starting.addCallbacks(
            lambda _: self._give(self._machine.begun), lambda failure: self._give(self._machine.broken, failure)
        )

    def run_end(self) -> None:
        """Call ``end``, and tell the machine when it has ended, whatever its outcome."""
        ending = Deferred.fromCoroutine(self.end())
        ending.addErrback(lambda failure: _log.failure("{name} did not stop cleanly", failure, name=self.name))
        ending.addCallback(lambda _: self._give(self._machine.ended))

    def cancel_begin(self) -> None:
        """Cancel the start under way."""
        if self._starting is not None:
            self._starting.cancel()

    def finish_start(self) -> None:
        """Fire the waiters of the start: it succeeded."""
        self._starting = None
        self._answer(self._start_waiters)

    def finish_end(self) -> None:
        """Fire all waiters."""
        self._starting = None
        self._answer(self._start_waiters, self._why_not_started())
        self._answer(self._end_waiters)

    def refuse_start(self) -> None:
        """Log that a start came while stopping: its caller may not wait for the Deferred."""
        _log.warn("{error}", error=StateError(self.name, self.state, "start"))

    def _why_not_started(self) -> BaseException:
        return self.reason or StateError(self.name, self.state, "start")

    def _answer(self, waiters: Waiters[None], error: BaseException | None = None) -> None:
        self._answers.append((waiters.detach(), None if error is None else Failure(error)))

    def _give(self, take: Callable[..., None], *args: Any) -> None:
        """Give the machine an input, then fire waiters; see Note [When the waiters are fired]."""
        self._inputs += 1
        try:
            take(*args)
        finally:
            self._inputs -= 1
        while self._answers and not self._inputs:
            waiters, outcome = self._answers.popleft()
            waiters.fire(outcome)


def _build() -> Callable[[Lifecycle], LifecycleMachine]:
    builder = TypeMachineBuilder(LifecycleMachine, Lifecycle)
    initial = builder.state("initial")
    starting = builder.state("starting")
    running = builder.state("running")
    draining = builder.state("draining")
    rolling_back = builder.state("rolling_back")  # stopping after a failed start; shown as draining
    stopped = builder.state("stopped")
    failed = builder.state("failed")

    for at_rest in (initial, stopped, failed):

        @at_rest.upon(LifecycleMachine.start).to(starting)
        def start(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
            lifecycle.enter("starting")
            lifecycle.run_begin()

    for under_way in (starting, running):
        under_way.upon(LifecycleMachine.start).loop().returns(None)

    @starting.upon(LifecycleMachine.begun).to(running)
    def run(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.enter("running")
        lifecycle.finish_start()

    @starting.upon(LifecycleMachine.broken).to(rolling_back)
    def roll_back(machine: LifecycleMachine, lifecycle: Lifecycle, failure: Failure) -> None:
        lifecycle.reason = failure.value
        lifecycle.enter("draining")
        lifecycle.run_end()

    @rolling_back.upon(LifecycleMachine.ended).to(failed)
    def fail(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.enter("failed")
        lifecycle.finish_end()

    @initial.upon(LifecycleMachine.stop).to(stopped)
    def never_started(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.enter("stopped")
        lifecycle.finish_end()

    # A cancelled start must end, whatever its outcome, before the stop begins.
    interrupted = builder.state("interrupted")

    @starting.upon(LifecycleMachine.stop).to(interrupted)
    def interrupt(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.enter("draining")
        lifecycle.cancel_begin()

    @interrupted.upon(LifecycleMachine.begun).to(draining)
    def drain_late(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.run_end()

    @interrupted.upon(LifecycleMachine.broken).to(draining)
    def drain_interrupted(machine: LifecycleMachine, lifecycle: Lifecycle, failure: Failure) -> None:
        if not failure.check(CancelledError):
            lifecycle.reason = failure.value
        lifecycle.run_end()

    @running.upon(LifecycleMachine.stop).to(draining)
    def drain(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.enter("draining")
        lifecycle.run_end()

    # A restart on its way down. Both states are shown as draining.
    restarting = builder.state("restarting")
    # Waiting for the end of the start that the restart cancelled.
    start_interrupted = builder.state("start_interrupted")

    @running.upon(LifecycleMachine.restart).to(restarting)
    def drain_to_restart(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.restarting = True
        lifecycle.enter("draining")
        lifecycle.run_end()

    @starting.upon(LifecycleMachine.restart).to(start_interrupted)
    def interrupt_to_restart(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.restarting = True
        lifecycle.enter("draining")
        lifecycle.cancel_begin()

    @start_interrupted.upon(LifecycleMachine.begun).to(restarting)
    def drain_late_to_restart(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.run_end()

    @start_interrupted.upon(LifecycleMachine.broken).to(restarting)
    def drain_interrupted_to_restart(machine: LifecycleMachine, lifecycle: Lifecycle, failure: Failure) -> None:
        lifecycle.run_end()

    @restarting.upon(LifecycleMachine.ended).to(starting)
    def start_again(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.restarting = False
        lifecycle.enter("starting")
        lifecycle.run_begin()

    @restarting.upon(LifecycleMachine.stop).to(draining)
    def end_for_good(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.restarting = False

    @start_interrupted.upon(LifecycleMachine.stop).to(interrupted)
    def interrupt_for_good(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.restarting = False

    for under_way in (restarting, start_interrupted):
        under_way.upon(LifecycleMachine.restart).loop().returns(None)

    @draining.upon(LifecycleMachine.ended).to(stopped)
    def end(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
        lifecycle.enter("stopped")
        lifecycle.finish_end()

    for ending in (interrupted, draining, rolling_back, stopped, failed):
        ending.upon(LifecycleMachine.stop).loop().returns(None)

    for ending in (interrupted, draining, rolling_back, restarting, start_interrupted):

        @ending.upon(LifecycleMachine.start).loop()
        def refuse(machine: LifecycleMachine, lifecycle: Lifecycle) -> None:
            lifecycle.refuse_start()

    return builder.build()


_make_lifecycle = _build()
