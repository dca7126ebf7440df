"""The state machine that every service walks through."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import StateError
from novasvc.node.lifecycle import Lifecycle


class LifecycleTests(SynchronousTestCase):
    """Tests for novasvc.node.lifecycle."""

    def setUp(self) -> None:
        self.states: list[str] = []
        self.beginning: Deferred[None] = Deferred()
        self.ending: Deferred[None] = Deferred()
        self.lifecycle = Lifecycle("the thing", self.begin, self.end, self.states.append)

    def start(self) -> None:
        self.lifecycle.start().addErrback(lambda _: None)

    async def begin(self) -> None:
        await self.beginning

    async def end(self) -> None:
        await self.ending

    def test_whole_lifecycle(self) -> None:
        """A service that starts and stops well passes every state in order."""
        started, ended = self.lifecycle.when_started(), self.lifecycle.when_ended()
        self.start()
        self.assertNoResult(started)
        self.beginning.callback(None)
        self.successResultOf(started)
        self.lifecycle.stop()
        self.assertNoResult(ended)
        self.ending.callback(None)
        self.successResultOf(ended)
        self.assertEqual(self.states, ["starting", "running", "draining", "stopped"])

    def test_start_twice(self) -> None:
        """A second start while starting or running changes nothing."""
        self.start()
        self.start()
        self.beginning.callback(None)
        self.start()
        self.assertEqual(self.states, ["starting", "running"])

    def test_failed_start(self) -> None:
        """A start that fails is taken back before anybody hears of it."""
        started, ended = self.lifecycle.when_started(), self.lifecycle.when_ended()
        self.start()
        self.beginning.errback(ValueError("no"))
        self.assertNoResult(started)
        self.ending.callback(None)
        self.failureResultOf(started, ValueError)
        self.successResultOf(ended)
        self.assertEqual(self.states, ["starting", "draining", "failed"])

    def test_failure_for_late_waiters(self) -> None:
        """Who asks after the start has failed hears the same reason."""
        self.start()
        self.beginning.errback(ValueError("no"))
        self.ending.callback(None)
        self.failureResultOf(self.lifecycle.when_started(), ValueError)
        self.failureResultOf(self.lifecycle.when_started(), ValueError)
        self.successResultOf(self.lifecycle.when_ended())

    def test_stop_while_starting(self) -> None:
        """A stop cancels the start under way, lets it end, and only then stops."""
        cancelled = []
        self.beginning = Deferred(cancelled.append)
        started = self.lifecycle.when_started()
        self.start()
        self.lifecycle.stop()
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
        self.lifecycle.begin = stubborn
        self.start()
        self.lifecycle.stop()
        ended = self.lifecycle.when_ended()
        self.ending.callback(None)
        self.assertNoResult(ended)
        self.second.callback(None)
        self.successResultOf(ended)

    def test_stop_before_start(self) -> None:
        """A stop of what never started is done at once."""
        self.lifecycle.stop()
        self.successResultOf(self.lifecycle.when_ended())
        self.assertEqual(self.states, ["stopped"])

    def test_stop_twice(self) -> None:
        """A second stop joins the first."""
        self.start()
        self.beginning.callback(None)
        self.lifecycle.stop()
        self.lifecycle.stop()
        first, second = self.lifecycle.when_ended(), self.lifecycle.when_ended()
        self.ending.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_start_while_draining(self) -> None:
        """A start while it drains fails, with the state in the error, and leaves all as it is."""
        self.start()
        self.beginning.callback(None)
        self.lifecycle.stop()
        error = self.failureResultOf(self.lifecycle.start(), StateError).value
        self.assertEqual(str(error), "the thing is draining and cannot start")
        self.ending.callback(None)
        self.assertEqual(self.states[-1], "stopped")

    def test_start_from_stop(self) -> None:
        """Who hears of the stop can start it again there and then."""
        self.start()
        self.beginning.callback(None)
        self.beginning = Deferred()
        restarted = self.lifecycle.stop().addCallback(lambda _: self.lifecycle.start())
        self.ending.callback(None)
        self.assertNoResult(restarted)
        self.beginning.callback(None)
        self.successResultOf(restarted)
        self.assertEqual(self.lifecycle.state, "running")

    def test_start_from_failure(self) -> None:
        """Who hears of the failed start can try again there and then."""
        self.ending.callback(None)
        tried_again = self.lifecycle.start().addErrback(lambda _: self.lifecycle.start())
        failing, self.beginning = self.beginning, Deferred()
        failing.errback(ValueError("no"))
        self.assertNoResult(tried_again)
        self.beginning.callback(None)
        self.successResultOf(tried_again)

    def test_stop_from_start(self) -> None:
        """Who hears of the start can stop it there and then, and others that waited have seen it start."""
        self.ending.callback(None)
        stopped = self.lifecycle.start().addCallback(lambda _: self.lifecycle.stop())
        other = self.lifecycle.when_started()
        self.beginning.callback(None)
        self.successResultOf(stopped)
        self.successResultOf(other)
        self.assertEqual(self.lifecycle.state, "stopped")

    def test_cancel_sibling(self) -> None:
        """Who hears of it can cancel another that waits for the same."""
        starts: list[Deferred[None]] = []
        ends: list[Deferred[None]] = []
        for waiters, when in ((starts, self.lifecycle.when_started), (ends, self.lifecycle.when_ended)):
            waiters.append(when().addCallback(lambda _, waiters=waiters: waiters[1].cancel()))
            waiters.append(when())
        self.start()
        self.beginning.callback(None)
        self.lifecycle.stop()
        self.ending.callback(None)
        for first, second in (starts, ends):
            self.successResultOf(first)
            self.failureResultOf(second, CancelledError)

    def test_stop_that_raises(self) -> None:
        """A stop that raises is logged, and is a stop all the same."""
        self.start()
        self.beginning.callback(None)
        stopped = self.lifecycle.stop()
        self.ending.errback(ValueError("no"))
        self.successResultOf(stopped)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_start_again(self) -> None:
        """What has stopped can be started again."""
        self.start()
        self.beginning.callback(None)
        self.lifecycle.stop()
        self.ending.callback(None)
        self.beginning = Deferred()
        self.start()
        started = self.lifecycle.when_started()
        self.assertNoResult(started)
        self.beginning.callback(None)
        self.successResultOf(started)

    def test_cancelled_waiter(self) -> None:
        """Who no longer waits is forgotten."""
        waiting = self.lifecycle.when_started()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.start()
        self.beginning.callback(None)

    def test_restart(self) -> None:
        """A restart stops and starts again, and who waits for the end goes on waiting."""
        ended = self.lifecycle.when_ended()
        self.start()
        self.beginning.callback(None)
        restarted = self.lifecycle.restart()
        self.beginning = Deferred()
        self.assertNoResult(restarted)
        self.ending.callback(None)
        self.assertNoResult(restarted)
        self.beginning.callback(None)
        self.successResultOf(restarted)
        self.assertNoResult(ended)
        self.assertEqual(self.states, ["starting", "running", "draining", "starting", "running"])

    def test_stop_while_restarting(self) -> None:
        """A stop during the first half of a restart is the end of it."""
        self.start()
        self.beginning.callback(None)
        restarted, stopped = self.lifecycle.restart(), self.lifecycle.stop()
        self.assertNoResult(stopped)
        self.ending.callback(None)
        self.failureResultOf(restarted, StateError)
        self.successResultOf(stopped)
        self.assertEqual(self.states, ["starting", "running", "draining", "stopped"])

    def test_start_while_restarting(self) -> None:
        """A start during the first half of a restart is refused, as in every stop."""
        self.start()
        self.beginning.callback(None)
        self.lifecycle.restart()
        self.failureResultOf(self.lifecycle.start(), StateError)

    def test_failed_restart(self) -> None:
        """A restart whose start fails is taken back, and is the end."""
        ended = self.lifecycle.when_ended()
        self.start()
        self.beginning.callback(None)
        restarted = self.lifecycle.restart()
        self.beginning = Deferred()
        self.ending.callback(None)
        self.beginning.errback(ValueError("no"))
        self.failureResultOf(restarted, ValueError)
        self.successResultOf(ended)
        self.assertEqual(self.states[-1], "failed")

    def test_restart_of_what_does_not_run(self) -> None:
        """What was not started cannot be restarted, nor what ends."""
        self.failureResultOf(self.lifecycle.restart(), StateError)
        self.start()
        self.beginning.callback(None)
        self.lifecycle.stop()
        self.failureResultOf(self.lifecycle.restart(), StateError)
        self.assertEqual(self.states, ["starting", "running", "draining"])

    def test_restart_of_a_start(self) -> None:
        """A start that takes too long is cancelled, what it has begun is stopped, and another begins."""
        started = self.lifecycle.start()
        restarted = self.lifecycle.restart()
        self.beginning = Deferred()
        self.assertEqual(self.states, ["starting", "draining"])
        self.ending.callback(None)
        self.assertEqual(self.states, ["starting", "draining", "starting"])
        self.beginning.callback(None)
        self.successResultOf(restarted)
        self.successResultOf(started)

    def test_restart_of_a_restart(self) -> None:
        """One that comes on the way down of another is answered with it."""
        self.start()
        self.beginning.callback(None)
        both = self.lifecycle.restart(), self.lifecycle.restart()
        self.beginning = Deferred()
        self.ending.callback(None)
        self.beginning.callback(None)
        for restarted in both:
            self.successResultOf(restarted)
        self.assertEqual(self.states, ["starting", "running", "draining", "starting", "running"])

    def test_stop_of_a_turned_start(self) -> None:
        """A stop ends a restart that has cancelled a start, too."""
        self.start()
        restarted, stopped = self.lifecycle.restart(), self.lifecycle.stop()
        self.ending.callback(None)
        self.failureResultOf(restarted, StateError)
        self.successResultOf(stopped)
        self.assertEqual(self.states, ["starting", "draining", "stopped"])
