"""The service registry in a database that this process reaches directly."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
from sqlalchemy import Connection
from sqlalchemy import Engine as SQLEngine
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IServiceRegistry
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.registry.errors import (
    DatabaseConflictError,
    DatabaseError,
    DatabaseLockedError,
    DatabaseRefusedError,
    MigrationNeededError,
)
from novasvc.registry.incarnation import ServiceStart, ServiceState
from novasvc.registry.lease import LeaseRequest, Leases
from novasvc.registry.observation import Observation, Observations
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.purge import MAX_BATCH, PurgeBatch, PurgeRequest
from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
from novasvc.registry.record import Records, ServiceChanges, ServiceRecord
from novasvc.registry.sql import leases, observations, purge, rows, silences, sqlite
from novasvc.registry.sql import migrate as migration
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.beats import BeatBatches
from novasvc.registry.sql.diagnosis import diagnose
from novasvc.registry.sql.engine import Engine
from novasvc.registry.sql.observations import write as write_observations
from novasvc.registry.sql.operations import SQLOperations
from novasvc.registry.sql.schema import HEAD
from novasvc.registry.sql.start_batches import StartBatches, is_conflict
from novasvc.registry.sql.starts import Outcomes, begin_all

_log = Logger()

_Result = TypeVar("_Result")

_BEGIN_ATTEMPTS = 4
"""How often a start is tried that is in conflict with others. Each conflict means that another one has won."""

_MIGRATION_DEADLINE = 60.0
"""Seconds. An empty table takes one; altering a large table may take many more."""

_PURGE_INTERVAL = 600.0
"""Seconds between deletions of old silences, by a process that writes heartbeats."""

_MOST_RULES = 10
"""Rules whose outages are cached. A conductor may be asked by processes with different settings."""

_SPACE_CHECK_INTERVAL = 1.0
"""Seconds for which a successful check of the disk's free space is cached."""


def connect_registry(
    url: str,
    *,
    reactor: Any,
    enable_new_services: bool = True,
    migrate: bool = True,
    service_down_time: float = 60.0,
) -> "ServiceRegistry":
    """Make the registry of a database; nothing is opened yet.

    :param url: see :meth:`novasvc.registry.sql.address.DatabaseAddress.parse`.
    :param reactor: provides IReactorTime and IReactorFromThreads.
    :param enable_new_services: see :class:`ServiceRegistry`.
    :param migrate: see :class:`ServiceRegistry`.
    :param service_down_time: see :class:`ServiceRegistry`.
    :raises DatabaseRefusedError: not a database URL, or no driver for it.
    """
    engine = Engine(DatabaseAddress.parse(url), reactor=reactor)
    return ServiceRegistry(
        engine, enable_new_services=enable_new_services, migrate=migrate, service_down_time=service_down_time
    )


