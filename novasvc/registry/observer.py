"""Observers of a fleet: users' code that is told of each change of a service's verdict, once."""

import random
import socket
from collections.abc import Collection, Iterator
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface.verify import verifyObject

from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import IServiceObserver, IServiceRegistry
from novasvc.reactor.backoff import jittered_backoff
from novasvc.registry.election import LeaseElection
from novasvc.registry.errors import ObserverError, ObserverSupersededError
from novasvc.registry.observation import LONGEST_NAME, Observation, StatusChange
from novasvc.registry.outages import VerdictRule
from novasvc.registry.record import ServiceRecord
from novasvc.registry.teller import TIMEOUT, Teller
from novasvc.registry.verdict import DELETED, Status, Verdict
from novasvc.registry.verdicts import PAGE, FleetVerdicts, OutageLog, count_verdicts, forget_counts, judge_all

_log = Logger()

TOPIC = "novasvc.observers"
"""The topic of the leases of observers."""


# Note [Once, or told to be a repetition]
#
# A process that dies while an observer handles a change cannot know how far it got. So a change is written before it is
# told, and again when it was handled. Who takes over tells what was written but not handled, with ``repeated`` set and
# with the same key, by which the observer can recognise it. All other changes are told exactly once, whatever process
# sees them: it writes with the fencing number of its lease, and an earlier one that was only stopped for a while is
# refused.
#
# What is compared is the status that an observer was told, not a history: a service that went down and came back
# between two reads, or while no process observed, has not changed.


def check_observer(observer: object, name: str) -> None:
    """Check that an object can observe under a name.

    :raises ObserverError: the name is unusable, or the observer lacks a method.
    """
    if not 0 < len(name) <= LONGEST_NAME:
        problem = f"a name has 1 to {LONGEST_NAME} characters, not {len(name)}"
        raise ObserverError(name[:LONGEST_NAME], problem, "give another name")
    try:
        verifyObject(IServiceObserver, observer)
    except Exception as error:
        problem = f"{type(observer).__name__} does not provide IServiceObserver: {error}"
        remedy = "decorate its class with @implementer(IServiceObserver), and define on_up, on_down and on_suspect"
        raise ObserverError(name, problem, remedy) from error


