"""What a process with one tree of services owes to those around it: answers to signals, and signs of life."""

import atexit
import faulthandler
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import NovasvcError
from novasvc.node.tree import ServiceTree
from novasvc.telemetry import flight
from novasvc.telemetry.stalls import StallWatch
from novasvc.workers.exit_status import ABANDONED, FORCED, hurry
from novasvc.workers.signals import Signals
from novasvc.workers.systemd import SystemdNotifier, Watchdog

_log = Logger()

AT_ONCE = 2.0
"""Seconds that a process has to end when it is to end at once."""

_LEFT_BEHIND = 1.5
"""Seconds of those after which a part that has not stopped is left behind."""

# Note [The end by force]
#
# A process that is told to end at once ends, whatever it does. A reactor that is kept busy never
# gets to what is to be done in its turn, and when it has been stopped it waits for its threads. The
# same is true of one whose deadline has passed. So the signal's handler itself does two things, and
# both work without the reactor. When the end is to come at once, it gives SIGTERM and SIGINT back to
# the system: a third one ends the process like any other. And it sets a timer of the system, which
# ends the process with the status that it would have had: by the signal that was to end it under
# twistd, which ends well like that, too, and with SignalExit's in a script. What the process was
# doing then is on its standard error: it is what somebody will want to mend.

_ends_at: float | None = None
"""Seconds of time.monotonic() at which this process ends by force; None is never."""


def limit_end(number: int, seconds: float, status: int | None = None) -> None:
    """Have this process end within some seconds, or sooner if that was set before; called from a signal's handler.

    :param number: of the signal that is the reason.
    :param status: the exit status; None ends it by the signal.
    """
    global _ends_at  # noqa: PLW0603 - a process ends once
    ends_at = time.monotonic() + seconds
    if _ends_at is None or ends_at < _ends_at:
        _ends_at = ends_at
        signal.signal(signal.SIGALRM, partial(_end_by_force, number, status))
        signal.setitimer(signal.ITIMER_REAL, seconds)


