"""When a worker that died is started again: at once, later, or not any more."""

from collections import deque

import attrs

from novasvc.backoff import RetryPolicy, jittered_backoff
from novasvc.settings import Settings

STABLE = 1.0
"""Seconds that a worker has to be ready for its death not to count as the start's."""


@attrs.define
class RestartPolicy:
    """What the settings say of workers that die.

    :param budget: young deaths within ``window`` that are borne.
    :param window: seconds.
    :param crash_loop: "auto", "exit" or "retry": what follows.
    :param retry: seconds to wait after the nth young death in a row but one.
    """

    budget: int = 5
    window: float = 60.0
    crash_loop: str = "auto"
    retry: RetryPolicy = attrs.field(factory=jittered_backoff)

    @classmethod
    def from_settings(cls, settings: Settings) -> "RestartPolicy":
        """Make the policy that the settings describe."""
        return cls(settings.worker_restart_budget, settings.worker_restart_window, settings.worker_crash_loop)


@attrs.define
class History:
    """The deaths of one worker's place.

    :ivar exhausted: the last death has used up the budget.
    """

    policy: RestartPolicy
    exhausted: bool = attrs.field(default=False, init=False)
    _young: int = attrs.field(default=0, init=False)
    _deaths: deque[float] = attrs.field(factory=deque, init=False)

    def died(self, now: float, lived: float | None) -> float:
        """Note a death.

        :param now: seconds of a clock.
        :param lived: seconds that it was ready; None if it never was.
        :return: seconds to wait before the next start: 0 after a life, or after the first young death.
        """
        if lived is not None and lived >= STABLE:
            self._young, self.exhausted = 0, False
            return 0.0
        self._young += 1
        self._deaths.append(now)
        while len(self._deaths) > self.policy.budget or now - self._deaths[0] > self.policy.window:
            self._deaths.popleft()
        self.exhausted = len(self._deaths) >= self.policy.budget
        return 0.0 if self._young == 1 else self.policy.retry(self._young - 1)


@attrs.define
class Throttle:
    """At most a number of forks in as many seconds, after the first of each worker, as in Nova.

    :param workers: the number.
    """

    workers: int
    times: deque[float] = attrs.field(factory=deque)

    def wait(self, now: float) -> float:
        """Return the seconds until the next fork is allowed; 0 is now."""
        while self.times and now - self.times[0] >= self.workers:
            self.times.popleft()
        return 0.0 if len(self.times) <= self.workers else self.times[0] + self.workers - now

    def forked(self, now: float) -> None:
        """Note a fork."""
        self.times.append(now)
