"""Signals of the process, as calls in the reactor's turn."""

import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application import service
from twisted.logger import Logger

_log = Logger()

Handler = Callable[[], object]


class _Taken:
    """A signal that is taken. A process has one handler for each, however many want to know of it.

    :param number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.takers: list[Signals] = []
        self.resumed = False
        self.former = signal.signal(number, self.see)

    def see(self, number: int, _frame: object) -> None:
        """Tell all who want to know."""
        for taker in list(self.takers):
            taker.see(number)

    def give_back(self, number: int) -> None:
        """Have the former handler back, unless somebody else has taken the signal meanwhile."""
        if signal.getsignal(number) == self.see:
            signal.signal(number, signal.SIG_DFL if self.former is None else self.former)


# Note [Background jobs]
#
# A shell starts `program &` in a script with SIGINT ignored, so that a Ctrl-C that is meant for the foreground does not
# end what runs in the background. Programs keep that, and so do Python and Twisted: neither sets a handler for a SIGINT
# that is ignored. To take it all the same would be to cut calls short at a Ctrl-C that was meant for somebody else.
# SIGTERM and SIGHUP are taken in any case: nohup ignores SIGHUP because it would end the program, and ours reloads.

_taken: dict[int, _Taken] = {}
"""By number. The handlers of signals are the process's, and so is this."""


def is_taken(number: int) -> bool:
    """Tell whether somebody of ours answers to a signal in this process."""
    taken = _taken.get(number)
    return taken is not None and signal.getsignal(number) == taken.see


class Signals(service.Service):
    """Calls a function for each signal, in the reactor, for as long as it runs.

    The reactor has handlers of its own, which it sets when it begins to run; these come after, and
    the former ones are given back when nobody wants to know any more. SIGINT stays ignored where it is
    ignored: see Note [Background jobs].

    :param reactor: provides IReactorCore and IReactorFromThreads.
    :param handlers: function by number of the signal.
    :param at_once: called with a signal's number before that, right where the signal finds the
        process, and even if the reactor's turn never comes. It may set signals and timers, no more:
        whatever it interrupts is half done.
    """

    def __init__(
        self, reactor: Any, handlers: Mapping[int, Handler], at_once: Callable[[int], object] = lambda _number: None
    ) -> None:
        self._reactor = reactor
        self._handlers = handlers
        self._at_once = at_once
        self._mine: dict[int, _Taken] = {}

    def startService(self) -> None:
        """Take the signals, as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        """Give the signals back, but for those that somebody else has taken meanwhile."""
        super().stopService()
        mine, self._mine = self._mine, {}
        for number, taken in mine.items():
            taken.takers.remove(self)
            if not taken.takers:
                taken.give_back(number)
                if _taken.get(number) is taken:
                    del _taken[number]

    def former(self, number: int) -> Any:
        """Return what would have been done at a signal, as signal.getsignal does; None while it is not taken."""
        taken = self._mine.get(number)
        return None if taken is None else taken.former

    def resume(self, number: int) -> bool:
        """Do what would have been done, had nobody taken the signal; once, whoever asks for it.

        :return: False if that is nothing, or the sudden end of the process: then it is not done.
        """
        former = self.former(number)
        if not callable(former) or former is signal.default_int_handler:
            return False
        taken = self._mine[number]
        if not taken.resumed:
            taken.resumed = True
            former(number, None)
        return True

    def see(self, number: int) -> None:
        """See a signal, wherever it finds the process."""
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
            taken = _taken.get(number)
            if taken is None or signal.getsignal(number) != taken.see:
                taken = _taken[number] = _Taken(number)
            taken.takers.append(self)
            self._mine[number] = taken
