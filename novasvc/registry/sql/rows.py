"""Rows of the ``services`` table: what one transaction reads and writes, in a worker thread."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.sql import ColumnElement

from novasvc.registry.errors import DatabaseCorruptError, ServiceNotFoundError
from novasvc.registry.fencing import superseded
from novasvc.registry.query import GREATEST_ID, ServicePage, ServiceQuery, ServiceTotals, is_id
from novasvc.registry.record import Records, ServiceChanges, ServiceRecord
from novasvc.registry.sql import incarnations, silences
from novasvc.registry.sql.queries import ROWS, ROWS_ALONE, marker_statement, rows_statement, totals_statement
from novasvc.registry.sql.schema import database_now, services

DISABLED_REASON = "New service disabled by the setting enable_new_services."
"""The disabled_reason of a row that was created disabled."""

_NEVER = datetime(1970, 1, 1)  # noqa: DTZ001 - the table's form

# Built once: most of a statement's cost is SQLAlchemy's look-up of the compiled form by its shape.
_LIVE = services.c.deleted == 0
_OF_ID = (services.c.id == bindparam("of_id")) & _LIVE
READ, _READ_ALONE = ROWS.where(_LIVE), ROWS_ALONE.where(_LIVE)
"""Reads the live rows."""
_PLACES = len(ROWS_ALONE.selected_columns)
_ONE, _ONE_ALONE = (read.where(services.c.id == bindparam("of_id")) for read in (READ, _READ_ALONE))
# All columns, because none has a default in the database: see novasvc.registry.sql.schema.
_INSERT = insert(services).values(
    created_at=database_now(),
    updated_at=None,
    deleted_at=None,
    host=bindparam("new_host"),
    binary=bindparam("new_binary"),
    topic=bindparam("new_topic"),
    report_count=0,
    disabled=bindparam("new_disabled"),
    deleted=0,
    disabled_reason=bindparam("new_reason"),
    last_seen_up=None,
    forced_down=False,
    version=bindparam("new_version"),
    uuid=bindparam("new_uuid"),
)
# SQLite gives the id of a row that was purged to the next new one, if it was the greatest.
_GREATEST = select(func.coalesce(func.max(services.c.id), 0)).scalar_subquery()
_GREATEST_PURGED = select(func.coalesce(func.max(incarnations.OF_SERVICE), 0)).scalar_subquery()
_INSERT_IN_FILE = _INSERT.values(id=func.max(_GREATEST, _GREATEST_PURGED) + 1)
BEAT = update(services).values(
    report_count=services.c.report_count + 1, last_seen_up=database_now(), updated_at=database_now()
)
"""What a heartbeat writes; without a condition."""
_BEAT = BEAT.where(_OF_ID)
_BEGAN = select(silences.BEGAN).where(_OF_ID).with_for_update()
SET_VERSION = update(services).where(_OF_ID).values(version=bindparam("new_version"), updated_at=database_now())
_PROOF = update(services).where(services.c.id == -1).values(report_count=services.c.report_count)
_DELETE = update(services).where(_OF_ID).values(deleted=services.c.id, deleted_at=database_now())


@attrs.frozen
class ServiceRows:
    """Reads and writes rows. The caller opens and commits the transaction.

    :param masked_url: URL of the database, for errors.
    :param enable_new_services: False creates new rows disabled.
    :param new_uuid: function that returns the uuid of a new row, lower-case and with dashes.
    :param incarnations: whether the database has the table ``novasvc_incarnations``. Nova's own has not.
    """

    _masked_url: str
    _enable_new_services: bool
    _new_uuid: Callable[[], str]
    incarnations: bool = True

    def get(self, connection: Connection, service: str) -> ServiceRecord:
        """Read one row by its id in decimal, or its uuid."""
        if is_id(service):
            return self._one(connection, int(service))
        return self._only(connection, services.c.uuid == service, service)

    def list(self, connection: Connection, host: str | None, binary: str | None, topic: str | None) -> Records:
        """Read the live rows, ordered by binary, host, id."""
        given = {services.c.host: host, services.c.binary: binary, services.c.topic: topic}
        wanted = [column == value for column, value in given.items() if value is not None]
        return self._read(connection, *wanted)

    def count(self, connection: Connection, query: ServiceQuery) -> ServiceTotals:
        """Count the live rows that match a query."""
        statement, values = totals_statement(query, with_incarnations=self.incarnations)
        totals = connection.execute(statement, values).mappings().one()
        return ServiceTotals(**{name: int(number) for name, number in totals.items()})

    def read_or_create(
        self, connection: Connection, host: str, binary: str, topic: str | None, version: int
    ) -> ServiceRecord:
        """Return the row of (host, binary), created if there is none.

        :raises IntegrityError: another transaction has created a row with the same key since; retry.
        """
        wanted = (services.c.host == host) & (services.c.binary == binary)
        found = self._read(connection, wanted)
        if found:
            return self._write(connection, found[0].id, {"version": version})
        self.insert(connection, [self.new_row(host, binary, topic, version)])
        return self._only(connection, wanted, f"{binary}@{host}")

    def enter(self, connection: Connection, service_id: int, number: int, *state: Any) -> None:
        """Write the state of an incarnation.

        :param state: the further arguments of :func:`novasvc.registry.sql.incarnations.enter`.
        :raises ServiceSupersededError: the service has another incarnation.
        """
        if not incarnations.enter(connection, _checked(service_id), number, *state):
            raise superseded(self._one(connection, service_id), number)

    def beat(
        self, connection: Connection, service_id: int, number: int | None, silent_after: float | None = None
    ) -> None:
        """Add one to report_count and stamp last_seen_up.

        :param number: the incarnation; None checks nothing.
        :param silent_after: seconds of a silence that is recorded; None records none.
        """
        if number is not None and not incarnations.may_beat(connection, _checked(service_id), number):
            raise superseded(self._one(connection, service_id), number)
        began = connection.execute(_BEGAN, {"of_id": _checked(service_id), "silent_after": silent_after}).scalar()
        if began is not None:
            silences.record(connection, [(service_id, began)])
        _change(connection, _BEAT, service_id)

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, each with an id that no row ever had.

        :param rows: values of :meth:`new_row`.
        """
        in_file = connection.dialect.name == "sqlite" and self.incarnations
        connection.execute(_INSERT_IN_FILE if in_file else _INSERT, rows)

    def new_row(self, host: str, binary: str, topic: str | None, version: int) -> dict[str, Any]:
        """Return the values of a new row, for :meth:`insert`."""
        disabled = not self._enable_new_services
        return {
            "new_host": host,
            "new_binary": binary,
            "new_topic": topic,
            "new_disabled": disabled,
            "new_reason": DISABLED_REASON if disabled else None,
            "new_version": version,
            "new_uuid": self._new_uuid(),
        }

    def update(self, connection: Connection, service_id: int, changes: ServiceChanges) -> ServiceRecord:
        """Change a row; enabling or disabling it clears the old reason."""
        return self._write(connection, service_id, _columns(changes))

    def _write(self, connection: Connection, service_id: int, values: dict[str, Any]) -> ServiceRecord:
        # A change to the present values writes nothing, so that updated_at stays. The row is read without a lock: a
        # concurrent change that is committed between read and write has the effect of having come before or after this
        # one, at READ COMMITTED (PostgreSQL) as at REPEATABLE READ (InnoDB). SQLite holds its write lock since BEGIN.
        record = self._one(connection, service_id)
        changed = {name: value for name, value in values.items() if getattr(record, name) != value}
        if not changed:
            return record
        _change(connection, update(services).where(_OF_ID).values(updated_at=database_now(), **changed), service_id)
        return self._one(connection, service_id)

    def _one(self, connection: Connection, service_id: int) -> ServiceRecord:
        statement = _ONE if self.incarnations else _ONE_ALONE
        found = self._records(connection, statement, {"of_id": _checked(service_id)})
        if not found:
            raise ServiceNotFoundError(str(service_id))
        return found[0]

    def _only(self, connection: Connection, wanted: ColumnElement[bool], name: str) -> ServiceRecord:
        found = self._read(connection, wanted)
        if not found:
            raise ServiceNotFoundError(name)
        return found[0]

    def page(self, connection: Connection, query: ServiceQuery) -> ServicePage:
        """Read one page of the live rows."""
        marker: Sequence[Any] | None = None
        if query.after is not None and query.sort == "id" and is_id(query.after):
            marker = [int(query.after)]  # its row may have been purged
        elif query.after is not None:
            with self.readable():
                marker = connection.execute(marker_statement(query)).first()
            if marker is None:
                raise ServiceNotFoundError(query.after)
        statement, values = rows_statement(query, marker, with_incarnations=self.incarnations)
        records = self._records(connection, statement, values)
        return ServicePage(records[: query.limit], query.limit is not None and len(records) > query.limit)

    def _read(self, connection: Connection, *wanted: ColumnElement[bool]) -> Records:
        order = (services.c.binary, services.c.host, services.c.id)
        statement = READ if self.incarnations else _READ_ALONE
        return self._records(connection, statement.where(*wanted).order_by(*order), {})

    def _records(self, connection: Connection, statement: Any, values: dict[str, Any]) -> Records:
        with self.readable():
            return [record_of(row) for row in connection.execute(statement, values).all()]

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Read values within this block: one that cannot be read is a DatabaseCorruptError."""
        try:
            yield
        except UnicodeEncodeError:
            raise  # by a driver: a parameter of the statement has a lone surrogate
        except ValueError as error:
            # SQLite stores a value of any type, and SQLAlchemy cannot parse it as a time stamp.
            problem = f"the table services has a value that cannot be read: {error}"
            raise DatabaseCorruptError(self._masked_url, problem) from error


def _checked(service_id: int) -> int:
    # PostgreSQL and SQLite reject larger numbers with different errors.
    if not 0 <= service_id <= GREATEST_ID:
        raise ServiceNotFoundError(str(service_id))
    return service_id


def delete(connection: Connection, service_id: int) -> None:
    """Soft-delete a row."""
    _change(connection, _DELETE, service_id)


def prove_writable(connection: Connection) -> None:
    """Execute a statement that matches no row, but that a read-only database or a replica refuses."""
    connection.execute(_PROOF)


def _change(connection: Connection, statement: Any, service_id: int) -> None:
    if connection.execute(statement, {"of_id": _checked(service_id)}).rowcount == 0:
        raise ServiceNotFoundError(str(service_id))


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


def record_of(row: Sequence[Any]) -> ServiceRecord:
    """Return the record of the columns of :data:`novasvc.registry.sql.queries.ROWS`, or of ROWS_ALONE."""
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
    ) = row[:_PLACES]
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
        incarnation=incarnations.read(row[_PLACES:]) if len(row) > _PLACES else None,
    )
