"""Elections in a fleet: the process that has a task's lease in the registry leads the task."""

import random
from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from novasvc import identifiers
from novasvc.errors import describe
from novasvc.interfaces import IElection, IServiceRegistry
from novasvc.periodic.term import Term
from novasvc.reactor.coalesce import Waiters
from novasvc.registry.errors import DatabaseError
from novasvc.registry.lease import Lease, LeaseRequest, Leases
from novasvc.telemetry.flight import note

_log = Logger()

RENEW = 1 / 3
"""A leader renews its leases after this part of their length."""
STOP = 0.8
"""A leader that cannot renew its lease stops after this part of its length; the rest is for what it has to clean up."""
_LOOK = 1 / 2
"""Another process looks at the leases at least once in this part of their length: a leader may have released one."""
_JITTER = 0.1
"""Processes that wait for the end of a lease wait up to this part of its length longer, each differently."""
_REPORT = 0.1
"""Runs are reported at most once in this part of the length of a lease, and otherwise at once."""
_RETRY = 1 / 6
"""A request that fails is repeated after this part of the length of a lease."""
_RELEASE_TIMEOUT = 2.0
"""Seconds to release a lease; if that fails, it ends by itself."""

# Note [Two clocks]
#
# The database judges by its own clock when a lease ends, and nobody compares it with the clock of a host. A leader
# counts, on its own monotonic clock, from the moment at which it sent the request that the database granted. The
# database's time began later, so it also ends later: the leader stops first, if the two clocks run equally fast, with
# STOP as the margin. A step of the clock of a host changes nothing. A step of the database's clock can end a lease
# early; then two processes lead for up to RENEW of its length, and the fencing number tells them apart.
#
# A process that was stopped (SIGSTOP, a paused virtual machine) may find its lease ended when it continues. Its timers
# are due then, begin() refuses further runs, and the run under way is cancelled; but that run may go on for a moment,
# so what it writes must be guarded by the fencing number.


@attrs.define(eq=False)
class _Candidate:
    """A task that this process stands for.

    :ivar fencing: the fencing number of its lease, while this process leads; None otherwise.
    :ivar until: seconds on the clock when it stops leading unless the lease is renewed.
    :ivar leader: the holder as the registry last told.
    :ivar held: whether the registry told last that this process has the lease.
    :ivar ends: timer for ``until``.
    :ivar ran: whether a run has begun that was not reported yet, and ``due``, its due time.
    """

    task: str
    fencing: int | None = None
    until: float = 0.0
    leader: str | None = None
    held: bool = False
    ends: IDelayedCall | None = None
    ran: bool = False
    due: float | None = None


