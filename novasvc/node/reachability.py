"""Periodic verification that messages reach a node."""

from collections.abc import Callable
from contextvars import copy_context
from random import Random

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.interfaces import Reachability
from novasvc.transport.errors import BrokerError

_log = Logger()

_PART = 0.9
"""Fraction of an interval that a verification may take, so that it ends before the next one is due."""
_LEAST = 2.0
"""Seconds that a verification may always take: a busy machine is not an unreachable one."""


@attrs.define(eq=False)
class ReachabilityCheck:
    """Verify once per interval that messages reach a node.

    Bindings that were missing and are restored are logged here, in one warning. What cannot be restored is the
    :attr:`problem`, which holds back the heartbeats and is logged with the first one that is skipped.

    :param verify: takes seconds; see :meth:`novasvc.interfaces.IListener.verify`.
    :param interval: seconds, > 0.
    :param random: spreads the verifications of nodes that start together over the interval.
    :param problem: that of an earlier listener of the node, until it is verified that messages reach this one.
    :ivar problem: why no message reaches the node, as the rest of a sentence; None if messages do, as far as is known.
    """

    _verify: Callable[[float], Deferred[Reachability]]
    _interval: float
    _clock: IReactorTime
    _random: Random
    problem: str | None = None
    _first: IDelayedCall | None = attrs.field(default=None, init=False)
    _loop: LoopingCall | None = attrs.field(default=None, init=False)
    _verifying: Deferred[None] | None = attrs.field(default=None, init=False)

    def start(self) -> None:
        """Verify within the first interval, and once in each from then on."""
        # LoopingCall runs from the reactor; the copied context gives its log events this node's fields.
        self._loop = LoopingCall(copy_context().run, self.verify)
        self._loop.clock = self._clock
        self._first = self._clock.callLater(self._random.uniform(0.0, self._interval), self._run, self._loop)

    def _run(self, loop: LoopingCall) -> None:
        self._first = None
        loop.start(self._interval).addErrback(lambda failure: _log.failure("the verification loop failed", failure))

    def stop(self) -> None:
        """Stop, and cancel a verification under way."""
        if self._first is not None:
            self._first.cancel()
            self._first = None
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        if self._verifying is not None:
            self._verifying.cancel()

    def verify(self) -> Deferred[None]:
        """Verify now. Not called while a verification is under way.

        :return: Deferred[None], fired when ``problem`` has the result, or the last one if the broker cannot be asked.
        """
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
        """Keep the last result: a broker that cannot be asked says nothing about the node."""
        if not failure.check(BrokerError, CancelledError):
            _log.failure("the verification that messages reach this node failed", failure)
