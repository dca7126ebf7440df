"""Tests for novasvc.periodic.schedule: the due times of one task."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.periodic.schedule import Schedule


def step(clock: Clock) -> None:
    """Advance the clock to exactly the next delayed call."""
    clock.advance(max(0.0, clock.getDelayedCalls()[0].getTime() - clock.seconds()))


class ScheduleTests(SynchronousTestCase):
    """Tests for Schedule, on a Clock."""

    def make(self, interval: float, now: float = 0.0) -> tuple[Clock, Schedule, list[tuple[float, int]]]:
        clock = Clock()
        clock.advance(now)
        taken: list[tuple[float, int]] = []

        def on_due() -> None:
            count, _ = schedule.take()
            if count:
                taken.append((clock.seconds(), count))

        schedule = Schedule(clock, interval, now + interval, on_due)
        return clock, schedule, taken

    @given(
        now=st.floats(0, 1e7),
        interval=st.floats(0.05, 1e5),
        delay=st.none() | st.floats(0, 100),
    )
    def test_no_due_time_is_lost_to_rounding(self, now: float, interval: float, delay: float | None) -> None:
        """On a clock that moves from due time to due time, each due time is taken once, alone."""
        clock, schedule, taken = self.make(interval, now)
        first = interval if delay is None else delay
        schedule.start(first, not_before=0)
        while len(taken) < 50:
            step(clock)
        self.assertEqual({count for _, count in taken}, {1})
        self.assertApproximates(clock.seconds(), now + first + 49 * interval, interval / 1000)

    def test_lateness_is_since_the_last_due_time(self) -> None:
        """Several due times that passed are taken together; the lateness is that of the last one."""
        clock, schedule, _ = self.make(10)
        clock.advance(34)
        self.assertEqual(schedule.take(), (3, 4.0))
        self.assertEqual(schedule.take(), (0, 0.0))
        self.assertEqual(schedule.due, 40)

    def test_busy_reactor_at_the_first_due_time(self) -> None:
        """A first call that is late does not make the later ones late."""
        clock, schedule, taken = self.make(10)
        schedule.start(2, not_before=2)
        clock.advance(5)
        self.assertEqual(schedule.due, 15)
        clock.advance(10)
        self.assertEqual(taken, [(5, 1), (15, 1)])

    def test_restart_in_the_loop(self) -> None:
        """After a restart the next due time is one interval later."""
        clock, schedule, taken = self.make(10)
        schedule.start(10, not_before=0)
        clock.pump([4, 0])
        schedule.restart()
        self.assertEqual(schedule.due, 14)
        clock.pump([9, 1, 10])
        self.assertEqual(taken, [(14, 1), (24, 1)])

    def test_restart_before_the_first_due_time(self) -> None:
        """A restart postpones a first due time that has not passed."""
        clock, schedule, taken = self.make(10)
        schedule.start(2, not_before=0)
        clock.advance(1)
        schedule.restart()
        clock.pump([1, 8, 1, 10])
        self.assertEqual(taken, [(11, 1), (21, 1)])

    def test_restart_before_the_first_pass(self) -> None:
        """A restart does not move a due time before the first pass."""
        clock, schedule, taken = self.make(10)
        schedule.start(30, not_before=30)
        clock.advance(4)
        schedule.restart()
        self.assertEqual(schedule.due, 30)
        clock.pump([25, 1])
        self.assertEqual(taken, [(30, 1)])

    def test_stop(self) -> None:
        """A stopped schedule leaves no delayed call, whether it had begun or not."""
        for waited in (0, 3, 20):
            clock, schedule, _ = self.make(10)
            schedule.start(2, not_before=2)
            clock.advance(waited)
            schedule.stop()
            self.assertEqual(clock.getDelayedCalls(), [])

    def test_stop_from_inside(self) -> None:
        """The function that a schedule calls may stop the schedule."""
        clock = Clock()
        stopped: list[None] = []
        schedule = Schedule(clock, 10, 0, lambda: stopped.append(schedule.stop()))
        schedule.start(0, not_before=0)
        clock.advance(0)
        self.assertEqual((stopped, clock.getDelayedCalls()), ([None], []))
