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
    """

    def __init__(self, reactor: Any, handlers: Mapping[int, Handler]) -> None:
        self._reactor = reactor
        self._handlers = handlers
        self._former: dict[int, Any] = {}

    def startService(self) -> None:
        """Take the signals, as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        """Give the signals back."""
        super().stopService()
        former, self._former = self._former, {}
        for number, handler in former.items():
            signal.signal(number, handler)

    def resume(self, number: int) -> None:
        """Do what would have been done, had nobody taken the signal."""
        former = self._former.get(number)
        if callable(former):
            former(number, None)

    def _install(self) -> None:
        if not self.running or self._former:
            return
        if threading.current_thread() is not threading.main_thread():
            _log.warn("signals are not taken: the reactor does not run in the main thread")
            return
        for number, handler in self._handlers.items():
            self._former[number] = signal.signal(number, partial(self._pass_on, handler))

    def _pass_on(self, handler: Handler, _number: int, _frame: object) -> None:
        self._reactor.callFromThread(handler)
