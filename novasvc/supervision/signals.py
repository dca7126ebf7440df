"""Signals of the process, as calls in the reactor's turn."""

import signal
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from twisted.application import service
from twisted.logger import Logger

_log = Logger()

Handler = Callable[[], object]


class Signals(service.Service):
    """Calls a function for each signal, in the reactor, for as long as it runs.

    The reactor has handlers of its own, which it sets when it begins to run; these come after, and
    the former ones are given back at the end.

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
        self._former: dict[int, Any] = {}
        self._ours: dict[int, Any] = {}

    def startService(self) -> None:
        """Take the signals, as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        """Give the signals back, but for those that somebody else has taken meanwhile."""
        super().stopService()
        former, self._former = self._former, {}
        for number, handler in former.items():
            if signal.getsignal(number) is self._ours[number]:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def former(self, number: int) -> Any:
        """Return what would have been done at a signal, as signal.getsignal does; None while it is not taken."""
        return self._former.get(number)

    def resume(self, number: int) -> bool:
        """Do what would have been done, had nobody taken the signal.

        :return: False if that is nothing, or the sudden end of the process: then it is not done.
        """
        former = self._former.get(number)
        if not callable(former) or former is signal.default_int_handler:
            return False
        former(number, None)
        return True

    def _install(self) -> None:
        if not self.running or self._former:
            return
        if threading.current_thread() is not threading.main_thread():
            _log.warn("signals are not taken: the reactor does not run in the main thread")
            return
        for number, handler in self._handlers.items():
            self._ours[number] = partial(self._pass_on, handler)
            self._former[number] = signal.signal(number, self._ours[number])

    def _pass_on(self, handler: Handler, number: int, _frame: object) -> None:
        self._at_once(number)
        self._reactor.callFromThread(handler)