def lift_limit() -> None:
    """Let this process go on: the end of what was to end did not take so long."""
    global _ends_at  # noqa: PLW0603 - see limit_end
    if _ends_at is not None:
        _ends_at = None
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end_by_force(number: int, status: int | None, _alarm: int, _frame: object) -> None:
    name = signal.Signals(number).name
    said = f"novasvc: {name}: did not exit in time; killing this process. Stacks:\n"
    with suppress(OSError, ValueError, RuntimeError):  # it may have no standard error, or be writing to it
        os.write(2, said.encode())
        faulthandler.dump_traceback(2)
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, RuntimeError, AttributeError):
            stream.flush()  # type: ignore[union-attr]  # a None is suppressed
    if status is not None:
        os._exit(status)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Process(MultiService):
    """Has a process of one tree answer to signals, and tell systemd how it does. Runs as long as the tree.

    SIGTERM ends the process as the reactor would, and so drains the tree; what has not ended in time
    is cut short. A second one, or SIGINT, ends it at once. SIGHUP restarts the tree. SIGUSR2 logs what it does.

    :param reactor: provides IReactorCore, IReactorFromThreads and IReactorTime.
    :param tree: all there is in the process; its parts may have ``hurry``: see
        :func:`novasvc.workers.exit_status.hurry`.
    :param restart: coroutine function: reads the configuration again, and restarts the tree.
    :param grace: returns the seconds that the tree has to drain, 0 for no limit.
    :param environ: what systemd says.
    :param limit: called with the number of the signal that ends the process, and the seconds after which
        it is to have ended, as :func:`limit_end` is.
    :ivar signo: the signal that ends the process; None if none does.
    :ivar hurried: the end is to come at once.
    """

    def __init__(
        self,
        reactor: Any,
        tree: ServiceTree,
        restart: Callable[[], Coroutine[Deferred[Any], Any, None]],
        grace: Callable[[], float],
        *,
        environ: Mapping[str, str] | None = None,
        limit: Callable[[int, float], object] = limit_end,
    ) -> None:
        super().__init__()
        environ = os.environ if environ is None else environ
        self.signo: int | None = None
        self._reactor = reactor
        self._tree = tree
        self._restart = restart
        self._grace = grace
        self._limit = limit
        self._restarting = 0
        self._terms = 0
        self.hurried = False
        self._trigger: Any = None
        self._late: IDelayedCall | None = None
        self._last: IDelayedCall | None = None
        self._notifier = SystemdNotifier(environ)
        self._stalls = StallWatch(flight.installed(), reactor)
        self._signals = Signals(
            reactor,
            {
                signal.SIGTERM: self._terminated,
                signal.SIGINT: self._interrupted,
                signal.SIGHUP: self._hung_up,
                signal.SIGUSR2: log_dump,
            },
            self._see,
        )
        self._signals.setServiceParent(self)
        Watchdog(self._notifier, environ, reactor).setServiceParent(self)

    def startService(self) -> None:
        """Answer from now on; called when the tree is about to start."""
        super().startService()
        self._trigger = self._reactor.addSystemEventTrigger("before", "shutdown", self._shutting_down)
        self._reactor.callWhenRunning(self._stalls.start)
        # A failed start is told by the tree.
        self._tree.when_started().addCallbacks(lambda _: self._notifier.ready("running"), lambda _: None)

    def stopService(self) -> Deferred[Any]:
        """Answer no more; called when the tree has stopped."""
        self._stalls.stop()
        for timer in (self._late, self._last):
            if timer is not None and timer.active():
                timer.cancel()
        trigger, self._trigger = self._trigger, None
        if trigger is not None:
            self._reactor.removeSystemEventTrigger(trigger)
        stopped: Deferred[Any] = super().stopService()
        return stopped

    # -- the end -------------------------------------------------------------------------------

    def _see(self, number: int) -> None:
        """See a signal, wherever it finds the process; see Note [The end by force]."""
        self._terms += number == signal.SIGTERM
        if number == signal.SIGINT or (number == signal.SIGTERM and self._terms > 1):
            for each in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(each) != signal.SIG_IGN:  # a job in the background of a script ignores SIGINT
                    signal.signal(each, signal.SIG_DFL)
            self._limit(number, AT_ONCE)
        elif number == signal.SIGTERM and (grace := self._grace()):
            self._limit(number, grace + FORCED)

    def _terminated(self) -> None:
        if self.signo is None:
            _log.info("SIGTERM: draining; exiting when running work is done")
            if grace := self._grace():
                self._late = self._reactor.callLater(grace, self._drain_timed_out, grace)
            self._end(signal.SIGTERM)
        else:
            self._end_at_once(signal.SIGTERM)

    def _drain_timed_out(self, grace: float) -> None:
        """Cut short what is left."""
        self._late = None
        _log.error(
            "graceful_shutdown_timeout ({grace:g} s) expired: cancelling running work",
            grace=grace,
        )
        self._hurry(ABANDONED)

    def _interrupted(self) -> None:
        self._end_at_once(signal.SIGINT)

    def _end(self, number: int) -> None:
        self.signo = number
        self._notifier.stopping()
        # The reactor's own answer is what has twistd end by the signal. It is not for a reactor that stops already.
        if self._trigger is not None and not self._signals.resume(number):
            stop_reactor(self._reactor)

    def _end_at_once(self, number: signal.Signals) -> None:
        _log.warn("{signal}: stopping this process now", signal=number.name)
        self.hurried = True
        if self.signo is None:
            self._end(number)
        if self._trigger is None:
            self._hurry(_LEFT_BEHIND)

    def _shutting_down(self) -> None:
        self._trigger = None
        if self.hurried:
            self._hurry(_LEFT_BEHIND)

    def _hurry(self, seconds: float) -> None:
        """Have the tree cut short what it does.

        :param seconds: after which no part is waited for any more.
        """
        self._tree.stopService()
        hurry(self._tree)
        if self._last is not None and self._last.active():
            seconds = min(seconds, self._last.getTime() - self._reactor.seconds())
            self._last.cancel()
        self._last = self._reactor.callLater(max(0.0, seconds), self._tree.abandon)

    # -- restarts ------------------------------------------------------------------------------

    def _hung_up(self) -> None:
        if not self._tree.can_restart:
            _log.warn("SIGHUP ignored: the services are {state}", state=self._tree.state)
            return
        if self._restarting:
            _log.info("SIGHUP: superseding the restart under way")
        self._restarting += 1
        self._notifier.reloading()
        Deferred.fromCoroutine(self._restart()).addBoth(self._restarted)

    def _restarted(self, result: object) -> None:
        self._restarting -= 1
        if self.signo is not None or (self._restarting and not isinstance(result, Failure)):
            return
        if not isinstance(result, Failure):
            _log.info("services restarted")
        elif result.check(NovasvcError):
            _log.error("SIGHUP: {error}", error=result.value)
        else:
            _log.failure("SIGHUP: restarting the services failed", result)
        if self._tree.state == "running":
            self._notifier.ready("running")


def log_dump() -> None:
    """Log the stacks of all threads, and what happened last."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        stacks = file.read()
    events = flight.dump_text(flight.installed())
    _log.info("stacks:\n{stacks}\nlast events:\n{events}", stacks=stacks, events=events)


def end_process(reactor: Any, status: int) -> None:
    """Have the process end with this status, although it ends in twistd's good order.

    twistd returns 0 whatever its services did, and catches a SystemExit in the reactor. What is
    left to say otherwise is the interpreter's own end, after twistd has removed its pid file.
    """

    @atexit.register
    def leave() -> None:
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        os._exit(status)

    reactor.callWhenRunning(stop_reactor, reactor)


def is_alone(service: Any) -> bool:
    """Tell whether a service is all that an application has, as in a .tac file of its own."""
    parent = service.parent
    return parent is not None and getattr(parent, "parent", None) is None and list(parent) == [service]


def stop_reactor(reactor: Any) -> None:
    """Stop a reactor, if nobody else has done that before."""
    with suppress(ReactorNotRunning):
        reactor.stop()
