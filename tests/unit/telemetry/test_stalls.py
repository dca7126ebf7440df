"""Tests for novasvc.telemetry.stalls: a reactor's heartbeats, and those that came late."""

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry.flight import FlightRecorder
from novasvc.telemetry.stalls import StallWatch
from tests.support.flight_rig import said


class StallWatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ahead = 1000.0
        self.recorder = FlightRecorder.anonymous()
        self.watch = StallWatch(self.recorder, self.clock, monotonic=lambda: self.clock.seconds() + self.ahead)
        self.watch.start()
        self.addCleanup(self.watch.stop)

    def stalls(self) -> list[str]:
        return said(self.recorder, "stall")

    def test_beats(self) -> None:
        """The first heartbeat comes at once, and one a second after it; none of them is noted."""
        beats = [self.recorder.last_beat]
        for _ in range(8):
            self.clock.advance(0.5)
            beats.append(self.recorder.last_beat)
        self.assertEqual(beats, [1000, 1000, 1001, 1001, 1002, 1002, 1003, 1003, 1004])
        self.assertEqual(self.stalls(), [])

    def test_stall(self) -> None:
        """A heartbeat that comes more than half a second late is noted, with how late it came, once."""
        self.clock.advance(1.5)
        self.assertEqual(self.stalls(), [])
        self.clock.advance(3.125)
        self.clock.pump([0.125] * 27)  # to 8.0
        self.assertEqual(self.stalls(), ["the reactor was 2.6 s late"])
        self.clock.advance(60)
        self.assertEqual(self.stalls()[1:], ["the reactor was 59.0 s late"])

    def test_stall_after_stall(self) -> None:
        """Lateness is counted from the time of a heartbeat's schedule, also right after a late one."""
        for _ in range(4):
            self.clock.advance(1.375)  # the heartbeats are due at 1, 2, 3 and 5
        self.assertEqual(self.stalls(), ["the reactor was 0.8 s late", "the reactor was 1.1 s late"])

    def test_logged(self) -> None:
        """A long stall is logged with what ran last, and the next one only after a while."""
        self.recorder.note("task", "slow_task began")
        self.recorder.note("node", "of no interest")
        with capturedLogs() as logs:
            self.clock.advance(1.8)  # 0.8 s late: not worth a line
            self.assertEqual(logs, [])
            self.clock.advance(3.5)
            self.clock.advance(3.5)
        (text,) = [formatEvent(event) for event in logs]
        self.assertIn("the reactor was blocked for 3.3 s (last events: task slow_task began); let functions", text)
        with capturedLogs() as logs:
            self.clock.pump([1.0] * 30)
            self.clock.advance(4)
        self.assertEqual(len(logs), 1)

    def test_clock_is_set(self) -> None:
        """Somebody who sets the reactor's clock makes no stall, and the stamps go on as before."""
        self.clock.advance(1)
        self.ahead -= 3600
        self.clock.advance(3600)
        self.clock.pump([0.125] * 8)
        self.assertEqual(self.stalls(), [])
        self.assertEqual(self.recorder.last_beat, 1002)
        self.ahead -= 0.75
        self.clock.advance(0.75)
        self.clock.pump([0.125] * 24)
        self.assertEqual(self.stalls(), [])

    def test_stop(self) -> None:
        """One that is stopped stamps no more, leaves no timer, and may be stopped again, or started."""
        self.watch.stop()
        self.watch.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(10)
        self.assertEqual(self.recorder.last_beat, 1000)
        self.watch.start()
        self.assertEqual((self.recorder.last_beat, self.stalls()), (1010, []))

    def test_interval(self) -> None:
        """The interval is the watcher's choice."""
        watch = StallWatch(self.recorder, self.clock, monotonic=self.clock.seconds, interval=0.25)
        self.watch.stop()
        watch.start()
        self.addCleanup(watch.stop)
        self.clock.advance(0.25)
        self.assertEqual(self.recorder.last_beat, 0.25)
