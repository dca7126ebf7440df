"""Tests for novasvc.rpc.server.deadline."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.server.deadline import Deadlines


class DeadlinesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.make()

    def make(self) -> None:
        self.clock = Clock()
        self.expired: list[tuple[float, str]] = []
        self.deadlines = Deadlines[str](self.clock, lambda key: self.expired.append((self.clock.seconds(), key)))

    def test_in_time(self) -> None:
        """Each key expires at its deadline, the earliest first."""
        for key, when in (("b", 0.07), ("a", 0.0625), ("c", 3.0)):
            self.deadlines.add(key, when)
        self.clock.pump([0.0625, 0.0075, 2.93])
        self.assertEqual(self.expired, [(0.0625, "a"), (0.07, "b"), (3.0, "c")])

    def test_discarded(self) -> None:
        """A discarded key does not expire; discarding an unknown key is no error."""
        self.deadlines.add("a", 1)
        self.deadlines.add("b", 1)
        self.deadlines.live.pop("a", None)
        self.deadlines.live.pop("unknown", None)
        self.clock.advance(1)
        self.assertEqual(self.expired, [(1, "b")])

    def test_again(self) -> None:
        """A key can be given another deadline when the first is discarded."""
        self.deadlines.add("a", 1)
        self.deadlines.live.pop("a", None)
        self.deadlines.add("a", 2)
        self.clock.pump([1, 1])
        self.assertEqual(self.expired, [(2, "a")])

    def test_past(self) -> None:
        """A deadline that has passed expires in the next turn."""
        self.deadlines.add("a", -5)
        self.assertEqual(self.expired, [])
        self.clock.advance(0)
        self.assertEqual(self.expired, [(0, "a")])

    def test_one_timer(self) -> None:
        """All keys share one timer, and few stale entries are kept."""
        for number in range(10_000):
            self.deadlines.add(str(number), 60)
            self.deadlines.live.pop(str(number), None)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertLess(len(self.deadlines._heap), 100)

    def test_idle(self) -> None:
        """Without keys the timer fires once and is not set again."""
        self.deadlines.add("a", 1)
        self.deadlines.live.pop("a", None)
        self.clock.advance(1)
        self.assertEqual((self.clock.getDelayedCalls(), self.expired), ([], []))

    def test_closed(self) -> None:
        """Closing leaves no timer."""
        self.deadlines.add("a", 1)
        self.deadlines.close()
        self.deadlines.close()
        self.assertEqual((self.clock.getDelayedCalls(), len(self.deadlines)), ([], 0))

    def test_from_within(self) -> None:
        """Keys can be added and discarded while others expire."""
        clock, expired = Clock(), []

        def on_expired(key: str) -> None:
            expired.append(key)
            deadlines.live.pop("c", None)
            if key == "a":
                deadlines.add("d", 1.5)
                deadlines.add("e", 0.5)

        deadlines = Deadlines[str](clock, on_expired)
        for key in ("a", "b", "c"):
            deadlines.add(key, 1)
        clock.advance(1)
        self.assertEqual(expired, ["a", "e", "b"])
        clock.advance(0.5)
        self.assertEqual(expired, ["a", "e", "b", "d"])
        self.assertEqual(clock.getDelayedCalls(), [])

    @given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200))
    def test_all(self, plan: list[tuple[int, bool]]) -> None:
        """Every key expires in time or was discarded, whatever came in between."""
        self.make()
        for number, (when, kept) in enumerate(plan):
            self.deadlines.add(str(number), when)
            if not kept:
                self.deadlines.live.pop(str(number), None)
        self.clock.pump([1] * 20)
        self.clock.advance(0)
        expected = {(max(when, 1.0) if when else 1.0, str(n)) for n, (when, kept) in enumerate(plan) if kept}
        self.assertEqual(set(self.expired), expected)
        self.assertEqual(len(self.expired), len(expected))
