"""The registration of a node: its incarnation, and the states that it tells the registry."""

import os
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorUNIX
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from novasvc.errors import describe
from novasvc.interfaces import IServiceRegistry
from novasvc.node.elections import lock_directories, lock_name
from novasvc.node.runtime import Runtime
from novasvc.registry.errors import ServiceNotFoundError, ServiceSupersededError, ServiceTwinError
from novasvc.registry.heartbeat import ServiceIdentity
from novasvc.registry.incarnation import ServiceStart, ServiceState
from novasvc.registry.record import ServiceRecord
from novasvc.telemetry.flight import note
from novasvc.workers.current import EndKind
from novasvc.workers.file_lock import FileLock

_log = Logger()

ENTER_TIMEOUT = 2.0
"""Seconds to write a state. A stop does not wait longer for the registry; without it, the row ages as in Nova."""

DRAIN_INTERVAL = 10.0
"""Seconds between two reports of the calls in flight of a node that drains."""

RETRY_INTERVAL = 10.0
"""Seconds after which a node that could not tell that it is ready tells it again."""

_LOOK = 2.0
"""Seconds between two attempts to begin while another start may be alive."""

_MOST_REFUSED = 100
"""Machines whose refused starts are logged."""

# Note [Is the other start alive?]
#
# A start that was killed leaves a row that looks alive for up to service_down_time. On the same machine the lock tells:
# whoever gets it knows that the earlier start is dead. On another machine only heartbeats tell. So a start that is
# refused tries again until either the other one is silent for service_down_time, and is superseded, or its heartbeat
# count grows: then it is alive for certain, and this start ends. A node sends no heartbeats before its hooks have
# ended, which may take longer than service_down_time, so until then it tells now and then that it still starts.


_ENDS: dict[ServiceState, EndKind] = {
    "draining": "drain",
    "stopped": "end",
    "failed": "failure",
    "starting": "failure",  # it matters as long as no other worker is ready, too
}


