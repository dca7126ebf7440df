"""Calls from threads to the reactor, in batches: waking the reactor costs as much as a small response."""

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

_log = Logger()


class ReactorQueue:
    """Calls that threads have for the reactor; one wake-up runs many of them.

    :param reactor: provides IReactorFromThreads.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, call: Callable[[], None]) -> None:
        """Have the reactor call this soon. Called in any thread."""
        self._calls.append(call)
        self.wake()

    def add(self, call: Callable[[], None]) -> None:
        """Queue a call for the next wake() or run(). Called in any thread."""
        self._calls.append(call)

    def wake(self) -> None:
        """Wake the reactor if calls are queued."""
        if self._calls and not self._woken:
            self._woken = True
            self._reactor.callFromThread(self.run)

    def run(self) -> None:
        """Run the queued calls. Called in the reactor's thread."""
        # Cleared before the calls are taken: a thread that adds one from now on wakes the reactor again.
        self._woken = False
        calls = self._calls
        for _ in range(len(calls)):
            try:
                calls.popleft()()
            except Exception:  # noqa: BLE001 - the other calls have to run as well
                _log.failure("a call from a thread failed")
