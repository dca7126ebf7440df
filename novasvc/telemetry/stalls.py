"""Detects reactor stalls: a timer that stamps a heartbeat once a second and records when it was late."""

import time
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from novasvc.telemetry import metrics
from novasvc.telemetry.flight import FlightRecorder

_log = Logger()

STALL = 0.5
"""Seconds of lateness that are recorded as a stall: the reactor was blocked, or the process got no CPU time."""

LOGGED = 1.0
"""Seconds of lateness that are also logged."""

_SILENCE = 30.0
"""Seconds between two such log events."""

_RECENT, _SHOWN = 20, 3
"""Events that are looked at, and most that are logged: what blocked the reactor is among the last."""

_OF_USERS = frozenset({"call", "task"})
"""Kinds of events that are about code of the users'."""


class StallWatch:
    """Stamp heartbeats from a reactor's timer, and record those that were late.

    To detect a reactor that is blocked for good, compare the recorder's heartbeat with the monotonic
    clock from another process or thread.

    :param recorder: gets the heartbeats, and events of the kind "stall".
    :param clock: the reactor that is watched.
    :param monotonic: returns seconds of CLOCK_MONOTONIC; the reactor's own seconds may have another epoch.
    :param interval: seconds between heartbeats, > 0.
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
        self._clock = clock
        self._started_at = 0.0
        self._due = 0.0
        self._silent_until = 0.0
        self._beating = LoopingCall(self._beat)
        self._beating.clock = clock

    def start(self) -> None:
        """Stamp the first heartbeat now, and one every interval until stopped."""
        self._due, self._started_at = self._monotonic(), self._clock.seconds()
        beating = self._beating.start(self._interval)
        beating.addErrback(lambda failure: _log.failure("the stall watch failed; no more heartbeats follow", failure))

    def stop(self) -> None:
        """Stop. Does nothing if it was not started."""
        if self._beating.running:
            self._beating.stop()

    def _log(self, now: float, late: float) -> None:
        """Log a long stall, with what ran last, but not each time: an overloaded host stalls often."""
        if late < LOGGED or now < self._silent_until:
            return
        self._silent_until = now + _SILENCE
        ran = [f"{event.kind} {event.text}" for event in self._recorder.events(_RECENT) if event.kind in _OF_USERS]
        _log.warn(
            "the reactor was blocked for {late:.1f} s{ran}; let functions that block run in a thread: "
            "@rpc.expose(blocking=True), or self.attachments.run_blocking(function)",
            late=late,
            ran=f" (last events: {'; '.join(ran[-_SHOWN:])})" if ran else "",
        )

    def _beat(self) -> None:
        now = self._monotonic()
        late = max(0.0, now - self._due)
        # LoopingCall keeps to the times start + n * interval: less than an interval may follow a late beat.
        running = self._clock.seconds() - self._started_at
        self._due = now + self._interval - running % self._interval
        metrics.lag_seconds.at().observe(late)
        metrics.last_lag.at().value = late
        if late > STALL:
            self._log(now, late)
            self._recorder.note("stall", f"the reactor was {late:.1f} s late")
        self._recorder.beat(now)