@attrs.define(eq=False)
class Registration:
    """Begin a node's incarnation, and tell the registry its states.

    :param runtime: of its process.
    :param identity: of the node.
    :ivar record: the node's row, as it was registered; None before that.
    """

    _runtime: Runtime
    _identity: ServiceIdentity
    record: ServiceRecord | None = attrs.field(default=None, init=False)
    _start: ServiceStart | None = attrs.field(default=None, init=False)
    _lock: FileLock | None = attrs.field(default=None, init=False)
    _turns: DeferredLock = attrs.field(factory=DeferredLock, init=False)
    _repeating: LoopingCall | None = attrs.field(default=None, init=False)
    _repeated: ServiceState | None = attrs.field(default=None, init=False)
    _entered: int = attrs.field(default=0, init=False)
    _retrying: IDelayedCall | None = attrs.field(default=None, init=False)
    _refused: set[str] = attrs.field(factory=set, init=False)
    _warned: bool = attrs.field(default=False, init=False)

    @property
    def number(self) -> int | None:
        """The number of the incarnation; None if the registry keeps none."""
        return None if self.record is None else self.record.incarnation_number

    # -- begin -----------------------------------------------------------------------------------

    async def begin(
        self,
        registry: IServiceRegistry,
        attempt: Callable[[Callable[[], Awaitable[ServiceRecord]]], Awaitable[ServiceRecord]],
        waiting: Callable[[ServiceTwinError], object],
    ) -> ServiceRecord:
        """Register the node, and begin its incarnation.

        :param registry: open.
        :param attempt: calls a function until it succeeds or fails for good.
        :param waiting: called when another start may be alive, before each further attempt.
        :raises ServiceTwinError: another start is alive.
        """
        self.release()
        self.record = None
        start = self._start = self._make_start()
        seen: ServiceTwinError | None = None
        record: ServiceRecord | None = None
        while record is None:
            try:
                record = await attempt(partial(registry.begin, start))
            except ServiceTwinError as error:
                if self._runtime.settings.fail_fast or _is_alive(seen, error):
                    raise
                if seen is None:
                    _log.warn(
                        "{error}. Waiting until that start sends a heartbeat, or is silent for {seconds:g} s",
                        error=error,
                        seconds=start.service_down_time,
                    )
                seen = error
                waiting(error)
                await deferLater(self._runtime.reactor, _LOOK, lambda: None)
                if start.lock is None and self._runtime.start is None:  # the other one may have died meanwhile
                    start = self._start = attrs.evolve(start, lock=self._lock_identity())
        return self._begun(record)

    def _begun(self, record: ServiceRecord) -> ServiceRecord:
        self.record = record
        if record.incarnation is None:
            _log.warn(
                "the registry numbers no starts of {node}: upgrade its conductors, or run `novasvc db upgrade`; until "
                "then a second start of it is not refused",
                node=self._identity,
            )
        else:
            note("node", f"{self._identity} is incarnation {self.number}")
        return record

    def _make_start(self) -> ServiceStart:
        runtime, identity, settings = self._runtime, self._identity, self._runtime.settings
        shared = runtime.start
        lock = self._lock_identity() if shared is None else shared.lock
        return ServiceStart(
            host=identity.host,
            binary=identity.binary,
            topic=identity.topic,
            version=identity.version,
            owner=f"{runtime.random_source.getrandbits(128):032x}" if shared is None else shared.owner,
            machine=runtime.machine,
            pid=os.getpid() if shared is None else shared.pid,
            lock=lock,
            service_down_time=settings.service_down_time,
            zone=settings.zone,
            tags=settings.tags,
        )

    def _lock_identity(self) -> str | None:
        """Lock the file of this host and binary, and return its identity; None if another process has it."""
        if not IReactorUNIX.providedBy(self._runtime.reactor):  # a Clock, in a test
            return None
        identity = self._identity
        lock = FileLock(lock_directories(self._runtime, "services"), lock_name(identity.host, identity.binary))
        try:
            lock.acquire()
        except BlockingIOError:
            return None
        except OSError as error:
            _log.debug("{node} cannot lock a file: {error}", node=identity, error=error)
            return None
        self._lock = lock
        return lock.identity()

    async def begin_again(self, registry: IServiceRegistry) -> ServiceRecord:
        """Begin again after the row was not found.

        :raises ServiceNotFoundError: an operator has deleted the row.
        :raises ServiceTwinError: another start has taken the place of this one.
        """
        if self._start is None:
            raise ServiceNotFoundError(str(self._identity))
        self._start = attrs.evolve(self._start, after=self.number or 0)
        return self._begun(await registry.begin(self._start))

    def release(self) -> None:
        """Release the lock: another start on this machine may have it."""
        self._end_repeating()
        self._end_retry()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def note_refused(self, machine: str) -> None:
        """Log that another start of this service was refused; once for each machine."""
        if machine not in self._refused and len(self._refused) < _MOST_REFUSED:
            self._refused.add(machine)
            _log.error(
                "another start of {node} was refused on machine {machine!r}, because this one is alive: give that one "
                "another host, or stop this one",
                node=self._identity,
                machine=machine,
            )

    # -- states ----------------------------------------------------------------------------------

    def keep_starting(self, registry: IServiceRegistry) -> None:
        """Tell the registry now and then that the node still starts, until it enters another state."""

        def tell() -> None:
            self.enter(registry, "starting", until=0.0)

        interval = self._runtime.settings.service_down_time / 3
        self._repeat("starting", tell, interval, now=False)

    def drain(self, registry: IServiceRegistry | None, grace: float, calls: Callable[[], int]) -> None:
        """Tell the registry that the node drains, and every DRAIN_INTERVAL how many calls are left, until it has ended.

        :param grace: seconds until the deadline; 0 without one.
        :param calls: returns the number of calls in flight.
        """
        clock = self._runtime.reactor
        ends = clock.seconds() + grace

        def tell() -> None:  # returns nothing: a write that hangs must not hold back the next one
            until = max(0.0, ends - clock.seconds()) if grace else None
            self.enter(registry, "draining", until=until, calls=calls())

        self._repeat("draining", tell, DRAIN_INTERVAL, now=True)

    def _repeat(self, state: ServiceState, tell: Callable[[], object], interval: float, *, now: bool) -> None:
        self._end_repeating()
        self._repeated = state
        self._repeating = LoopingCall(copy_context().run, tell)
        self._repeating.clock = self._runtime.reactor
        self._repeating.start(interval, now).addErrback(
            lambda failure: _log.failure("{node} does not tell its state any more", failure, node=self._identity)
        )

    def enter(self, registry: IServiceRegistry | None, state: ServiceState, **given: Any) -> Deferred[None]:
        """Tell the registry a state, after those that are being told; see IServiceRegistry.enter.

        A worker tells no end while other workers of this start go on. That a node is ready is told again until it was
        written, because the node would seem to start for ever.

        :param registry: None if it was not reached.
        :param given: ``until``, ``reason`` and ``calls``.
        :return: Deferred[None], fired after ENTER_TIMEOUT at the latest. It never fails: an error is logged.
        """
        self._end_retry()
        self._entered = turn = self._entered + 1
        if state != self._repeated:
            self._end_repeating()
        if registry is None or self.record is None or self.number is None:
            return succeed(None)
        writing = partial(registry.enter, self.record.id, self.number, state, **given)
        # One after the other: the last worker may end only when this one has told that it drains.
        telling: Deferred[None] = self._turns.run(self._tell, state, writing)
        telling.addTimeout(ENTER_TIMEOUT, self._runtime.reactor)

        def retry() -> None:
            if state == "ready" and turn == self._entered:
                self._retrying = self._runtime.reactor.callLater(
                    RETRY_INTERVAL, copy_context().run, partial(self.enter, registry, state, **given)
                )

        return telling.addCallbacks(self._was_told, self._was_not_told, errbackArgs=(state, retry))

    def _end_retry(self) -> None:
        if self._retrying is not None and self._retrying.active():
            self._retrying.cancel()
        self._retrying = None

    def _end_repeating(self) -> None:
        if self._repeating is not None and self._repeating.running:
            self._repeating.stop()
        self._repeating = self._repeated = None

    def _tell(self, state: ServiceState, write: Callable[[], Deferred[None]]) -> Deferred[None]:
        if state not in _ENDS or self._runtime.start is None:
            return write()
        if self._runtime.ends_alone is None:
            return succeed(None)
        asking = self._runtime.ends_alone(_ENDS[state], str(self._identity))
        return asking.addCallback(lambda alone: None if alone else write())

    def _was_told(self, _: None) -> None:
        self._warned = False

    def _was_not_told(self, failure: Failure, state: ServiceState, retry: Callable[[], None]) -> None:
        if failure.check(CancelledError, ServiceSupersededError, ServiceNotFoundError):
            return  # the node ends, or its heartbeats say so
        retry()
        level = LogLevel.debug if self._warned else LogLevel.warn
        self._warned = True
        late = failure.check(DeferredTimeoutError)
        _log.emit(
            level,
            "the registry was not told that {node} is {state}: {error}",
            node=self._identity,
            state=state,
            error=f"no answer within {ENTER_TIMEOUT:g} s" if late else describe(cast(BaseException, failure.value)),
        )


def _is_alive(seen: ServiceTwinError | None, now: ServiceTwinError) -> bool:
    """Return whether another start has sent a heartbeat between two attempts."""
    return seen is not None and seen.incarnation == now.incarnation and now.beats > seen.beats
