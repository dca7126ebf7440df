"""Signal handlers that run as ordinary calls of the reactor."""

import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application import service
from twisted.logger import Logger

_log = Logger()

Handler = Callable[[], object]


class _Taken:
    """The process-wide handler of one signal, shared by all services that listen for it.

    :param number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.takers: list[Signals] = []
        self.resumed = False
        self.former = signal.signal(number, self.handle)

    def handle(self, number: int, _frame: object) -> None:
        """Call all listeners."""
        for taker in list(self.takers):
            taker.handle(number)

    def give_back(self, number: int) -> None:
        """Restore the former handler, unless somebody else has replaced ours meanwhile."""
        if signal.getsignal(number) == self.handle:
            signal.signal(number, signal.SIG_DFL if self.former is None else self.former)


# Note [Background jobs]
#
# In a script, a shell starts `program &` with SIGINT ignored, so that Ctrl-C ends the foreground job only. Python and
# Twisted respect that: neither sets a handler for an ignored SIGINT. Handling it here would cancel calls at a Ctrl-C
# meant for another job. SIGTERM and SIGHUP are handled in any case: nohup ignores SIGHUP because its default action
# kills the program, but ours reloads.


def _installed(number: int) -> _Taken | None:
    """Return our handler of a signal, if it is the one that the process has."""
    owner = getattr(signal.getsignal(number), "__self__", None)
    return owner if isinstance(owner, _Taken) else None


def is_taken(number: int) -> bool:
    """Return whether this package handles the signal in this process."""
    return _installed(number) is not None


class Signals(service.Service):
    """Handles signals in the reactor while the service runs.

    The reactor installs its own handlers when it starts to run; these replace them afterwards, and
    the former ones are restored when the last listener stops. SIGINT stays ignored where it is
    ignored: see Note [Background jobs].

    :param reactor: provides IReactorCore and IReactorFromThreads.
    :param handlers: function by number of the signal.
    :param at_once: called with the signal's number directly in the handler, even if the reactor is blocked.
        It may set signals and timers only: the code that it interrupts is in an unknown state.
    """

    def __init__(
        self, reactor: Any, handlers: Mapping[int, Handler], at_once: Callable[[int], object] = lambda _number: None
    ) -> None:
        self._reactor = reactor
        self._handlers = handlers
        self._at_once = at_once
        self._mine: dict[int, _Taken] = {}

    def startService(self) -> None:
        """Install the handlers as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        """Restore the former handlers, except where somebody else has replaced ours."""
        super().stopService()
        mine, self._mine = self._mine, {}
        for number, taken in mine.items():
            taken.takers.remove(self)
            if not taken.takers:
                taken.give_back(number)

    def former(self, number: int) -> Any:
        """Return the handler before ours, as signal.getsignal does; None while ours is not installed."""
        taken = self._mine.get(number)
        return None if taken is None else taken.former

    def resume(self, number: int) -> bool:
        """Call the handler before ours, at most once per signal.

        :return: False, without a call, if there was none or it would end the process abruptly.
        """
        former = self.former(number)
        if not callable(former) or former is signal.default_int_handler:
            return False
        taken = self._mine[number]
        if not taken.resumed:
            taken.resumed = True
            former(number, None)
        return True

    def handle(self, number: int) -> None:
        """Handle a signal, at whatever point it interrupts the process."""
        self._at_once(number)
        self._reactor.callFromThread(self._handlers[number])

    def _install(self) -> None:
        if not self.running or self._mine:
            return
        if threading.current_thread() is not threading.main_thread():
            _log.warn("signal handlers not installed: the reactor does not run in the main thread")
            return
        for number in self._handlers:
            if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                _log.info("SIGINT stays ignored, as this process inherited it; use SIGTERM to stop")
                continue
            taken = _installed(number) or _Taken(number)
            taken.takers.append(self)
            self._mine[number] = taken
