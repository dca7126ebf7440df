"""The heartbeats of a service: they stamp its row, by the database's clock.

:func:`novasvc.registry.liveness.is_up` is the other half: how readers judge the stamp.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from math import floor
from typing import Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.errors import (
    DatabaseError,
    ServiceForcedDownError,
    ServiceNotFoundError,
    ServiceSupersededError,
    ServiceTwinError,
)
from novasvc.registry.fencing import check_beat
from novasvc.registry.record import ServiceRecord
from novasvc.rpc.errors import RPCError
from novasvc.telemetry import metrics

_log = Logger()

LivenessCheck = Callable[[], str | None]
"""Return None while something works, else the reason as the rest of a sentence.

The reason for one problem is always the same text: a heartbeat logs a problem when its text changes.
"""

_REFUSALS = ServiceForcedDownError, ServiceSupersededError, ServiceTwinError, ServiceNotFoundError
"""Errors that say that the service may not write heartbeats."""

_ROUNDING = 1e-6
"""Part of an interval by which the result of a division may be too small."""

_LOOK_INTERVAL = 10.0
"""Seconds between readings of the row of a service that is forced down and sends no heartbeats."""

LAG_LIMIT = 5.0
"""Seconds. A heartbeat that is later than this is skipped: the reactor was blocked."""

_LATE = f"the reactor is more than {LAG_LIMIT:g} s late"


@attrs.frozen
class ServiceIdentity:
    """What a service registers as. See :meth:`novasvc.interfaces.IServiceRegistry.register`."""

    host: str
    binary: str
    topic: str | None
    version: int = 0

    def __str__(self) -> str:
        return f"{self.binary}@{self.host}"


class IncarnationOwner(Protocol):
    """What a heartbeat tells the node of; see :class:`novasvc.node.fence.Fence`."""

    is_fenced: bool
    awaits_let_up: bool
    final: bool

    def refused(self, error: NovasvcError) -> None:
        """Handle a heartbeat that was refused: another start, or an operator, has taken the service's place."""

    def enter_service(self, beat: Callable[[], Awaitable[None]]) -> Deferred[None]:
        """Put the node, which is out of service, back into service. The registry would not refuse a heartbeat of it.

        :param beat: writes a heartbeat. Called when the node could begin work; it begins none before that.
        :return: Deferred[None]; fails with the error of the beat, or with an RPCError if the node cannot consume.
        """

    def begin_again(self) -> Deferred[ServiceRecord]:
        """Begin again after the row was not found; see :meth:`novasvc.interfaces.IServiceRegistry.begin`."""


