"""When to restart a worker that exited: now, later, or never."""

from collections import deque

import attrs

from novasvc.config import Settings
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff

_MAX_FORK_TIMES = 1000
"""Fork times that are kept."""

STARTED_AFTER = 1.0
"""A worker that was ready for this many seconds counts as started; an earlier exit is an early exit."""


@attrs.define
class RestartPolicy:
    """The settings for restarts.

    :param budget: tolerated exits within ``window``.
    :param window: seconds.
    :param retry: backoff in seconds, for the nth restart after consecutive early exits (the first is immediate), and
        for the nth exit beyond the budget of workers that had started.
    """

    budget: int = 5
    window: float = 60.0
    retry: RetryPolicy = attrs.field(factory=jittered_backoff)

    @classmethod
    def from_settings(cls, settings: Settings) -> "RestartPolicy":
        """Make the policy that the settings describe."""
        return cls(settings.worker_restart_budget, settings.worker_restart_window)


@attrs.define
class History:
    """The exits of one worker slot.

    :ivar exhausted: the last exit used up the restart budget.
    """

    policy: RestartPolicy
    exhausted: bool = attrs.field(default=False, init=False)
    _early_exits: int = attrs.field(default=0, init=False)
    _exits_over_budget: int = attrs.field(default=0, init=False)
    _early_exit_times: deque[float] = attrs.field(factory=deque, init=False)
    _exit_times: deque[float] = attrs.field(factory=deque, init=False)

    def record_exit(self, now: float, lived: float | None, *, killed: bool = False) -> float:
        """Record an exit.

        :param now: clock time in seconds.
        :param lived: seconds that the worker was ready; None if it never was.
        :param killed: by SIGKILL, which does not count against the worker.
        :return: seconds to wait before the restart: 0 for a worker that had started, and for the first early exit.
            A started worker that exits by itself more often than the budget allows is delayed with backoff, too.
        """
        if lived is not None and lived >= STARTED_AFTER:
            self._early_exits, self.exhausted = 0, False
            if killed:
                return 0.0
            _append_recent(self._exit_times, now, self.policy)
            self._exits_over_budget = self._exits_over_budget + 1 if len(self._exit_times) > self.policy.budget else 0
            return self.policy.retry(self._exits_over_budget) if self._exits_over_budget else 0.0
        self._early_exits += 1
        _append_recent(self._early_exit_times, now, self.policy)
        self.exhausted = len(self._early_exit_times) >= self.policy.budget
        return 0.0 if self._early_exits == 1 else self.policy.retry(self._early_exits - 1)


def _append_recent(times: "deque[float]", now: float, policy: RestartPolicy) -> None:
    """Append a time, and drop those outside the window; one more than the budget is enough to know."""
    times.append(now)
    while len(times) > policy.budget + 1 or now - times[0] > policy.window:
        times.popleft()


@attrs.define
class Throttle:
    """Limit restarts to ``workers`` forks per ``workers`` seconds, as Nova does.

    Planned forks (start, resize, reload) do not count: a worker that exits right after them is
    replaced immediately.

    :param workers: size of the group.
    :ivar times: of recent forks, planned or not.
    """

    workers: int
    times: deque[float] = attrs.field(factory=lambda: deque(maxlen=_MAX_FORK_TIMES), init=False)
    _restart_times: deque[float] = attrs.field(factory=deque, init=False)

    def wait(self, now: float) -> float:
        """Return the seconds until the next restart is allowed; 0 is now."""
        while self._restart_times and now - self._restart_times[0] >= self.workers:
            self._restart_times.popleft()
        return 0.0 if len(self._restart_times) < self.workers else self._restart_times[0] + self.workers - now

    def forked(self, now: float, *, is_restart: bool) -> None:
        """Record a fork."""
        self.times.append(now)
        if is_restart:
            self._restart_times.append(now)
