"""Queries of the ``services`` table: parts of it, in an order, and how many rows there are."""

from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, bindparam, case, distinct, false, func, not_, or_, select, tuple_
from sqlalchemy import Integer as SQLInteger

from novasvc.registry.query import ServiceQuery
from novasvc.registry.sql.schema import GREATEST_ID, database_ago, database_now, services

# Note [Statements that are made once]
#
# To write a statement takes SQLAlchemy longer than it takes a database to answer it. Its text depends on which of a
# query's fields are given, and not on their values, so each text is made once and its values are bound to it.

_NEVER = datetime(1970, 1, 1)  # noqa: DTZ001 - the table's form
_ROWS = select(services, database_now().label("now"))
_LIVE = services.c.deleted == 0
# Foreign writers leave NULL, which compares with nothing.
_FORCED = func.coalesce(services.c.forced_down, false())
_DISABLED = func.coalesce(services.c.disabled, false())
_SEEN = func.coalesce(services.c.last_seen_up, services.c.created_at, _NEVER)
_ALIVE = database_ago(bindparam("service_down_time")) <= _SEEN
_UP = not_(_FORCED) & _ALIVE
_HOST, _BINARY = func.coalesce(services.c.host, ""), func.coalesce(services.c.binary, "")
_SORTS: dict[str, tuple[Any, ...]] = {
    "name": (_BINARY, _HOST, services.c.id),
    "host": (_HOST, _BINARY, services.c.id),
    "seen": (_SEEN, services.c.id),
    "id": (services.c.id,),
}
_SEARCHED = (services.c.host, services.c.binary, services.c.topic, services.c.disabled_reason)
_DIGITS = len(str(GREATEST_ID))
_ESCAPE = "/"
"""Not the backslash, which MySQL's texts escape by themselves."""


def rows_statement(query: ServiceQuery, mark: tuple[Any, ...] | None) -> tuple[Select[Any], dict[str, Any]]:
    """Return what reads the rows of a query and, if it has a limit, one row more; and what is to be bound to it.

    :param mark: what :func:`mark_statement` found; None begins at the beginning.
    """
    values = _values(query)
    if mark is not None:
        values |= {f"mark{place}": value for place, value in enumerate(mark)}
    if query.limit is not None:
        values["limit"] = query.limit + 1
    return _rows(_shape(query), query.sort, query.descending, mark is not None), values


def totals_statement(query: ServiceQuery) -> tuple[Select[Any], dict[str, Any]]:
    """Return what reads the columns of :class:`~novasvc.registry.query.ServiceTotals`, and its parameters."""
    return _totals(_shape(query)), {**_values(query), "service_down_time": query.service_down_time}


def mark_statement(query: ServiceQuery) -> Select[Any]:
    """Return what reads the place of the row that a query comes after, deleted or not."""
    after = query.after or ""
    wanted = services.c.id == int(after) if is_number(after) else services.c.uuid == after
    return select(*_SORTS[query.sort]).where(wanted)


def is_number(service: str) -> bool:
    """Tell whether a service is named by its id; if not, it is by its uuid, or there is none of the name."""
    return service.isascii() and service.isdecimal() and len(service) <= _DIGITS and int(service) <= GREATEST_ID


def _shape(query: ServiceQuery) -> frozenset[str]:
    """Return what a statement's text depends on: the fields that are given, and which way if they are flags."""
    shape = {name for name in ("host", "binary", "topic", "text", "limit") if getattr(query, name) is not None}
    if query.with_topic:
        shape.add("with_topic")
    shape |= {f"{name} {value}" for name in ("disabled", "up") if (value := getattr(query, name)) is not None}
    return frozenset(shape)


def _values(query: ServiceQuery) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: value for name in ("host", "binary", "topic") if (value := getattr(query, name)) is not None
    }
    if query.up is not None:
        values["service_down_time"] = query.service_down_time
    if query.text is not None:
        values["text"] = f"%{_escaped(query.text)}%"
    return values


def _escaped(text: str) -> str:
    for letter in (_ESCAPE, "%", "_"):
        text = text.replace(letter, _ESCAPE + letter)
    return text


def _wanted(shape: frozenset[str]) -> list[ColumnElement[bool]]:
    found = func.lower(bindparam("text"))  # by the database, too: it knows fewer letters than Python
    filters: dict[str, ColumnElement[bool]] = {
        **{name: services.c[name] == bindparam(name) for name in ("host", "binary", "topic")},
        "with_topic": services.c.topic.is_not(None),
        "disabled True": _DISABLED,
        "disabled False": not_(_DISABLED),
        "up True": _UP,
        "up False": not_(_UP),
        "text": or_(*(func.lower(column).like(found, escape=_ESCAPE) for column in _SEARCHED)),
    }
    return [_LIVE, *(wanted for name, wanted in filters.items() if name in shape)]


@lru_cache(maxsize=256)
def _rows(shape: frozenset[str], sort: str, descending: bool, after: bool) -> Select[Any]:  # noqa: FBT001
    keys = _SORTS[sort]
    statement = _ROWS.where(*_wanted(shape)).order_by(*(key.desc() if descending else key for key in keys))
    if after:
        place = tuple_(*keys)
        mark = tuple_(*(bindparam(f"mark{number}", type_=key.type) for number, key in enumerate(keys)))
        statement = statement.where(place < mark if descending else place > mark)
    if "limit" in shape:
        statement = statement.limit(bindparam("limit", type_=SQLInteger()))
    return statement


@lru_cache(maxsize=256)
def _totals(shape: frozenset[str]) -> Select[Any]:
    def counted(wanted: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((wanted, 1), else_=0)), 0)

    columns: dict[str, ColumnElement[int]] = {
        "services": func.count(),
        "hosts": func.count(distinct(services.c.host)),
        "up": counted(_UP),
        "down": counted(not_(_FORCED) & not_(_ALIVE)),
        "forced_down": counted(_FORCED),
        "disabled": counted(_DISABLED),
    }
    totals: Any = select(*(column.label(name) for name, column in columns.items()))
    return cast("Select[Any]", totals.where(*_wanted(shape)))
