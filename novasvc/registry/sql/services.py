"""The service registry in a database that this process reaches directly."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy import Engine as SQLEngine
from sqlalchemy.sql import ColumnElement
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.interfaces import IServiceRegistry
from novasvc.registry.errors import (
    DatabaseConflictError,
    DatabaseCorruptError,
    MigrationNeededError,
    ServiceNotFoundError,
)
from novasvc.registry.query import ServicePage, ServiceQuery, ServiceTotals
from novasvc.registry.record import Records, ServiceChanges, ServiceRecord
from novasvc.registry.sql import migrate as migration
from novasvc.registry.sql import sqlite
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.registry.sql.diagnosis import diagnose
from novasvc.registry.sql.engine import Engine
from novasvc.registry.sql.queries import is_number, marker_statement, rows_statement, totals_statement
from novasvc.registry.sql.schema import GREATEST_ID, HEAD, database_now, services

_log = Logger()

DISABLED_REASON = "New service disabled by the setting enable_new_services."
"""The disabled_reason of a row that was created disabled."""

_MIGRATION_DEADLINE = 60.0
"""Seconds. An empty table takes one; altering a large table may take many more."""

_ROOM_FOR = 1.0
"""Seconds for which a successful check for room on the disk is cached."""

_NEVER = datetime(1970, 1, 1)  # noqa: DTZ001 - the table's form

# Built once: most of a statement's cost is SQLAlchemy's look-up of the compiled form by its shape.
_LIVE = services.c.deleted == 0
_OF_ID = (services.c.id == bindparam("of_id")) & _LIVE
_READ = select(services, database_now().label("now")).where(_LIVE)
_BEAT = (
    update(services)
    .where(_OF_ID)
    .values(
        report_count=services.c.report_count + 1,
        last_seen_up=database_now(),
        updated_at=database_now(),
    )
)
_PROOF = update(services).where(services.c.id == -1).values(report_count=services.c.report_count)
_DELETE = update(services).where(_OF_ID).values(deleted=services.c.id, deleted_at=database_now())


def connect_registry(
    url: str,
    *,
    reactor: Any,
    enable_new_services: bool = True,
    migrate: bool = True,
) -> "ServiceRegistry":
    """Make the registry of a database; nothing is opened yet.

    :param url: see :meth:`novasvc.registry.sql.address.DatabaseAddress.parse`.
    :param reactor: provides IReactorTime and IReactorFromThreads.
    :param enable_new_services: see :class:`ServiceRegistry`.
    :param migrate: see :class:`ServiceRegistry`.
    :raises DatabaseRefusedError: not a database URL, or no driver for it.
    """
    engine = Engine(DatabaseAddress.parse(url), reactor=reactor)
    return ServiceRegistry(engine, enable_new_services=enable_new_services, migrate=migrate)


@implementer(IServiceRegistry)
class ServiceRegistry:
    """The ``services`` table, with Nova's rows and the database's clock.

    :param engine: closed with the registry.
    :param enable_new_services: False creates new rows disabled.
    :param migrate: False fails with MigrationNeededError if a migration is due; Nova's own table needs none.
    :param new_uuid: returns the uuid of a new row, lower-case and with dashes.
    Source: novasvc.interfaces.IServiceRegistry; nova.db.main.api, the functions ``service_*``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        enable_new_services: bool = True,
        migrate: bool = True,
        new_uuid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._engine = engine
        self._enable_new_services = enable_new_services
        self._migrate = migrate
        self._new_uuid = new_uuid
        self._looks_at = 0.0

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

    def beat(self, service_id: int) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._write(lambda connection: _change(connection, _BEAT, service_id))

    def prove_writable(self) -> Deferred[None]:
        """See IServiceRegistry.

        The statement matches no row, but a read-only database or a replica refuses it.
        """
        return self._write(_try_to_write)

    def get(self, service: str) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        if is_number(service):
            return self._engine.run(lambda connection: self._one(connection, int(service)))
        wanted = services.c.uuid == service
        return self._engine.run(lambda connection: self._only(connection, wanted, service))

    def list(self, host: str | None, binary: str | None, topic: str | None) -> Deferred[Records]:
        """See IServiceRegistry."""
        given = {services.c.host: host, services.c.binary: binary, services.c.topic: topic}
        wanted = [column == value for column, value in given.items() if value is not None]
        return self._engine.run(lambda connection: self._read(connection, *wanted))

    def page(self, query: ServiceQuery) -> Deferred[ServicePage]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: self._page(connection, query))

    def count(self, query: ServiceQuery) -> Deferred[ServiceTotals]:
        """See IServiceRegistry."""

        def count(connection: Connection) -> ServiceTotals:
            statement, values = totals_statement(query)
            totals = connection.execute(statement, values).mappings().one()
            return ServiceTotals(**{name: int(number) for name, number in totals.items()})

        return self._engine.run(count)

    def update(self, service_id: int, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: self._update(connection, service_id, _columns(changes)))

    def delete(self, service_id: int) -> Deferred[None]:
        """See IServiceRegistry."""
        return self._engine.run(lambda connection: _change(connection, _DELETE, service_id))

    # -- in the reactor's thread -------------------------------------------------------------------

    async def _register(self, host: str, binary: str, topic: str | None, version: int) -> ServiceRecord:
        def read_or_create(connection: Connection) -> ServiceRecord:
            return self._read_or_create(connection, host, binary, topic, version)

        try:
            return await self._engine.run(read_or_create)
        except DatabaseConflictError:
            pass  # another was first; a new transaction sees its row
        try:
            return await self._engine.run(read_or_create)
        except DatabaseConflictError as error:
            problem = f"another service of host {host!r} has the topic {topic!r}"
            raise DatabaseConflictError(error.url, problem) from error

    def _write(self, change: Callable[[Connection], None]) -> Deferred[None]:
        """Run a change that is to prove something: in a file, once a second, that there is room for more as well."""
        address, now = self._engine.address, self._engine.seconds()

        def write(engine: SQLEngine) -> None:
            with engine.begin() as connection:
                change(connection)
            if address.path is not None and now >= self._looks_at:
                try:
                    sqlite.prove_room(address.path)
                except OSError as error:
                    raise diagnose(address, error) from error
                self._looks_at = now + _ROOM_FOR

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
            return
        if not self._migrate:
            problem = f"its schema has revision {found!r}, and {HEAD!r} is needed" if found else "it has no schema yet"
            raise MigrationNeededError(address.masked, problem, found=found, known=HEAD)
        if found is not None or not migration.create(address.render()):
            migration.upgrade_in_child(address, _MIGRATION_DEADLINE)
        change = f"schema migrated from {found} to {HEAD}" if found else f"schema created at {HEAD}"
        _log.info("database {url}: {change}", url=address.masked, change=change)

    def _read_or_create(
        self, connection: Connection, host: str, binary: str, topic: str | None, version: int
    ) -> ServiceRecord:
        wanted = (services.c.host == host) & (services.c.binary == binary)
        found = self._read(connection, wanted)
        if found:
            return self._update(connection, found[0].id, {"version": version})
        disabled = not self._enable_new_services
        # All columns, because none has a default in the database: see novasvc.registry.sql.schema.
        connection.execute(
            insert(services).values(
                created_at=database_now(),
                updated_at=None,
                deleted_at=None,
                host=host,
                binary=binary,
                topic=topic,
                report_count=0,
                disabled=disabled,
                deleted=0,
                disabled_reason=DISABLED_REASON if disabled else None,
                last_seen_up=None,
                forced_down=False,
                version=version,
                uuid=self._new_uuid(),
            )
        )
        return self._only(connection, wanted, f"{binary}@{host}")

    def _update(self, connection: Connection, service_id: int, values: dict[str, Any]) -> ServiceRecord:
        record = self._one(connection, service_id)
        changed = {name: value for name, value in values.items() if getattr(record, name) != value}
        if not changed:
            return record
        _change(connection, update(services).where(_OF_ID).values(updated_at=database_now(), **changed), service_id)
        return self._one(connection, service_id)

    def _one(self, connection: Connection, service_id: int) -> ServiceRecord:
        return self._only(connection, services.c.id == _checked(service_id), str(service_id))

    def _only(self, connection: Connection, wanted: ColumnElement[bool], name: str) -> ServiceRecord:
        found = self._read(connection, wanted)
        if not found:
            raise ServiceNotFoundError(name)
        return found[0]

    def _page(self, connection: Connection, query: ServiceQuery) -> ServicePage:
        marker = None
        if query.after is not None:
            with self._readable():
                marker = connection.execute(marker_statement(query)).first()
            if marker is None:
                raise ServiceNotFoundError(query.after)
        statement, values = rows_statement(query, marker)
        records = self._records(connection, statement, values)
        return ServicePage(records[: query.limit], query.limit is not None and len(records) > query.limit)

    def _read(self, connection: Connection, *wanted: ColumnElement[bool]) -> Records:
        order = (services.c.binary, services.c.host, services.c.id)
        return self._records(connection, _READ.where(*wanted).order_by(*order), {})

    def _records(self, connection: Connection, statement: Any, values: dict[str, Any]) -> Records:
        with self._readable():
            return [_record(row) for row in connection.execute(statement, values).all()]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            # SQLite stores a value of any type, and SQLAlchemy cannot parse it as a time stamp.
            problem = f"the table services has a value that cannot be read: {error}"
            raise DatabaseCorruptError(self._engine.address.masked, problem) from error