@implementer(IElection)
@attrs.define(eq=False)
class LeaseElection:
    """Hold leases of tasks in the registry; see Note [Two clocks].

    :param registry: open.
    :param topic: topic of the node.
    :param holder: name of this process, for people.
    :param lease_time: length of a lease in seconds, > 0.
    :param clock: its seconds must be monotonic.
    :param random_source: draws the jitter.
    """

    _registry: IServiceRegistry
    _topic: str
    _holder: str
    _lease_time: float
    _clock: IReactorTime
    _random_source: random.Random
    _owner: str = attrs.field(factory=lambda: identifiers.random_bytes(16).hex(), init=False)
    _candidates: dict[str, _Candidate] = attrs.field(factory=dict, init=False)
    _gained: Callable[[str, Term], object] = attrs.field(init=False)
    _lost: Callable[[str, str], object] = attrs.field(init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _asking: Deferred[None] | None = attrs.field(default=None, init=False)
    _waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)
    _asked_at: float = attrs.field(default=0.0, init=False)
    _next: float = attrs.field(default=0.0, init=False)
    _trouble: str | None = attrs.field(default=None, init=False)

    def start(
        self, tasks: Sequence[str], gained: Callable[[str, Term], object], lost: Callable[[str, str], object]
    ) -> None:
        """See IElection."""
        self._gained, self._lost = gained, lost
        self._candidates = {task: _Candidate(task) for task in tasks}
        self._ask()

    def begin(self, task: str, due: float | None) -> bool:
        """See IElection. The registry is told of the run."""
        candidate = self._candidates.get(task)
        if candidate is None or candidate.fencing is None:
            return False
        if self._clock.seconds() >= candidate.until:
            self._expire(candidate)
            return False
        candidate.ran, candidate.due = True, due
        if self._asking is None:
            self._ask_at(self._asked_at + _REPORT * self._lease_time)
        return True

    def leader(self, task: str) -> str | None:
        """See IElection."""
        return self._candidates[task].leader if task in self._candidates else None

    def resign(self, task: str) -> Deferred[None]:
        """See IElection."""
        candidate = self._candidates.pop(task, None)
        if candidate is None:
            return succeed(None)
        _stop(candidate)
        if not self._candidates:
            self._stop_timer()
        return Deferred.fromCoroutine(self._release(candidate))

    async def _release(self, candidate: _Candidate) -> None:
        # A request under way may still take the lease, after the release.
        if self._asking is not None:
            await self._waiters.wait().addTimeout(_RELEASE_TIMEOUT, self._clock, lambda *_: None)
        try:
            releasing = self._registry.release_leases(self._topic, self._owner, [candidate.task])
            await releasing.addTimeout(_RELEASE_TIMEOUT, self._clock)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lease ends by itself
            if candidate.held:
                _log.warn(
                    "the lease of {name} was not released, and ends within {seconds:g} s: {error}",
                    name=self._name(candidate),
                    seconds=self._lease_time,
                    error=_shown(error),
                )
            return
        if candidate.fencing is not None:
            note("lease", f"{self._name(candidate)} released, fencing {candidate.fencing}")

    # -- requests --------------------------------------------------------------------------------

    def _ask_at(self, moment: float) -> None:
        """Ask the registry at a moment on the clock, or earlier if that is planned already."""
        delay = max(0.0, moment - self._clock.seconds())
        if self._timer is None or not self._timer.active():
            self._timer = self._clock.callLater(delay, self._ask)
        elif moment < self._timer.getTime():
            self._timer.reset(delay)

    def _ask(self) -> None:
        self._stop_timer()
        asking = self._asking = Deferred.fromCoroutine(self._hold())
        asking.addErrback(lambda failure: _log.failure("the election of {topic} failed", failure, topic=self._topic))
        asking.addBoth(self._asked)

    def _asked(self, _: object) -> None:
        self._asking = None
        self._waiters.fire(None)
        if self._candidates:
            self._ask_at(self._asked_at + _REPORT * self._lease_time if self._reports() else self._next)

    def _reports(self) -> bool:
        return self._trouble is None and any(candidate.ran for candidate in self._candidates.values())

    async def _hold(self) -> None:
        sent = self._asked_at = self._clock.seconds()
        reported = [candidate for candidate in self._candidates.values() if candidate.ran]
        request = LeaseRequest(
            topic=self._topic,
            holder=self._holder,
            owner=self._owner,
            seconds=self._lease_time,
            tasks=tuple(self._candidates),
            runs={candidate.task: candidate.due for candidate in reported},
        )
        for candidate in reported:
            candidate.ran = False
        try:
            holding: Deferred[Leases] = self._registry.hold_leases(request)
            leases = await holding.addTimeout(max(1.0, self._lease_time * RENEW), self._clock)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
            for candidate in reported:
                candidate.ran = candidate.fencing is not None
            self._next = self._clock.seconds() + _RETRY * self._lease_time
            self._note_trouble(error)
            return
        if self._trouble is not None:
            _log.info("the leases of topic {topic} are renewed again", topic=self._topic)
            self._trouble = None
        self._next = sent + self._pause(leases)
        for lease in leases:
            if lease.task in self._candidates:  # not resigned meanwhile
                self._judge(self._candidates[lease.task], lease, sent)

    def _pause(self, leases: Leases) -> float:
        """Return the seconds from one request to the next."""
        if any(lease.owner == self._owner for lease in leases):
            return self._lease_time * RENEW
        ends = min((max(0.0, lease.expires_in) for lease in leases), default=self._lease_time)
        return min(ends + self._random_source.uniform(0, _JITTER) * self._lease_time, _LOOK * self._lease_time)

    def _note_trouble(self, error: Exception) -> None:
        """Log a problem when it begins; repeats are silent."""
        trouble = _shown(error)
        if trouble != self._trouble:
            tasks = ", ".join(sorted(self._candidates))
            _log.error("the leases of {tasks} cannot be renewed or taken: {error}", tasks=tasks, error=trouble)
        self._trouble = trouble

    # -- outcomes --------------------------------------------------------------------------------

    def _judge(self, candidate: _Candidate, lease: Lease, sent: float) -> None:
        before, candidate.leader = candidate.leader, lease.holder
        candidate.held = lease.owner == self._owner and not lease.is_free
        until = sent + STOP * self._lease_time
        if not candidate.held:
            if candidate.fencing is not None:
                other = None if lease.owner == self._owner else lease.holder
                self._lose(candidate, f"{other or 'nobody'} has its lease now")
        elif self._clock.seconds() < until:  # else the answer came too late to rely on it
            if candidate.fencing not in {None, lease.fencing}:
                self._lose(candidate, "its lease ended and was taken again")
            candidate.until = until
            if candidate.ends is not None and candidate.ends.active():
                candidate.ends.reset(until - self._clock.seconds())
            else:
                candidate.ends = self._clock.callLater(until - self._clock.seconds(), self._expire, candidate)
            if candidate.fencing is None:
                self._gain(candidate, lease, before)

    def _gain(self, candidate: _Candidate, lease: Lease, before: str | None) -> None:
        candidate.fencing = lease.fencing
        came = "" if before in {None, self._holder} else f", after {before}"
        note("lease", f"{self._name(candidate)} taken{came}, fencing {lease.fencing}")
        _log.info(
            "{holder} has the lease of {name} now{came}; fencing number {fencing}",
            holder=self._holder,
            name=self._name(candidate),
            came=came,
            fencing=lease.fencing,
        )
        term = Term(fencing=lease.fencing, known_for=lease.known_for, ran_ago=lease.ran_ago, last_due=lease.last_due)
        self._gained(candidate.task, term)

    def _expire(self, candidate: _Candidate) -> None:
        left = (1 - STOP) * self._lease_time + candidate.until - self._clock.seconds()
        ends = f"ends in {left:.1f} s" if left > 0 else "has ended"
        self._lose(candidate, f"its lease {ends}, and was not renewed: {self._trouble or 'this process was stopped'}")

    def _lose(self, candidate: _Candidate, reason: str) -> None:
        _stop(candidate)
        candidate.fencing, candidate.ran = None, False
        note("lease", f"{self._name(candidate)} lost: {reason}")
        _log.warn("lost the lease of {name}: {reason}", name=self._name(candidate), reason=reason)
        self._lost(candidate.task, reason)

    def _name(self, candidate: _Candidate) -> str:
        return f"{self._topic}/{candidate.task}"

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


def _stop(candidate: _Candidate) -> None:
    if candidate.ends is not None and candidate.ends.active():
        candidate.ends.cancel()
    candidate.ends = None


def _shown(error: Exception) -> str:
    if isinstance(error, DatabaseError):
        return str(error)
    return (
        "the registry does not answer" if isinstance(error, DeferredTimeoutError | CancelledError) else describe(error)
    )
