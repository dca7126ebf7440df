"""Who is in the group, and who is up.

A member proves that it lives by a heartbeat in its row; everybody else judges the row by one
rule, :func:`is_up`. Both use the database's clock, so the clocks of hosts play no part.
"""

import time
from collections.abc import Callable, Sequence
from contextvars import copy_context

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import DatabaseError, ServiceNotFoundError, describe
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.record import ServiceRecord
from novasvc.telemetry import metrics

_log = Logger()

Proof = Callable[[], str | None]
"""Returns None while something works, else why it does not: the rest of a sentence, always the same one."""

LAG_LIMIT = 5.0
"""Seconds that a heartbeat may come late before it proves that the reactor does not answer."""


def is_up(record: ServiceRecord, service_down_time: float) -> bool:
    """Tell whether a service is up.

    :param service_down_time: seconds without a heartbeat after which a service is down.
    Source: Nova's servicegroup.drivers.db; a stamp in the future counts as fresh here.
    """
    return not record.forced_down and record.age <= service_down_time


@attrs.frozen
class Identity:
    """What a member registers as. See :meth:`novasvc.interfaces.IServiceRegistry.register`."""

    host: str
    binary: str
    topic: str | None
    version: int = 0

    def __str__(self) -> str:
        return f"{self.binary}@{self.host}"


@attrs.define(eq=False)
class Membership:
    """One node's place in the group: its row, and the heartbeats that keep it up.

    A beat is a proof: it is sent only if every one of ``proofs`` holds and the reactor answers
    in time; otherwise it is skipped, and the log says why once. Beats never pile up: the next
    one waits for the one before, which the registry bounds.

    :param record: the row, as it was registered.
    :param report_interval: seconds from beat to beat; 0 is no beats, as in Nova: the row is there, and ages.
    :param proofs: what must hold for a beat to be sent.
    :ivar problem: why the last beat that was tried could not be written; None if it was.
    """

    _registry: IServiceRegistry
    _identity: Identity
    record: ServiceRecord
    _clock: IReactorTime
    _report_interval: float
    _proofs: Sequence[Proof] = ()
    beats: int = attrs.field(default=0, init=False)
    failures: int = attrs.field(default=0, init=False)
    skipped: int = attrs.field(default=0, init=False)
    trouble: str | None = attrs.field(default=None, init=False)
    problem: str | None = attrs.field(default=None, init=False)
    _proven_at: float | None = attrs.field(default=None, init=False)
    _loop: LoopingCall | None = attrs.field(default=None, init=False)
    _joined_at: float = attrs.field(default=0.0, init=False)
    _due: float = attrs.field(default=0.0, init=False)
    _beating: Deferred[None] | None = attrs.field(default=None, init=False)

    def join(self) -> Deferred[None]:
        """Send the first heartbeat now, and one every report_interval from now on.

        :return: Deferred[None], fired when the first one was sent or has failed; the failure is
            logged and does not end the membership.
        """
        if not self._report_interval:
            _log.info("{identity} sends no heartbeats: its report_interval is 0", identity=self._identity)
            return succeed(None)
        for outcome in ("sent", "failed", "skipped"):
            metrics.heartbeats.at(self._identity.host, self._identity.binary, outcome)  # there before it counts
        self._joined_at = self._due = self._clock.seconds()
        first: Deferred[None] = Deferred()
        # Each beat runs in the context of the node that joins: its log events are the node's.
        self._loop = LoopingCall(copy_context().run, self._beat)
        self._loop.clock = self._clock
        self._loop.start(self._report_interval).addErrback(self._loop_broke)
        if self._beating is None:
            first.callback(None)
        else:
            self._beating.addCallback(lambda _: first.callback(None))
        return first

    def leave(self) -> None:
        """Send no more heartbeats; one under way is cancelled. The row ages from now on."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        if self._beating is not None:
            self._beating.cancel()

    @property
    def is_telling(self) -> bool:
        """Whether beats are tried, so that ``problem`` tells whether the registry can be written now."""
        since = None if self._proven_at is None else self._clock.seconds() - self._proven_at
        return since is not None and since <= 2 * self._report_interval + LAG_LIMIT

    def _beat(self) -> Deferred[None]:
        beating = self._beating = Deferred.fromCoroutine(self._beat_or_skip())

        def done(_: object) -> None:
            self._beating = None
            after = self._clock.seconds() - self._joined_at
            self._due = self._joined_at + (after // self._report_interval + 1) * self._report_interval

        return beating.addBoth(done)

    async def _beat_or_skip(self) -> None:
        missing = self._missing_proof()
        if missing is not None:
            self.skipped += 1
            self._count("skipped")
            self._stumble(f"no heartbeat is sent, because {missing}")
            return
        try:
            await self._send()
        except DatabaseError as error:
            self._note_failure(str(error))
            self._stumble("model server went away", error)
        except CancelledError:
            pass  # the member leaves
        except Exception as error:  # noqa: BLE001 - whatever it is, the next beat is tried
            self._note_failure(describe(error))
            self._stumble("the heartbeat failed", error)
        else:
            self.beats += 1
            self.problem, self._proven_at = None, self._clock.seconds()
            self._count("sent")
            metrics.heartbeat_sent.at(self._identity.host, self._identity.binary).value = time.time()
            if self.trouble is not None:
                _log.info("heartbeats go on; before: {trouble}", trouble=self.trouble)
                self.trouble = None

    def _note_failure(self, problem: str) -> None:
        self.failures += 1
        self._count("failed")
        self.problem, self._proven_at = problem, self._clock.seconds()

    def _count(self, outcome: str) -> None:
        metrics.heartbeats.at(self._identity.host, self._identity.binary, outcome).value += 1

    async def _send(self) -> None:
        try:
            await self._registry.beat(self.record.id)
        except ServiceNotFoundError:
            identity = self._identity
            self.record = await self._registry.register(
                identity.host, identity.binary, identity.topic, identity.version
            )
            _log.warn("the row of {identity} was deleted while it runs: registered again", identity=identity)
            await self._registry.beat(self.record.id)

    def _missing_proof(self) -> str | None:
        if self._clock.seconds() - self._due > LAG_LIMIT:
            return f"the reactor answers more than {LAG_LIMIT:g} s late"
        try:
            return next((why for why in (proof() for proof in self._proofs) if why is not None), None)
        except Exception as error:  # noqa: BLE001 - proofs are others' code, and this is none
            return f"a proof raised {describe(error)}"

    def _stumble(self, trouble: str, error: Exception | None = None) -> None:
        """Log a trouble when it begins; repeats are silent."""
        if trouble != self.trouble:
            detail = "" if error is None else f": {error if isinstance(error, DatabaseError) else repr(error)}"
            _log.error("{trouble}{detail}", trouble=trouble, detail=detail)
        self.trouble = trouble

    def _loop_broke(self, failure: Failure) -> None:
        _log.failure("heartbeats of {identity} have ended", failure=failure, identity=self._identity)
