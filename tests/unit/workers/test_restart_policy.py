"""Tests for novasvc.workers.restart_policy."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import Settings
from novasvc.workers.restart_policy import STARTED_AFTER, History, RestartPolicy, Throttle


def policy(budget: int = 5, window: float = 60.0) -> RestartPolicy:
    """A policy that waits as many seconds as there were failures."""
    return RestartPolicy(budget, window, float)


class RestartPolicyTests(SynchronousTestCase):
    """What the settings say."""

    def test_settings(self) -> None:
        """The settings worker_restart_budget and worker_restart_window are the policy's."""
        settings = Settings(worker_restart_budget=3, worker_restart_window=7.0)
        made = RestartPolicy.from_settings(settings)
        self.assertEqual((made.budget, made.window), (3, 7.0))


class HistoryTests(SynchronousTestCase):
    """When a worker is started again."""

    def test_early_exits(self) -> None:
        """The first young death is followed by a start at once, those after it by growing pauses."""
        history = History(policy())
        self.assertEqual([history.record_exit(now, None) for now in range(4)], [0.0, 1.0, 2.0, 3.0])

    def test_early_is_not_ready_for_long(self) -> None:
        """A worker that dies as soon as it is ready dies young."""
        history = History(policy())
        history.record_exit(0.0, None)
        self.assertEqual(history.record_exit(1.0, STARTED_AFTER / 2), 1.0)

    def test_life_forgives(self) -> None:
        """After a life the pauses begin anew."""
        history = History(policy())
        for now in range(3):
            history.record_exit(now, None)
        history.record_exit(10.0, STARTED_AFTER)
        self.assertEqual(history.record_exit(11.0, None), 0.0)

    def test_budget(self) -> None:
        """The budget is used up by that many young deaths within the window."""
        history = History(policy(budget=3))
        used = []
        for now in range(4):
            history.record_exit(now, None)
            used.append(history.exhausted)
        self.assertEqual(used, [False, False, True, True])

    def test_budget_of_one(self) -> None:
        """A budget of one is used up by the first."""
        history = History(policy(budget=1))
        history.record_exit(0.0, None)
        self.assertTrue(history.exhausted)

    def test_window(self) -> None:
        """Deaths that are longer ago than the window do not count."""
        history = History(policy(budget=2, window=10.0))
        history.record_exit(0.0, None)
        history.record_exit(10.5, None)
        self.assertFalse(history.exhausted)
        history.record_exit(11.0, None)
        self.assertTrue(history.exhausted)

    def test_short_lives(self) -> None:
        """Of lives that are short the budget is borne; then pauses grow, until there were none for a while."""
        history = History(policy(budget=2, window=10.0))
        pauses = [history.record_exit(float(now), STARTED_AFTER) for now in range(5)]
        self.assertEqual(pauses, [0.0, 0.0, 1.0, 2.0, 3.0])
        self.assertFalse(history.exhausted)
        self.assertEqual(history.record_exit(15.0, STARTED_AFTER), 0.0)

    def test_killed(self) -> None:
        """Who was killed is replaced at once, however often."""
        history = History(policy(budget=2))
        self.assertEqual({history.record_exit(float(now), STARTED_AFTER, killed=True) for now in range(100)}, {0.0})

    def test_death_after_a_life(self) -> None:
        """A death after a life uses up nothing, although others did before."""
        history = History(policy(budget=1))
        history.record_exit(0.0, None)
        history.record_exit(5.0, STARTED_AFTER)
        self.assertFalse(history.exhausted)


class ThrottleTests(SynchronousTestCase):
    """How many forks there are in a time."""

    def test_all_at_once(self) -> None:
        """All workers may die at once, and come back at once; who dies then waits."""
        throttle = Throttle(4)
        for _ in range(4):
            self.assertEqual(throttle.wait(0.0), 0.0)
            throttle.forked(0.0, is_restart=True)
        self.assertEqual(throttle.wait(0.5), 3.5)

    def test_planned(self) -> None:
        """What was planned does not count, but is told."""
        throttle = Throttle(1)
        for now in range(5):
            throttle.forked(now, is_restart=False)
        self.assertEqual((throttle.wait(4.0), list(throttle.times)), (0.0, [0, 1, 2, 3, 4]))

    def test_forgets(self) -> None:
        """As many seconds later as there are workers, a fork is forgotten."""
        throttle = Throttle(2)
        for now in (0.0, 1.5):
            throttle.forked(now, is_restart=True)
        self.assertEqual(throttle.wait(1.5), 0.5)
        self.assertEqual(throttle.wait(2.0), 0.0)

    @given(st.integers(1, 8), st.lists(st.integers(0, 2000), max_size=80))
    def test_bound(self, workers: int, pauses: list[int]) -> None:
        """Whenever forks are wanted, no span of as many seconds as there are workers has more forks than that."""
        # Fractions, because sums of floats are not what they seem.
        throttle, now, times = Throttle(workers), Fraction(0), []
        for pause in pauses:
            now += Fraction(pause, 1000)
            now += Fraction(throttle.wait(now))
            self.assertEqual(throttle.wait(now), 0)
            throttle.forked(now, is_restart=True)
            times.append(now)
        for start in times:
            self.assertLessEqual(sum(start <= time < start + workers for time in times), workers)
