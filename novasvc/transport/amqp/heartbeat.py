"""Heartbeats of a connection, in both directions (AMQP 0-9-1 4.2.7)."""

from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger()

_SILENT_INTERVALS = 3
"""Half heartbeat intervals without a byte after which the broker counts as dead: at most two heartbeats pass."""


@attrs.define(eq=False)
class Heartbeat:
    """Sends a heartbeat when nothing else was sent, and detects a half-open connection.

    :param clock: measures the interval.
    :param send: writes a heartbeat frame.
    :param silent: called with the seconds of silence when the broker counts as dead.
    :ivar bytes_sent: set by the owner when it writes; any frame counts as a heartbeat.
    :ivar bytes_received: set by the owner when bytes arrive.
    """

    _clock: IReactorTime
    _send: Callable[[], None]
    _silent: Callable[[float], None]
    bytes_sent: bool = attrs.field(default=False, init=False)
    bytes_received: bool = attrs.field(default=False, init=False)
    _interval: float = attrs.field(default=0.0, init=False)
    _silent_intervals: int = attrs.field(default=0, init=False)
    _loop: LoopingCall | None = attrs.field(default=None, init=False)

    def start(self, interval: float) -> None:
        """Begin with the negotiated interval, in seconds, > 0. Checks are made at half of it."""
        self._interval = interval
        self._loop = LoopingCall(self._check)
        self._loop.clock = self._clock
        running = self._loop.start(interval / 2, now=False)
        running.addErrback(lambda failure: _log.failure("the heartbeat timer failed", failure))

    def stop(self) -> None:
        """Stop the timer."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _check(self) -> None:
        if not self.bytes_sent:
            self._send()
        self._silent_intervals = 0 if self.bytes_received else self._silent_intervals + 1
        self.bytes_sent = self.bytes_received = False
        if self._silent_intervals >= _SILENT_INTERVALS:
            self._silent(self._silent_intervals * self._interval / 2)
