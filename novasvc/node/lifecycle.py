"""The lifecycle of a service: an Automat machine that every service in the tree uses.

initial -> starting -> running -> draining -> stopped, and failed if a start failed.
A restart goes from running or starting through draining to starting. The table is at the end of the module.
A :class:`Lifecycle` is given two coroutine functions, which start and stop its service.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc._compat import machine_state
from novasvc.errors import StateError
from novasvc.reactor.coalesce import Waiters
from novasvc.reactor.machine import build_machine

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
    :param entered: called with the name of each state that is entered, as :attr:`state` shows it.
    :ivar reason: why the last start failed.
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
    reason: BaseException | None = attrs.field(default=None, init=False)
    _machine: LifecycleMachine = attrs.field(init=False)
    _starting: Deferred[None] | None = attrs.field(default=None, init=False)
    _start_waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _end_waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _answers: deque[tuple[Waiters[None], Failure | None]] = attrs.field(factory=deque, init=False)
    _inputs: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._machine = _make_lifecycle(self)

    @property
    def state(self) -> str:
        """The state's name: initial, starting, running, draining, stopped or failed."""
        state = machine_state(self._machine)
        return "draining" if state in _DRAINING else state

    @property
    def restarting(self) -> bool:
        """Whether a restart is on its way down; the state is shown as draining."""
        return machine_state(self._machine) in _RESTARTING

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

    # -- actions of the machine, see the table -------------------------------------------------

    def begin_start(self) -> None:
        """Call ``begin``, and give its outcome to the machine."""
        self.entered(self.state)
        self.reason = None
        self._starting = Deferred.fromCoroutine(self.begin())
        self._starting.addCallbacks(
            lambda _: self._give(self._machine.begun), lambda failure: self._give(self._machine.broken, failure)
        )

    def finish_start(self) -> None:
        """Fire the waiters of the start: it succeeded."""
        self.entered(self.state)
        self._starting = None
        self._answer(self._start_waiters)

    def cancel_start(self) -> None:
        """Cancel the start under way. It must end, whatever its outcome, before the stop begins."""
        self.entered(self.state)
        if self._starting is not None:
            self._starting.cancel()

    def roll_back(self, failure: Failure) -> None:
        """Stop what the failed start has started."""
        self.reason = failure.value
        self.begin_stop()

    def begin_stop(self) -> None:
        """Begin to stop what runs."""
        self.entered(self.state)
        self.run_end()

    def stop_cancelled(self, failure: Failure) -> None:
        """Stop what a start has started that did not succeed; the reason counts unless it is the cancellation."""
        if not failure.check(CancelledError):
            self.reason = failure.value
        self.run_end()

    def run_end(self, _failure: Failure | None = None) -> None:
        """Call ``end``, and tell the machine when it has ended, whatever its outcome."""
        ending = Deferred.fromCoroutine(self.end())
        ending.addErrback(lambda failure: _log.failure("{name} did not stop cleanly", failure, name=self.name))
        ending.addCallback(lambda _: self._give(self._machine.ended))

    def finish_stop(self) -> None:
        """Fire all waiters."""
        self.entered(self.state)
        self._starting = None
        self._answer(self._start_waiters, self._why_not_started())
        self._answer(self._end_waiters)

    def refuse_start(self) -> None:
        """Log that a start came while stopping: its caller may not wait for the Deferred."""
        _log.warn("{error}", error=StateError(self.name, self.state, "start"))

    # -- waiters -------------------------------------------------------------------------------

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


_RESTARTING = frozenset({"restarting", "start interrupted to restart"})
_DRAINING = frozenset({"rolling back", "start interrupted"}) | _RESTARTING
"""States that are shown as draining."""

_INPUT = LifecycleMachine

# A start that is cancelled ends, whatever its outcome, before the stop begins: it is "start interrupted" until then.
_make_lifecycle = build_machine(
    LifecycleMachine,
    Lifecycle,
    "initial",
    (
        ("initial | stopped | failed", _INPUT.start, "starting", Lifecycle.begin_start),
        ("starting", _INPUT.begun, "running", Lifecycle.finish_start),
        ("starting", _INPUT.broken, "rolling back", Lifecycle.roll_back),
        ("rolling back", _INPUT.ended, "failed", Lifecycle.finish_stop),
        # -- stop
        ("initial", _INPUT.stop, "stopped", Lifecycle.finish_stop),
        ("running", _INPUT.stop, "draining", Lifecycle.begin_stop),
        ("starting", _INPUT.stop, "start interrupted", Lifecycle.cancel_start),
        ("start interrupted", _INPUT.begun, "draining", Lifecycle.run_end),
        ("start interrupted", _INPUT.broken, "draining", Lifecycle.stop_cancelled),
        ("draining", _INPUT.ended, "stopped", Lifecycle.finish_stop),
        # -- restart
        ("running", _INPUT.restart, "restarting", Lifecycle.begin_stop),
        ("starting", _INPUT.restart, "start interrupted to restart", Lifecycle.cancel_start),
        ("start interrupted to restart", _INPUT.begun, "restarting", Lifecycle.run_end),
        ("start interrupted to restart", _INPUT.broken, "restarting", Lifecycle.run_end),
        ("restarting", _INPUT.ended, "starting", Lifecycle.begin_start),
        # -- a stop wins over the restart
        ("restarting", _INPUT.stop, "draining", None),
        ("start interrupted to restart", _INPUT.stop, "start interrupted", None),
        # -- inputs that repeat what is known, or come too late
        ("starting | running", _INPUT.start, "", None),
        ("restarting | start interrupted to restart", _INPUT.restart, "", None),
        ("start interrupted | draining | rolling back | stopped | failed", _INPUT.stop, "", None),
        (
            "start interrupted | draining | rolling back | restarting | start interrupted to restart",
            _INPUT.start,
            "",
            Lifecycle.refuse_start,
        ),
    ),
)
