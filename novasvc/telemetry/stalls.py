"""Proof that a reactor turns, once a second, and a note of when it did not."""

import time
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from novasvc.telemetry import metrics
from novasvc.telemetry.flight import FlightRecorder

_log = Logger()

STALL = 0.5
"""Seconds: a reactor that is later than that was kept busy, or its process was not run."""


class StallWatch:
    """Stamps heartbeats from a reactor's timers, and notes those that came late.

    Who wants to know of a reactor that does not turn at all compares the recorder's heartbeat with
    the monotonic clock, from another process or thread.

    :param recorder: takes the heartbeats, and notes of the kind "stall".
    :param clock: the reactor that is watched.
    :param monotonic: returns seconds of CLOCK_MONOTONIC; the reactor's own may be set to another time.
    :param interval: seconds between two heartbeats, > 0.
    """

    def __init__(
        self,
        recorder: FlightRecorder,
        clock: IReactorTime,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        interval: float = 1.0,
    ) -> None:
        self._recorder = recorder
        self._monotonic = monotonic
        self._interval = interval
        self._due = 0.0
        self._beating = LoopingCall(self._beat)
        self._beating.clock = clock

    def start(self) -> None:
        """Stamp the first heartbeat at once, and go on until stopped."""
        self._due = self._monotonic()
        beating = self._beating.start(self._interval)
        beating.addErrback(lambda failure: _log.failure("there are no heartbeats any more", failure))

    def stop(self) -> None:
        """Stamp no more of them; may be called when it was not started."""
        if self._beating.running:
            self._beating.stop()

    def _beat(self) -> None:
        now = self._monotonic()
        late, self._due = max(0.0, now - self._due), now + self._interval
        metrics.lag_seconds.at().observe(late)
        metrics.last_lag.at().value = late
        if late > STALL:
            self._recorder.note("stall", f"the reactor was {late:.1f} s late")
        self._recorder.beat(now)
