"""Tests for novasvc.reactor.turns."""

from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.reactor.turns import in_slices


class SlicesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.seen: list[Sequence[int]] = []

    def go_through(self, number: int) -> Deferred[None]:
        async def loop() -> None:
            async for some in in_slices(range(number), 2, self.clock):
                self.seen.append([*some])

        return Deferred.fromCoroutine(loop())

    def test_slices(self) -> None:
        """The first slice comes at once, each of the others after a pause, the last one with what is left."""
        looping = self.go_through(5)
        self.assertEqual(self.seen, [[0, 1]])
        self.clock.advance(0)
        self.assertEqual(self.seen, [[0, 1]])
        self.clock.advance(0.001)
        self.assertEqual(self.seen, [[0, 1], [2, 3]])
        self.clock.advance(0.001)
        self.assertEqual(self.seen, [[0, 1], [2, 3], [4]])
        self.successResultOf(looping)

    def test_few(self) -> None:
        """Without items there is no slice, and without a second slice no pause."""
        self.successResultOf(self.go_through(0))
        self.successResultOf(self.go_through(2))
        self.assertEqual(self.seen, [[0, 1]])

    def test_cancelled(self) -> None:
        """A loop that is cancelled in a pause ends there, and leaves no delayed call."""
        looping = self.go_through(5)
        looping.cancel()
        self.failureResultOf(looping, CancelledError)
        self.assertEqual((self.seen, self.clock.getDelayedCalls()), ([[0, 1]], []))
