"""Tests for the clocks of a simulation."""

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc.testing.simulation.clock import ProcessClock, SimulationClock


class SimulationClockTests(SynchronousTestCase):
    """Tests for novasvc.testing.simulation.clock.SimulationClock."""

    def setUp(self) -> None:
        self.clock = SimulationClock()
        self.ran: list[object] = []

    def note(self, what: object) -> None:
        self.ran.append((what, self.clock.seconds()))

    def test_order(self) -> None:
        """Calls run in the order of their times, and those of one moment in the order of their scheduling."""
        for name, delay in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
            self.clock.callLater(delay, self.note, name)
        self.clock.advance(3)
        self.assertEqual(self.ran, [("a", 1.0), ("b", 1.0), ("c", 2.0)])
        self.assertEqual(self.clock.seconds(), 3.0)

    def test_changed(self) -> None:
        """A call that is cancelled, delayed or reset runs when it is due then, and once."""
        calls = [self.clock.callLater(5, self.note, name) for name in "abcd"]
        calls[0].cancel()
        calls[1].delay(2)
        calls[2].reset(1)
        calls[3].reset(1)
        calls[3].reset(8)
        self.assertEqual(len(self.clock.getDelayedCalls()), 3)
        self.clock.advance(10)
        self.assertEqual(self.ran, [("c", 1.0), ("b", 7.0), ("d", 8.0)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_negative(self) -> None:
        """A negative delay is an error on each clock, as on Twisted's reactors."""
        for clock in (self.clock, ProcessClock(self.clock)):
            self.assertRaises(AssertionError, clock.callLater, -0.5, self.note, "a")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_until(self) -> None:
        """step() runs nothing that is due after the end."""
        self.clock.callLater(2, self.note, "a")
        self.assertFalse(self.clock.step(1.5))
        self.assertTrue(self.clock.step(2.0))
        self.assertEqual(self.ran, [("a", 2.0)])


class ProcessClockTests(SynchronousTestCase):
    """Tests for novasvc.testing.simulation.clock.ProcessClock."""

    def setUp(self) -> None:
        self.world = SimulationClock()
        self.process = ProcessClock(self.world, offset=100.0, rate=1.25)
        self.ran: list[tuple[float, float]] = []

    def note(self) -> None:
        self.ran.append((self.world.seconds(), self.process.seconds()))

    def test_interface(self) -> None:
        """It provides IReactorTime."""
        verifyObject(IReactorTime, self.process)

    def test_drift(self) -> None:
        """A clock that runs a quarter too fast has its timers early, and sees its own time."""
        self.process.callLater(5, self.note)
        self.world.advance(10)
        self.assertEqual(self.ran, [(4.0, 105.0)])
        self.assertEqual(self.process.seconds(), 112.5)

    def test_never_early(self) -> None:
        """A timer never sees a time before its own, however its clock is rounded."""
        for number in range(1, 200):
            process = ProcessClock(self.world, offset=number / 7, rate=1 + number / 3001)
            due = process.seconds() + number / 11
            seen: list[float] = []
            process.callLater(number / 11, lambda seen=seen, process=process: seen.append(process.seconds()))
            self.world.advance(number)
            self.assertGreaterEqual(seen[0], due)

    def test_pause(self) -> None:
        """While a process is paused nothing runs, and then what is overdue, in order; its clock goes on."""
        loop = LoopingCall(self.note)
        loop.clock = self.process
        loop.start(1.25, now=False)
        self.world.advance(1)
        self.process.pause(4.5)
        self.world.advance(4)
        loop.stop()
        self.assertEqual([world for world, _ in self.ran], [1.0, 4.5, 5.0])

    def test_end(self) -> None:
        """When a process has died, none of its timers runs, and those of others do."""
        self.process.callLater(1, self.note)
        self.world.callLater(2, self.note)
        self.process.ended = True
        self.world.advance(3)
        self.assertEqual([world for world, _ in self.ran], [2.0])
