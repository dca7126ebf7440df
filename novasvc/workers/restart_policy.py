"""When a worker that died is started again: at once, later, or not any more."""

from collections import deque

import attrs

from novasvc.config import Settings
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff

_REMEMBERED = 1000
"""Times of forks that are told."""

STABLE = 1.0
"""Seconds that a worker has to be ready for its death not to count as the start's."""


@attrs.define
class RestartPolicy:
    """What the settings say of workers that die.

    :param budget: deaths within ``window`` that are borne.
    :param window: seconds.
    :param crash_loop: "auto", "exit" or "retry": what follows.
    :param retry: seconds to wait after the nth young death in a row but one, and after the nth death beyond the budget
        of those that lived.
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
    _too_many: int = attrs.field(default=0, init=False)
    _deaths: deque[float] = attrs.field(factory=deque, init=False)
    _lives: deque[float] = attrs.field(factory=deque, init=False)

    def died(self, now: float, lived: float | None, *, killed: bool = False) -> float:
        """Note a death.

        :param now: seconds of a clock.
        :param lived: seconds that it was ready; None if it never was.
        :param killed: by SIGKILL, which is not of its own doing.
        :return: seconds to wait before the next start: 0 after a life, or after the first young death. Of lives that
            it ended itself, and that are short as well, the budget is borne; after that, pauses grow.
        """
        if lived is not None and lived >= STABLE:
            self._young, self.exhausted = 0, False
            if killed:
                return 0.0
            _keep(self._lives, now, self.policy)
            self._too_many = self._too_many + 1 if len(self._lives) > self.policy.budget else 0
            return self.policy.retry(self._too_many) if self._too_many else 0.0
        self._young += 1
        _keep(self._deaths, now, self.policy)
        self.exhausted = len(self._deaths) >= self.policy.budget
        return 0.0 if self._young == 1 else self.policy.retry(self._young - 1)


def _keep(times: "deque[float]", now: float, policy: RestartPolicy) -> None:
    """Note a time among those within the policy's window; there is no need for more than one over its budget."""
    times.append(now)
    while len(times) > policy.budget + 1 or now - times[0] > policy.window:
        times.popleft()


@attrs.define
class Throttle:
    """After deaths at most as many forks as there are workers within as many seconds, as in Nova.

    ForkserverClient that were planned, of a start, a resize or a reload, count for nothing: a worker that dies
    after them is replaced at once.

    :param workers: the number.
    :ivar times: of the last forks of either kind.
    """

    workers: int
    times: deque[float] = attrs.field(factory=lambda: deque(maxlen=_REMEMBERED), init=False)
    _after_deaths: deque[float] = attrs.field(factory=deque, init=False)

    def wait(self, now: float) -> float:
        """Return the seconds until the next fork after a death is allowed; 0 is now."""
        while self._after_deaths and now - self._after_deaths[0] >= self.workers:
            self._after_deaths.popleft()
        return 0.0 if len(self._after_deaths) < self.workers else self._after_deaths[0] + self.workers - now

    def forked(self, now: float, *, after_death: bool) -> None:
        """Note a fork."""
        self.times.append(now)
        if after_death:
            self._after_deaths.append(now)