@implementer(IServiceRegistry)
class ServiceRegistry:
    """The ``services`` table, with Nova's rows and the database's clock.

    :param engine: closed with the registry.
    :param enable_new_services: False creates new rows disabled.
    :param migrate: False fails with MigrationNeededError if a migration is due; Nova's own table needs none.
    :param new_uuid: returns the uuid of a new row, lower-case and with dashes.
    :param service_down_time: seconds, to tell by which silences are recorded.
    :ivar operations: the operations on the fleet, in the same database.
    Source: novasvc.interfaces.IServiceRegistry; nova.db.main.api, the functions ``service_*``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        enable_new_services: bool = True,
        migrate: bool = True,
        new_uuid: Callable[[], str] = lambda: str(uuid.uuid4()),
        service_down_time: float = 60.0,
    ) -> None:
        self._engine = engine
        self.operations = SQLOperations(engine)
        self._rows = rows.ServiceRows(engine.address.masked, enable_new_services, new_uuid)
        self._migrate = migrate
        self._next_space_check = 0.0
        self._late = VerdictRule(service_down_time=service_down_time).late
        self._starts = StartBatches(
            engine.clock,
            self._begin_all,
            lambda start, is_awaited: Deferred.fromCoroutine(self._begin_alone(start, is_awaited)),
            engine.address.masked,
        )
        self._beats = BeatBatches(
            engine.clock, self._write, self._beat_alone, engine.address.masked, self._silent_after
        )
        self._purge_at = engine.clock.seconds() + _PURGE_INTERVAL
        self._outages: dict[VerdictRule, CoalescingCache[Outages]] = {}

    def open(self) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._engine.block(self._prepare, timeout=2 * _MIGRATION_DEADLINE)

    def close(self) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._engine.close()

    def register(self, host: str, binary: str, topic: str | None, version: int) -> Deferred[ServiceRecord]:
        """See IServiceRegistry.

        :raises DatabaseConflictError: another service of this host has this topic.
        """
        return Deferred.fromCoroutine(self._register(host, binary, topic, version))

    def begin(self, start: ServiceStart) -> Deferred[ServiceRecord]:
        """See IServiceRegistry.

        :raises DatabaseConflictError: another service of this host has this topic.
        """
        if not self._rows.incarnations:
            return self.register(start.host, start.binary, start.topic, start.version)
        return self._starts.begin(start)

    def beat(self, service_id: int, incarnation: int | None = None) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._beats.beat(service_id, incarnation if self._rows.incarnations else None)

    def enter(
        self,
        service_id: int,
        incarnation: int,
        state: ServiceState,
        *,
        until: float | None = None,
        reason: str | None = None,
        calls: int = 0,
    ) -> Deferred[None]:
        """See IServiceRegistry. Without the table ``novasvc_incarnations`` it does nothing."""
        if not self._rows.incarnations:
            return succeed(None)
        values = (service_id, incarnation, state, until, reason, calls)
        # One state after the other: a state that could not be written in time must not be written after the next one.
        # A stop is the last one, and better late than never.
        return self._engine.run(
            lambda connection: self._rows.enter(connection, *values), only_awaited=state != "stopped"
        )

    def prove_writable(self) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._write(rows.prove_writable)

    def get(self, service: str) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: self._rows.get(connection, service))

    def list(self, host: str | None, binary: str | None, topic: str | None) -> Deferred[Records]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: self._rows.list(connection, host, binary, topic))

    def page(self, query: ServiceQuery) -> Deferred[ServicePage]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: self._rows.page(connection, query))

    def count(self, query: ServiceQuery) -> Deferred[ServiceTotals]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: self._rows.count(connection, query))

    def update(self, service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        # An operator may have changed it back since, through another process.
        return self._engine.run(
            lambda connection: self._rows.update(connection, service_id, changes), only_awaited=True
        )

    def delete(self, service_id: int) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: rows.delete(connection, service_id))

    def find_purgeable(self, request: PurgeRequest, after: int) -> Deferred[PurgeBatch]:
        """Read what :meth:`purge` would delete.

        :param after: only rows with a greater id.
        """
        return self._engine.run(lambda connection: purge.find(connection, request, after, MAX_BATCH))

    def purge(self, request: PurgeRequest, after: int) -> Deferred[PurgeBatch]:
        """Delete rows for good, at most MAX_BATCH. Call it until there are no more.

        :param after: only rows with a greater id: those of suspect services stay, and must not be looked at again.
        """
        return self._engine.run(lambda connection: purge.purge(connection, request, after, MAX_BATCH))

    def outages(self, rule: VerdictRule) -> Deferred[Outages]:
        """See IServiceRegistry."""
        cache = self._outages.get(rule)
        if cache is None:
            if len(self._outages) >= _MOST_RULES:
                self._outages.clear()
            # As old as a heartbeat may be without a difference.
            keep = min(1.0, rule.service_down_time / 60)
            cache = self._outages[rule] = CoalescingCache(
                lambda: self._read_outages(rule), self._engine.clock, lambda _: keep
            )
        return cache.get()

    def observations(self, observer: str) -> Deferred[Observations]:
        """See IServiceRegistry."""
        if not self._rows.incarnations:
            return fail(self._no_tables())
        return self._engine.run(lambda connection: observations.read(connection, observer))

    def observe(self, observer: str, fencing: int, observations: Sequence[Observation]) -> Deferred[None]:
        """See IServiceRegistry."""
        if not self._rows.incarnations:
            return fail(self._no_tables())
        return self._engine.run(lambda connection: write_observations(connection, observer, fencing, observations))

    def hold_leases(self, request: LeaseRequest) -> Deferred[Leases]:
        """See IServiceRegistry."""
        return self._engine.run_statements(lambda connection: leases.hold(connection, request))

    def release_leases(self, topic: str, owner: str, tasks: Sequence[str]) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._engine.run_statements(lambda connection: leases.release(connection, topic, owner, tasks))

    def list_leases(self) -> Deferred[Leases]:
        """See IServiceRegistry."""
        return self._engine.run(leases.read_all)

    # -- in the reactor's thread -------------------------------------------------------------------

    async def _register(self, host: str, binary: str, topic: str | None, version: int) -> ServiceRecord:
        def read_or_create(connection: Connection) -> ServiceRecord:
            return self._rows.read_or_create(connection, host, binary, topic, version)

        try:
            return await self._engine.run(read_or_create)
        except DatabaseConflictError:
            # A concurrent transaction has committed a row with this (host, binary), which a new transaction reads, or
            # with this (host, topic), with which it conflicts again. A third attempt would find nothing else.
            pass
        try:
            return await self._engine.run(read_or_create)
        except DatabaseConflictError as error:
            raise _topic_is_taken(error, host, topic) from error

    def _begin_all(self, starts: Sequence[ServiceStart], is_awaited: Callable[[int], bool]) -> Deferred[Outcomes]:
        return self._engine.run(lambda connection: begin_all(connection, self._rows, starts, is_awaited))

    async def _begin_alone(self, start: ServiceStart, is_awaited: Callable[[], bool]) -> ServiceRecord:
        conflict: DatabaseError | None = None
        for _ in range(_BEGIN_ATTEMPTS):
            if not is_awaited():
                raise CancelledError
            # See Note [Two starts want one number].
            try:
                (outcome,) = await self._begin_all([start], lambda _: is_awaited())
            except DatabaseError as error:
                if not is_conflict(error):
                    raise
                conflict = error
            else:
                if isinstance(outcome, ServiceRecord):
                    return outcome
                if outcome is not None:
                    raise outcome
        if isinstance(conflict, DatabaseConflictError):
            raise _topic_is_taken(conflict, start.host, start.topic) from conflict
        problem = f"other starts of {start.name} change its row at the same time"
        raise conflict or DatabaseLockedError(self._engine.address.masked, problem)

    def _no_tables(self) -> DatabaseRefusedError:
        problem = "it has no tables of novasvc, so what observers were told cannot be kept; run `novasvc db upgrade`"
        return DatabaseRefusedError(self._engine.address.masked, problem)

    def _beat_alone(self, service_id: int, incarnation: int | None) -> Deferred[None]:
        late = self._silent_after()
        return self._write(lambda connection: self._rows.beat(connection, service_id, incarnation, late))

    def _read_outages(self, rule: VerdictRule) -> Deferred[Outages]:
        ours = self._rows.incarnations
        return self._engine.run(lambda connection: silences.read_outages(connection, rule, ours=ours))

    def _silent_after(self) -> float | None:
        """Return the seconds of a silence that heartbeats record; begin to delete old ones now and then."""
        if not self._rows.incarnations:
            return None
        if self._engine.clock.seconds() >= self._purge_at:
            self._purge()
        return self._late

    def _purge(self) -> None:
        self._purge_at = self._engine.clock.seconds() + _PURGE_INTERVAL

        def purged(number: int) -> None:
            if number == silences.LARGEST_PURGE:
                self._purge()

        purging = self._engine.run(silences.purge).addCallback(purged)
        purging.addErrback(lambda failure: _log.warn("old silences were not deleted: {error}", error=failure.value))

    def _write(self, change: Callable[[Connection], _Result]) -> Deferred[_Result]:
        """Run a change that proves that the database can be written.

        For a file, check also, at most once a second, that its disk has space, which an update does not need.
        """
        address, now = self._engine.address, self._engine.clock.seconds()

        def write(engine: SQLEngine) -> _Result:
            with engine.begin() as connection:
                result = change(connection)
            if address.path is not None and now >= self._next_space_check:
                try:
                    sqlite.prove_space(address.path)
                except OSError as error:
                    raise diagnose(address, error) from error
                self._next_space_check = now + _SPACE_CHECK_INTERVAL
            return result

        return self._engine.block(write)

    # -- in a worker thread ------------------------------------------------------------------------

    def _prepare(self, engine: SQLEngine) -> None:
        address = self._engine.address
        found, adoptable = None, False
        if migration.exists(address):
            with engine.connect() as connection:
                found = migration.read_revision(connection)
                # Nova's own database has every column that is used here, so no version table is added to it.
                adoptable = found is None and not self._migrate and migration.is_adoptable(connection)
        if adoptable or migration.is_head(address, found):
            self._rows = attrs.evolve(self._rows, incarnations=not adoptable)
            return
        if not self._migrate:
            problem = f"its schema has revision {found!r}, and {HEAD!r} is needed" if found else "it has no schema yet"
            raise MigrationNeededError(address.masked, problem, found=found, known=HEAD)
        if found is not None or not migration.create(address.render()):
            migration.upgrade_in_child(address, _MIGRATION_DEADLINE)
        change = f"schema migrated from {found} to {HEAD}" if found else f"schema created at {HEAD}"
        _log.info("database {url}: {change}", url=address.masked, change=change)


def _topic_is_taken(error: DatabaseConflictError, host: str, topic: str | None) -> DatabaseConflictError:
    return DatabaseConflictError(error.url, f"another service of host {host!r} has the topic {topic!r}")
