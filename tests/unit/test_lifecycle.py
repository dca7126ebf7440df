"""The state machine that every service walks through."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import StateError
from novasvc.service.lifecycle import Course, make_lifecycle


class LifecycleTests(SynchronousTestCase):
    """Tests for novasvc.service.lifecycle."""

    def setUp(self) -> None:
        self.states: list[str] = []
        self.beginning: Deferred[None] = Deferred()
        self.ending: Deferred[None] = Deferred()
        self.course = Course("the thing", self.begin, self.end, self.states.append)
        self.machine = make_lifecycle(self.course)

    async def begin(self) -> None:
        await self.beginning

    async def end(self) -> None:
        await self.ending

    def test_whole_course(self) -> None:
        """A service that starts and stops well passes every state in order."""
        started, ended = self.course.when_started(), self.course.when_ended()
        self.machine.start()
        self.assertNoResult(started)
        self.beginning.callback(None)
        self.successResultOf(started)
        self.machine.stop()
        self.assertNoResult(ended)
        self.ending.callback(None)
        self.successResultOf(ended)
        self.assertEqual(self.states, ["starting", "running", "draining", "stopped"])

    def test_start_twice(self) -> None:
        """A second start while starting or running changes nothing."""
        self.machine.start()
        self.machine.start()
        self.beginning.callback(None)
        self.machine.start()
        self.assertEqual(self.states, ["starting", "running"])

    def test_failed_start(self) -> None:
        """A start that fails is taken back before anybody hears of it."""
        started, ended = self.course.when_started(), self.course.when_ended()
        self.machine.start()
        self.beginning.errback(ValueError("no"))
        self.assertNoResult(started)
        self.ending.callback(None)
        self.failureResultOf(started, ValueError)
        self.successResultOf(ended)
        self.assertEqual(self.states, ["starting", "draining", "failed"])

    def test_failure_for_late_waiters(self) -> None:
        """Who asks after the start has failed hears the same reason."""
        self.machine.start()
        self.beginning.errback(ValueError("no"))
        self.ending.callback(None)
        self.failureResultOf(self.course.when_started(), ValueError)
        self.failureResultOf(self.course.when_started(), ValueError)
        self.successResultOf(self.course.when_ended())

    def test_stop_while_starting(self) -> None:
        """A stop cancels the start under way, lets it end, and only then stops."""
        cancelled = []
        self.beginning = Deferred(cancelled.append)
        started = self.course.when_started()
        self.machine.start()
        self.machine.stop()
        self.assertEqual(len(cancelled), 1)
        self.ending.callback(None)
        self.failureResultOf(started, StateError)
        self.assertEqual(self.states, ["starting", "draining", "stopped"])

    def test_stop_while_start_ignores_it(self) -> None:
        """A start that ends well although it was cancelled is stopped like any other."""

        async def stubborn() -> None:
            try:
                await self.beginning
            except CancelledError:
                await self.second

        self.second: Deferred[None] = Deferred()
        self.course.begin = stubborn
        self.machine.start()
        self.machine.stop()
        ended = self.course.when_ended()
        self.ending.callback(None)
        self.assertNoResult(ended)
        self.second.callback(None)
        self.successResultOf(ended)

    def test_stop_before_start(self) -> None:
        """A stop of what never started is done at once."""
        self.machine.stop()
        self.successResultOf(self.course.when_ended())
        self.assertEqual(self.states, ["stopped"])

    def test_stop_twice(self) -> None:
        """A second stop joins the first."""
        self.machine.start()
        self.beginning.callback(None)
        self.machine.stop()
        self.machine.stop()
        first, second = self.course.when_ended(), self.course.when_ended()
        self.ending.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_start_while_draining(self) -> None:
        """A start while it drains is refused, with the state in the error."""
        self.machine.start()
        self.beginning.callback(None)
        self.machine.stop()
        error = self.assertRaises(StateError, self.machine.start)
        self.assertEqual(str(error), "the thing is draining and cannot start")

    def test_start_again(self) -> None:
        """What has stopped can be started again."""
        self.machine.start()
        self.beginning.callback(None)
        self.machine.stop()
        self.ending.callback(None)
        self.beginning = Deferred()
        self.machine.start()
        started = self.course.when_started()
        self.assertNoResult(started)
        self.beginning.callback(None)
        self.successResultOf(started)

    def test_cancelled_waiter(self) -> None:
        """Who no longer waits is forgotten."""
        waiting = self.course.when_started()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.machine.start()
        self.beginning.callback(None)
