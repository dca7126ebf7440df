"""The states that every service of the tree walks through, as an Automat machine.

initial -> starting -> running -> draining -> stopped, and failed where a start did not end well.
What a service does on the way is its own: a :class:`Lifecycle` is given two coroutine functions.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import attrs
from automat import TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from novasvc.errors import StateError


class Lifecycle(Protocol):
    """The inputs. None of them waits; :class:`Course` has what can be waited for."""

    def start(self) -> None:
        """Begin to start. Nothing happens if that is under way or done."""

    def stop(self) -> None:
        """Begin to stop. A start under way is cancelled first."""

    def begun(self) -> None:
        """Note that the start has ended well."""

    def broken(self, failure: Failure) -> None:
        """Note that the start has failed."""

    def ended(self) -> None:
        """Note that the stop has ended."""


@attrs.define(eq=False)
class Course:
    """What a machine drives, and who waits for it.

    :param name: whose course it is, for errors: "node novasvc-agent@host1".
    :param begin: coroutine function that starts; cancelled if a stop comes first.
    :param end: coroutine function that stops whatever ``begin`` reached; never raises.
    :param entered: called with the name of each state that is entered.
    """

    name: str
    begin: Callable[[], Coroutine[Deferred[Any], Any, None]]
    end: Callable[[], Coroutine[Deferred[Any], Any, None]]
    entered: Callable[[str], None]
    state: str = attrs.field(default="initial", init=False)
    reason: Failure | None = attrs.field(default=None, init=False)
    _starting: Deferred[None] | None = attrs.field(default=None, init=False)
    _start_waiters: list[Deferred[None]] = attrs.field(factory=list, init=False)
    _end_waiters: list[Deferred[None]] = attrs.field(factory=list, init=False)

    def when_started(self) -> Deferred[None]:
        """Wait for the start; see :class:`novasvc.interfaces.IStartable`."""
        waiter = _waiter(self._start_waiters)
        if self.state == "running":
            self._answer_start(None)
        elif self.state in {"draining", "stopped", "failed"}:
            self._answer_start(self.reason or Failure(StateError(self.name, self.state, "start")))
        return waiter

    def when_ended(self) -> Deferred[None]:
        """Wait for the end, in "stopped" or "failed"."""
        waiter = _waiter(self._end_waiters)
        if self.state in {"stopped", "failed"}:
            self._answer_end()
        return waiter

    def enter(self, state: str) -> None:
        """Be in a state from now on, and say so."""
        self.state = state
        self.entered(state)

    def run_begin(self, machine: Lifecycle) -> None:
        """Begin, and tell the machine how that ends."""
        self.reason = None
        self._starting = Deferred.fromCoroutine(self.begin())
        self._starting.addCallbacks(lambda _: machine.begun(), machine.broken)

    def run_end(self, machine: Lifecycle) -> None:
        """Stop, and tell the machine when that has ended."""
        # ``end`` never raises, so both ways out are "ended".
        Deferred.fromCoroutine(self.end()).addBoth(lambda _: machine.ended())

    def cancel_begin(self) -> None:
        """Cancel the start under way."""
        if self._starting is not None:
            self._starting.cancel()

    def finish_start(self, result: Failure | None) -> None:
        """Answer those who wait for the start; None is a good end."""
        self._starting = None
        self.reason = result
        self._answer_start(result)

    def finish_end(self) -> None:
        """Answer all who wait."""
        self._answer_start(self.reason or Failure(StateError(self.name, self.state, "start")))
        self._answer_end()

    def _answer_start(self, result: Failure | None) -> None:
        waiters, self._start_waiters[:] = list(self._start_waiters), []
        for waiter in waiters:
            # Each waiter gets a Failure of its own: handling one must not clean another's.
            waiter.callback(None) if result is None else waiter.errback(Failure(result.value))

    def _answer_end(self) -> None:
        waiters, self._end_waiters[:] = list(self._end_waiters), []
        for waiter in waiters:
            waiter.callback(None)


def _waiter(waiters: list[Deferred[None]]) -> Deferred[None]:
    """Add a Deferred that leaves the list when it is cancelled."""
    waiter: Deferred[None] = Deferred(waiters.remove)
    waiters.append(waiter)
    return waiter


def _build() -> Callable[[Course], Lifecycle]:
    builder = TypeMachineBuilder(Lifecycle, Course)
    initial = builder.state("initial")
    starting = builder.state("starting")
    running = builder.state("running")
    draining = builder.state("draining")
    undoing = builder.state("undoing")  # a failed start, taken back; outside it shows as draining
    stopped = builder.state("stopped")
    failed = builder.state("failed")

    for at_rest in (initial, stopped, failed):

        @at_rest.upon(Lifecycle.start).to(starting)
        def start(machine: Lifecycle, course: Course) -> None:
            course.enter("starting")
            course.run_begin(machine)

    for under_way in (starting, running):
        under_way.upon(Lifecycle.start).loop().returns(None)

    @starting.upon(Lifecycle.begun).to(running)
    def run(machine: Lifecycle, course: Course) -> None:
        course.enter("running")
        course.finish_start(None)

    @starting.upon(Lifecycle.broken).to(undoing)
    def undo(machine: Lifecycle, course: Course, failure: Failure) -> None:
        course.reason = failure
        course.enter("draining")
        course.run_end(machine)

    @undoing.upon(Lifecycle.ended).to(failed)
    def fail(machine: Lifecycle, course: Course) -> None:
        course.enter("failed")
        course.finish_start(course.reason)
        course.finish_end()

    @initial.upon(Lifecycle.stop).to(stopped)
    def never_started(machine: Lifecycle, course: Course) -> None:
        course.enter("stopped")
        course.finish_end()

    # A start that is cancelled still has to end, well or not, before the stop begins.
    interrupted = builder.state("interrupted")

    @starting.upon(Lifecycle.stop).to(interrupted)
    def interrupt(machine: Lifecycle, course: Course) -> None:
        course.enter("draining")
        course.cancel_begin()

    @interrupted.upon(Lifecycle.begun).to(draining)
    def drain_late(machine: Lifecycle, course: Course) -> None:
        course.run_end(machine)

    @interrupted.upon(Lifecycle.broken).to(draining)
    def drain_interrupted(machine: Lifecycle, course: Course, failure: Failure) -> None:
        if not failure.check(CancelledError):
            course.reason = failure
        course.run_end(machine)

    @running.upon(Lifecycle.stop).to(draining)
    def drain(machine: Lifecycle, course: Course) -> None:
        course.enter("draining")
        course.run_end(machine)

    @draining.upon(Lifecycle.ended).to(stopped)
    def end(machine: Lifecycle, course: Course) -> None:
        course.enter("stopped")
        course.finish_end()

    for ending in (interrupted, draining, undoing, stopped, failed):
        ending.upon(Lifecycle.stop).loop().returns(None)

    for ending in (interrupted, draining, undoing):

        @ending.upon(Lifecycle.start).loop()
        def refuse(machine: Lifecycle, course: Course) -> None:
            raise StateError(course.name, "draining", "start")

    return builder.build()


make_lifecycle = _build()
"""Makes the machine of one :class:`Course`."""
