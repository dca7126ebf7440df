"""A node sees for itself, at intervals, that messages reach it."""

from collections.abc import Callable
from contextvars import copy_context
from random import Random

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import BrokerError
from novasvc.interfaces import Reachability

_log = Logger()

_PART = 0.9
"""Part of an interval that a verification may take, so that it has ended when the next one is due."""
_LEAST = 2.0
"""Seconds that it may take whatever the interval is: a busy machine is not an unreachable one."""


@attrs.define(eq=False)
class ReachabilityCheck:
    """Verifies that messages reach a node, once in an interval.

    What was missing and could be made again is logged here, as one warning. What could not is :attr:`problem`,
    which keeps the heartbeats back and is logged with the first of them.

    :param verify: takes seconds; see :meth:`novasvc.interfaces.IListener.verify`.
    :param interval: seconds, > 0.
    :param random: spreads a fleet that starts at the same time over the interval.
    :ivar problem: why no message reaches it, the rest of a sentence; None if they do, as far as is known.
    """

    _verify: Callable[[float], Deferred[Reachability]]
    _interval: float
    _clock: IReactorTime
    _random: Random
    problem: str | None = attrs.field(default=None, init=False)
    _first: IDelayedCall | None = attrs.field(default=None, init=False)
    _loop: LoopingCall | None = attrs.field(default=None, init=False)
    _verifying: Deferred[None] | None = attrs.field(default=None, init=False)

    def start(self) -> None:
        """Verify within the first interval, and once in each from then on."""
        # What is logged is the node's.
        self._loop = LoopingCall(copy_context().run, self._begin)
        self._loop.clock = self._clock
        self._first = self._clock.callLater(self._random.uniform(0.0, self._interval), self._run, self._loop)

    def _run(self, loop: LoopingCall) -> None:
        self._first = None
        loop.start(self._interval).addErrback(lambda failure: _log.failure("the loop has ended", failure))

    def stop(self) -> None:
        """Verify no more; one under way is cancelled."""
        if self._first is not None:
            self._first.cancel()
            self._first = None
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        if self._verifying is not None:
            self._verifying.cancel()

    def _begin(self) -> Deferred[None]:
        verifying = self._verify(max(_PART * self._interval, _LEAST))
        self._verifying = verifying.addCallbacks(self._found, self._unknown)
        return self._verifying.addBoth(self._ended)

    def _ended(self, _: object) -> None:
        self._verifying = None

    def _found(self, found: Reachability) -> None:
        self.problem = found.problem
        if found.repaired:
            _log.warn("messages did not reach this node; restored: {missing}", missing=", ".join(found.repaired))

    def _unknown(self, failure: Failure) -> None:
        """Leave it as it was: a broker that cannot be asked says nothing of the node."""
        if not failure.check(BrokerError, CancelledError):
            _log.failure("whether messages reach it could not be verified", failure)
