"""Run the reactor in a thread, for a main thread that reads from a terminal."""

import ctypes
import threading
import time
from collections.abc import Callable
from inspect import iscoroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from novasvc.errors import StateError

_LOOK = 0.5
"""Seconds between two looks whether the reactor still runs."""

_CANCEL = 0.5
"""Seconds for the reactor to begin a cancellation; one that does not is blocked by code that it runs."""

_STOP = 5.0
"""Seconds for the reactor to stop."""

# Note [The reactor of the shell]
#
# GNU readline, and Python's handler of SIGINT, work in the main thread only. So the main thread reads lines, and the
# reactor runs in another one. All that the user writes runs there, where Twisted's objects may be used: a client, a
# Deferred, reactor.callLater. The main thread waits for the result meanwhile, and SIGINT interrupts that wait.


class ReactorThread:
    """Runs the reactor, which cannot be started again, in a thread of its own.

    :param reactor: not running.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._thread = threading.Thread(target=reactor.run, args=(False,), name="reactor", daemon=True)

    def start(self) -> None:
        """Start the reactor, and wait until it runs."""
        running = threading.Event()
        self._reactor.callWhenRunning(running.set)
        self._thread.start()
        running.wait()

    def stop(self) -> None:
        """Stop the reactor, unless code that it runs keeps it from stopping."""
        self._reactor.callFromThread(self._reactor.stop)
        self._thread.join(_STOP)

    def run(self, function: Callable[[], Any], timeout: float | None = None) -> Any:
        """Call a function in the thread of the reactor, and wait for its result.

        :param function: returns a value, a Deferred or a coroutine.
        :param timeout: seconds to wait; None waits until SIGINT.
        :raises TimeoutError: there is no result in this time; code that the reactor runs may block it.
        :raises StateError: the reactor was stopped.
        :raises KeyboardInterrupt: SIGINT arrived. What the function waited for is cancelled; code that blocks the
            reactor is interrupted, unless it blocks outside of Python.
        """
        ended = threading.Event()
        outcomes: list[Any] = []
        waiting: Deferred[Any] = Deferred()

        def begin() -> None:
            nonlocal waiting
            waiting = _called(function)
            waiting.addBoth(outcomes.append).addBoth(lambda _: ended.set())

        try:
            # Within the block, because SIGINT may arrive when the function is handed over already.
            self._reactor.callFromThread(begin)
            self._wait(ended, timeout)
        except KeyboardInterrupt:
            self._cancel(lambda: waiting.cancel(), ended)  # noqa: PLW0108 - begin() sets it
            raise
        (outcome,) = outcomes
        if isinstance(outcome, Failure):
            assert outcome.value is not None
            raise outcome.value
        return outcome

    def _wait(self, ended: threading.Event, timeout: float | None) -> None:
        began = time.monotonic()
        while not ended.wait(_LOOK if timeout is None else min(_LOOK, timeout)):
            if not self._thread.is_alive() and not ended.is_set():
                raise StateError("the reactor of this shell", "stopped", "run statements; leave by Ctrl-D")
            if timeout is not None and time.monotonic() - began >= timeout:
                raise TimeoutError

    def _cancel(self, cancel: Callable[[], object], ended: threading.Event) -> None:
        cancelled = threading.Event()

        def begin() -> None:
            if not ended.is_set():
                cancel()
            cancelled.set()

        self._reactor.callFromThread(begin)
        if not cancelled.wait(_CANCEL) and not ended.is_set():
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(KeyboardInterrupt))
        ended.wait(_CANCEL)


def _called(function: Callable[[], Any]) -> Deferred[Any]:
    try:
        result = function()
    except BaseException:  # noqa: BLE001 - SystemExit and KeyboardInterrupt end the statement, not the reactor
        result = Failure()
    if iscoroutine(result):
        return Deferred.fromCoroutine(result)
    if isinstance(result, Deferred):
        return result
    fired: Deferred[Any] = Deferred()
    fired.callback(result)  # a Failure makes it fail
    return fired
