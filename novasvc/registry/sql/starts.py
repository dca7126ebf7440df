"""Starts of services: what one transaction reads and writes to begin incarnations, in a worker thread."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
from sqlalchemy import ARRAY, ColumnElement, Connection, Table, any_, bindparam, select

from novasvc.errors import NovasvcError
from novasvc.registry.errors import ServiceNotFoundError, ServiceTwinError
from novasvc.registry.incarnation import LatestStart, ServiceStart, check_twin
from novasvc.registry.record import ServiceRecord
from novasvc.registry.sql import incarnations
from novasvc.registry.sql.rows import READ, SET_VERSION, ServiceRows, record_of
from novasvc.registry.sql.schema import incarnations as table
from novasvc.registry.sql.schema import services

Outcome = ServiceRecord | NovasvcError | None
"""The row of a start that has begun, why it is refused, or None: it is in conflict with another one, and must retry, or
nobody waits for it.
"""

Outcomes = list[Outcome]


def _is_in(column: ColumnElement[Any], name: str, *, as_array: bool) -> ColumnElement[bool]:
    """Return the condition that a column has one of the values of a parameter, which is a list."""
    if as_array:
        # A type without the column's length, to which PostgreSQL would cut a longer value.
        return column == any_(bindparam(name, type_=ARRAY(type(column.type)())))
    return column.in_(bindparam(name, expanding=True))


class _Statements:
    """What reads services and their incarnations.

    :param as_array: whether a list is one parameter, so that the text of a statement does not depend on its length, and
        it is parsed once; only PostgreSQL has arrays. Otherwise each value is a parameter of its own.
    """

    def __init__(self, *, as_array: bool) -> None:
        def named(of: Table) -> ColumnElement[bool]:
            return _is_in(of.c.host, "hosts", as_array=as_array) & _is_in(of.c.binary, "binaries", as_array=as_array)

        read = READ.add_columns(table.c.owner, table.c.lock_id)
        self.latest = read.where(named(services))
        self.read_by_id = read.where(_is_in(services.c.id, "ids", as_array=as_array))
        ids = select(services.c.id, services.c.host, services.c.binary)
        self.read_ids = ids.where(named(services), services.c.deleted == 0)
        self.kept = select(table.c.host, table.c.binary, table.c.number, table.c.owner).where(named(table))

    @staticmethod
    def for_database(connection: Connection) -> "_Statements":
        """Return the statements for the database of a connection."""
        return _WITH_ARRAYS if connection.dialect.name == "postgresql" else _WITHOUT_ARRAYS


_WITH_ARRAYS, _WITHOUT_ARRAYS = _Statements(as_array=True), _Statements(as_array=False)
_FOLDING = {"mysql", "mariadb"}
"""Databases in which the names of services differ by more than the case of letters."""

Name = tuple[str, str]


@attrs.frozen(eq=False)
class _Found:
    """The row of a service, with what only the registry knows of its latest start."""

    record: ServiceRecord
    owner: str | None
    lock: str | None
    quiet: float

    @classmethod
    def of(cls, row: Sequence[Any]) -> "_Found":
        record = record_of(row[:-2])
        seen = record.last_seen_up
        quiet = record.age
        if record.incarnation is not None:
            # The row's age counts from the last heartbeat, or from the creation of the row.
            said = record.incarnation.said
            heard = said if seen is None else max(seen, said)
            quiet -= (heard - (seen or record.created_at or heard)).total_seconds()
        return cls(record, row[-2], row[-1], quiet)


def begin_all(
    connection: Connection, rows: ServiceRows, starts: Sequence[ServiceStart], is_awaited: Callable[[int], bool]
) -> list[Outcome]:
    """Begin the next incarnations of services; see Note [Two starts want one number].

    Several starts of one service are judged one after the other.

    :param is_awaited: takes the place of a start; returns False if its caller has given up, as it may while this
        transaction waits for the database. Such a start may have begun elsewhere, or be dead, so it is left out.
    :return: their outcomes, in the same order; None for those left out.
    :raises IntegrityError: another transaction has created one of the rows since; retry.
    """
    folding = connection.dialect.name in _FOLDING
    outcomes: dict[int, Outcome] = {}
    left = dict(enumerate(starts))
    while left:
        with rows.readable():
            found = _read(connection, _Statements.for_database(connection).latest, left.values())
        left = {place: start for place, start in left.items() if is_awaited(place)}
        latest = {_name_of(each.record, folding=folding): each for each in found}
        taking: dict[Name, tuple[int, ServiceStart, _Found | None]] = {}
        for place, start in left.items():
            name = _name_of(start, folding=folding)
            outcome = _judge(connection, rows, start, latest.get(name))
            if outcome is not None:
                outcomes[place] = outcome
            elif name not in taking:  # a second one is judged again when this one has begun
                taking[name] = place, start, latest.get(name)
        taken = _take(connection, rows, list(taking.values()), folding=folding)
        lost = {_name_of(starts[place], folding=folding) for place, outcome in taken.items() if outcome is None}
        outcomes |= taken
        left = {place: start for place, start in left.items() if place not in outcomes}
        for place, start in list(left.items()):
            if _name_of(start, folding=folding) in lost:
                outcomes[place] = None
                del left[place]
    return [outcomes.get(place) for place in range(len(starts))]


def _judge(
    connection: Connection, rows: ServiceRows, start: ServiceStart, found: _Found | None
) -> ServiceRecord | ServiceTwinError | None:
    """Return the outcome of a start that takes no new number; None if it may take the next one."""
    try:
        return None if found is None or not _has_begun(start, found) else _continue(connection, rows, start, found)
    except ServiceTwinError as error:
        return error


def _has_begun(start: ServiceStart, found: _Found) -> bool:
    """Return whether a start has the latest incarnation already.

    :raises ServiceTwinError: another start has it, and is alive.
    """
    incarnation = found.record.incarnation
    if incarnation is None or found.owner is None:
        return False
    if found.owner == start.owner:
        return True
    latest = LatestStart(
        incarnation=incarnation,
        owner=found.owner,
        lock=found.lock,
        forced_down=found.record.forced_down,
        quiet=found.quiet,
        beats=found.record.report_count,
    )
    check_twin(start, latest)
    return False


def _continue(connection: Connection, rows: ServiceRows, start: ServiceStart, found: _Found) -> ServiceRecord:
    """Write what may have changed since a start has begun."""
    record, incarnation = found.record, found.record.incarnation
    assert incarnation is not None
    if (incarnation.zone, incarnation.tags, record.version) == (start.zone, start.tags, start.version):
        return record
    incarnations.describe(connection, start, record.id)
    if record.version != start.version:
        connection.execute(SET_VERSION, {"of_id": record.id, "new_version": start.version})
    return rows.get(connection, str(record.id))


def _take(
    connection: Connection, rows: ServiceRows, taking: list[tuple[int, ServiceStart, _Found | None]], *, folding: bool
) -> dict[int, Outcome]:
    """Take the next numbers; the outcomes by the places of the starts."""
    unnumbered = [start for _, start, found in taking if found is None or found.record.incarnation is None]
    kept: dict[Name, tuple[int, str]] = {}
    if unnumbered:
        # A service without a row, or without a number, may have had another row, which was deleted.
        found_kept = connection.execute(_Statements.for_database(connection).kept, _names(unnumbered)).all()
        kept = {_folded((host, binary), folding=folding): (number, owner) for host, binary, number, owner in found_kept}
    outcomes: dict[int, Outcome] = {}
    wanted: dict[int, tuple[ServiceStart, _Found | None]] = {}
    for place, start, found in taking:
        number, owner = kept.get(_name_of(start, folding=folding), (0, None))
        if found is None and owner == start.owner:
            outcomes[place] = ServiceNotFoundError(start.name)  # its row was deleted
        else:
            wanted[place] = start, found
    if not wanted:
        return outcomes
    ids = _create(connection, rows, [start for start, found in wanted.values() if found is None], folding=folding)
    new: list[dict[str, Any]] = []
    numbered: list[dict[str, Any]] = []
    for start, found in wanted.values():
        incarnation = None if found is None else found.record.incarnation
        name = _name_of(start, folding=folding)
        number = kept.get(name, (0, ""))[0] if incarnation is None else incarnation.number
        service_id = ids[name] if found is None else found.record.id
        owned = (start.host, start.binary) if found is None else (found.record.host, found.record.binary)
        values = incarnations.values_of(
            start, service_id, owned, number, 0 if found is None else found.record.report_count
        )
        (numbered if number else new).append(values)
        ids[name] = service_id
    incarnations.write(connection, new, numbered)
    begun = _read_begun(connection, rows, [ids[_name_of(start, folding=folding)] for start, _ in wanted.values()])
    stale = []
    for place, (start, _) in wanted.items():
        found = begun.get(ids[_name_of(start, folding=folding)])
        won = found is not None and found.owner == start.owner
        outcomes[place] = found.record if won and found is not None else None
        if won and found is not None and found.record.version != start.version:
            stale.append((place, start, found.record.id))
    if stale:
        connection.execute(SET_VERSION, [{"of_id": number, "new_version": start.version} for _, start, number in stale])
        begun = _read_begun(connection, rows, [number for _, _, number in stale])
        outcomes |= {place: begun[number].record for place, _, number in stale}
    return outcomes


def _create(
    connection: Connection, rows: ServiceRows, starts: Sequence[ServiceStart], *, folding: bool
) -> dict[Name, int]:
    """Insert rows of services, and return their ids."""
    if not starts:
        return {}
    rows.insert(connection, [rows.new_row(each.host, each.binary, each.topic, each.version) for each in starts])
    found = connection.execute(_Statements.for_database(connection).read_ids, _names(starts)).all()
    return {_folded((host, binary), folding=folding): number for number, host, binary in found}


def _read(connection: Connection, statement: Any, starts: Iterable[ServiceStart]) -> list[_Found]:
    return [_Found.of(row) for row in connection.execute(statement, _names(starts)).all()]


def _read_begun(connection: Connection, rows: ServiceRows, ids: Sequence[int]) -> dict[int, _Found]:
    with rows.readable():
        rows_of_ids = connection.execute(_Statements.for_database(connection).read_by_id, {"ids": list(ids)}).all()
        found = [_Found.of(row) for row in rows_of_ids]
    return {each.record.id: each for each in found}


def _names(starts: Iterable[ServiceStart]) -> dict[str, list[str]]:
    starts = list(starts)
    return {"hosts": [*{each.host: None for each in starts}], "binaries": [*{each.binary: None for each in starts}]}


def _name_of(service: ServiceStart | ServiceRecord, *, folding: bool) -> Name:
    return _folded((service.host, service.binary), folding=folding)


def _folded(name: Name, *, folding: bool) -> Name:
    return (name[0].casefold(), name[1].casefold()) if folding else name
