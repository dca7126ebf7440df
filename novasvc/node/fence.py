"""The fence of a node: while the registry refuses the node, it takes in nothing."""

from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from novasvc.errors import NovasvcError
from novasvc.registry.errors import ServiceForcedDownError, ServiceNotFoundError, ServiceSupersededError
from novasvc.registry.heartbeat import ServiceIdentity
from novasvc.registry.record import ServiceRecord
from novasvc.telemetry import metrics
from novasvc.telemetry.flight import note

_log = Logger()

# Note [What a fenced node does]
#
# A service that is forced down, superseded or deleted may have its work done elsewhere already: that is what Nova calls
# evacuation. So the node takes in no call, no event and no run of a task, and what is under way is cancelled at once:
# to finish it would be to do it twice. The process does not end. A process that ended would be started again by systemd
# or the like, and its new start would take back what was taken from it on purpose. Only a force-down can be lifted; the
# other two need a new start.
#
# A node that cannot reach the registry does not hear that it was forced down. By default it goes on, as Nova's
# services do: otherwise an outage of the database would stop the whole fleet. What must not be written twice is
# guarded by the number of the incarnation, as a fencing token. Where there is nothing that could check a token, such as
# a disk that is attached, the setting fence_after has the node fence itself.


_LEAST_WAIT = 1.0
"""Seconds between two looks at the time of the last heartbeat, at least."""


@attrs.define(eq=False)
class Fence:
    """Take a node out of service, and put it back; see Note [What a fenced node does].

    :param node: host and binary of the node, for logs and metrics.
    :param close: called with the reason: takes in nothing from now on, and cancels what is under way.
    :param open_: consumes again, calls what it is given, which writes a heartbeat, calls :meth:`lift`, and then takes
        in calls, events and tasks again.
    :param begin_again: see :class:`novasvc.registry.heartbeat.IncarnationOwner`.
    :param fence_after: seconds without a heartbeat that was written, or would have been; 0 for no limit.
    :ivar reason: why the node is out of service; None while it is in service.
    :ivar final: only a new start of the node ends it.
    :ivar since: seconds on the clock when it was put out of service.
    """

    _node: ServiceIdentity
    _close: Callable[[str], Coroutine[Deferred[Any], Any, None]]
    _open: Callable[[Callable[[], Awaitable[None]]], Coroutine[Deferred[Any], Any, None]]
    _begin_again: Callable[[], Coroutine[Deferred[Any], Any, ServiceRecord]]
    _clock: IReactorTime
    _fence_after: float
    is_fenced: bool = attrs.field(default=False, init=False)
    reason: str | None = attrs.field(default=None, init=False)
    final: bool = attrs.field(default=False, init=False)
    since: float = attrs.field(default=0.0, init=False)
    closing: Deferred[None] = attrs.field(factory=lambda: succeed(None), init=False)
    awaits_let_up: bool = attrs.field(default=False, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _confirmed_at: Callable[[], float | None] = attrs.field(default=lambda: None, init=False)
    _started_at: float = attrs.field(default=0.0, init=False)

    def start(self, confirmed_at: Callable[[], float | None]) -> None:
        """Begin to count the time without heartbeats. Called when the node takes in work.

        :param confirmed_at: returns that of :class:`novasvc.registry.heartbeat.Heartbeat`.
        """
        self._confirmed_at, self._started_at = confirmed_at, self._clock.seconds()
        if self._fence_after:
            self._arm(self._fence_after)

    def _arm(self, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, copy_context().run, self._check_silence)

    def _check_silence(self) -> None:
        confirmed = self._confirmed_at()
        silent = self._clock.seconds() - (self._started_at if confirmed is None else confirmed)
        if silent >= self._fence_after and not self.is_fenced:
            self._put_out_of_service(f"no heartbeat was written for {self._fence_after:g} s (fence_after)")
        self._arm(max(self._fence_after - silent, _LEAST_WAIT))

    def stop(self) -> None:
        """Stop counting. Called when the node stops."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def reset(self) -> None:
        """Forget the reason: the node starts anew."""
        self.reason = None
        metrics.fenced.at(self._node.host, self._node.binary).value = 0
        self.is_fenced = self.final = self.awaits_let_up = False

    def refused(self, error: NovasvcError) -> None:
        """See IncarnationOwner."""
        self.awaits_let_up = isinstance(error, ServiceForcedDownError)
        self.final = not self.awaits_let_up
        if isinstance(error, ServiceNotFoundError):
            reason = "an operator has deleted its row; restart it to register it again"
        elif isinstance(error, ServiceForcedDownError | ServiceSupersededError):
            reason = str(error)
        else:
            reason = f"another start has taken its place: {error}"
        self._put_out_of_service(reason)

    def forced_down(self, error: ServiceForcedDownError) -> None:
        """Start out of service: the service is forced down already."""
        self.awaits_let_up = True
        self._note(str(error))

    def _put_out_of_service(self, reason: str) -> None:
        if self.reason == reason:
            return
        was_in_service = not self.is_fenced
        self._note(reason)
        if was_in_service:
            self.closing = Deferred.fromCoroutine(self._close(reason))
            self.closing.addErrback(
                lambda failure: _log.failure("{node} was not fenced completely", failure, node=self._node)
            )

    def _note(self, reason: str) -> None:
        self.is_fenced, self.reason, self.since = True, reason, self._clock.seconds()
        metrics.fenced.at(self._node.host, self._node.binary).value = 1
        note("node", f"{self._node} is fenced: {reason}")
        _log.critical(
            "{node} is fenced, and takes in no calls, events or tasks: {reason}", node=self._node, reason=reason
        )

    def enter_service(self, beat: Callable[[], Awaitable[None]]) -> Deferred[None]:
        """See IncarnationOwner."""
        return Deferred.fromCoroutine(self._enter_service(beat))

    async def _enter_service(self, beat: Callable[[], Awaitable[None]]) -> None:
        await self.closing
        await self._open(beat)

    def lift(self) -> None:
        """End the fence: a heartbeat is written, and the node takes in work from now on."""
        self.reset()
        note("node", f"{self._node} is in service again")
        _log.warn("{node} is in service again", node=self._node)

    def begin_again(self) -> Deferred[ServiceRecord]:
        """See IncarnationOwner."""
        return Deferred.fromCoroutine(self._begin_again())