@attrs.define(eq=False, kw_only=True)
class FleetObserver:
    """Tells an observer of each change in a fleet: a service is up, down or suspect.

    Any number of processes may observe under one name: the one that has the lease of the name tells. The registry
    keeps what was told, so restarts and take-overs neither lose a change nor tell it again, except that one that was
    being told when a process died is told again as a repetition; see Note [Once, or told to be a repetition].

    The first time that a name observes, it is told of every service that is not alive.

    :param name: names the observer in the whole fleet; at most LONGEST_NAME characters.
    :param observer: provides :class:`novasvc.interfaces.IServiceObserver`.
    :param registry: open; outlives the observer.
    :param rule: when a service is down.
    :param clock: measures the times.
    :param interval: seconds between reads of the registry, > 0.
    :param lease_time: seconds after which another process takes over from one that has died.
    :param holder: names this process for people.
    :param timeout: seconds that a method of the observer may take.
    :param random_source: draws the jitter of repetitions.
    :raises ObserverError: the name is unusable, or the observer lacks a method.
    """

    name: str
    observer: Any
    registry: IServiceRegistry
    rule: VerdictRule
    clock: IReactorTime
    interval: float = 5.0
    lease_time: float = 30.0
    holder: str = attrs.field(factory=socket.gethostname)
    timeout: float = TIMEOUT
    random_source: random.Random = attrs.field(factory=random.Random)
    _election: LeaseElection | None = attrs.field(default=None, init=False)
    _fencing: int | None = attrs.field(default=None, init=False)
    _loop: Deferred[None] | None = attrs.field(default=None, init=False)
    _known: dict[int, Observation] = attrs.field(factory=dict, init=False)
    _teller: Teller = attrs.field(init=False)
    _outages: OutageLog = attrs.field(factory=OutageLog, init=False)
    _trouble: str | None = attrs.field(default=None, init=False)
    _first: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        retry = jittered_backoff(first=1.0, longest=60.0, random_source=self.random_source)
        self._teller = Teller(self.name, self.observer, self.clock, retry, self.timeout, self._note_told)
        check_observer(self.observer, self.name)

    @property
    def tells(self) -> bool:
        """Whether this process has the lease, and tells the changes."""
        return self._fencing is not None

    def start(self) -> None:
        """Begin to stand for the lease of the name; the process that gets it tells the changes."""
        self._election = LeaseElection(
            self.registry, TOPIC, self.holder, self.lease_time, self.clock, self.random_source
        )
        self._election.start([self.name], lambda _, term: self._gained(term.fencing or 0), lambda *_: self._lost())

    async def stop(self) -> None:
        """Stop: cancel what the observer does now, which is told again later, and let another process take over."""
        election, self._election = self._election, None
        self._lost()
        await self._teller.stop()
        if election is not None:
            await election.resign(self.name)

    # -- the lease -------------------------------------------------------------------------------

    def _gained(self, fencing: int) -> None:
        self._fencing = fencing
        self._loop = Deferred.fromCoroutine(self._observe(fencing))
        self._loop.addErrback(lambda failure: failure.trap(CancelledError) and None)
        self._loop.addErrback(lambda failure: _log.failure("observer {name} failed", failure, name=self.name))

    def _lost(self) -> None:
        self._fencing = None
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            forget_counts(self)
        self._teller.cancel()

    async def _observe(self, fencing: int) -> None:
        known: dict[int, Observation] | None = None
        while self._fencing == fencing:
            try:
                if known is None:
                    # Before the read: once this number is written, no earlier process changes what is read.
                    await self.registry.observe(self.name, fencing, [])
                    observations = await self.registry.observations(self.name)
                    known = self._known = {each.service_id: each for each in observations}
                    self._first = not known
                await self._look(fencing)
            except ObserverSupersededError as error:
                _log.warn("{error}", error=error)
                return
            except CancelledError:
                raise
            except NovasvcError as error:
                self._note_trouble(str(error))
            except Exception as error:  # noqa: BLE001 - the next read is tried whatever happens
                _log.failure("a read of observer {name} failed unexpectedly", name=self.name)
                self._note_trouble(describe(error))
            else:
                self._note_trouble(None)
            await deferLater(self.clock, self.interval, lambda: None)

    def _note_trouble(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self._trouble:
            _log.error("observer {name} cannot read or write the registry: {trouble}", name=self.name, trouble=trouble)
        if trouble is None and self._trouble is not None:
            _log.info("observer {name} reads the registry again", name=self.name)
        self._trouble = trouble

    # -- changes ---------------------------------------------------------------------------------

    async def _look(self, fencing: int) -> None:
        """Read the fleet, write what has changed, and tell it."""
        fleet = await judge_all(self.registry, self.rule)
        self._outages.note(fleet.outages)
        count_verdicts(fleet, self)
        forgotten = self._forgotten(fleet)
        changes = list(self._changes(fleet, fencing, {each.service_id for each in forgotten}))
        # Of the services that are there when a name observes for the first time, those that are alive are no news.
        is_news = [not (self._first and change.verdict.status == "alive") for change in changes]
        noted = [_observation(change, told=not news) for change, news in zip(changes, is_news, strict=True)]
        written = [*forgotten, *noted]
        for begin in range(0, len(written), PAGE):
            await self.registry.observe(self.name, fencing, written[begin : begin + PAGE])
        self._first = False
        for each in forgotten:
            self._known.pop(each.service_id, None)
        self._known.update((each.service_id, each) for each in noted)
        for change, news in zip(changes, is_news, strict=True):
            if news:
                self._teller.tell(change)

    def _forgotten(self, fleet: FleetVerdicts) -> list[Observation]:
        """Return the observations to delete: of services that were down already when their rows were deleted."""
        there = {record.id for record, _ in fleet.services}
        return [
            attrs.evolve(known, status=None)
            for known in self._known.values()
            if known.service_id not in there and known.told and known.status == DELETED.status
        ]

    def _changes(self, fleet: FleetVerdicts, fencing: int, forgotten: Collection[int]) -> Iterator[StatusChange]:
        gone = {number: known for number, known in self._known.items() if number not in forgotten}
        for record, verdict in fleet.services:
            known = gone.pop(record.id, None)
            change = self._change(record.id, record.host, record.binary, record, known, verdict, fencing)
            if change is not None:
                yield change
        for known in gone.values():
            change = self._change(known.service_id, known.host, known.binary, None, known, DELETED, fencing)
            if change is not None:
                yield change

    def _change(
        self,
        service_id: int,
        host: str,
        binary: str,
        record: ServiceRecord | None,
        known: Observation | None,
        verdict: Verdict,
        fencing: int,
    ) -> StatusChange | None:
        """Return what the observer has to be told of a service; None if nothing."""
        same = known is not None and known.status == verdict.status
        if self._teller.is_busy(service_id, outdated=not same):
            return None
        repeated = same and known is not None and not known.told
        if same and not repeated and record is not None:
            return None
        number = 1 if known is None else known.number if repeated else known.number + 1
        before: Status | None = None if known is None or repeated else known.status
        return StatusChange(
            service_id=service_id,
            host=host,
            binary=binary,
            record=record,
            before=before,
            verdict=verdict,
            key=f"{self.name}/{service_id}/{number}",
            number=number,
            repeated=repeated,
            fencing=fencing,
        )

    async def _note_told(self, change: StatusChange) -> None:
        told = _observation(change, told=True)
        if change.record is None:
            told = attrs.evolve(told, status=None)
        try:
            await self.registry.observe(self.name, change.fencing, [told])
        except ObserverSupersededError as error:
            _log.warn("{error}", error=error)
            return
        if told.status is None:
            self._known.pop(told.service_id, None)
        else:
            self._known[told.service_id] = told


def _observation(change: StatusChange, *, told: bool) -> Observation:
    return Observation(
        service_id=change.service_id,
        host=change.host,
        binary=change.binary,
        status=change.verdict.status,
        number=change.number,
        told=told,
        since=change.verdict.since,
    )