@attrs.define(eq=False)
class Heartbeat:
    """Stamp a service's row once every ``report_interval``, as long as the service can work.

    A heartbeat is sent only if all ``checks`` pass and the reactor is on time. Otherwise it is
    skipped, and the reason is logged once. Heartbeats never overlap: the registry bounds the time
    of each, and LoopingCall waits for it.

    While the node is out of service, none is sent until it can work again: see Note [The heartbeat of a fenced node].
    A heartbeat that another start has made invalid ends the loop.

    :param identity: of the service, for logs and metrics.
    :param record: the row, as it was registered.
    :param report_interval: seconds between heartbeats. With 0 none is sent, as in Nova: the row exists and ages. Only
        while the service is forced down from its start, its row is read.
    :param owner: is told of heartbeats that are refused.
    :param checks: liveness checks; a heartbeat is sent only if all of them return None. A node that is out of service
        is not asked.
    :param withholding: called with the reason when a check holds the heartbeats back, and with None when they resume.
    :ivar sent: heartbeats sent.
    :ivar failures: heartbeats that could not be written.
    :ivar skipped: heartbeats not sent because a check failed.
    :ivar withheld: the reason that ``withholding`` was called with last.
    :ivar trouble: why the last heartbeat was skipped or failed, as it was logged; None if it was sent.
    :ivar confirmed_at: seconds on the clock when the last heartbeat was sent that the registry has written, or would
        have; None before that.
    :ivar write_error: why the last heartbeat could not be written; None if it was.
    """

    # Note [The heartbeat of a fenced node]
    #
    # A heartbeat tells others that the node works, and that its work must not be taken over for a while. So a node that
    # is out of service begins no work before one is written, and writes none before it could begin: the registry is
    # asked first, then the node consumes, and holds what arrives; then it writes the heartbeat, and only then begins.
    # If it wrote the heartbeat first, a node that has lost only the broker would be alive to others for ever.

    _registry: IServiceRegistry
    _identity: ServiceIdentity
    record: ServiceRecord
    _clock: IReactorTime
    _report_interval: float
    _owner: IncarnationOwner
    _checks: Sequence[LivenessCheck] = ()
    _withholding: Callable[[str | None], object] = lambda _: None
    withheld: str | None = attrs.field(default=None, init=False)
    sent: int = attrs.field(default=0, init=False)
    failures: int = attrs.field(default=0, init=False)
    skipped: int = attrs.field(default=0, init=False)
    trouble: str | None = attrs.field(default=None, init=False)
    write_error: str | None = attrs.field(default=None, init=False)
    confirmed_at: float | None = attrs.field(default=None, init=False)
    _tried_at: float | None = attrs.field(default=None, init=False)
    _number: int | None = attrs.field(default=None, init=False)
    _loop: LoopingCall | None = attrs.field(default=None, init=False)
    _started_at: float = attrs.field(default=0.0, init=False)
    _due: float = attrs.field(default=0.0, init=False)
    _sending: Deferred[None] | None = attrs.field(default=None, init=False)
    _interval: float = attrs.field(init=False)

    @_interval.default
    def _interval_of_loop(self) -> float:
        return self._report_interval or _LOOK_INTERVAL

    def hear(self) -> Deferred[None]:
        """Ask the registry, without a heartbeat, whether it would be refused, and tell the owner if so.

        Called before :meth:`start`, for a service that takes in work already, or is about to.

        :return: Deferred[None], fired when the registry has answered, or cannot be read.
        """
        self._number = self.record.incarnation_number
        hearing = self._sending = Deferred.fromCoroutine(self._hear())

        def done(outcome: Failure | None) -> Failure | None:
            self._sending = None
            return outcome

        return hearing.addBoth(done)

    @property
    def is_running(self) -> bool:
        """Whether heartbeats are sent."""
        return self._loop is not None and self._loop.running

    def start(self) -> Deferred[None]:
        """Send the first heartbeat now, and one every report_interval from now on.

        :return: Deferred[None], fired when the first heartbeat was sent or has failed. A failure is
            logged, and the next heartbeat is tried.
        """
        if not self._report_interval:
            _log.info("{identity} sends no heartbeats: its report_interval is 0", identity=self._identity)
            if not self._owner.awaits_let_up:
                return succeed(None)
        if self._owner.final:  # since a reading of the row
            return succeed(None)
        for outcome in ("sent", "failed", "skipped"):
            # Export counters at zero so that alerts see the first increase.
            metrics.heartbeats.at(self._identity.host, self._identity.binary, outcome)
        self._number = self.record.incarnation_number
        self._started_at = self._due = self._clock.seconds()
        first: Deferred[None] = Deferred()
        # LoopingCall runs from the reactor; the copied context gives its log events this node's fields.
        self._loop = LoopingCall(copy_context().run, self._run)
        self._loop.clock = self._clock
        self._loop.start(self._interval).addErrback(self._loop_failed)
        if self._sending is None:
            first.callback(None)
        else:
            self._sending.addCallback(lambda _: first.callback(None))
        return first

    def stop(self) -> None:
        """Send no more heartbeats, and cancel the one under way. The row ages from now on."""
        self._end_loop()
        if self._sending is not None:
            self._sending.cancel()

    def _end_loop(self) -> None:
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    @property
    def is_current(self) -> bool:
        """Whether a write was tried recently, so that ``write_error`` says if the registry can be written now."""
        since = None if self._tried_at is None else self._clock.seconds() - self._tried_at
        return since is not None and since <= 2 * self._interval + LAG_LIMIT

    def _run(self) -> Deferred[None]:
        sending = self._sending = Deferred.fromCoroutine(self._send_or_skip())

        def done(_: object) -> None:
            self._sending = None
            # LoopingCall keeps its phase: the next call is at a multiple of the interval after the first. A slow
            # registry must not count as a late reactor, so the due time moves past the time the write took.
            elapsed = self._clock.seconds() - self._started_at
            # Rounding must not take the moment of a call of the loop for one before it: each call would then seem to be
            # an interval late, and no heartbeat would be sent any more.
            intervals = floor(elapsed / self._interval + _ROUNDING)
            self._due = self._started_at + (intervals + 1) * self._interval

        return sending.addBoth(done)

    async def _send_or_skip(self) -> None:
        reason = self._why_not_alive()
        if reason is not None:
            self.skipped += 1
            self._count("skipped")
            self._log_trouble(f"no heartbeat is sent, because {reason}")
            self._withhold(reason)
            return
        try:
            if self._owner.is_fenced:
                await self._enter_service()
            else:
                await self._beat()
            if self.trouble is not None or self.withheld is not None:
                self._note_resumed()
        except _REFUSALS as error:
            self._note_refusal(error)
        except DatabaseError as error:
            self._note_failure(str(error))
            self._log_trouble("model server went away", error)  # Nova's words, which operators' alerts look for
        except RPCError as error:
            self._note_answer()
            self._log_trouble("no heartbeat is sent while the node is fenced", error)
        except CancelledError:
            pass  # by stop()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next heartbeat is tried
            self._note_failure(describe(error))
            self._log_trouble("the heartbeat failed", error)

    async def _hear(self) -> None:
        asked_at = self._clock.seconds()
        try:
            await self._check_or_register()
            self.confirmed_at = asked_at
        except _REFUSALS as error:
            self._owner.refused(error)
        except NovasvcError as error:
            # A service that cannot reach the registry goes on; its heartbeats say so.
            _log.debug("the row of {identity} cannot be read: {error}", identity=self._identity, error=error)

    async def _check(self) -> None:
        """Read the row, and check that a heartbeat would not be refused."""
        record = await self._registry.get(str(self.record.id))
        # An older conductor reads no incarnation. If the registry has lost it, the first heartbeat finds out.
        check_beat(record, None if record.incarnation is None else self._number)

    async def _check_or_register(self) -> None:
        try:
            await self._check()
        except (ServiceNotFoundError, ServiceSupersededError) as error:
            await self._register_again(error)
            await self._check()

    async def _enter_service(self) -> None:
        """Put the node back into service with a heartbeat; see Note [The heartbeat of a fenced node]."""
        if self._owner.awaits_let_up:
            await self._check()
        else:
            await self._check_or_register()
        await self._registry.prove_writable()
        if self._report_interval:
            await self._owner.enter_service(self._beat)
        else:
            await self._owner.enter_service(_send_none)
            self._end_loop()

    async def _beat(self) -> None:
        # The registry may have written it long before its answer arrives, and others count from then.
        sent_at = self._clock.seconds()
        try:
            await self._registry.beat(self.record.id, self._number)
        except (ServiceNotFoundError, ServiceSupersededError) as error:
            await self._register_again(error)
            await self._registry.beat(self.record.id, self._number)
        self.sent += 1
        self.write_error = None
        self.confirmed_at, self._tried_at = sent_at, self._clock.seconds()
        self._count("sent")
        metrics.heartbeat_sent.at(self._identity.host, self._identity.binary).value = time.time()

    def _note_resumed(self) -> None:
        if self.trouble is not None:
            _log.info("heartbeats resumed; the problem was: {trouble}", trouble=self.trouble)
            self.trouble = None
        if self.withheld is not None:
            self._withhold(None)

    async def _register_again(self, error: ServiceNotFoundError | ServiceSupersededError) -> None:
        """Register again after the registry has lost this start; raise the error if it has not."""
        # Deleted by an operator, or lost by a database that was restored from a backup: begin() tells them apart.
        # Numbers only grow, so a lower one is from a backup, too.
        if isinstance(error, ServiceSupersededError) and error.latest >= (self._number or 0):
            raise error
        self.record = await self._owner.begin_again()
        _log.warn("the registry had lost this start of {identity}; registered it again", identity=self._identity)
        self._number = self.record.incarnation_number

    def _withhold(self, reason: str | None) -> None:
        if reason not in {self.withheld, _LATE}:
            self.withheld = reason
            self._withholding(reason)

    def _note_refusal(self, error: NovasvcError) -> None:
        self._note_answer()
        self.trouble = str(error)
        self._owner.refused(error)
        if self._owner.final:
            self._end_loop()

    def _note_answer(self) -> None:
        """Count a heartbeat that was skipped although the registry has answered, so that it can be written."""
        self.write_error, self._tried_at = None, self._clock.seconds()
        self.skipped += 1
        self._count("skipped")

    def _note_failure(self, problem: str) -> None:
        self.failures += 1
        self._count("failed")
        self.write_error, self._tried_at = problem, self._clock.seconds()

    def _count(self, outcome: str) -> None:
        metrics.heartbeats.at(self._identity.host, self._identity.binary, outcome).value += 1

    def _why_not_alive(self) -> str | None:
        if self._clock.seconds() - self._due > LAG_LIMIT:
            return _LATE
        if self._owner.is_fenced:
            return None
        try:
            return next((reason for reason in (check() for check in self._checks) if reason is not None), None)
        except Exception as error:  # noqa: BLE001 - a check is the caller's code; one that raises has not passed
            return f"a liveness check raised {describe(error)}"

    def _log_trouble(self, trouble: str, error: Exception | None = None) -> None:
        """Log a problem when it begins; repeats are silent."""
        if trouble != self.trouble:
            detail = "" if error is None else f": {error if isinstance(error, NovasvcError) else repr(error)}"
            _log.error("{trouble}{detail}", trouble=trouble, detail=detail)
        self.trouble = trouble

    def _loop_failed(self, failure: Failure) -> None:
        _log.failure("the heartbeat loop of {identity} failed", failure=failure, identity=self._identity)


async def _send_none() -> None:
    """Send no heartbeat, for a service without."""