def _checked(service_id: int) -> int:
    # PostgreSQL and SQLite reject larger numbers with different errors.
    if not 0 <= service_id <= GREATEST_ID:
        raise ServiceNotFoundError(str(service_id))
    return service_id


def _change(connection: Connection, statement: Any, service_id: int) -> None:
    if connection.execute(statement, {"of_id": _checked(service_id)}).rowcount == 0:
        raise ServiceNotFoundError(str(service_id))


def _try_to_write(connection: Connection) -> None:
    connection.execute(_PROOF)


def _columns(changes: ServiceChanges) -> dict[str, Any]:
    """Return the columns that an operator's changes write. Enabling or disabling clears the old reason."""
    values: dict[str, Any] = {}
    if changes.disabled is not None:
        values |= {"disabled": changes.disabled, "disabled_reason": changes.disabled_reason}
        if not changes.disabled:
            values["disabled_reason"] = None
    elif changes.disabled_reason is not None:
        values["disabled_reason"] = changes.disabled_reason
    if changes.forced_down is not None:
        values["forced_down"] = changes.forced_down
    return values


def _record(row: Sequence[Any]) -> ServiceRecord:
    # By position, which takes half the time of access by name.
    (
        created_at,
        updated_at,
        _,
        number,
        host,
        binary,
        topic,
        report_count,
        disabled,
        _,
        disabled_reason,
        last_seen_up,
        forced_down,
        version,
        uuid_,
        now,
    ) = row
    # Other writers may leave NULL where Nova expects a value; read it as the default.
    return ServiceRecord(
        id=number,
        uuid=uuid_ or "",
        host=host or "",
        binary=binary or "",
        topic=topic,
        disabled=bool(disabled),
        disabled_reason=disabled_reason,
        forced_down=bool(forced_down),
        report_count=report_count,
        created_at=created_at,
        updated_at=updated_at,
        last_seen_up=last_seen_up,
        version=version or 0,
        age=(now - (last_seen_up or created_at or _NEVER)).total_seconds(),
    )
