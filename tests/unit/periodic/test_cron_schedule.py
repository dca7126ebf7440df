"""Tests for novasvc.periodic.cron_schedule: a wall clock that the test sets."""

from datetime import UTC, datetime

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.periodic.cron import CronLine
from novasvc.periodic.cron_schedule import CORRECTION, LOOK_INTERVAL, CronSchedule

START = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
HOUR = 3600.0


class ScheduleCase(SynchronousTestCase):
    """A schedule, a monotonic clock, and a wall clock beside it."""

    line = "0 3 * * *"

    def setUp(self) -> None:
        self.clock = Clock()
        self.ahead = START
        self.runs: list[float] = []
        self.missed = 0
        self.schedule = CronSchedule(self.clock, CronLine(self.line, UTC), self.wall, self.on_due)

    def wall(self) -> float:
        return self.clock.seconds() + self.ahead

    def on_due(self) -> None:
        count, late = self.schedule.take()
        if count:
            self.runs.append(self.hour())
            self.missed += count - 1
            self.late = late

    def hour(self) -> float:
        """Return hours of wall time since the start."""
        return (self.wall() - START) / HOUR

    def wait(self, hours: float) -> None:
        self.clock.pump([30.0] * round(hours * HOUR / 30))


class FixedTests(ScheduleCase):
    """A line with a fixed time."""

    def test_days(self) -> None:
        """It is due each day at its time, on time."""
        self.schedule.start(None)
        self.wait(72)
        self.assertEqual(self.runs, [3, 27, 51])
        self.assertEqual(self.missed, 0)

    def test_due(self) -> None:
        """Its next due time is known on the monotonic clock."""
        self.schedule.start(None)
        self.assertEqual(self.schedule.due, 3 * HOUR)
        self.ahead += HOUR
        self.assertEqual(self.schedule.due, 2 * HOUR)

    def test_at_once(self) -> None:
        """A first run outside the line comes after its delay, and the line's times stay."""
        self.schedule.start(HOUR / 2)
        self.wait(4)
        self.assertEqual(self.runs, [0.5, 3])

    def test_by_hand(self) -> None:
        """A run by hand does not move the due time."""
        self.schedule.start(None)
        self.wait(2)
        self.schedule.restart()
        self.wait(2)
        self.assertEqual(self.runs, [3])

    def test_stop(self) -> None:
        """A stopped schedule has no timer, and can be started again."""
        self.schedule.start(None)
        self.schedule.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.wait(4)
        self.assertEqual(self.runs, [])
        self.schedule.start(None)
        self.wait(24)
        self.assertEqual(self.runs, [27])

    def test_small_step_ahead(self) -> None:
        """A step over the due time becomes one run, within a minute."""
        self.schedule.start(None)
        self.wait(2)
        self.ahead += 1.5 * HOUR
        self.wait(12)
        self.assertEqual(len(self.runs), 1)
        self.assertLessEqual(self.runs[0], 3.5 + LOOK_INTERVAL / HOUR)

    def test_small_step_back(self) -> None:
        """After a step back a time that has run does not run again."""
        self.schedule.start(None)
        self.wait(3.5)
        self.ahead -= HOUR
        self.wait(10)
        self.assertEqual(self.runs, [3])
        self.wait(24)
        self.assertEqual(self.runs, [3, 27])

    def test_correction(self) -> None:
        """A large step, ahead or back, runs nothing; the next time is by the new clock, and the log says so."""
        for step in (30 * 365 * 24 * HOUR, -30 * 365 * 24 * HOUR, CORRECTION * 2):
            self.runs.clear()
            self.schedule.stop()
            self.ahead = START - self.clock.seconds()
            self.schedule.start(None)
            self.wait(1)
            self.ahead += step
            with capturedLogs() as events:
                self.wait(0.1)
            self.assertEqual(self.runs, [])
            self.assertEqual(len(events), 1)
            self.assertIn(f"the wall clock was set by {step:.0f} s", formatEvent(events[0]))
            self.wait(24)
            self.assertEqual(len(self.runs), 1)
            self.assertAlmostEqual(self.runs[0] % 24, 3)

    def test_storm(self) -> None:
        """A clock that is set all the time causes no storm of runs."""
        self.schedule.start(None)
        self.wait(2.9)
        for _ in range(200):
            self.ahead += 0.2 * HOUR
            self.wait(0.02)
            self.ahead -= 0.2 * HOUR
            self.wait(0.02)
        self.assertEqual(len(self.runs), 1)

    def test_late_reactor(self) -> None:
        """A reactor that was blocked for days runs once, and counts what it missed."""
        self.schedule.start(None)
        self.clock.advance(80 * HOUR)
        self.assertEqual((self.runs, self.missed, self.late), ([80], 3, 5 * HOUR))

    def test_earlier_leader(self) -> None:
        """A time that nobody ran for since the earlier leader's last run is made up for, once."""
        self.schedule.start(None, last_due=START - 45 * HOUR)
        self.clock.advance(0)
        self.assertEqual(self.runs, [0])
        self.wait(4)
        self.assertEqual(self.runs, [0, 3])

    def test_earlier_leader_has_run(self) -> None:
        """A due time that the earlier leader ran for by a clock that was ahead does not run again."""
        self.wait(2.99)
        self.schedule.start(None, last_due=START + 3 * HOUR)
        self.wait(5)
        self.assertEqual(self.runs, [])

    def test_earlier_leader_of_the_future(self) -> None:
        """A last due time that is far in the future was a wrong clock's, and is ignored."""
        self.schedule.start(None, last_due=START + 10_000 * HOUR)
        self.wait(4)
        self.assertEqual(self.runs, [3])


class WildcardTests(ScheduleCase):
    """A line with "*" in the hour."""

    line = "*/15 * * * *"

    def test_hours(self) -> None:
        """It is due four times an hour."""
        self.schedule.start(None)
        self.wait(2)
        self.assertEqual(self.runs, [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2])

    def test_step_back(self) -> None:
        """After a step back it goes on by the new time."""
        self.schedule.start(None)
        self.wait(2)
        self.ahead -= HOUR
        self.runs.clear()
        self.wait(0.55)
        self.assertEqual(self.runs, [1.25, 1.5])

    def test_slewed(self) -> None:
        """A clock that is set back by a little does not run a time twice."""
        self.schedule.start(None)
        self.wait(0.25)
        self.assertEqual(self.runs, [0.25])
        self.ahead -= 1.0
        self.wait(0.25)
        self.assertEqual(len(self.runs), 1)
        self.wait(0.01)
        self.assertEqual(len(self.runs), 2)

    def test_step_ahead(self) -> None:
        """A step ahead of two hours is one run; the other seven are missed."""
        self.schedule.start(None)
        self.wait(0.1)
        self.ahead += 2 * HOUR
        self.wait(0.05)
        self.assertEqual((len(self.runs), self.missed), (1, 7))

    def test_long_pause(self) -> None:
        """A pause of a year is one run, and costs no time for each due time."""
        self.schedule.start(None)
        self.clock.advance(365 * 24 * HOUR)
        self.assertEqual(len(self.runs), 1)
        self.wait(0.6)
        self.assertEqual(len(self.runs), 3)
